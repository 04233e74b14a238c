"""The journal: what is on the disk stays said, torn tails are cut, damage is refused, rounds are entered once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from secfl.crypto.aggregation import Envelope
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.federation import journal as journal_module
from secfl.federation import journal_file
from secfl.federation.journal import FORGET_BYTES, MAX_REFUSALS, START, Journal, PhaseAfter, request_hash
from secfl.federation.journal_file import JournalFile
from secfl.types import AGGREGATOR, ClientId, RoundId, RoundSpec, SchemeSpec, VectorSpec, join_fields

A = ClientId("a")
BODIES = [b"", b"one", bytes(1000), b"four" * 5]


def spec(round_id: int = 0, *, run: int = 0, model: int = 0) -> RoundSpec:
    return RoundSpec(
        run_id=bytes([run]) * 16,
        round_id=RoundId(round_id),
        cohort=(A,),
        threshold=1,
        vectors=(VectorSpec(name="update", length=1, modulus_bits=8),),
        scheme=SchemeSpec(name="plain"),
        manifest_digest=bytes(32),
        model_digest=bytes([model]) * 32,
        task_digest=bytes(32),
        plan_digest=bytes(32),
    )


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def answer(journal: Journal, one: RoundSpec, request: str, *, phase: str = "share", last: bool = False, **kw):
    envelopes = kw.pop("envelopes", [Envelope(A, AGGREGATOR, request.encode() * 3)])
    journal.record(
        one,
        phase=phase,
        request=digest(request),
        envelopes=envelopes,
        snapshot=b"" if last else digest("snapshot after " + request),
        after=kw.pop("after", PhaseAfter.CLOSED),
    )
    return envelopes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.journal"


@pytest.fixture
def journal(path):
    with Journal(path, client=A) as one:
        yield one


@pytest.fixture(params=["same process", "reopened"])
def later(request, journal, path):
    """The journal at a later time: the same object, or the file opened again."""

    def look() -> Journal:
        if request.param == "same process":
            return journal
        journal.close()
        journal.__init__(path, client=A)
        return journal

    return look


def written(path, bodies=BODIES) -> list[bytes]:
    path.unlink(missing_ok=True)
    file = JournalFile(path)
    list(file.records())
    for body in bodies:
        file.append([body[:2], body[2:]])
    file.close()
    return list(bodies)


def contents(path) -> list[bytes]:
    file = JournalFile(path)
    try:
        return [body for _, body in file.records()]
    finally:
        file.close()


class TestFile:
    def test_what_is_written_is_read(self, path):
        assert contents(path) == []
        assert written(path) == contents(path) == contents(path)

    def test_only_its_owner_reads_it(self, path):
        written(path)
        assert path.stat().st_mode & 0o077 == 0

    def test_a_torn_tail_is_cut_wherever_the_crash_was(self, path):
        written(path, [b"first", b"second"])
        complete = path.read_bytes()
        whole = []
        for size in range(15, len(complete) + 1):
            path.write_bytes(complete[:size])
            bodies = contents(path)
            assert bodies == [b"first", b"second"][: len(bodies)]
            assert path.stat().st_size <= size
            assert contents(path) == bodies
            whole.append(len(bodies))
        assert whole == sorted(whole)
        assert whole[-1] == 2
        assert whole[-2] == 1

    def test_a_file_goes_on_after_its_torn_tail(self, path):
        written(path, [b"first", b"second"])
        path.write_bytes(path.read_bytes()[:-1])
        file = JournalFile(path)
        list(file.records())
        file.append([b"third"])
        file.close()
        assert contents(path) == [b"first", b"third"]

    @given(data=st.data())
    def test_a_flipped_bit_is_damage_and_never_a_shorter_file(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("flip") / "journal"
        written(path)
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with pytest.raises(LocalProtocolError):
            contents(path)
        assert path.read_bytes() == content  # nothing was cut

    def test_without_the_check_on_lengths_a_flipped_bit_forgets_what_was_said(self, path, monkeypatch):
        written(path)
        content = bytearray(path.read_bytes())
        content[15 + 5] ^= 1  # the length of the first record: now far beyond the end
        path.write_bytes(content)
        monkeypatch.setattr(journal_file.hmac, "compare_digest", lambda *_: True)
        assert contents(path) == []

    def test_records_cannot_change_places(self, path):
        written(path, [b"AAAA", b"BBBB"])
        content = path.read_bytes()
        size = (len(content) - 15) // 2
        path.write_bytes(content[:15] + content[15 + size :] + content[15 : 15 + size])
        with pytest.raises(LocalProtocolError, match="record 0 is damaged"):
            contents(path)

    @pytest.mark.parametrize("content", [b"", b"secfl jour", b"something else entirely"])
    def test_another_file_is_refused(self, path, content):
        path.write_bytes(content)
        with pytest.raises(LocalProtocolError, match="not a journal"):
            contents(path)

    def test_a_newer_format_is_refused(self, path):
        written(path)
        content = bytearray(path.read_bytes())
        content[14] += 1
        path.write_bytes(content)
        with pytest.raises(LocalProtocolError, match=r"format_version 2 .* upgrade secfl"):
            contents(path)

    def test_a_second_writer_is_locked_out(self, path):
        first = JournalFile(path)
        with pytest.raises(LocalProtocolError, match="another process"):
            JournalFile(path)
        code = (
            "import sys; from pathlib import Path; from secfl.federation.journal_file import JournalFile\n"
            "from secfl.errors import LocalProtocolError\n"
            "try: JournalFile(Path(sys.argv[1]))\n"
            "except LocalProtocolError as error: print(error)"
        )
        run = [sys.executable, "-c", code, str(path)]
        assert "another process" in subprocess.run(run, capture_output=True, text=True, check=True).stdout
        first.close()
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == ""

    @pytest.mark.parametrize(
        "way", ["symbolic link", "hard link", "lock file removed", "folder with another name"]
    )
    def test_a_second_writer_is_locked_out_by_whatever_name_it_comes(self, path, tmp_path, way):
        first = JournalFile(path)
        list(first.records())
        first.append([b"said"])
        other = tmp_path / "other"
        match way:
            case "symbolic link":
                other.symlink_to(path)
            case "hard link":
                other.hardlink_to(path)
            case "lock file removed":
                Path(f"{path}.lock").unlink()
                other = path
            case _:
                other.symlink_to(path.parent)
                other /= path.name
        with pytest.raises(LocalProtocolError, match="another process"):
            JournalFile(other)
        first.close()
        assert contents(other) == [b"said"]

    def test_pruning_under_another_name_leaves_one_journal(self, path, tmp_path):
        written(path, [b"first", b"second"])
        link = tmp_path / "link"
        link.symlink_to(path)
        file = JournalFile(link)
        file.replace_with([b"second"])
        list(file.records())
        file.close()
        assert contents(path) == contents(link) == [b"second"]

    @pytest.mark.parametrize("written_bytes", [5, 400])
    def test_an_interruption_leaves_the_file_as_it_was(self, path, monkeypatch, written_bytes):
        written(path)
        before = path.read_bytes()
        file = JournalFile(path)
        list(file.records())
        original = os.pwrite

        def interrupted(descriptor, data, offset):
            original(descriptor, bytes(data)[:written_bytes], offset)
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            file.append([bytes(900)])
        monkeypatch.undo()
        with pytest.raises(LocalProtocolError, match="closed"):
            file.append([b"more"])
        assert path.read_bytes() == before

    @pytest.mark.parametrize("function", ["pwrite", "fsync"])
    def test_a_full_disk_leaves_the_file_as_it_was(self, path, monkeypatch, function):
        written(path)
        before = path.read_bytes()
        file = JournalFile(path)
        list(file.records())
        original, calls = getattr(os, function), []

        def full(descriptor, *arguments):
            calls.append(1)
            if function == "pwrite" and len(calls) == 2:  # half of the body, then no more
                return original(descriptor, bytes(arguments[0])[:300], arguments[1])
            if (function, len(calls)) in {("pwrite", 3), ("fsync", 1)}:
                raise OSError(28, "No space left on device")
            return original(descriptor, *arguments)

        monkeypatch.setattr(os, function, full)
        with pytest.raises(LocalProtocolError, match=r"No space left on device.*; nothing was sent"):
            file.append([bytes(900)])
        with pytest.raises(LocalProtocolError, match="closed"):
            file.append([b"more"])
        monkeypatch.undo()
        assert path.read_bytes() == before

    def test_what_a_killed_process_left_in_memory_is_on_the_disk_before_it_is_acted_upon(
        self, path, monkeypatch
    ):
        """Killed between writing and waiting for the disk: the record, or the new file's name, is read all the same."""
        written(path)
        synced = []
        original = os.fsync

        def noting(descriptor):
            synced.append(os.fstat(descriptor).st_ino)
            original(descriptor)

        monkeypatch.setattr(os, "fsync", noting)
        JournalFile(path).close()
        assert set(synced) == {path.stat().st_ino, path.parent.stat().st_ino}

    @pytest.mark.parametrize("function", ["pread", "fstat", "fsync"])
    def test_a_disk_that_cannot_be_read_is_named(self, path, monkeypatch, function):
        written(path)
        told = []
        for call in range(1, 20):
            with monkeypatch.context() as patch:
                crash_at(patch, function, call, OSError)
                try:
                    contents(path)
                except LocalProtocolError as error:
                    told.append(str(error))
                else:
                    break
        assert all("No space left on device" in one for one in told)
        assert told
        assert contents(path) == BODIES

    @pytest.mark.parametrize("where", [0, 1, 2])
    def test_a_descriptor_that_cannot_be_closed_is_no_trouble_of_the_caller(self, path, monkeypatch, where):
        """All is on the disk by then; the file is let go of whatever the system says."""
        written(path)
        file = JournalFile(path)
        list(file.records())
        original, calls = os.close, []

        def failing(descriptor):
            original(descriptor)
            calls.append(descriptor)
            if len(calls) == where + 1:
                raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "close", failing)
            with contextlib.suppress(LocalProtocolError):  # a new file that is not closed well is not used
                file.replace_with([b"new"])
            file.close()
        assert len(calls) > where
        assert file.closed
        assert contents(path) in ([b"new"], BODIES)

    def test_a_new_file_that_cannot_be_removed_is_no_other_error(self, path, monkeypatch):
        written(path)
        file = JournalFile(path)
        list(file.records())

        def refuse(*_arguments, **_more):
            raise OSError(30, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            patch.setattr(os, "unlink", refuse)
            with pytest.raises(LocalProtocolError, match="Read-only file system"):
                file.replace_with([b"new"])
        file.close()
        assert contents(path) == BODIES

    def test_a_closed_file_is_not_replaced(self, path):
        written(path)
        file = JournalFile(path)
        file.close()
        with pytest.raises(LocalProtocolError, match="closed"):
            file.replace_with([b"new"])
        assert contents(path) == BODIES

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(LocalProtocolError, match=r"file/journal: "):
            JournalFile(tmp_path / "file" / "journal")


class TestRounds:
    def test_a_round_is_entered_once(self, journal, later):
        journal.enter(spec(4))
        for model in (0, 1):
            with pytest.raises(LocalProtocolError, match="entered before; a retry is a new round"):
                later().enter(spec(4, model=model))

    def test_rounds_rise_within_a_run(self, journal, later):
        journal.enter(spec(4))
        journal.enter(spec(0, run=1))
        with pytest.raises(LocalProtocolError, match="rounds rise"):
            later().enter(spec(3))
        later().enter(spec(5))

    def test_a_round_has_one_specification(self, journal, later):
        journal.enter(spec(4))
        answer(journal, spec(4), "x")
        for call in (journal.entry, journal.spend_noise, journal.open_entry):
            with pytest.raises(LocalProtocolError, match="another specification"):
                call(spec(4, model=1))
        with pytest.raises(LocalProtocolError, match="another specification"):
            later().stored(spec(4, model=1), digest("x"))

    def test_a_round_that_was_not_entered_is_unknown(self, journal):
        with pytest.raises(LocalProtocolError, match="not entered"):
            answer(journal, spec(1), "x")

    def test_noise_is_drawn_once(self, journal, later):
        journal.enter(spec(4))
        journal.spend_noise(spec(4))
        with pytest.raises(LocalProtocolError, match="noise was drawn before"):
            later().spend_noise(spec(4))

    def test_no_noise_after_something_was_sent(self, journal, later):
        journal.enter(spec(4))
        answer(journal, spec(4), "x")
        with pytest.raises(LocalProtocolError, match="after something was sent"):
            later().spend_noise(spec(4))

    def test_a_later_round_closes_the_earlier_one_but_not_its_stored_answers(self, journal, later):
        journal.enter(spec(4))
        said = answer(journal, spec(4), "x")
        journal.enter(spec(5))
        with pytest.raises(LocalProtocolError, match="a later round was entered"):
            answer(later(), spec(4), "y", phase="unmask")
        assert journal.stored(spec(4), digest("x")) == said

    def test_a_round_that_was_left_stays_left(self, journal, later):
        journal.enter(spec(4))
        journal.abandon(spec(4), "the snapshot is gone")
        journal.abandon(spec(4), "again")
        with pytest.raises(LocalProtocolError, match="the snapshot is gone"):
            answer(later(), spec(4), "x")

    def test_after_the_last_answer_nothing_follows(self, journal, later):
        journal.enter(spec(4))
        answer(journal, spec(4), "x", last=True)
        assert journal.entry(spec(4)).finished
        with pytest.raises(LocalProtocolError, match="everything was said"):
            answer(later(), spec(4), "y", phase="unmask")

    def test_another_clients_journal_is_refused(self, journal, path):
        journal.close()
        with pytest.raises(LocalProtocolError, match="journal of a, expected that of b"):
            Journal(path, client=ClientId("b"))
        Journal(path, client=A).close()  # and the lock was let go


class TestAnswers:
    def test_the_same_request_gets_the_same_bytes(self, journal, later):
        journal.enter(spec())
        said = [Envelope(A, AGGREGATOR, bytes(range(256)) * 9), Envelope(A, ClientId("b"), b"")]
        answer(journal, spec(), "x", envelopes=said)
        assert later().stored(spec(), digest("x")) == said
        assert later().stored(spec(), digest("y")) is None

    def test_another_request_for_an_answered_phase_is_refused_and_kept(self, journal, later):
        journal.enter(spec())
        answer(journal, spec(), "x")
        with pytest.raises(RemoteProtocolError, match="second request in phase share differs") as caught:
            later().check_new(spec(), phase="share", request=digest("y"), sender=AGGREGATOR)
        assert caught.value.peer == AGGREGATOR
        (kept,) = later().entry(spec()).refusals
        assert (kept.phase, kept.request, kept.sender) == ("share", digest("y"), AGGREGATOR)

    @pytest.mark.parametrize("request_", ["x", "y"])
    def test_a_phase_is_answered_once_even_if_nobody_asked_first(self, journal, later, request_):
        journal.enter(spec())
        answer(journal, spec(), "x")
        with pytest.raises(LocalProtocolError, match="phase share was answered before"):
            answer(later(), spec(), request_, envelopes=[])

    def test_a_phase_that_stays_open_takes_several_requests(self, journal, later):
        journal.enter(spec())
        answer(journal, spec(), "x", after=PhaseAfter.OPEN)
        answer(later(), spec(), "y", after=PhaseAfter.OPEN)
        answer(later(), spec(), "z")
        with pytest.raises(LocalProtocolError, match="answered before"):
            answer(later(), spec(), "w")

    def test_evidence_is_bounded_and_kept_once(self, journal, later):
        journal.enter(spec())
        for number in range(MAX_REFUSALS + 5):
            for _ in range(2):
                journal.refuse(
                    spec(), phase="share", request=digest(str(number)), sender="x" * 999, reason="y" * 999
                )
        assert len(later().entry(spec()).refusals) == MAX_REFUSALS

    def test_only_the_own_envelopes_are_kept(self, journal):
        journal.enter(spec())
        with pytest.raises(LocalProtocolError, match="does not come from a"):
            answer(journal, spec(), "x", envelopes=[Envelope(ClientId("b"), AGGREGATOR, b"")])

    def test_a_file_that_changes_under_the_journal_is_noticed(self, journal, path):
        journal.enter(spec())
        answer(journal, spec(), "x", envelopes=[Envelope(A, AGGREGATOR, b"the masked input")])
        content = path.read_bytes()
        path.open("r+b").write(content.replace(b"the masked input", b"another input..."))
        with pytest.raises(LocalProtocolError, match="changed while it was in use"):
            journal.stored(spec(), digest("x"))

    def test_a_file_that_becomes_shorter_under_the_journal_is_noticed(self, journal, path):
        """It must not wait for ever for bytes that are gone."""
        journal.enter(spec())
        answer(journal, spec(), "x", envelopes=[Envelope(A, AGGREGATOR, b"the masked input")])
        os.truncate(path, path.stat().st_size - 60)
        with pytest.raises(LocalProtocolError, match="became shorter while it was in use"):
            journal.stored(spec(), digest("x"))

    @pytest.mark.parametrize(
        ("request_", "snapshot"), [(b"x", digest("s")), (digest("x"), b"s"), (b"", b""), (bytes(33), b"")]
    )
    def test_only_whole_hashes_are_kept(self, journal, path, request_, snapshot):
        """A short one would pin nothing, or stand for several requests."""
        journal.enter(spec())
        before = path.read_bytes()
        with pytest.raises(LocalProtocolError, match="expected SHA-256 hashes"):
            journal.record(
                spec(),
                phase="share",
                request=request_,
                envelopes=[],
                snapshot=snapshot,
                after=PhaseAfter.CLOSED,
            )
        assert path.read_bytes() == before

    def test_requests_differ_in_sender_recipient_and_payload(self):
        requests = {
            request_hash(Envelope(ClientId(sender), ClientId(recipient), payload))
            for sender in ("a", "ab")
            for recipient in ("c", "bc")
            for payload in (b"", b"c", b"cc")
        }
        assert len(requests) == 12
        assert START not in requests


def large(journal: Journal, one: RoundSpec, request: str, *, phase: str) -> list[Envelope]:
    """An answer of which two are enough to be forgotten."""
    return answer(
        journal, one, request, phase=phase, envelopes=[Envelope(A, AGGREGATOR, bytes(FORGET_BYTES // 2))]
    )


class CrashError(BaseException):
    """The process ends here."""


def crash_at(monkeypatch, function: str, call: int, error: type[BaseException]) -> None:
    """Let a call of a function of ``os`` fail before it does anything."""
    original, calls = getattr(os, function), []

    def failing(*arguments, **more):
        calls.append(function)
        if len(calls) == call:
            raise error(28, "No space left on device")
        return original(*arguments, **more)

    monkeypatch.setattr(os, function, failing)


class TestForgetting:
    def fill(self, journal) -> dict[str, list[Envelope]]:
        journal.enter(spec(0))
        journal.spend_noise(spec(0))
        said = {phase: large(journal, spec(0), f"{phase} of 0", phase=phase) for phase in ("share", "input")}
        journal.refuse(spec(0), phase="share", request=digest("y"), sender=AGGREGATOR, reason="another")
        return said

    def test_what_was_said_in_rounds_that_are_over_is_forgotten(self, journal, later, path):
        said = self.fill(journal)
        journal.enter(spec(5, run=1))
        kept = large(journal, spec(5, run=1), "another run", phase="input")
        for phase, envelopes in said.items():  # until a later round is entered
            assert later().stored(spec(0), digest(f"{phase} of 0")) == envelopes
        assert path.stat().st_size > 3 * FORGET_BYTES // 2
        later().enter(spec(1))
        assert path.stat().st_size < FORGET_BYTES // 2 + 5000
        for phase in said:
            with pytest.raises(
                LocalProtocolError, match="round 0 is over, and what was said in it is forgotten"
            ):
                later().stored(spec(0), digest(f"{phase} of 0"))
        assert later().stored(spec(5, run=1), digest("another run")) == kept
        assert later().stored(spec(0), digest("never asked")) is None
        answer(later(), spec(1), "goes on")

    def test_all_else_is_kept(self, journal, later):
        self.fill(journal)
        before = journal.entry(spec(0))
        journal.enter(spec(1))
        after = later().entry(spec(0))
        assert replace(before, answers={}) == replace(after, answers={})
        assert list(before.answers) == list(after.answers)  # in this order: the last one pins the snapshot
        for request, known in before.answers.items():
            assert replace(known, record=None) == after.answers[request]
        assert later().answers(spec(0).run_id, 0) == 2
        assert later().last_round(spec(0).run_id) == 1
        with pytest.raises(RemoteProtocolError, match="second request in phase share differs"):
            later().check_new(spec(0), phase="share", request=digest("z"), sender=AGGREGATOR)
        for call in (
            lambda one: one.enter(spec(0)),
            lambda one: one.enter(spec(1)),
            lambda one: one.spend_noise(spec(0)),
            lambda one: answer(one, spec(0), "new", phase="unmask"),
        ):
            with pytest.raises(LocalProtocolError):
                call(later())

    def test_little_is_not_forgotten(self, journal, later):
        journal.enter(spec(0))
        said = answer(journal, spec(0), "x")
        journal.enter(spec(1))
        assert later().stored(spec(0), digest("x")) == said

    @pytest.mark.parametrize("error", [CrashError, OSError])
    @pytest.mark.parametrize("function", ["pwrite", "fsync", "replace", "open"])
    def test_wherever_it_ends_the_round_is_entered_or_nothing_is_forgotten(
        self, tmp_path, monkeypatch, function, error
    ):
        outcomes = []
        for call in range(1, 40):
            path = tmp_path / f"{call}"
            journal = Journal(path, client=A)
            said = self.fill(journal)
            with monkeypatch.context() as patch:
                crash_at(patch, function, call, error)
                try:
                    journal.enter(spec(1))
                    reached = True
                except CrashError:
                    reached = False
                except LocalProtocolError:
                    reached = False
            journal.close()
            with Journal(path, client=A) as again:
                entered = again.last_round(spec(0).run_id) == 1
                assert entered or not reached
                if entered:
                    with pytest.raises(LocalProtocolError, match="forgotten"):
                        again.stored(spec(0), digest("input of 0"))
                    with pytest.raises(LocalProtocolError, match="entered before"):
                        again.enter(spec(1))
                else:
                    for phase, envelopes in said.items():
                        assert again.stored(spec(0), digest(f"{phase} of 0")) == envelopes
                    again.enter(spec(1))
                answer(again, spec(1), "goes on")
            outcomes.append((entered, reached))
            if reached:
                break
        assert outcomes[0] == (False, False)  # before anything was written
        assert outcomes[-1] == (True, True)  # the function is not called so often


class TestRuns:
    def test_only_a_finished_run_is_pruned(self, journal):
        journal.enter(spec())
        with pytest.raises(LocalProtocolError, match="only a finished run"):
            journal.prune(spec().run_id)

    def test_a_run_that_never_began_is_finished_too(self, journal, later):
        journal.finish_run(spec(run=9).run_id)
        with pytest.raises(LocalProtocolError, match="the run is finished"):
            later().enter(spec(run=9))
        journal.prune(spec(run=9).run_id)
        with pytest.raises(LocalProtocolError, match="the run is finished"):
            later().enter(spec(run=9))

    def test_a_finished_run_stays_finished(self, journal, later):
        journal.enter(spec())
        answer(journal, spec(), "x")
        journal.finish_run(spec().run_id)
        journal.finish_run(spec().run_id)
        for call in (lambda one: one.enter(spec(1)), lambda one: answer(one, spec(), "y", phase="unmask")):
            with pytest.raises(LocalProtocolError, match="the run is finished"):
                call(later())
        assert later().stored(spec(), digest("x")) is not None

    def test_pruning_forgets_one_run_and_keeps_the_others(self, journal, later, path):
        for run in (0, 1):
            journal.enter(spec(7, run=run))
            journal.spend_noise(spec(7, run=run))
            answer(journal, spec(7, run=run), f"run {run}", envelopes=[Envelope(A, AGGREGATOR, bytes(5000))])
        journal.finish_run(spec(run=0).run_id)
        before = path.stat().st_size
        journal.prune(spec(run=0).run_id)
        assert path.stat().st_size < before - 5000
        assert later().stored(spec(7, run=1), digest("run 1")) == [Envelope(A, AGGREGATOR, bytes(5000))]
        with pytest.raises(LocalProtocolError, match="the run is finished"):
            later().enter(spec(8, run=0))
        answer(later(), spec(7, run=1), "more", phase="unmask")
        journal.finish_run(spec(run=1).run_id)
        journal.prune(spec(run=1).run_id)
        for run in (0, 1):
            with pytest.raises(LocalProtocolError, match="the run is finished"):
                later().enter(spec(99, run=run))

    def test_a_crash_while_pruning_leaves_the_old_journal(self, journal, path, monkeypatch):
        journal.enter(spec())
        answer(journal, spec(), "x")
        journal.finish_run(spec().run_id)
        before = path.read_bytes()

        def crash(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", crash)
        with pytest.raises(LocalProtocolError, match="Input/output error"):
            journal.prune(spec().run_id)
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert [one.name for one in path.parent.iterdir() if one.name.endswith(".new")] == []

    @pytest.mark.parametrize(
        "body",
        [
            b"\x07\x00\x00\x00\x00\x00\x00\x00surplus",
            b"",
            join_fields(b"entered"),
            join_fields(b"entered", bytes(16)),
        ],
    )
    def test_a_record_of_another_kind_is_refused(self, journal, path, body):
        journal.close()
        file = JournalFile(path)
        list(file.records())
        file.append([body])
        file.close()
        with pytest.raises(LocalProtocolError, match="record 1 is not one that this secfl writes"):
            Journal(path, client=A)


class JournalAgainstAModel(RuleBasedStateMachine):
    """Whatever happens and however often the process restarts, what was said stays said."""

    forgets = False

    @initialize(folder=st.uuids())
    def begin(self, folder):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = journal_file.Path(self.folder.name) / "journal"
        self.journal = Journal(self.path, client=A)
        self.last: dict[int, int] = {}
        self.said: dict[tuple[int, int, str], tuple[str, list[Envelope]]] = {}

    def teardown(self):
        if hasattr(self, "journal"):
            self.journal.close()
            self.folder.cleanup()

    @rule(run=st.integers(0, 1), round_id=st.integers(0, 6))
    def enter(self, run, round_id):
        if round_id > self.last.get(run, -1):
            self.journal.enter(spec(round_id, run=run))
            self.last[run] = round_id
        else:
            with pytest.raises(LocalProtocolError):
                self.journal.enter(spec(round_id, run=run))

    @precondition(lambda self: self.last)
    @rule(
        run=st.integers(0, 1),
        phase=st.sampled_from(["share", "input"]),
        request=st.sampled_from("uvw"),
        payload=st.binary(max_size=40),
    )
    def say(self, run, phase, request, payload):
        if run not in self.last:
            return
        one, place = spec(self.last[run], run=run), (run, self.last[run], phase)
        envelopes = [Envelope(A, AGGREGATOR, payload)]
        if place in self.said:
            with pytest.raises(LocalProtocolError):
                answer(self.journal, one, phase + request, phase=phase, envelopes=envelopes)
            if self.said[place][0] != request:
                with pytest.raises(RemoteProtocolError):
                    self.journal.check_new(one, phase=phase, request=digest(request), sender=AGGREGATOR)
        else:
            answer(self.journal, one, phase + request, phase=phase, envelopes=envelopes)
            self.said[place] = (request, envelopes)

    @rule(torn=st.binary(max_size=60))
    def restart(self, torn):
        self.journal.close()
        tail = journal_file._head(self.journal._file._chain, 10**6) + torn
        with self.path.open("ab") as file:  # a crash in the middle of a record
            file.write(tail[: len(torn)])
        self.journal = Journal(self.path, client=A)

    @invariant()
    def what_was_said_is_still_said(self):
        if not hasattr(self, "said"):
            return
        for (run, round_id, phase), (request, envelopes) in self.said.items():
            if self.forgets and round_id < self.last[run]:
                with pytest.raises(LocalProtocolError, match="forgotten"):
                    self.journal.stored(spec(round_id, run=run), digest(phase + request))
            else:
                assert self.journal.stored(spec(round_id, run=run), digest(phase + request)) == envelopes
            assert self.journal.answers(spec(run=run).run_id, round_id) == sum(
                (run, round_id) == place[:2] for place in self.said
            )


class ForgetfulJournalAgainstAModel(JournalAgainstAModel):
    """One that forgets each time, and what is asked in the last round of a run is answered all the same."""

    forgets = True

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(journal_module, "FORGET_BYTES", 0)

    def teardown(self):
        self.patch.undo()
        super().teardown()


TestJournalAgainstAModel = JournalAgainstAModel.TestCase
TestForgetfulJournalAgainstAModel = ForgetfulJournalAgainstAModel.TestCase
TestJournalAgainstAModel.settings = TestForgetfulJournalAgainstAModel.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None
)


def test_the_specification_digest_is_what_binds(journal):
    journal.enter(spec(1))
    with pytest.raises(LocalProtocolError, match="another specification"):
        journal.entry(replace(spec(1), threshold=1, task_digest=digest("another learning rate")))
