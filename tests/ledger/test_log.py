from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from secfl.errors import (
    ConfigError,
    LedgerCorrupted,
    LocalProtocolError,
    PrivacyError,
    RemoteProtocolError,
    UnsupportedEvent,
)
from secfl.ledger import Exposure, Family, KeyCustody, NonPrivate, Placement, PrivacyLedger, Sampling, Witness
from secfl.ledger.canonical import parse_line
from secfl.ledger.sights import releases
from secfl.ledger.verify import Status, load, verify_file

NON_PRIVATE = NonPrivate(reason="differential privacy is off")


def types_in(path: Path) -> list[str]:
    return [parse_line(line)["type"] for line in path.read_bytes().splitlines()]


def opened_rounds(path: Path) -> int:
    return sum(release.count for release in releases(load(path)) if release.opened)


def reopen(path: Path, **kwargs):
    return PrivacyLedger.open(path, **kwargs)


def test_a_round_is_reserved_then_committed_then_signed(make_ledger, workshop, tmp_path):
    ledger = make_ledger(workshop)
    reservation = ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=4, spec_digest=b"s" * 32)
    ledger.commit(reservation, survivors=["d", "c", "b", "a"], sum_digest=b"x" * 32, total_variation=1e-20)
    ledger.close(co_signers=workshop.identities)
    path = tmp_path / "ledger.jsonl"
    assert types_in(path) == ["open", "terms", "reserve", "commit", "close"]
    state = load(path)
    (commit,) = state.commits.values()
    assert commit.survivors == ("a", "b", "c", "d")
    assert (commit.sum_digest, commit.total_variation) == (b"x" * 32, 1e-20)
    (kept,) = state.reservations.values()
    assert (kept.round_id, kept.attempt, kept.spec_digest) == (4, 0, b"s" * 32)
    assert state.closed.signers == ("a", "b", "c", "d", "e")


def test_terms_are_written_once_and_again_when_they_change(make_ledger, workshop, tmp_path):
    ledger = make_ledger(workshop)
    for _ in range(3):
        ledger.reserve(workshop.noise(), workshop.guarantee())
    ledger.reserve(workshop.noise(noise_multiplier=2.0), workshop.guarantee())
    ledger.reserve(workshop.noise(noise_multiplier=2.0), workshop.guarantee(), unprotected=["a preview"])
    assert types_in(tmp_path / "ledger.jsonl") == [
        "open", "terms", "reserve", "reserve", "reserve", "terms", "reserve", "terms", "reserve",
    ]  # fmt: skip


def test_everything_is_on_the_disk_before_a_call_returns(make_ledger, workshop, tmp_path, monkeypatch):
    events: list[str] = []
    real_fsync, real_write = os.fsync, os.write
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), real_fsync(descriptor))[1])
    monkeypatch.setattr(
        os, "write", lambda descriptor, data: (events.append("write"), real_write(descriptor, data))[1]
    )
    ledger = make_ledger(workshop)
    for call in (
        lambda: ledger.reserve(workshop.noise(), workshop.guarantee()),
        lambda: ledger.commit(ledger.state.reservations[2]),
        lambda: ledger.checkpoint(workshop.identities),
    ):
        events.clear()
        call()
        assert "write" in events
        assert events[-1] == "fsync"


def test_the_same_attempt_again_is_the_same_reservation(make_ledger, workshop, tmp_path):
    ledger = make_ledger(workshop)
    first = ledger.reserve(workshop.noise(), workshop.guarantee(), spec_digest=b"s" * 32, round_id=0)
    again = ledger.reserve(workshop.noise(), workshop.guarantee(), spec_digest=b"s" * 32, round_id=0)
    assert again == first
    assert opened_rounds(tmp_path / "ledger.jsonl") == 1


