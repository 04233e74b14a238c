"""The aggregator in one masking round.

It relays, adds, and opens the sum of the survivors. It holds no secret key, believes no name or key that the
manifest does not vouch for, and needs memory for one sum per vector, whatever the number of clients.
docs/protocol.md, section 3, is normative.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Self

from secfl.crypto.aggregation import Aborted, Envelope, Finished, PartyState, RoundResult, Running
from secfl.crypto.attachments import AttachmentSink
from secfl.crypto.hazmat import merkle
from secfl.crypto.hazmat.sealed import check_hybrid_public
from secfl.crypto.identity import SIGNATURE_BYTES, Directory
from secfl.crypto.inputs import ATTACHMENT_PIECE_BYTES, Accumulator, hash_pieces, input_digest
from secfl.crypto.masking_aggregator_memory import AggregatorMemory
from secfl.crypto.masking_dealing import deliveries, share_commitment_of
from secfl.crypto.masking_keys import ShareKind, directory_digest, members_digest, survivors_digest
from secfl.crypto.masking_opening import reconstruct, remove_masks
from secfl.crypto.masking_phases import AGGREGATOR_STEPS, phase_accepting
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import (
    Advertise,
    Consistency,
    Deal,
    InputHeader,
    Parcel,
    Unmask,
    escrow_bytes,
)
from secfl.crypto.wire import (
    AGGREGATOR_INDEX,
    Equivocation,
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
from secfl.types import AGGREGATOR, ClientId

__all__ = ["MaskingAggregator"]


class MaskingAggregator:
    """The aggregator's party. Build it with `create` or `restore`."""

    __slots__ = ("_digest", "_directory", "_masked", "_memory", "_sink", "_threads")

    def __init__(
        self,
        masked: MaskedRound,
        *,
        directory: Directory,
        memory: AggregatorMemory,
        sink: AttachmentSink | None,
        threads: int,
    ) -> None:
        masked.check_parties(directory)
        if (0 if sink is None else sink.expected_size) != masked.attachment_bytes:
            raise LocalProtocolError("masking: the sink expects attachments of another size than the round")
        self._masked = masked
        self._digest = masked.digest
        self._directory = directory
        self._memory = memory
        self._sink = sink
        self._threads = threads

    @classmethod
    def create(
        cls,
        masked: MaskedRound,
        *,
        directory: Directory,
        sink: AttachmentSink | None = None,
        threads: int = 1,
    ) -> Self:
        """A fresh aggregator.

        Args:
            masked: The round's shape.
            directory: The enrolled keys; must be the ones that the round is bound to.
            sink: Takes the attachments; ``None`` when the round has none.
            threads: How many threads the sums may use.
        """
        memory = AggregatorMemory(expected={Phase.ADVERTISE: tuple(range(len(masked.spec.cohort)))})
        return cls(masked, directory=directory, memory=memory, sink=sink, threads=threads)

    @classmethod
    def restore(
        cls,
        masked: MaskedRound,
        *,
        directory: Directory,
        snapshot: bytes,
        sink: AttachmentSink | None = None,
        threads: int = 1,
    ) -> Self:
        """Continue from `snapshot`, with a fresh sink to fill.

        Raises:
            LocalProtocolError: The snapshot is damaged or of another round.
        """
        sums = _accumulator(masked, threads)
        memory = AggregatorMemory.decode(snapshot, masked, sink=sink, sums=sums)
        return cls(masked, directory=directory, memory=memory, sink=sink, threads=threads)

    def snapshot(self) -> bytes:
        """Everything needed to continue; see `Party.snapshot` and `secfl.crypto.snapshots`."""
        return self._memory.encode(self._masked, self._sink)

    def __repr__(self) -> str:
        return f"MaskingAggregator({self.state!r})"

    @property
    def state(self) -> PartyState:
        """`Running` with the phase that it collects, `Finished` with the sums, or `Aborted`."""
        memory = self._memory
        if memory.failure is not None:
            return Aborted(memory.failure)
        if memory.phase is None:
            return Finished(memory.result)
        if memory.phase not in (Phase.CONSISTENCY, Phase.UNMASK):
            return Running(memory.phase.value)
        survivors = sorted(memory.statements[Phase.MASKED_INPUT])
        return Running(
            memory.phase.value,
            survivors=tuple(self._masked.name_of(index) for index in survivors),
            inputs_digest=memory.survivors_digest,
        )

    @property
    def evidence(self) -> tuple[Equivocation, ...]:
        """Pairs of statements by which clients contradicted themselves, at most one per client and phase."""
        return self._memory.equivocations(self._masked)

    @property
    def blamed(self) -> tuple[ClientId, ...]:
        """Clients whose secrets contradict their commitments; set when the round was aborted for it."""
        return self._memory.blamed

    def start(self) -> list[Envelope]:
        """Nothing: clients speak first."""
        return []

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Take a client's message; see `Party.receive`."""
        if envelope.recipient != AGGREGATOR:
            raise LocalProtocolError(f"aggregator: an envelope for {envelope.recipient} was delivered here")
        peer = envelope.sender
        if peer not in self._masked.spec.cohort:
            raise RemoteProtocolError(peer, "is not in the cohort of this round")
        index = self._masked.spec.index(peer)
        kind, content = open_frame(envelope.payload, peer=peer, digest=self._digest, sender=index)
        phase = phase_accepting(AGGREGATOR_STEPS, kind)
        if phase is None:
            raise RemoteProtocolError(peer, f"{kind.name.lower()} messages are not for the aggregator")
        reader, signed = self._take_statement(phase, index, content)
        self._handler(phase)(index, signed, reader)
        statements = self._memory.statements.setdefault(phase, {})
        statements[index] = signed
        return self._advance() if len(statements) == len(self._memory.expected[phase]) else []

    def phase_over(self) -> list[Envelope]:
        """Go on with those who answered; abort when they are fewer than the threshold."""
        return [] if self._memory.phase is None else self._advance()

    def _take_statement(self, phase: Phase, index: int, content: memoryview) -> tuple[Reader, Signed]:
        """The signed statement in front of a message; refuses it unless it is the first and is due now."""
        peer, memory = self._masked.name_of(index), self._memory
        if memory.phase is None:
            raise RemoteProtocolError(peer, f"{phase} message after the end of the round")
        if index not in memory.expected.get(phase, ()):
            raise RemoteProtocolError(peer, f"{phase} message that is not due, or not from this client")
        first = memory.statements.get(phase, {}).get(index)
        if first is None and phase is not memory.phase:
            raise RemoteProtocolError(peer, f"{phase} message after the end of that phase")
        body_bytes, rest = self._sizes(phase, index)
        check_size(content, body_bytes + SIGNATURE_BYTES + rest, peer=peer)
        reader = Reader(content, peer=peer)
        signed = take_signed(reader, body_bytes=body_bytes)
        verify_body(self._directory, phase, digest=self._digest, sender=peer, signed=signed)
        if first is not None:
            if signed.body == first.body:
                raise RemoteProtocolError(peer, f"{phase} message repeated")
            memory.evidence.setdefault((phase, index), signed)
            raise RemoteProtocolError(peer, f"second {phase} message differs from the first")
        return reader, signed

    def _sizes(self, phase: Phase, index: int) -> tuple[int, int]:
        """Bytes of the body, and of what follows the signature."""
        members = self._memory.expected.get(Phase.SHARE, ())
        match phase:
            case Phase.ADVERTISE:
                return Advertise.SIZE, 0
            case Phase.SHARE:
                parcels = sum(Parcel.size(sender=index, recipient=to) for to in members if to != index)
                return Deal.SIZE, escrow_bytes(sum(to > index for to in members)) + parcels
            case Phase.MASKED_INPUT:
                return InputHeader.SIZE, self._masked.input_bytes
            case Phase.CONSISTENCY:
                return Consistency.SIZE, 0
            case _:
                return Unmask.size(len(self._memory.statements[Phase.SHARE])), 0

    def _handler(self, phase: Phase) -> Callable[[int, Signed, Reader], None]:
        match phase:
            case Phase.ADVERTISE:
                return self._take_advertise
            case Phase.SHARE:
                return self._take_shares
            case Phase.MASKED_INPUT:
                return self._take_input
            case Phase.CONSISTENCY:
                return self._take_consistency
            case _:
                return self._take_unmask

    def _take_advertise(self, index: int, signed: Signed, _rest: Reader) -> None:
        peer = self._masked.name_of(index)
        advert = Advertise.decode(signed.body, peer=peer)
        try:
            check_hybrid_public(advert.mask_key)
            check_hybrid_public(advert.sealing)
        except ValueError:
            raise RemoteProtocolError(peer, "advertised a public key that cannot be used") from None

    def _take_shares(self, index: int, signed: Signed, rest: Reader) -> None:
        peer, memory = self._masked.name_of(index), self._memory
        deal = Deal.decode(signed.body, peer=peer)
        if deal.directory_digest != self._directory_digest():
            raise RemoteProtocolError(peer, "dealt shares for another directory")
        others = [to for to in memory.expected[Phase.SHARE] if to != index]
        escrow = rest.take(escrow_bytes(sum(to > index for to in others)))
        if hashlib.sha256(escrow).digest() != deal.escrow_digest:
            raise RemoteProtocolError(peer, "its escrow is not the one that it signed")
        leaves = {to: rest.take(Parcel.size(sender=index, recipient=to)) for to in others}
        if merkle.root(leaves, places=len(self._masked.spec.cohort)) != deal.parcels_root:
            raise RemoteProtocolError(peer, "its parcels are not the ones that it signed")
        memory.escrows[index] = escrow
        memory.parcels[index] = {
            to: Parcel.decode(leaf, peer=peer, sender=index, recipient=to) for to, leaf in leaves.items()
        }

    def _take_input(self, index: int, signed: Signed, rest: Reader) -> None:
        peer, sums = self._masked.name_of(index), self._memory.sums
        assert sums is not None
        header = InputHeader.decode(signed.body, peer=peer)
        if header.members_digest != self._memory.members_digest:
            raise RemoteProtocolError(peer, "masked its input for other members")
        vectors, attachment = rest.view(sums.input_bytes), rest.view(self._masked.attachment_bytes)
        hashes = sums.hashes(vectors) + hash_pieces(
            attachment, piece_bytes=ATTACHMENT_PIECE_BYTES, threads=self._threads
        )
        if input_digest(self._digest, self._masked.input_bytes, hashes) != header.input_digest:
            raise RemoteProtocolError(peer, "its input is not the one that it signed")
        sums.check(peer, vectors)
        if self._sink is not None:
            self._sink.check(peer, attachment)
            self._sink.add(peer, attachment)
        sums.add(vectors)

    def _take_consistency(self, index: int, signed: Signed, _rest: Reader) -> None:
        memory = self._memory
        expected = Consistency(members_digest=memory.members_digest, survivors_digest=memory.survivors_digest)
        if signed.body != expected.encode():
            raise RemoteProtocolError(self._masked.name_of(index), "confirmed other survivors")

    def _take_unmask(self, index: int, signed: Signed, _rest: Reader) -> None:
        memory, peer = self._memory, self._masked.name_of(index)
        members = sorted(memory.statements[Phase.SHARE])
        answer = Unmask.decode(signed.body, peer=peer, members=len(members))
        for dealer, share in zip(members, answer.shares, strict=True):
            kind = ShareKind.SELF_MASK if dealer in memory.statements[Phase.MASKED_INPUT] else ShareKind.ROOT
            found = share_commitment_of(self._masked, share, kind=kind, dealer=dealer, holder=index)
            if found != self._commitment(kind, dealer, index):
                name = self._masked.name_of(dealer)
                raise RemoteProtocolError(peer, f"sent a share of {name} that is not the one it holds")

    def _commitment(self, kind: ShareKind, dealer: int, holder: int) -> bytes:
        """What ``dealer`` signed as its commitment to the share of ``holder``."""
        memory = self._memory
        if dealer == holder:
            body = memory.statements[Phase.SHARE][dealer].body
            deal = Deal.decode(body, peer=self._masked.name_of(dealer))
            return deal.own_root_commitment if kind is ShareKind.ROOT else deal.own_self_commitment
        parcel = memory.parcels[dealer][holder]
        return parcel.root_commitment if kind is ShareKind.ROOT else parcel.self_commitment

    def _directory_digest(self) -> bytes:
        adverts = self._memory.statements[Phase.ADVERTISE]
        return directory_digest(self._digest, self._masked.spec.cohort, adverts)

    # From one phase to the next

    def _advance(self) -> list[Envelope]:
        memory, threshold = self._memory, self._masked.spec.threshold
        phase = memory.phase
        assert phase is not None
        answered = tuple(sorted(memory.statements.setdefault(phase, {})))
        if len(answered) < threshold:
            return self._abort(
                BelowThreshold(f"masking: {len(answered)} clients in phase {phase}, threshold {threshold}")
            )
        following = AGGREGATOR_STEPS[phase].following
        if following is None:
            return self._open()
        memory.phase = following
        memory.expected[following] = answered
        match phase:
            case Phase.ADVERTISE | Phase.CONSISTENCY:
                return self._broadcast(phase, answered)
            case Phase.SHARE:
                memory.members_digest = members_digest(
                    self._digest,
                    self._masked.spec.cohort,
                    adverts=memory.statements[Phase.ADVERTISE],
                    deals=memory.statements[Phase.SHARE],
                )
                memory.sums = _accumulator(self._masked, self._threads)
                return self._deliver(answered)
            case _:
                memory.survivors_digest = survivors_digest(
                    self._digest, self._masked.spec.cohort, memory.statements[phase]
                )
                return self._broadcast(phase, answered)

    def _broadcast(self, phase: Phase, recipients: tuple[int, ...]) -> list[Envelope]:
        """Everybody's statements of a phase, to everybody who made one."""
        kind = AGGREGATOR_STEPS[phase].sends
        assert kind is not None
        payload = (
            frame(kind, digest=self._digest, sender=AGGREGATOR_INDEX)
            + Roster(self._memory.statements[phase]).encode()
        )
        return [Envelope(AGGREGATOR, self._masked.name_of(index), payload) for index in recipients]

    def _deliver(self, members: tuple[int, ...]) -> list[Envelope]:
        kind = AGGREGATOR_STEPS[Phase.SHARE].sends
        assert kind is not None
        memory = self._memory
        head = frame(kind, digest=self._digest, sender=AGGREGATOR_INDEX)
        contents = deliveries(self._masked, memory.statements[Phase.SHARE], memory.parcels)
        memory.parcels = {
            dealer: {to: parcel.delivered() for to, parcel in memory.parcels[dealer].items()}
            for dealer in members
        }
        memory.escrows = {dealer: memory.escrows[dealer] for dealer in members}
        return [
            Envelope(AGGREGATOR, self._masked.name_of(to), head + content) for to, content in contents.items()
        ]

    def _open(self) -> list[Envelope]:
        memory, masked = self._memory, self._masked
        sums = memory.sums
        assert sums is not None
        survivors = tuple(masked.name_of(index) for index in sorted(memory.statements[Phase.MASKED_INPUT]))
        try:
            remove_masks(masked, memory, sums, secrets=reconstruct(masked, memory))
        except RemoteProtocolError as error:
            memory.blamed = (ClientId(error.peer),)
            return self._abort(RoundAborted(f"masking: {error}"))
        sums.reduce()
        if not sums.canaries_hold(len(survivors)):
            return self._abort(
                RoundAborted(
                    "masking: the canaries do not add up to the number of survivors: a client masked or "
                    "encapsulated wrongly, or replayed an input"
                )
            )
        opened = sums.result()
        try:
            result = opened if self._sink is None else self._sink.finish(opened, survivors)
        except RoundAborted as error:
            return self._abort(error)
        memory.result = RoundResult(sums=result, survivors=survivors)
        memory.phase = None
        memory.forget()
        return []

    def _abort(self, reason: RoundAborted) -> list[Envelope]:
        self._memory.failure = reason
        self._memory.phase = None
        self._memory.forget()
        return []


def _accumulator(masked: MaskedRound, threads: int) -> Accumulator:
    canaries = {vector.name: masked.canaries(vector) for vector in masked.vectors}
    return Accumulator(masked.vectors, canaries=canaries, threads=threads)
