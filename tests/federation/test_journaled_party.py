"""Clients that are killed, restored and set back: answers repeat byte for byte, and an old snapshot is useless."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, Running
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.federation import journaled_party
from secfl.federation.inprocess import InProcessDriver
from secfl.federation.journal import START, Journal
from secfl.federation.journaled_party import JournaledParty
from secfl.federation.snapshot_vault import SnapshotVault
from secfl.types import AGGREGATOR, ClientId

_FILE = Path(__file__).with_name("journaled_site.py")
_SPEC = importlib.util.spec_from_file_location("journaled_site", _FILE)
stage = sys.modules["journaled_site"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stage)

A = ClientId("a")
ANSWERS = {"masking": 5, "sum-key": 5, "shared": 4, "plain": 1}


@pytest.fixture
def one():
    return stage.Round("masking")


@pytest.fixture
def sites(tmp_path):
    """Opens journals and vaults by client, and lets go of them at the end."""
    opened: list[Journal] = []

    def open_site(name: str = "a") -> tuple[Journal, SnapshotVault]:
        for journal in opened:
            if journal.client == name:
                journal.close()
        opened.append(stage.site(tmp_path, name)[0])
        return opened[-1], SnapshotVault(tmp_path / f"{name}.vault", client=ClientId(name), key=stage.KEY)

    yield open_site
    for journal in opened:
        journal.close()


def carry(one, parties, *, drops=None, aggregator=None):
    """One round; the sum must be the survivors' exact one."""
    carriage = InProcessDriver(drops=drops).carry(
        aggregator or one.aggregator(), parties, watch=lambda _: None
    )
    result = carriage.result
    np.testing.assert_array_equal(result.sums["update"], one.total(result.survivors))
    return carriage


def carry_with_process(one, child):
    parties = {ClientId(name): one.client(name) for name in "bcd"}
    try:
        return carry(one, {A: child, **parties})
    finally:
        child.close()


class TestProcessesThatDie:
    @pytest.mark.parametrize("scheme", sorted(ANSWERS))
    def test_one_killed_after_every_message_goes_on_in_the_next_process(self, tmp_path, scheme):
        child = stage.ProcessParty(tmp_path, scheme, kill_after_answers=True)
        carriage = carry_with_process(stage.Round(scheme), child)
        assert carriage.result.survivors == tuple("abcd")
        assert carriage.refusals == []
        assert child.deaths == len(child.said) == ANSWERS[scheme]
        assert child.resends == sum(range(ANSWERS[scheme]))  # every restart repeats all earlier answers
        assert list((tmp_path / "a.vault").iterdir()) == []

    # fsync 1 to 9 make and open the journal and enter the round; then each answer has the snapshot's file, the
    # folder's name, the journal's record, and the removal of the snapshot before it.
    @pytest.mark.parametrize(
        "kill", [("fsync", 14, "before"), ("pwrite", 32, "during"), ("fsync", 17, "after")]
    )
    def test_one_killed_in_the_middle_of_writing_goes_on(self, tmp_path, kill):
        self.check_kill(tmp_path, "masking", kill)

    @pytest.mark.slow
    @pytest.mark.parametrize("scheme", ["masking", "sum-key", "shared"])
    def test_wherever_one_is_killed_it_never_says_two_things(self, tmp_path, scheme):
        outcomes = set()
        # One round has 28 to 32 calls of fsync; the last kills do not happen.
        step = 1 if scheme == "masking" else 4
        for kill in [
            *(("fsync", call, moment) for call in range(1, 34, step) for moment in ("before", "after")),
            *(("pwrite", call, "during") for call in range(2, 60, 2 * step)),
            ("fsync", 99, "before"),
        ]:
            folder = tmp_path / "-".join(map(str, kill))
            folder.mkdir()
            outcomes.add(self.check_kill(folder, scheme, kill))
        assert outcomes == {"went on", "left the round", "was not killed"}

    def check_kill(self, folder, scheme, kill) -> str:
        """The child may leave the round when nothing was sent; else it must finish it."""
        child = stage.ProcessParty(folder, scheme, kill=kill)
        carriage = carry_with_process(stage.Round(scheme), child)
        assert child.deaths <= 1, kill
        assert child.errors == [], kill
        if not child.deaths:
            return "was not killed"
        if isinstance(child.state, Aborted):
            assert not child.said  # it had said nothing, so it can leave
            assert carriage.result.survivors == tuple("bcd")
            return "left the round"
        assert carriage.result.survivors == tuple("abcd")
        return "went on"

    @pytest.mark.parametrize("limit", [4000, 12_000])
    def test_a_full_disk_leaves_nothing_half_sent(self, tmp_path, limit):
        child = stage.ProcessParty(tmp_path, "masking", file_limit=limit)
        carriage = carry_with_process(stage.Round("masking"), child)
        (error,) = child.errors
        assert "File too large" in error
        assert "nothing was sent" in error
        assert carriage.refusals == []
        if child.said:
            assert carriage.result.survivors == tuple("abcd")
        else:
            assert isinstance(child.state, Aborted)