def test_a_recomputed_attempt_needs_a_new_number_and_is_charged(make_ledger, workshop, tmp_path):
    ledger = make_ledger(workshop)
    ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=0, spec_digest=b"s" * 32)
    with pytest.raises(LocalProtocolError, match="another specification"):
        ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=0, spec_digest=b"t" * 32)
    with pytest.raises(LocalProtocolError, match="other terms"):
        ledger.reserve(
            workshop.noise(noise_multiplier=3.0), workshop.guarantee(), round_id=0, spec_digest=b"s" * 32
        )
    with pytest.raises(LocalProtocolError, match="other terms"):
        # A weaker promise must not hide behind the one that was written down.
        ledger.reserve(
            workshop.noise(), workshop.guarantee(curious_colluders=0), round_id=0, spec_digest=b"s" * 32
        )
    ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=0, attempt=1, spec_digest=b"t" * 32)
    assert opened_rounds(tmp_path / "ledger.jsonl") == 2


def test_rounds_and_attempts_only_go_forward(make_ledger, workshop):
    ledger = make_ledger(workshop)
    ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=5, attempt=1)
    for round_id, attempt in ((4, 9), (5, 0)):
        with pytest.raises(LocalProtocolError, match="must increase"):
            ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=round_id, attempt=attempt)


def test_a_commit_is_final(make_ledger, workshop):
    ledger = make_ledger(workshop)
    reservation = ledger.reserve(workshop.noise(), workshop.guarantee())
    ledger.commit(reservation, sum_digest=b"x" * 32)
    size = ledger.state.size
    ledger.commit(reservation, sum_digest=b"x" * 32)
    assert ledger.state.size == size
    for changed in ({"sum_digest": b"y" * 32}, {"sum_digest": b"x" * 32, "survivors": "abcd"}):
        with pytest.raises(LocalProtocolError, match="another result"):
            ledger.commit(reservation, **changed)
    with pytest.raises(LocalProtocolError, match="settled"):
        ledger.abort(reservation, exposure=Exposure.NOTHING_SENT, reason="no")


@pytest.mark.parametrize("survivors", [("a", "b", "c"), ("a", "b", "c", "x"), ("a", "b", "c", "d", "d")])
def test_impossible_survivors_are_refused(make_ledger, workshop, survivors):
    ledger = make_ledger(workshop)
    reservation = ledger.reserve(workshop.noise(), workshop.guarantee())
    with pytest.raises(LocalProtocolError, match="survivors"):
        ledger.commit(reservation, survivors=survivors)


def test_what_an_aborted_attempt_costs_depends_on_how_far_it_came(make_ledger, workshop):
    ledger = make_ledger(workshop)
    for exposure in Exposure:
        reservation = ledger.reserve(workshop.noise(count=1), workshop.guarantee())
        ledger.abort(reservation, exposure=exposure, reason="a client went away")
    found = releases(ledger.state)
    assert sorted((release.opened, release.survivors) for release in found) == [(False, 4), (True, 4)]
    rows = {(row.view, row.adversary, row.colluders): row.epsilon for row in ledger.statements()}
    # The inputs of one more attempt were sent: only who reads single inputs pays for it.
    assert rows["aggregator", "curious", 0] < rows["crypto_broken", "curious", 0]
    twice = workshop.noise(count=2, noise_multiplier=5**-0.5, shares=1, placement=Placement.LOCAL)
    other = make_ledger(workshop, name="other.jsonl")
    other.commit(other.reserve(twice, workshop.guarantee()))
    assert rows["crypto_broken", "curious", 0] == pytest.approx(other.statements()[-1].epsilon)


def test_a_given_up_attempt_cannot_be_resent(make_ledger, workshop):
    ledger = make_ledger(workshop)
    reservation = ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=0, spec_digest=b"s" * 32)
    ledger.abort(reservation, exposure=Exposure.INPUTS_SENT, reason="too few")
    with pytest.raises(LocalProtocolError, match="given up"):
        ledger.reserve(workshop.noise(), workshop.guarantee(), round_id=0, spec_digest=b"s" * 32)


