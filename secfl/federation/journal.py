"""A client's journal: what it answered in every round, on the disk before it leaves.

The journal is what makes a client that was stopped, restored or restarted safe to ask again: the same request
gets the stored bytes, another request for an answered phase is refused, a round is entered once, and noise is
drawn once. It lies outside of the client's snapshots, so that an old snapshot cannot undo it.
docs/protocol.md, section 2, is normative.

What was said in a round is needed until a later one is entered. Then it is forgotten, once there is enough of it: a
program that serves one message in each process reads the journal every time.

A host that is set back journal and all defeats it; such a client counts as a colluder.

The journal holds what the client sent and hashes of what it was asked. It holds no secret that the aggregator
has not received; it should still be readable by its owner only, and is created so.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from secfl.crypto.aggregation import Envelope
from secfl.crypto.snapshots import split_fields
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.federation.journal_entries import Answer, PhaseAfter, Refusal, RoundEntry
from secfl.federation.journal_file import JournalFile, StoredRecord
from secfl.federation.journal_records import (
    ANSWER_FIELDS,
    Kind,
    apply_to_round,
    encoded,
    forgotten,
    number_field,
    read_number,
)
from secfl.types import ClientId, RoundSpec, join_fields

__all__ = [
    "FORGET_BYTES",
    "START",
    "Answer",
    "Journal",
    "PhaseAfter",
    "Refusal",
    "RoundEntry",
    "request_hash",
]

START: Final = hashlib.sha256(b"secfl/v1/journal/start").digest()
"""The request hash under which a party's first envelopes are kept: nobody asked for them."""

MAX_REFUSALS: Final = 64
"""Refused requests that are kept for a round: enough to tell a story, too few to fill a disk."""

FORGET_BYTES: Final = 1 << 20
"""How much was said in rounds that are over before it is forgotten: each time the file is written anew."""

_HASH_BYTES: Final = 32


