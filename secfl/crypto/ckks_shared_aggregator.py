"""The aggregator in a round of CKKS with one shared key.

It relays and checks, and holds no key. It keeps the survivors' ciphertexts, because the client that opens the sum
must receive all of them; so its memory grows with the number of clients, which masking's and sum-key's does not.
When the lead or the opener does not answer before the deadline, the next client in the cohort's order is asked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from secfl.crypto.aggregation import Aborted, Envelope, Finished, PartyState, RoundResult, Running
from secfl.crypto.ckks_ring import check_ciphertext
from secfl.crypto.ckks_shared_messages import (
    SEALING_BODY_BYTES,
    SealedKey,
    SharedInput,
    SharedRound,
    SharedSums,
)
from secfl.crypto.ckks_shared_phases import SHARED_AGGREGATOR_STEPS
from secfl.crypto.hazmat.sealed import check_hybrid_public
from secfl.crypto.identity import SIGNATURE_BYTES, Directory
from secfl.crypto.masking_phases import phase_accepting
from secfl.crypto.snapshots import (
    decode_record,
    encode_record,
    join_indexed,
    restoring,
    split_fields,
    split_indexed,
)
from secfl.crypto.wire import (
    AGGREGATOR_INDEX,
    MessageType,
    Phase,
    Reader,
    Roster,
    Signed,
    check_size,
    frame,
    open_frame,
    take_signed,
    verify_body,
)
from secfl.errors import BelowThreshold, LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.types import AGGREGATOR, join_fields

__all__ = ["AGGREGATOR_RECORD", "SharedKeyAggregator"]

AGGREGATOR_RECORD: Final = "ckks-shared-aggregator"


@dataclass(slots=True, kw_only=True, repr=False)
class _Memory:
    """What the aggregator remembers between two messages.

    Attributes:
        phase: The phase that it collects; ``None`` when the round is over.
        adverts: Statements of phase 1 by cohort position.
        leads: Clients asked for the round's key, the last one is waited for.
        keys: The lead's sealed keys by recipient.
        headers: Statements of phase 3.
        ciphertexts: What they cover.
        openers: Survivors asked to open, the last one is waited for.
        result: The sums.
        failure: Why the round was aborted.
    """

    phase: Phase | None = Phase.ADVERTISE
    adverts: dict[int, Signed] = field(default_factory=dict)
    leads: list[int] = field(default_factory=list)
    keys: dict[int, Signed] = field(default_factory=dict)
    headers: dict[int, Signed] = field(default_factory=dict)
    ciphertexts: dict[int, bytes] = field(default_factory=dict)
    openers: list[int] = field(default_factory=list)
    result: RoundResult | None = None
    failure: RoundAborted | None = None


class SharedKeyAggregator:
    """The aggregator's party. Build it with `create` or `restore`."""

    __slots__ = ("_directory", "_memory", "_round")

    def __init__(self, shared: SharedRound, *, directory: Directory, memory: _Memory) -> None:
        shared.parties.check_parties(directory)
        self._round = shared
        self._directory = directory
        self._memory = memory

    @classmethod
    def create(cls, shared: SharedRound, *, directory: Directory) -> Self:
        """A fresh aggregator; the directory must be the one that the round is bound to."""
        return cls(shared, directory=directory, memory=_Memory())

    @property
    def state(self) -> PartyState:
        """`Running`, with the survivors once they are fixed; `Finished` with the sums; or `Aborted`."""
        memory = self._memory
        if memory.failure is not None:
            return Aborted(memory.failure)
        if memory.phase is None:
            return Finished(memory.result)
        if memory.phase is Phase.CKKS_OPEN:
            names = (self._round.parties.name_of(index) for index in sorted(memory.headers))
            digest = self._round.survivors_digest(memory.headers)
            return Running(memory.phase.value, survivors=tuple(names), inputs_digest=digest)
        return Running(memory.phase.value)

    def __repr__(self) -> str:
        return f"SharedKeyAggregator({self.state!r})"

    def start(self) -> list[Envelope]:
        """Nothing: clients speak first."""
        return []

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Take a client's message; see `Party.receive`."""
        if envelope.recipient != AGGREGATOR:
            raise LocalProtocolError(f"aggregator: an envelope for {envelope.recipient} was delivered here")
        peer = envelope.sender
        if peer not in self._round.spec.cohort:
            raise RemoteProtocolError(peer, "is not in the cohort of this round")
        index = self._round.spec.index(peer)
        kind, content = open_frame(envelope.payload, peer=peer, digest=self._round.digest, sender=index)
        phase = phase_accepting(SHARED_AGGREGATOR_STEPS, kind)
        if phase is None:
            raise RemoteProtocolError(peer, f"{kind.name.lower()} messages are not for the aggregator")
        if phase is not self._memory.phase or index not in self._due():
            raise RemoteProtocolError(peer, f"{phase} message that is not due, or not from this client")
        match phase:
            case Phase.ADVERTISE:
                return self._take_advert(index, content)
            case Phase.CKKS_KEY:
                return self._take_keys(index, content)
            case Phase.CKKS_INPUT:
                return self._take_input(index, content)
            case _:
                return self._take_sums(index, content)

    def phase_over(self) -> list[Envelope]:
        """Go on with those who answered, ask the next lead or opener, or abort."""
        memory = self._memory
        match memory.phase:
            case Phase.ADVERTISE:
                return self._end_phase(memory.adverts, self._ask_lead)
            case Phase.CKKS_KEY:
                return self._ask_lead()
            case Phase.CKKS_INPUT:
                return self._end_phase(memory.headers, self._ask_opener)
            case Phase.CKKS_OPEN:
                return self._ask_opener()
            case _:
                return []

    def _due(self) -> set[int]:
        """From whom a message is due in this phase."""
        memory = self._memory
        match memory.phase:
            case Phase.ADVERTISE:
                return set(range(len(self._round.spec.cohort))) - memory.adverts.keys()
            case Phase.CKKS_KEY:
                return {memory.leads[-1]}
            case Phase.CKKS_INPUT:
                return memory.adverts.keys() - memory.headers.keys()
            case _:
                return set(memory.openers)

    # Phase 1

    def _take_advert(self, index: int, content: memoryview) -> list[Envelope]:
        peer, memory = self._round.parties.name_of(index), self._memory
        signed = self._take_signed(Phase.ADVERTISE, index, content, SEALING_BODY_BYTES)
        try:
            check_hybrid_public(signed.body)
        except ValueError:
            raise RemoteProtocolError(peer, "advertised a public key that cannot be used") from None
        memory.adverts[index] = signed
        return self._ask_lead() if len(memory.adverts) == len(self._round.spec.cohort) else []

    # Phase 2

    def _ask_lead(self) -> list[Envelope]:
        memory = self._memory
        candidates = [index for index in sorted(memory.adverts) if index not in memory.leads]
        if not candidates:
            return self._abort(RoundAborted("ckks: no client dealt the round's key"))
        memory.leads.append(candidates[0])
        kind = self._after(Phase.ADVERTISE)
        return [self._to(candidates[0], kind, Roster(memory.adverts).encode())]

    def _take_keys(self, index: int, content: memoryview) -> list[Envelope]:
        peer, memory = self._round.parties.name_of(index), self._memory
        recipients = sorted(memory.adverts)
        check_size(content, len(recipients) * (SealedKey.SIZE + SIGNATURE_BYTES), peer=peer)
        reader = Reader(content, peer=peer)
        keys, identifiers = {}, set()
        for recipient in recipients:
            signed = take_signed(reader, body_bytes=SealedKey.SIZE)
            self._verify(Phase.CKKS_KEY, index, signed)
            sealed = SealedKey.decode(signed.body, peer=peer)
            if sealed.recipient != recipient:
                raise RemoteProtocolError(peer, "dealt keys to other clients than those who advertised")
            identifiers.add(sealed.identifier)
            keys[recipient] = signed
        if len(identifiers) != 1:
            raise RemoteProtocolError(peer, "dealt different keys to different clients")
        memory.keys = keys
        kind, lead = self._after(Phase.CKKS_KEY), struct.pack("<H", index)
        return [self._to(recipient, kind, lead, signed.encode()) for recipient, signed in keys.items()]

    # Phase 3

    def _take_input(self, index: int, content: memoryview) -> list[Envelope]:
        peer, memory, shared = self._round.parties.name_of(index), self._memory, self._round
        signed = self._take_signed(
            Phase.CKKS_INPUT, index, content, SharedInput.SIZE, more=shared.layout.packed_bytes
        )
        header = SharedInput.decode(signed.body, peer=peer)
        ciphertext = content[SharedInput.SIZE + SIGNATURE_BYTES :]
        if header.identifier != SealedKey.decode(memory.keys[index].body, peer=peer).identifier:
            raise RemoteProtocolError(peer, "encrypted under another key")
        if header.ciphertext_digest != shared.ciphertext_digest(ciphertext):
            raise RemoteProtocolError(peer, "its ciphertext is not the one that it signed")
        check_ciphertext(shared.layout, peer, ciphertext)
        memory.headers[index] = signed
        memory.ciphertexts[index] = bytes(ciphertext)
        return self._ask_opener() if memory.headers.keys() == memory.adverts.keys() else []

    # Phase 4

    def _ask_opener(self) -> list[Envelope]:
        memory = self._memory
        candidates = [index for index in sorted(memory.headers) if index not in memory.openers]
        if not candidates:
            return self._abort(RoundAborted("ckks: no survivor opened the sum"))
        memory.openers.append(candidates[0])
        kind = self._after(Phase.CKKS_INPUT)
        ciphertexts = (memory.ciphertexts[index] for index in sorted(memory.headers))
        return [self._to(candidates[0], kind, Roster(memory.headers).encode(), *ciphertexts)]

    def _take_sums(self, index: int, content: memoryview) -> list[Envelope]:
        peer, memory, shared = self._round.parties.name_of(index), self._memory, self._round
        signed = self._take_signed(Phase.CKKS_OPEN, index, content, SharedSums.SIZE, more=shared.sums_bytes)
        body = SharedSums.decode(signed.body, peer=peer)
        packed = content[SharedSums.SIZE + SIGNATURE_BYTES :]
        if body.survivors_digest != shared.survivors_digest(memory.headers):
            raise RemoteProtocolError(peer, "opened the sum of other survivors")
        if body.sums_digest != shared.sums_digest(packed):
            raise RemoteProtocolError(peer, "its sums are not the ones that it signed")
        survivors = tuple(shared.parties.name_of(place) for place in sorted(memory.headers))
        memory.result = RoundResult(sums=shared.unpack_sums(packed, peer=peer), survivors=survivors)
        memory.ciphertexts = {}
        kind = self._after(Phase.CKKS_OPEN)
        return [self._to(survivor, kind) for survivor in sorted(memory.headers) if survivor != index]

    # Helpers

    def _after(self, phase: Phase) -> MessageType:
        """Go on to the phase that follows, and what the aggregator sends then."""
        step = SHARED_AGGREGATOR_STEPS[phase]
        assert step.sends is not None
        self._memory.phase = step.following
        return step.sends

    def _end_phase(
        self, answered: dict[int, Signed], following: Callable[[], list[Envelope]]
    ) -> list[Envelope]:
        threshold = self._round.spec.threshold
        if len(answered) < threshold:
            phase = self._memory.phase
            return self._abort(
                BelowThreshold(f"ckks: {len(answered)} clients in phase {phase}, threshold {threshold}")
            )
        return following()

    def _abort(self, reason: RoundAborted) -> list[Envelope]:
        self._memory.failure = reason
        self._memory.phase = None
        self._memory.ciphertexts = {}
        return []

    def _take_signed(
        self, phase: Phase, index: int, content: memoryview, body_bytes: int, *, more: int = 0
    ) -> Signed:
        """The signed statement in front of a message of the only size that it can have."""
        peer = self._round.parties.name_of(index)
        check_size(content, body_bytes + SIGNATURE_BYTES + more, peer=peer)
        signed = take_signed(Reader(content, peer=peer), body_bytes=body_bytes)
        self._verify(phase, index, signed)
        return signed

    def _verify(self, phase: Phase, index: int, signed: Signed) -> None:
        sender = self._round.parties.name_of(index)
        verify_body(self._directory, phase, digest=self._round.digest, sender=sender, signed=signed)

    def _to(self, index: int, kind: MessageType, *parts: bytes) -> Envelope:
        head = frame(kind, digest=self._round.digest, sender=AGGREGATOR_INDEX)
        return Envelope(AGGREGATOR, self._round.parties.name_of(index), b"".join((head, *parts)))

    # Snapshots

    def snapshot(self) -> bytes:
        """Everything needed to continue. It holds no key, but every ciphertext."""
        memory, failure, result = self._memory, b"", b""
        if memory.failure is not None:
            kind = b"below" if isinstance(memory.failure, BelowThreshold) else b"aborted"
            failure = join_fields(kind, str(memory.failure).encode())
        if memory.result is not None:
            result = self._round.pack_sums(memory.result.sums)
        return encode_record(
            AGGREGATOR_RECORD,
            {
                "round": self._round.digest,
                "phase": b"" if memory.phase is None else memory.phase.encode(),
                "adverts": _join(memory.adverts),
                "leads": bytes(memory.leads),
                "keys": _join(memory.keys),
                "headers": _join(memory.headers),
                "ciphertexts": join_indexed({index: (data,) for index, data in memory.ciphertexts.items()}),
                "openers": bytes(memory.openers),
                "result": result,
                "failure": failure,
            },
        )

    @classmethod
    def restore(cls, shared: SharedRound, *, directory: Directory, snapshot: bytes) -> Self:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged or of another round."""
        record = decode_record(snapshot, AGGREGATOR_RECORD)
        with restoring("aggregator"):
            if record["round"] != shared.digest:
                raise LocalProtocolError("snapshot: belongs to another round")
            memory = _Memory(
                phase=Phase(record["phase"].decode()) if record["phase"] else None,
                adverts=_split(record["adverts"]),
                leads=list(record["leads"]),
                keys=_split(record["keys"]),
                headers=_split(record["headers"]),
                ciphertexts={index: data for index, (data,) in split_indexed(record["ciphertexts"]).items()},
                openers=list(record["openers"]),
            )
            if record["failure"]:
                kind, reason = split_fields(record["failure"])
                memory.failure = (BelowThreshold if kind == b"below" else RoundAborted)(reason.decode())
            if record["result"]:
                survivors = tuple(shared.parties.name_of(index) for index in sorted(memory.headers))
                sums = shared.unpack_sums(memoryview(record["result"]), peer=AGGREGATOR)
                memory.result = RoundResult(sums=sums, survivors=survivors)
        return cls(shared, directory=directory, memory=memory)


def _join(statements: Mapping[int, Signed]) -> bytes:
    return join_indexed({index: (signed.encode(),) for index, signed in statements.items()})


def _split(data: bytes) -> dict[int, Signed]:
    return {index: Signed.decode(signed) for index, (signed,) in split_indexed(data).items()}