def test_a_second_writer_is_kept_out(make_ledger, workshop, tmp_path):
    ledger = make_ledger(workshop)
    with pytest.raises(ConfigError, match="another process"):
        reopen(tmp_path / "ledger.jsonl")
    ledger.release()
    reopen(tmp_path / "ledger.jsonl").release()


def _try_to_open(path: str, answers) -> None:
    try:
        PrivacyLedger.open(path).release()
    except ConfigError as error:
        answers.put(str(error))
    else:
        answers.put("opened")


def test_a_second_process_is_kept_out(make_ledger, workshop, tmp_path):
    ledger = make_ledger(workshop)
    context = multiprocessing.get_context("spawn")
    for expected in ("another process", "opened"):
        answers = context.Queue()
        process = context.Process(target=_try_to_open, args=(str(tmp_path / "ledger.jsonl"), answers))
        process.start()
        assert expected in answers.get(timeout=60)
        process.join()
        ledger.release()


def test_a_released_ledger_writes_nothing(make_ledger, workshop):
    ledger = make_ledger(workshop)
    ledger.release()
    with pytest.raises(LocalProtocolError, match="released"):
        ledger.reserve(workshop.noise(), workshop.guarantee())


def test_an_existing_ledger_is_not_overwritten(make_ledger, workshop):
    make_ledger(workshop).release()
    with pytest.raises(ConfigError, match="exists"):
        make_ledger(workshop)


def test_open_creates_continues_and_compares_the_header(workshop, tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ConfigError, match="no such ledger"):
        reopen(path)
    with PrivacyLedger.open(path, workshop.header()) as ledger:
        ledger.reserve(workshop.noise(), workshop.guarantee())
    with PrivacyLedger.open(path, workshop.header()) as ledger:
        assert ledger.state.latest_attempt == (0, 0)
    with pytest.raises(ConfigError, match="another header"):
        PrivacyLedger.open(path, workshop.header(delta=1e-3))


def test_a_resumed_ledger_equals_the_uninterrupted_one(make_ledger, workshop, tmp_path):
    def play(ledger):
        ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))

    whole = make_ledger(workshop, name="whole.jsonl")
    play(whole)
    play(whole)
    parts = make_ledger(workshop, name="parts.jsonl")
    play(parts)
    parts.release()
    with reopen(tmp_path / "parts.jsonl", clock=lambda: "2026-01-02T03:04:05Z") as resumed:
        play(resumed)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "parts.jsonl").read_bytes()