class Journal:
    """The journal of one client, over all its runs. Use it from one thread; it locks out other processes.

    Every method that changes something returns after the change is on the disk.

    Args:
        path: The file; made when it is missing.
        client: Whose journal it is; another client's journal is refused.

    Raises:
        LocalProtocolError: Another process holds it, it is damaged, newer, another client's, or unwritable.
    """

    def __init__(self, path: Path, *, client: ClientId) -> None:
        self.client = client
        self._file = JournalFile(path)
        try:
            self._read()
            self._claim()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it must be opened again: after `close`, and after a write that the disk refused."""
        return self._file.closed

    def close(self) -> None:
        """Let go of the file and its lock; safe to call again."""
        self._file.close()

    # Rounds

    def enter(self, spec: RoundSpec) -> None:
        """Enter a round, before its keys or its noise are drawn; may forget what was said in the run's earlier rounds.

        That they were entered, under which specification, what was asked, and whether noise was spent is kept.

        Raises:
            LocalProtocolError: The round was entered before, an equal or later round of the run was, or the
                run is finished. A retry is a new round.
        """
        self.check_enterable(spec)
        fields = spec.run_id, number_field(int(spec.round_id)), spec.digest()
        if self._said_bytes(spec.run_id) < FORGET_BYTES:
            self._append(Kind.ENTERED, *fields)
            return

        def kept() -> Iterator[bytes]:
            # One new file forgets and enters: a round that may still be asked about has all of its answers.
            for _, body in self._file.records():
                yield forgotten(body, spec.run_id)
            yield join_fields(Kind.ENTERED.encode(), *fields)

        self._replace_with(kept())

    def check_enterable(self, spec: RoundSpec) -> None:
        """Whether `enter` would work; errors as there. Writes nothing."""
        run, round_id = spec.run_id, int(spec.round_id)
        if run in self._finished:
            raise LocalProtocolError(f"round {round_id}: the run is finished")
        last = self._last_round.get(run, -1)
        if round_id == last:
            raise LocalProtocolError(f"round {round_id} was entered before; a retry is a new round")
        if round_id < last:
            raise LocalProtocolError(f"round {round_id}: rounds rise, and {last} was entered already")

    def answers(self, run_id: bytes, round_id: int) -> int:
        """How many requests of a round were answered; 0 also for a round that was never entered."""
        entry = self._rounds.get((run_id, round_id))
        return 0 if entry is None else len(entry.answers)

    def last_round(self, run_id: bytes) -> int | None:
        """The last round of a run that was entered; ``None`` for none."""
        return self._last_round.get(run_id)

    def spend_noise(self, spec: RoundSpec) -> None:
        """Note that the round's noise is drawn; call it before drawing.

        Raises:
            LocalProtocolError: It was drawn before, something was sent already, or the round is not open.
        """
        entry = self.open_entry(spec)
        if entry.noise_spent:
            raise LocalProtocolError(
                f"round {spec.round_id}: its noise was drawn before; a retry is a new round"
            )
        if entry.answers:
            raise LocalProtocolError(f"round {spec.round_id}: noise after something was sent")
        self._append(Kind.NOISE, spec.run_id, number_field(spec.round_id))

    def entry(self, spec: RoundSpec) -> RoundEntry:
        """What is known of a round.

        Raises:
            LocalProtocolError: It was not entered, was pruned, or was entered under another specification.
        """
        entry = self._rounds.get((spec.run_id, int(spec.round_id)))
        if entry is None:
            raise LocalProtocolError(f"round {spec.round_id} was not entered, or is forgotten")
        if entry.spec_digest != spec.digest():
            raise LocalProtocolError(f"round {spec.round_id} was entered under another specification")
        return entry

    def open_entry(self, spec: RoundSpec) -> RoundEntry:
        """`entry`, for a round in which the client may still say something new.

        Raises:
            LocalProtocolError: Also when a later round was entered, the run is finished, the client left the
                round, or it has said everything.
        """
        entry = self.entry(spec)
        if reason := self.why_closed(spec):
            raise LocalProtocolError(f"round {spec.round_id}: {reason}")
        return entry

    def why_closed(self, spec: RoundSpec) -> str:
        """Why nothing new may be said in a round; empty when something may."""
        entry = self.entry(spec)
        if spec.run_id in self._finished:
            return "the run is finished"
        if self._last_round[spec.run_id] != int(spec.round_id):
            return "a later round was entered"
        if entry.abandoned:
            return entry.abandoned
        return "everything was said" if entry.finished else ""

    # Requests

    def stored(self, spec: RoundSpec, request: bytes) -> list[Envelope] | None:
        """What a request was answered with, byte for byte; ``None`` when it is new.

        Raises:
            LocalProtocolError: It is forgotten since a later round was entered, or as in `entry`.
        """
        answer = self.entry(spec).answers.get(request)
        if answer is None:
            return None
        if answer.record is None:
            raise LocalProtocolError(f"round {spec.round_id} is over, and what was said in it is forgotten")
        flat = split_fields(self._file.read(answer.record))[ANSWER_FIELDS:]
        return [
            Envelope(self.client, ClientId(recipient.decode()), payload)
            for recipient, payload in zip(flat[::2], flat[1::2], strict=True)
        ]

    def check_new(self, spec: RoundSpec, *, phase: str, request: bytes, sender: str) -> None:
        """Refuse a request that contradicts an answered one, and keep it as evidence.

        Raises:
            RemoteProtocolError: The phase was closed by the answer to another request; blames ``sender``.
            LocalProtocolError: Nothing new may be said in this round.
        """
        closing = self.entry(spec).closing(phase)
        if closing is not None and closing.request != request:
            reason = f"second request in phase {phase} differs from the one already answered"
            self.refuse(spec, phase=phase, request=request, sender=sender, reason=reason)
            raise RemoteProtocolError(sender, reason)
        self.open_entry(spec)

    def record(
        self,
        spec: RoundSpec,
        *,
        phase: str,
        request: bytes,
        envelopes: Sequence[Envelope],
        snapshot: bytes,
        after: PhaseAfter,
    ) -> None:
        """Keep an answer, before any of its envelopes leaves.

        Args:
            spec: The round.
            phase: The phase in which the party was when the request came.
            request: `request_hash` of the request, or `START`.
            envelopes: What leaves; may be empty when the party only took something in.
            snapshot: SHA-256 of the sealed snapshot from which the party may go on; empty when it is done.
            after: Whether another request in this phase would be a contradiction.

        Raises:
            LocalProtocolError: The request was answered, its phase is closed, the round is not open, or the
                disk refuses. Then nothing may leave.
        """
        entry = self.open_entry(spec)
        if request in entry.answers or entry.closing(phase) is not None:
            raise LocalProtocolError(f"round {spec.round_id}: phase {phase} was answered before")
        if any(envelope.sender != self.client for envelope in envelopes):
            raise LocalProtocolError(f"an envelope that does not come from {self.client}")
        if len(request) != _HASH_BYTES or len(snapshot) not in (0, _HASH_BYTES):
            raise LocalProtocolError("journal: expected SHA-256 hashes")
        self._append(
            Kind.ANSWER,
            spec.run_id,
            number_field(spec.round_id),
            phase.encode(),
            request,
            snapshot,
            after.value.encode(),
            *(part for one in envelopes for part in (one.recipient.encode(), one.payload)),
        )

    def refuse(self, spec: RoundSpec, *, phase: str, request: bytes, sender: str, reason: str) -> None:
        """Keep a contradicting request as evidence; the first `MAX_REFUSALS` of a round, each once."""
        refusals = self.entry(spec).refusals
        if len(refusals) >= MAX_REFUSALS or any(known.request == request for known in refusals):
            return
        fields = (phase.encode(), request, encoded(sender)[:64], encoded(reason)[:200])
        self._append(Kind.REFUSED, spec.run_id, number_field(spec.round_id), *fields)

    def abandon(self, spec: RoundSpec, reason: str) -> None:
        """Leave a round: nothing new will be said in it, whatever snapshots turn up."""
        if not self.why_closed(spec):
            self._append(
                Kind.ABANDONED, spec.run_id, number_field(spec.round_id), reason.encode()[:200] or b"left"
            )

    # Runs

    def finish_run(self, run_id: bytes) -> None:
        """Note that a run is over, also one that never began: none of its rounds is entered or answered anew."""
        if run_id not in self._finished:
            self._append(Kind.RUN_FINISHED, run_id)

    def prune(self, run_id: bytes) -> None:
        """Forget the records of a finished run; that it is finished is kept for ever.

        Raises:
            LocalProtocolError: The run is not finished.
        """
        if run_id not in self._finished:
            raise LocalProtocolError("only a finished run can be pruned; call finish_run first")

        def kept() -> Iterator[bytes]:
            for _, body in self._file.records():
                kind, of = split_fields(body, limit=2)
                if kind == Kind.OWNER.encode() or of != run_id:
                    yield body
            yield join_fields(Kind.RUN_PRUNED.encode(), run_id, number_field(self._last_round.get(run_id, 0)))

        self._replace_with(kept())

    # Reading and writing

    def _claim(self) -> None:
        if self._owner is None:
            self._append(Kind.OWNER, self.client.encode())
        if self._owner != self.client:
            raise LocalProtocolError(
                f"{self._file.path}: the journal of {self._owner}, expected that of {self.client}"
            )

    def _append(self, kind: Kind, *fields: bytes) -> None:
        # Large payloads are written from where they are; only the fields' lengths are copied.
        parts = [part for one in (kind.encode(), *fields) for part in (struct.pack("<Q", len(one)), one)]
        stored = self._file.append(parts)
        self._apply(stored, [kind.encode(), *fields])

    def _replace_with(self, bodies: Iterator[bytes]) -> None:
        try:
            self._file.replace_with(bodies)
            self._read()
        except BaseException:
            self.close()  # which of the two files is there, is found out when it is opened again
            raise

    def _said_bytes(self, run_id: bytes) -> int:
        """Size of the answers of a run that could be read again."""
        return sum(
            answer.record.length
            for (of, _), entry in self._rounds.items()
            if of == run_id
            for answer in entry.answers.values()
            if answer.record is not None
        )

    def _read(self) -> None:
        self._owner: str | None = None
        self._rounds: dict[tuple[bytes, int], RoundEntry] = {}
        self._last_round: dict[bytes, int] = {}
        self._finished: set[bytes] = set()
        for number, (stored, body) in enumerate(self._file.records()):
            try:
                self._apply(stored, split_fields(body))
            except (ValueError, KeyError, IndexError, struct.error, LocalProtocolError):
                raise LocalProtocolError(
                    f"{self._file.path}: record {number} is not one that this secfl writes"
                ) from None

    def _apply(self, stored: StoredRecord, fields: Sequence[bytes]) -> None:
        """Take one record into memory: the same for a record just written and for one read back."""
        kind, (first, *rest) = Kind(fields[0].decode()), fields[1:]
        match kind:
            case Kind.OWNER:
                self._owner = first.decode()
            case Kind.RUN_FINISHED:
                self._finished.add(first)
            case Kind.RUN_PRUNED:
                self._finished.add(first)
                self._last_round[first] = read_number(rest[0])
            case Kind.ENTERED:
                self._rounds[first, read_number(rest[0])] = RoundEntry(spec_digest=rest[1])
                self._last_round[first] = read_number(rest[0])
            case _:
                apply_to_round(kind, stored, self._rounds[first, read_number(rest[0])], rest[1:])


def request_hash(envelope: Envelope) -> bytes:
    """SHA-256 over sender, recipient and payload of a request; 32 bytes."""
    names = encoded(envelope.sender), encoded(envelope.recipient)
    digest = hashlib.sha256(join_fields(b"request", *names))
    digest.update(envelope.payload)
    return digest.digest()