class TestRolledBackSnapshots:
    """The aggregator gets two sums from the same inputs and subtracts them: the difference is one client's."""

    def run_to_headers(self, one, parties):
        """Stop when everybody has sent the masked input; returns the aggregator's view."""
        seen = []
        aggregator = one.aggregator()
        queue = [envelope for party in parties.values() for envelope in party.start()]
        inputs = []
        while queue:
            envelope = queue.pop(0)
            if envelope.recipient == AGGREGATOR:
                if aggregator.state.phase == "masked-input":
                    inputs.append(envelope)
                    continue
                queue += aggregator.receive(envelope)
            else:
                seen.append(envelope)
                queue += parties[envelope.recipient].receive(envelope)
        return aggregator, inputs

    def finish(self, aggregator, inputs, parties):
        """The rest of the round for these inputs; the sum, or None when too few answered."""
        queue = list(inputs)
        while queue or isinstance(aggregator.state, Running):
            if not queue:
                before = aggregator.state
                queue += aggregator.phase_over()
                if aggregator.state == before and not queue:
                    break
                continue
            envelope = queue.pop(0)
            party = aggregator if envelope.recipient == AGGREGATOR else parties[envelope.recipient]
            if isinstance(party.state, Running):
                queue += party.receive(envelope)
        result = aggregator.state.result if isinstance(aggregator.state, Finished) else None
        return None if result is None else result.sums["update"].astype(np.int64)

    def attack(self, one, parties, restore):
        aggregator, inputs = self.run_to_headers(one, parties)
        fork = one.scheme.restore(one.spec, directory=one.directory, snapshot=aggregator.snapshot())
        old = {name: party.snapshot() for name, party in parties.items()}
        everybody = self.finish(aggregator, inputs, parties)
        set_back = {name: restore(name, old[name]) for name in parties}
        without_d = self.finish(fork, [one_ for one_ in inputs if one_.sender != "d"], set_back)
        return everybody, without_d, set_back

    def test_without_a_journal_they_give_one_client_away(self, one):
        everybody, without_d, _ = self.attack(
            one,
            {ClientId(name): one.client(name) for name in "abcd"},
            lambda _, snapshot: one.scheme.restore(one.spec, directory=one.directory, snapshot=snapshot),
        )
        np.testing.assert_array_equal((everybody - without_d) % 2**20, one.values("d"))

    def test_with_it_they_are_useless(self, one, sites):
        parties = {ClientId(name): one.enter(name, *sites(name)) for name in "abcd"}
        everybody, without_d, set_back = self.attack(
            one, parties, lambda name, snapshot: one.restore(*sites(name), snapshot=snapshot)
        )
        np.testing.assert_array_equal(everybody, one.total("abcd"))
        assert without_d is None
        for party in set_back.values():
            # They had finished, so their journals know that nothing new may be said at all.
            assert isinstance(party.state, Finished)

    @pytest.mark.parametrize("how", ["handed over", "put into the vault", "nothing", "nonsense"])
    def test_one_that_is_set_back_in_the_middle_aborts(self, one, sites, how):
        parties = {ClientId(name): one.client(name) for name in "bcd"} | {A: one.enter("a", *sites())}
        aggregator, inputs = self.run_to_headers(one, parties)
        old = parties[A].snapshot()
        headers = [envelope for item in inputs for envelope in aggregator.receive(item)]
        (request,) = [envelope for envelope in headers if envelope.recipient == A]
        said = parties[A].receive(request)
        journal, vault = sites()
        (pinned,) = vault._folder.iterdir()
        if how == "put into the vault":
            pinned.write_bytes(old)
        elif how == "nothing":
            pinned.unlink()
        snapshot = {"handed over": old, "nonsense": b"nonsense"}.get(how)
        set_back = one.restore(journal, vault, snapshot=snapshot)
        assert isinstance(set_back.state, Aborted)
        assert "not the one that belongs" in str(set_back.state.reason)
        assert set_back.receive(Envelope(AGGREGATOR, A, request.payload + b"different")) == []
        assert set_back.receive(request) == said  # what was said may be repeated
        assert set_back.phase_over() == []
        assert isinstance(one.restore(*sites()).state, Aborted)

    def test_a_journal_that_is_older_than_the_snapshot_aborts_too(self, one, sites, tmp_path):
        party = one.enter("a", *sites())
        before = (tmp_path / "a.journal").read_bytes()
        party.start()
        newer = party.snapshot()
        sites()[0].close()
        (tmp_path / "a.journal").write_bytes(before)
        assert isinstance(one.restore(*sites(), snapshot=newer).state, Aborted)