def test_a_failed_write_ends_the_writer(make_ledger, workshop, monkeypatch, tmp_path):
    ledger = make_ledger(workshop)
    ledger.reserve(workshop.noise(), workshop.guarantee())
    real_write = os.write

    def full_disk(descriptor, data):
        if len(data) > 50:
            return real_write(descriptor, data[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(ConfigError, match="No space"):
        ledger.reserve(workshop.noise(), workshop.guarantee())
    monkeypatch.undo()
    with pytest.raises(LocalProtocolError, match="released"):
        ledger.reserve(workshop.noise(), workshop.guarantee())
    with reopen(tmp_path / "ledger.jsonl") as recovered:
        assert recovered.state.recovered == [1]


class TestTornTails:
    def torn(self, workshop, tmp_path, keep: int) -> tuple[Path, bytes]:
        path = tmp_path / "torn.jsonl"
        with PrivacyLedger.create(path, workshop.header()) as ledger:
            ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))
            ledger.reserve(workshop.noise(), workshop.guarantee())
        data = path.read_bytes()
        start = data.rstrip(b"\n").rfind(b"\n") + 1
        path.write_bytes(data[: start + keep])
        return path, data[start : start + keep]

    @pytest.mark.parametrize("keep", [1, 5, 40, 200, 300])
    def test_a_torn_line_becomes_a_spent_round(self, workshop, tmp_path, keep):
        path, fragment = self.torn(workshop, tmp_path, keep)
        with pytest.raises(LedgerCorrupted, match="cut off"):
            load(path)
        with reopen(path) as ledger:
            assert ledger.state.recovered == [1]
        assert types_in(path)[-1] == "recovered"
        assert parse_line(path.read_bytes().splitlines()[-1])["body"]["fragment"] == fragment.hex()
        assert opened_rounds(path) == 2

    def test_a_lost_newline_loses_nothing(self, workshop, tmp_path):
        path, _ = self.torn(workshop, tmp_path, 10_000)
        data = path.read_bytes()
        path.write_bytes(data.rstrip(b"\n"))
        with reopen(path) as ledger:
            assert len(ledger.state.reservations) == 2
        assert path.read_bytes() == data

    def test_a_crash_during_recovery_still_leaves_a_trace(self, workshop, tmp_path):
        path, _ = self.torn(workshop, tmp_path, 40)
        with reopen(path):
            pass
        recovered = path.read_bytes()
        for cut in (1, 45, 100, 200):
            path.write_bytes(recovered[: len(recovered) - cut])
            with reopen(path) as ledger:
                assert len(ledger.state.recovered) == 1
            assert opened_rounds(path) == 2

    def test_torn_terms_before_any_round_cost_nothing(self, workshop, tmp_path):
        path = tmp_path / "new.jsonl"
        PrivacyLedger.create(path, workshop.header()).release()
        with path.open("ab") as stream:
            stream.write(b'{"body":{"event":')
        with reopen(path) as ledger:
            assert ledger.state.recovered == [None]
        assert opened_rounds(path) == 0

    def test_damage_before_the_last_line_is_not_repaired(self, workshop, tmp_path):
        path, _ = self.torn(workshop, tmp_path, 40)
        data = path.read_bytes().replace(b'"attempt":0', b'"attempt":1', 1)
        path.write_bytes(data)
        with pytest.raises(LedgerCorrupted) as caught:
            reopen(path)
        assert caught.value.entry == 2
        assert path.read_bytes() == data

    def test_rubbish_after_the_end_is_not_repaired(self, make_ledger, workshop, tmp_path):
        make_ledger(workshop).close(co_signers=workshop.identities)
        path = tmp_path / "ledger.jsonl"
        data = path.read_bytes() + b'{"body"'
        path.write_bytes(data)
        with pytest.raises(LedgerCorrupted, match="nothing may follow"):
            reopen(path)
        assert path.read_bytes() == data

    def test_a_file_without_a_whole_first_entry_is_refused(self, workshop, tmp_path):
        path = tmp_path / "empty.jsonl"
        for content in (b"", b'{"body":{"account"'):
            path.write_bytes(content)
            with pytest.raises(LedgerCorrupted):
                reopen(path)
            with pytest.raises(LedgerCorrupted):
                load(path)


