"""Files that are right in themselves, hashes and chain included, by a writer who lies or wants the reader to stumble.

`verify` must name the entry, and nothing may end in anything but `LedgerCorrupted` or figures that hold.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from secfl.crypto.identity import Directory
from secfl.dp.rdp import rdp_curve
from secfl.errors import LedgerCorrupted, LocalProtocolError, PrivacyError
from secfl.guarantees import Visibility
from secfl.ledger import Budget, Composed, Family, NonPrivate, Placement, PrivacyLedger, SiteNoise
from secfl.ledger.canonical import parse_line
from secfl.ledger.checkpoints import Checkpoint
from secfl.ledger.entry import GENESIS, encode_entry, guarantee_to_json
from secfl.ledger.sights import sampler_error, seen_event
from secfl.ledger.verify import Depth, verify_file

TIME = "2026-01-02T03:04:05Z"


def commit_of(workshop):
    """The commit of the reservation at entry 2."""
    return {
        "reservation": 2,
        "survivors": list(workshop.cohort),
        "sum_digest": "00" * 32,
        "wrap_probability": 0,
        "total_variation": 0,
    }


@pytest.fixture
def written(tmp_path, workshop):
    """Writes open, terms, reserve and commit with changed members and right hashes; returns the file."""

    def write(*, header=None, event=None, guarantee=None, commit=None):
        noise = workshop.noise(count=1).to_json() if event is None or "kind" not in event else {}
        bodies = [
            ("open", workshop.header().to_json() | (header or {})),
            (
                "terms",
                {
                    "event": noise | (event or {}),
                    "guarantee": guarantee_to_json(workshop.guarantee()) | (guarantee or {}),
                    "unprotected": [],
                },
            ),
            ("reserve", {"round": 0, "attempt": 0, "terms": 1, "spec_digest": "00" * 32, "digests": {}}),
            (
                "commit",
                commit_of(workshop) | (commit or {}),
            ),
        ]
        path = tmp_path / "written.jsonl"
        previous, lines = GENESIS, []
        for index, (kind, body) in enumerate(bodies):
            line, digest = encode_entry(index=index, kind=kind, body=body, time=TIME, previous=previous)
            lines.append(line + b"\n")
            previous = digest.hex()
        path.write_bytes(b"".join(lines))
        return path

    return write


def one_more(folder, workshop, kind, body):
    """A ledger of header, terms and one reservation, and a further entry that its writer made up."""
    path = folder / "more.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        ledger.reserve(workshop.noise(), workshop.guarantee())
        previous = ledger.state.last_hash.hex()
    line, _ = encode_entry(index=3, kind=kind, body=body, time=TIME, previous=previous)
    path.write_bytes(path.read_bytes() + line + b"\n")
    return path


def signed_end(folder, workshop, *, signers, size=1):
    """A ledger of one entry and a close that these clients really signed, whatever it says."""
    path = folder / "end.jsonl"
    with PrivacyLedger.create(path, workshop.header()) as ledger:
        state = ledger.state
        proposal = Checkpoint(
            kind="close",
            run_id=workshop.header().run_id,
            size=size,
            root=state.tree.root(),
            time=TIME,
            reason="done",
            signers=signers,
        )
        own = {identity.name: identity for identity in workshop.identities}
        signatures = {name: own[name].sign(proposal.purpose, *proposal.fields()) for name in signers}
        body = replace(proposal, signatures=signatures).body()
        line, _ = encode_entry(index=1, kind="close", body=body, time=TIME, previous=state.last_hash.hex())
    path.write_bytes(path.read_bytes() + line + b"\n")
    return path


@pytest.mark.parametrize("depth", Depth)
class TestExtremes:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"event": {"noise_multiplier": 1e-300}}, "noise_multiplier"),
            ({"event": {"noise_multiplier": 1e300}}, "noise_multiplier"),
            (
                {"event": {"noise_multiplier": 1e-100, "sampling": "none", "sampling_rate": 1}},
                "noise_multiplier",
            ),
            ({"event": {"family": "discrete_gaussian", "sensitivity": 1e300}}, "sensitivity"),
            ({"event": {"family": "skellam", "sensitivity": 1e-200}}, "sensitivity"),
            ({"guarantee": {"advantage_log2": 5000}}, "advantage_log2"),
            ({"guarantee": {"advantage_log2": 1e308}}, "advantage_log2"),
            ({"event": {"count": 1.5}}, "count"),
            ({"event": {"noise_multiplier": "2"}}, "noise_multiplier"),
        ],
    )
    def test_numbers_beyond_all_sense_are_named(self, written, depth, changes, field):
        with pytest.raises(LedgerCorrupted, match=field) as caught:
            verify_file(written(**changes), depth=depth)
        assert caught.value.entry == 1

    @pytest.mark.parametrize(
        "commit",
        [{"total_variation": "1e-9"}, {"total_variation": -1}, {"survivors": ["a", "a", "b", "c", "d"]}],
    )
    def test_commits_that_would_make_epsilon_smaller(self, written, depth, commit):
        (name,) = commit
        with pytest.raises(LedgerCorrupted, match=name) as caught:
            verify_file(written(commit=commit), depth=depth)
        assert caught.value.entry == 3

    @pytest.mark.parametrize("levels", [17, 150, 240])
    def test_deep_nesting(self, written, depth, levels):
        event = NonPrivate(reason="x").to_json()
        for _ in range(levels):
            event = {"kind": "composed", "events": [event]}
        with pytest.raises(LedgerCorrupted, match="nested") as caught:
            verify_file(written(event=event), depth=depth)
        assert caught.value.entry == 1

    def test_half_a_surrogate_pair(self, written, depth):
        path = written()
        path.write_bytes(path.read_bytes().replace(b'"software":"tests"', b'"software":"\\ud800"'))
        with pytest.raises(LedgerCorrupted) as caught:
            verify_file(path, depth=depth)
        assert caught.value.entry == 0

    @pytest.mark.parametrize(
        "changes",
        [
            {"grid_norm": 2**40, "noise_multiplier": 1e5},
            {"family": "skellam", "grid_norm": 1, "noise_multiplier": 1e-3},
            {"noise_decay": 2.0, "releases": 10**7},
            {"releases": [1]},
        ],
    )
    def test_plans_that_cannot_be_carried_out_are_findings(self, written, workshop, depth, changes):
        plan = workshop.plan(dimension=10, releases=5, sampling_rate=1.0)
        verdict = verify_file(written(header={"plan": plan.to_dict() | changes}), depth=depth)
        assert verdict.findings

    def test_two_clients_with_one_key(self, written, depth, workshop):
        """One of them would sign for both, and count twice towards the threshold."""
        keys = dict(workshop.directory.keys) | {"b": workshop.directory.keys["a"]}
        header = {
            "keys": {name: key.hex() for name, key in keys.items()},
            "manifest_digest": Directory(keys).digest().hex(),
        }
        with pytest.raises(LedgerCorrupted, match=r"body\.keys: two clients have the same key") as caught:
            verify_file(written(header=header), depth=depth)
        assert caught.value.entry == 0

    def test_the_manifest_is_that_of_the_keys(self, written, depth):
        """Rounds are bound to the digest, signatures are checked with the keys."""
        with pytest.raises(LedgerCorrupted, match=r"body\.manifest_digest: not the digest") as caught:
            verify_file(written(header={"manifest_digest": "00" * 32}), depth=depth)
        assert caught.value.entry == 0

    def test_terms_promise_what_the_header_says(self, written, depth):
        """A higher threshold than the run has would make every view look better."""
        with pytest.raises(
            LedgerCorrupted, match=r"body\.guarantee\.threshold: 5, the header says 4"
        ) as caught:
            verify_file(written(guarantee={"threshold": 5}), depth=depth)
        assert caught.value.entry == 1

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"terms": 0}, r"body\.terms: entry 0 is not an earlier terms entry"),
            ({"terms": 3}, r"body\.terms: entry 3 is not an earlier terms entry"),
            ({"round": 0}, r"body\.attempt: rounds and attempts must increase"),
        ],
    )
    def test_a_round_is_reserved_once_and_under_terms(self, workshop, tmp_path, depth, changes, field):
        body = {"round": 1, "attempt": 0, "terms": 1, "spec_digest": "00" * 32, "digests": {}} | changes
        with pytest.raises(LedgerCorrupted, match=field) as caught:
            verify_file(one_more(tmp_path, workshop, "reserve", body), depth=depth)
        assert caught.value.entry == 3

    @pytest.mark.parametrize("reservation", [1, 3])
    def test_what_is_settled_was_reserved(self, workshop, tmp_path, depth, reservation):
        body = commit_of(workshop) | {"reservation": reservation}
        with pytest.raises(LedgerCorrupted, match="is not an earlier reservation") as caught:
            verify_file(one_more(tmp_path, workshop, "commit", body), depth=depth)
        assert caught.value.entry == 3

    def test_every_entry_follows_the_one_before_it(self, workshop, tmp_path, depth):
        """Until something is signed, the chain alone shows that an entry was replaced by another right one."""
        path = one_more(tmp_path, workshop, "commit", commit_of(workshop))
        assert verify_file(path, depth=depth).entries == 4
        *first, third, last = path.read_bytes().splitlines()
        entry = parse_line(third)
        other, _ = encode_entry(
            index=2,
            kind="reserve",
            body=entry["body"] | {"spec_digest": "11" * 32},
            time=entry["time"],
            previous=entry["previous"],
        )
        path.write_bytes(b"".join(line + b"\n" for line in (*first, other, last)))
        with pytest.raises(LedgerCorrupted, match="previous: not the hash of entry 2") as caught:
            verify_file(path, depth=depth)
        assert caught.value.entry == 3

    @pytest.mark.parametrize("size", [2, 7])
    def test_a_checkpoint_covers_what_it_says(self, workshop, tmp_path, depth, size):
        """All signers together: a size that is not the root's would let proofs from it show anything."""
        path = signed_end(tmp_path, workshop, signers=workshop.cohort, size=size)
        with pytest.raises(LedgerCorrupted, match=rf"body\.size: {size}, expected 1") as caught:
            verify_file(path, depth=depth)
        assert caught.value.entry == 1

    def test_a_checkpoint_needs_a_signer(self, workshop, tmp_path, depth):
        path = tmp_path / "nobody.jsonl"
        with PrivacyLedger.create(path, workshop.header()) as ledger:
            state = ledger.state
            body = {"size": 1, "root": state.tree.root().hex(), "signers": [], "signatures": {}}
            line, _ = encode_entry(
                index=1, kind="checkpoint", body=body, time=TIME, previous=state.last_hash.hex()
            )
        path.write_bytes(path.read_bytes() + line + b"\n")
        with pytest.raises(LedgerCorrupted, match="signers") as caught:
            verify_file(path, depth=depth)
        assert caught.value.entry == 1

    def test_the_cohort_is_that_of_the_keys(self, written, depth):
        with pytest.raises(LedgerCorrupted, match=r"body\.cohort") as caught:
            verify_file(written(header={"cohort": ["a", "b", "c", "d"]}), depth=depth)
        assert caught.value.entry == 0

    def test_a_ledger_is_opened_once(self, workshop, tmp_path, depth):
        """A second header would bring another budget, threshold or cohort for the rounds after it."""
        generous = workshop.header(budget=Budget(epsilon=100.0, delta=1e-5)).to_json()
        with pytest.raises(LedgerCorrupted, match="index: expected 0") as caught:
            verify_file(one_more(tmp_path, workshop, "open", generous), depth=depth)
        assert caught.value.entry == 3

    def test_a_ledger_starts_with_its_header(self, tmp_path, depth):
        line, _ = encode_entry(
            index=0, kind="recovered", body={"fragment": "", "terms": None}, time=TIME, previous=GENESIS
        )
        (tmp_path / "headless.jsonl").write_bytes(line + b"\n")
        with pytest.raises(LedgerCorrupted, match="only the first, is of type open") as caught:
            verify_file(tmp_path / "headless.jsonl", depth=depth)
        assert caught.value.entry == 0

    @pytest.mark.parametrize("terms", [None, 0, 2])
    def test_a_lost_round_is_charged_under_the_latest_terms(self, workshop, tmp_path, depth, terms):
        """Without terms, a round that was cut off would have cost nothing."""
        body = {"fragment": b"{".hex(), "terms": terms}
        with pytest.raises(LedgerCorrupted, match="expected the latest terms, 1") as caught:
            verify_file(one_more(tmp_path, workshop, "recovered", body), depth=depth)
        assert caught.value.entry == 3

    @pytest.mark.parametrize("change", ["one signature is missing", "one is of somebody else"])
    def test_those_who_sign_are_those_who_are_named(self, workshop, tmp_path, depth, change):
        path = tmp_path / "ledger.jsonl"
        with PrivacyLedger.create(path, workshop.header()) as ledger:
            ledger.checkpoint(workshop.identities[:2])
        first, last = path.read_bytes().splitlines()
        entry = parse_line(last)
        signatures = entry["body"]["signatures"]
        if change == "one signature is missing":
            del signatures["b"]
        else:
            signatures["c"] = signatures["b"]
        line, _ = encode_entry(
            index=1, kind="checkpoint", body=entry["body"], time=entry["time"], previous=entry["previous"]
        )
        path.write_bytes(first + b"\n" + line + b"\n")
        with pytest.raises(LedgerCorrupted, match="signers and signatures differ") as caught:
            verify_file(path, depth=depth)
        assert caught.value.entry == 1

    @pytest.mark.parametrize("signers", [("b", "a", "c", "d"), ("a", "a", "a", "a")])
    def test_signers_stand_in_one_order_and_count_once(self, workshop, tmp_path, depth, signers):
        """The signatures hold: the writer has the keys of a simulation, or one client that helps."""
        path = signed_end(tmp_path, workshop, signers=signers)
        with pytest.raises(LedgerCorrupted, match="signers") as caught:
            verify_file(path, depth=depth)
        assert caught.value.entry == 1