class TestOneRound:
    def test_a_whole_round_under_journals(self, one, sites):
        parties = {ClientId(name): one.enter(name, *sites(name)) for name in "abcd"}
        carriage = carry(one, parties, drops={ClientId("c"): 2})
        assert carriage.result.survivors == tuple("abd")
        for name in "abd":
            assert isinstance(parties[name].state, Finished)
            assert isinstance(one.restore(*sites(name)).state, Finished)

    def test_it_is_a_party(self, one, sites):
        party = one.enter("a", *sites())
        assert isinstance(party, Party)
        assert repr(party).startswith("JournaledParty(a, Running(")

    def test_a_round_is_entered_once_and_its_noise_is_drawn_once(self, one, sites):
        drawn = []

        def draw():
            drawn.append(1)
            return one.update("a")

        one.enter("a", *sites(), draw=draw)
        for _ in range(2):
            with pytest.raises(LocalProtocolError, match="entered before"):
                one.enter("a", *sites(), draw=draw)
        assert drawn == [1]

    def test_noise_counts_as_spent_before_it_is_drawn(self, one, sites):
        def crash():
            assert sites()[0].entry(one.spec).noise_spent
            raise MemoryError

        with pytest.raises(MemoryError):
            one.enter("a", *sites(), draw=crash)
        journal, vault = sites()
        assert journal.entry(one.spec).noise_spent
        assert isinstance(one.restore(journal, vault).state, Aborted)

    def test_a_retry_is_a_new_round_with_fresh_keys(self, sites):
        first, retry = stage.Round("masking", round_id=3), stage.Round("masking", round_id=4)
        journal, vault = sites()
        (said,) = first.enter("a", journal, vault).start()
        assert len(list(vault._folder.iterdir())) == 1
        (again,) = retry.enter("a", journal, vault).start()
        body = slice(39, 39 + 1184)
        assert said.payload[body] != again.payload[body]
        assert isinstance(first.restore(journal, vault).state, Aborted)
        assert isinstance(retry.restore(journal, vault).state, Running)

    def test_requests_after_the_end_are_refused(self, one, sites):
        parties = {ClientId(name): one.client(name) for name in "bcd"} | {A: one.enter("a", *sites())}
        carry(one, parties)
        with pytest.raises(RemoteProtocolError, match="after everything was said"):
            parties[A].receive(Envelope(AGGREGATOR, A, b"once more"))
        with pytest.raises(LocalProtocolError, match="nothing to go on from"):
            parties[A].snapshot()
        with pytest.raises(LocalProtocolError, match="an envelope for b"):  # its sender is not to blame
            parties[A].receive(Envelope(AGGREGATOR, ClientId("b"), b"once more"))

    def test_a_round_that_a_later_one_closed_computes_nothing_more(self, sites):
        """The journal is asked before the scheme's party, which would go on and whose secrets would be used."""
        first, second = stage.Round("masking", round_id=3), stage.Round("masking", round_id=4)
        journal, vault = sites()
        party = first.enter("a", journal, vault)
        second.enter("a", journal, vault)
        for _ in range(2):
            with pytest.raises(LocalProtocolError, match="later round"):
                party.start()
            assert isinstance(party.state, Running)
        assert party._inner.start()  # it had not been asked

    def test_start_repeats_itself(self, one, sites):
        party = one.enter("a", *sites())
        said = party.start()
        assert party.start() == said == one.restore(*sites()).start()
        assert sites()[0].stored(one.spec, START) == said

    def test_what_the_scheme_refuses_is_kept_as_evidence(self, one, sites):
        party = one.enter("a", *sites())
        party.start()
        for _ in range(2):
            with pytest.raises(RemoteProtocolError):
                party.receive(Envelope(AGGREGATOR, A, b"hostile"))
        assert isinstance(party.state, Running)
        (kept,) = sites()[0].entry(one.spec).refusals
        assert kept.sender == AGGREGATOR

    @pytest.mark.parametrize("sender", ["\ud800", "x" * 10_000, ""])
    def test_a_request_from_a_strange_name_is_a_refusal_like_any_other(self, one, sites, sender):
        """Where envelopes travel as JSON, a peer can choose a name that has no encoding."""
        party = one.enter("a", *sites())
        party.start()
        with pytest.raises(RemoteProtocolError, match="clients take messages from the aggregator only"):
            party.receive(Envelope(ClientId(sender), A, b"hostile"))
        (kept,) = one.restore(*sites())._journal.entry(one.spec).refusals
        assert len(kept.sender) <= 64

    def test_somebody_elses_envelope_or_journal_is_a_callers_mistake(self, one, sites):
        with pytest.raises(LocalProtocolError, match="the journal of b, expected that of a"):
            one.enter("a", *sites("b"))
        with pytest.raises(LocalProtocolError, match="an envelope for b"):
            one.enter("a", *sites()).receive(Envelope(AGGREGATOR, ClientId("b"), b""))

    @pytest.mark.parametrize("error", [LocalProtocolError("No space left on device"), KeyboardInterrupt()])
    def test_a_step_that_cannot_be_written_sends_nothing_and_can_be_made_again(
        self, one, sites, monkeypatch, error
    ):
        party = one.enter("a", *sites())

        def full(*_):
            raise error

        monkeypatch.setattr(journaled_party.SnapshotVault, "store", full)
        with pytest.raises(type(error)):
            party.start()
        assert isinstance(party.state, Aborted)
        assert party.start() == []
        monkeypatch.undo()
        assert isinstance(one.restore(*sites()).state, Aborted)  # it never said anything