class TestCheckpoints:
    def test_witnesses_keep_what_they_sign_and_refuse_forks(self, make_ledger, workshop, tmp_path):
        header = workshop.header()
        witnesses = [
            Witness(identity, run_id=header.run_id, keep=tmp_path / f"{identity.name}.json")
            for identity in workshop.identities
        ]
        ledger = make_ledger(workshop)
        ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))
        first = ledger.checkpoint(witnesses)
        ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))
        second = ledger.checkpoint(witnesses)
        assert second.size > first.size
        ledger.release()

        # The aggregator starts over with the same run id: an older, and then a forked history.
        forged = make_ledger(workshop, name="forged.jsonl")
        returning = [
            Witness(identity, run_id=header.run_id, keep=tmp_path / f"{identity.name}.json")
            for identity in workshop.identities
        ]
        assert {witness.last_size for witness in returning} == {second.size}
        with pytest.raises(RemoteProtocolError, match="older"):
            forged.checkpoint(returning)
        for _ in range(6):
            forged.reserve(workshop.noise(noise_multiplier=9.0), workshop.guarantee())
        with pytest.raises(RemoteProtocolError, match="forks"):
            forged.checkpoint(returning)

    def test_a_witness_signs_for_its_run_only_and_only_when_named(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        stranger = Witness(workshop.identities[0], run_id=b"another run id!!")
        with pytest.raises(RemoteProtocolError, match="another run"):
            ledger.checkpoint([stranger])
        checkpoint = ledger.checkpoint(workshop.identities[:4])
        with pytest.raises(RemoteProtocolError, match="does not list"):
            Witness(workshop.identities[4], run_id=ledger.header.run_id).co_sign(checkpoint, ())

    def test_nothing_is_signed_after_the_close(self, make_ledger, workshop):
        witnesses = [Witness(identity, run_id=workshop.header().run_id) for identity in workshop.identities]
        make_ledger(workshop).close(co_signers=witnesses)
        again = make_ledger(workshop, name="again.jsonl")
        again.reserve(workshop.noise(), workshop.guarantee())
        with pytest.raises(RemoteProtocolError, match="closed"):
            again.checkpoint(witnesses)

    def test_a_kept_checkpoint_of_another_run_is_refused(self, make_ledger, workshop, tmp_path):
        keep = tmp_path / "kept.json"
        ledger = make_ledger(workshop)
        ledger.checkpoint([Witness(workshop.identities[0], run_id=ledger.header.run_id, keep=keep)])
        with pytest.raises(ConfigError, match="another run"):
            Witness(workshop.identities[0], run_id=b"another run id!!", keep=keep)
        kept = keep.read_text()
        for other in ("{}", kept.replace('"kind":"checkpoint"', '"kind":"receipt"')):
            keep.write_text(other)
            with pytest.raises(ConfigError, match="checkpoint file"):
                Witness(workshop.identities[0], run_id=ledger.header.run_id, keep=keep)

    def test_a_close_needs_as_many_signers_as_the_threshold(self, make_ledger, workshop, tmp_path):
        ledger = make_ledger(workshop)
        with pytest.raises(LocalProtocolError, match="threshold"):
            ledger.close(co_signers=workshop.identities[:3])
        assert verify_file(tmp_path / "ledger.jsonl").status is Status.OPEN
        ledger.close(co_signers=workshop.identities[:4])
        verdict = verify_file(tmp_path / "ledger.jsonl")
        assert (verdict.status, verdict.missing) == (Status.CLOSED, ("e",))

    def test_a_stranger_cannot_sign(self, make_ledger, workshop):
        outsider = workshop.variant(seed=2).identities[0]
        with pytest.raises(LocalProtocolError, match="signature"):
            make_ledger(workshop).checkpoint([outsider])

    def test_a_closed_ledger_cannot_be_continued(self, make_ledger, workshop, tmp_path):
        make_ledger(workshop).close(co_signers=workshop.identities)
        with pytest.raises(LocalProtocolError, match="closed"):
            reopen(tmp_path / "ledger.jsonl")


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"cohort_size": 6}, "cohort_size"),
            ({"threshold": 3}, "threshold"),
            ({"scheme": "plain"}, "scheme"),
            ({"key_mode": "shared"}, "key_mode"),
            ({"curious_colluders": 4}, "curious_colluders"),
            ({"malicious_colluders": 3}, "malicious_colluders"),
        ],
    )
    def test_guarantees_that_claim_too_much(self, make_ledger, workshop, changes, reason):
        with pytest.raises(PrivacyError, match=reason):
            make_ledger(workshop).reserve(workshop.noise(), workshop.guarantee(**changes))

    @pytest.mark.parametrize(
        ("scheme", "key_mode", "changes"),
        [
            ("plain", "none", {"curious_colluders": 0}),
            ("ckks", "shared", {"curious_colluders": 1}),
            ("ckks", "shared", {"malicious_colluders": 0}),
            ("ckks", "sum-key", {"curious_colluders": 4}),
        ],
    )
    def test_bounds_of_every_known_scheme(self, make_ledger, workshop, scheme, key_mode, changes):
        workshop = workshop.variant(scheme=scheme, key_mode=key_mode)
        ledger = make_ledger(workshop)
        with pytest.raises(PrivacyError, match="gives"):
            ledger.reserve(workshop.noise(), workshop.guarantee(**changes))
        ledger.reserve(workshop.noise(), workshop.guarantee())

    def test_noise_without_a_unit(self, make_ledger, workshop):
        ledger = make_ledger(workshop, workshop.header(unit=None, relation=None, delta=None))
        with pytest.raises(PrivacyError, match="unit"):
            ledger.reserve(workshop.noise(), workshop.guarantee())
        ledger.reserve(NON_PRIVATE, workshop.guarantee())

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"family": Family.DISCRETE_GAUSSIAN, "sensitivity": 2.0}, "grid units"),
            ({"family": Family.DISCRETE_GAUSSIAN, "sensitivity": 1000.5}, "integer"),
        ],
    )
    def test_mechanisms_without_sound_accounting(self, make_ledger, workshop, changes, reason):
        with pytest.raises(UnsupportedEvent, match=reason):
            make_ledger(workshop).reserve(workshop.noise(**changes), workshop.guarantee())

    def test_more_shares_than_clients_and_rates_of_other_sites(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        with pytest.raises(PrivacyError, match="cohort"):
            ledger.reserve(workshop.noise(shares=6), workshop.guarantee())
        with pytest.raises(PrivacyError, match="site_rates"):
            ledger.reserve(workshop.noise(site_rates={"a": 0.04}), workshop.guarantee())

    def test_sampling_that_the_accountant_does_not_cover(self, make_ledger, workshop):
        for changes in ({"relation": "replace_one"}, {"unit": "client"}):
            header = workshop.header(**{name: _enum(name, value) for name, value in changes.items()})
            ledger = make_ledger(workshop, header, name=f"{next(iter(changes))}.jsonl")
            with pytest.raises(UnsupportedEvent, match="Poisson"):
                ledger.reserve(workshop.noise(), workshop.guarantee())
            ledger.reserve(
                workshop.noise(sampling=Sampling.NONE, sampling_rate=1.0, count=1), workshop.guarantee()
            )

    def test_nothing_is_written_when_something_is_refused(self, make_ledger, workshop, tmp_path):
        ledger = make_ledger(workshop)
        before = (tmp_path / "ledger.jsonl").read_bytes()
        with pytest.raises(PrivacyError):
            ledger.reserve(workshop.noise(shares=6), workshop.guarantee())
        assert (tmp_path / "ledger.jsonl").read_bytes() == before
        ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))

    @pytest.mark.parametrize(
        "changes", [{"run_id": b"short"}, {"threshold": 6}, {"threshold": 0}, {"delta": 0.0}, {"delta": 1.0}]
    )
    def test_impossible_headers(self, workshop, changes):
        with pytest.raises(ConfigError, match="header"):
            workshop.header(**changes)


def _enum(name, value):
    from secfl.dp.accounting import Relation
    from secfl.guarantees import UnitOfPrivacy

    return Relation(value) if name == "relation" else UnitOfPrivacy(value)


def test_simulated_is_what_the_header_says(make_ledger, workshop, tmp_path):
    make_ledger(workshop, workshop.header(custody=KeyCustody.SEPARATE), name="real.jsonl").release()
    make_ledger(workshop).release()
    assert not verify_file(tmp_path / "real.jsonl").simulated
    verdict = verify_file(tmp_path / "ledger.jsonl")
    assert verdict.simulated
    assert all("simulated: one process held all keys" in row.holds_if for row in verdict.statements)