class TestClaims:
    @pytest.mark.parametrize(
        ("scheme", "key_mode", "changes", "field"),
        [
            ("masking", "Pairwise", {"curious_colluders": 4}, "key_mode"),
            ("ckks", "none", {"curious_colluders": 4}, "key_mode"),
            ("plain", "pairwise", {"curious_colluders": 3}, "key_mode"),
            ("masking", "pairwise", {"assumptions": ()}, "assumptions"),
            ("ckks", "sum-key", {"advantage_log2": -math.inf}, "advantage_log2"),
            ("ckks", "shared", {"client_with_network": Visibility.SUM}, "client_with_network"),
        ],
    )
    def test_own_schemes_cannot_claim_more_by_other_words(
        self, workshop, tmp_path, scheme, key_mode, changes, field
    ):
        workshop = workshop.variant(scheme=scheme, key_mode=key_mode)
        with (
            PrivacyLedger.create(tmp_path / "claims.jsonl", workshop.header()) as ledger,
            pytest.raises(PrivacyError, match=field),
        ):
            ledger.reserve(workshop.noise(), replace(workshop.guarantee(), **changes))

    @pytest.mark.parametrize("network", Visibility)
    @pytest.mark.parametrize("tapped", Visibility)
    @pytest.mark.parametrize("placement", Placement)
    def test_nobody_is_promised_more_than_a_weaker_adversary(
        self, workshop, tmp_path, network, tapped, placement
    ):
        """A malicious client sees what the network and a client see; the aggregator what the network sees."""
        guarantee = workshop.guarantee(network_sees=network, client_with_network=tapped)
        shares = 5 if placement is Placement.DISTRIBUTED else 1
        with PrivacyLedger.create(tmp_path / "order.jsonl", workshop.header()) as ledger:
            noise = workshop.noise(count=20, placement=placement, shares=shares)
            ledger.commit(ledger.reserve(noise, guarantee))
            rows = {
                (row.view.value, row.adversary.value, row.colluders): math.inf
                if row.epsilon is None
                else row.epsilon
                for row in ledger.statements()
            }
        client = rows["client", "malicious", 0]
        assert client >= rows["network", "curious", 0]
        assert client >= rows["client", "curious", 0]
        for behaviour in ("curious", "malicious"):
            before = rows["network", "curious", 0]
            for colluders in range(5):
                view = "aggregator_colluders" if colluders else "aggregator"
                assert rows[view, behaviour, colluders] >= before
                before = rows[view, behaviour, colluders]
        assert max(rows.values()) <= rows["crypto_broken", "curious", 0]

    def test_more_survivors_than_planned_shares_draw_more_noise(self, workshop):
        noise = workshop.noise(count=2, shares=3, dimension=10, sampler_error=1e-20)
        assert sampler_error(noise, shares=3) == pytest.approx(2 * 10 * 3 * 1e-20)
        assert sampler_error(noise, shares=5) == pytest.approx(2 * 10 * 5 * 1e-20)
        local = workshop.noise(placement=Placement.LOCAL, shares=1, count=1, sampler_error=1e-20)
        assert sampler_error(local, shares=5) == pytest.approx(1e-20)

    def test_a_writer_cannot_nest_deeper_than_a_reader_follows(self, workshop, tmp_path):
        event = workshop.noise(count=1)
        for _ in range(20):
            event = Composed(events=(event,))
        with (
            PrivacyLedger.create(tmp_path / "deep.jsonl", workshop.header()) as ledger,
            pytest.raises(LocalProtocolError, match="nested"),
        ):
            ledger.reserve(event, workshop.guarantee())
        assert verify_file(tmp_path / "deep.jsonl").entries == 1

    @pytest.mark.parametrize("family", [Family.DISCRETE_GAUSSIAN, Family.SKELLAM])
    def test_a_budget_is_charged_for_the_site_that_costs_most(self, family):
        """On a coarse grid that is not the site with the smallest multiplier."""
        noise = SiteNoise(
            family=family,
            noise_multiplier=9.0,
            shares=3,
            sensitivity=100.0,
            dimension=10,
            weights={"a": 1.0, "b": 0.9999, "c": 0.0102},
        )
        assert noise.least_protected(1) == "a"
        for unknown in (1, 2, 3):
            planned = rdp_curve(seen_event(noise, unknown, site=None))
            for site in noise.weights:
                own = rdp_curve(seen_event(noise, unknown, site=site))
                assert all(planned[order] >= own[order] * (1 - 1e-12) for order in own)