class TestSecretsAtRest:
    def test_snapshots_are_sealed_and_for_their_owner_only(self, one, sites, tmp_path):
        party = one.enter("a", *sites())
        party.start()
        seed = one.identities["a"].seed
        values = one.values("a").tobytes()
        plain = party._inner.snapshot()
        assert seed in plain
        assert values in plain
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert any(path.suffix == ".snapshot" for path in files)
        for path in files:
            assert path.stat().st_mode & 0o077 == 0
            assert seed not in path.read_bytes()
            assert values not in path.read_bytes()

    def test_another_key_client_or_round_does_not_open_them(self, one, sites, tmp_path):
        journal, vault = sites()
        one.enter("a", journal, vault).start()
        stranger = SnapshotVault(tmp_path / "a.vault", client=A, key=bytes(32))
        with pytest.raises(LocalProtocolError, match="does not open"):
            one.restore(journal, stranger)
        sealed = vault.seal(one.spec, b"secret")
        assert vault.open(one.spec, sealed) == b"secret"
        with pytest.raises(LocalProtocolError, match="does not open"):
            vault.open(stage.Round("masking", round_id=4).spec, sealed)
        other = SnapshotVault(tmp_path / "b.vault", client=ClientId("b"), key=stage.KEY)
        with pytest.raises(LocalProtocolError, match="does not open"):
            other.open(one.spec, sealed)

    def test_they_are_destroyed_with_the_rounds_secrets(self, one, sites, tmp_path):
        parties = {ClientId(name): one.client(name) for name in "bcd"} | {A: one.enter("a", *sites())}
        carry(one, parties)
        assert list((tmp_path / "a.vault").iterdir()) == []

    def test_only_the_pinned_one_is_kept(self, one, sites, tmp_path):
        party = one.enter("a", *sites())
        party.start()
        (tmp_path / "a.vault" / f"{one.spec.run_id.hex()}-3-{'0' * 64}.snapshot").write_bytes(b"rubbish")
        restored = one.restore(*sites())
        assert isinstance(restored.state, Running)
        assert len(list((tmp_path / "a.vault").iterdir())) == 1
        assert restored.snapshot() == party.snapshot()

    def test_a_vault_does_not_print_its_key(self, sites):
        assert repr(sites()[1]) == "SnapshotVault(a)"


def test_a_scheme_party_that_aborts_takes_the_journal_with_it(one, sites):
    class Quitter:
        state = Running("input")

        def start(self):
            from secfl.errors import RoundAborted

            self.state = Aborted(RoundAborted("had enough"))
            return []

    journal, vault = sites()
    journal.enter(one.spec)
    party = JournaledParty(one.spec, journal=journal, vault=vault, inner=Quitter(), end=Running("input"))
    assert party.start() == []
    assert isinstance(party.state, Aborted)
    assert "had enough" in str(one.restore(*sites()).state.reason)
