"""From recorded envelopes to what they hold: inputs as residues, and every field that should be fresh.

Clients' messages are taken apart completely; what does not fit the protocol's sizes is a finding, not an error.
Scheme ``masking`` and both key modes of ``ckks``; ``plain`` inputs are read too, so that one can show what hiding
nothing looks like.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secfl.audit.recording import Recorded, Recording, is_from_client
from secfl.crypto.ckks_shared_messages import SEALING_BODY_BYTES, SealedKey, SharedInput
from secfl.crypto.hazmat.sealed import NONCE_BYTES
from secfl.crypto.identity import SIGNATURE_BYTES
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import (
    SECRET_BYTES,
    Advertise,
    Consistency,
    Deal,
    InputHeader,
    Parcel,
    PlainHeader,
    escrow_bytes,
)
from secfl.crypto.packing import packed_size, unpack
from secfl.crypto.wire import FRAME_BYTES, MessageType, Reader
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.types import ClientId, VectorSpec

__all__ = ["RING_VECTOR", "Box", "Fresh", "RunShape", "Seen", "look_through"]

RING_VECTOR = "ckks-ciphertext"
"""The residues modulo q of a ciphertext, as if they were a vector."""

_RING_BITS = 60
_Spoke = dict[tuple[int, int], list[str]]  # (round, message type) -> who sent such a message
_INPUTS = {MessageType.MASKED_INPUT, MessageType.PLAIN_INPUT, MessageType.CKKS_INPUT}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShape:
    """What is public about a run and decides how its messages look.

    Attributes:
        scheme: ``masking``, ``ckks`` or ``plain``.
        key_mode: ``pairwise``, ``sum-key``, ``shared`` or ``none``.
        cohort: Client names, sorted.
        threshold: t.
        vectors: The vectors of a round.
        hides: Whether it claims to hide single updates from the aggregator.
        statistics: Name -> a number about single sites that must not appear in any message.
    """

    scheme: str
    key_mode: str
    cohort: tuple[ClientId, ...]
    threshold: int
    vectors: tuple[VectorSpec, ...]
    hides: bool
    statistics: dict[str, float] = field(default_factory=dict)

    def sent_vectors(self, kind: MessageType) -> tuple[VectorSpec, ...]:
        """The vectors within an input of this type, with their canaries."""
        if kind is MessageType.PLAIN_INPUT:
            return self.vectors
        if kind is MessageType.MASKED_INPUT and self.scheme == "masking":
            return tuple(
                VectorSpec(
                    name=one.name,
                    length=one.length + MaskedRound.canaries(one),
                    modulus_bits=one.modulus_bits,
                )
                for one in self.vectors
            )
        return self._ckks_vectors(kind)

    def _ckks_vectors(self, kind: MessageType) -> tuple[VectorSpec, ...]:
        from secfl.crypto.ckks_layout import RoundLayout
        from secfl.crypto.ckks_sum_key import KEY_VECTOR
        from secfl.crypto.hazmat.ring_noise import REACH
        from secfl.crypto.hazmat.seal import DEGREE

        clients = len(self.cohort)
        ring = VectorSpec(
            name=RING_VECTOR,
            length=RoundLayout(self.vectors, clients=clients).polynomials * DEGREE,
            modulus_bits=_RING_BITS,
        )
        if kind is MessageType.CKKS_INPUT:
            return (ring,)
        bits = (clients * REACH).bit_length() + 1
        key = VectorSpec(name=KEY_VECTOR, length=DEGREE, modulus_bits=bits)
        padded = DEGREE + MaskedRound.canaries(key)
        return (VectorSpec(name=KEY_VECTOR, length=padded, modulus_bits=bits), ring)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """A field that must be new and unpredictable in every message: a key, nonce, commitment or ciphertext."""

    kind: str
    round_id: int
    sender: str
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Something encrypted that passed through the aggregator: a share sealed to a holder, or a dealer's escrow.

    Attributes:
        round_id: The round.
        dealer: Who made it.
        holder: To whom it was sealed; empty for an escrow.
        content: The sealed box, or the escrow with its nonce.
        directory: Digest of the keys of phase 1, as the dealer saw them.
        ciphertexts: What the escrow's key is bound to.
    """

    round_id: int
    dealer: str
    holder: str
    content: bytes = field(repr=False)
    directory: bytes = field(repr=False)
    ciphertexts: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One client's input in one round."""

    round_id: int
    sender: str
    residues: dict[str, NDArray[np.uint32] | NDArray[np.uint64]] = field(repr=False)


@dataclass(slots=True)
class Seen:
    """Everything that was found in a recording.

    Attributes:
        inputs: In the order in which they were sent.
        fresh: Fields that must never repeat.
        boxes: What was encrypted in the clients' messages.
        shares: Round -> holder -> the unmasking shares it sent, in order of the members.
        digests: Round -> the digests of the round's specification that its messages name.
        malformed: What did not fit, one sentence each.
        sizes: (type, sender, recipient, who took part in the round) -> sizes that occurred.
    """

    inputs: list[Input] = field(default_factory=list)
    fresh: list[Fresh] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    shares: dict[int, dict[str, tuple[bytes, ...]]] = field(default_factory=dict)
    digests: dict[int, set[bytes]] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)
    sizes: dict[tuple[str, ...], set[int]] = field(default_factory=dict)

    def dealers(self, round_id: int) -> list[str]:
        """Who dealt shares in a round, in cohort order."""
        return sorted(
            {one.sender for one in self.fresh if one.round_id == round_id and one.kind == "self commitment"}
        )


def look_through(recording: Recording, shape: RunShape) -> Seen:
    """Take every client's message apart."""
    seen = Seen()
    spoke: _Spoke = {}
    for one in recording.envelopes:
        kind = one.payload[4] if len(one.payload) > 4 else -1
        if is_from_client(one):
            spoke.setdefault((one.round_id, kind), []).append(one.sender)
    for one in recording.envelopes:
        _note_size(seen, one, spoke)
        if is_from_client(one):
            try:
                _take_apart(seen, one, shape, spoke)
            except (RemoteProtocolError, LocalProtocolError) as error:
                seen.malformed.append(f"round {one.round_id}, from {one.sender}: {error}")
    return seen


def _note_size(seen: Seen, one: Recorded, spoke: _Spoke) -> None:
    kind = one.payload[4] if len(one.payload) > 4 else -1
    present = [
        f"{which}:" + ",".join(sorted(names))
        for (round_id, which), names in sorted(spoke.items())
        if round_id == one.round_id
    ]
    sender = "any" if kind in _INPUTS else one.sender  # inputs are equally long for everybody
    context = [] if kind in _INPUTS else present
    key = (str(kind), sender, one.recipient, *context)
    seen.sizes.setdefault(key, set()).add(len(one.payload))


def _take_apart(seen: Seen, one: Recorded, shape: RunShape, spoke: _Spoke) -> None:
    reader = Reader(one.payload, peer=one.sender)
    head = reader.take(FRAME_BYTES)
    try:
        kind = MessageType(head[4])
    except ValueError:
        raise RemoteProtocolError(one.sender, f"unknown message type {head[4]}") from None
    seen.digests.setdefault(one.round_id, set()).add(head[5 : FRAME_BYTES - 2])
    taker = _Taker(seen, one, shape, reader=reader)
    match kind:
        case MessageType.ADVERTISE:
            taker.advertise()
        case MessageType.SHARES:
            taker.deal(spoke)
        case MessageType.CONSISTENCY:
            reader.take(Consistency.SIZE + SIGNATURE_BYTES)
        case MessageType.UNMASK:
            taker.unmask()
        case MessageType.CKKS_ADVERTISE:
            taker.fresh("sealing key", reader.take(SEALING_BODY_BYTES))
            reader.take(SIGNATURE_BYTES)
        case MessageType.CKKS_KEYS:
            taker.sealed_keys()
        case MessageType.CKKS_SUMS:
            reader.take(len(one.payload) - FRAME_BYTES)  # the sums themselves: public
        case _ if kind in _INPUTS:
            taker.input(kind)
        case _:
            raise RemoteProtocolError(one.sender, f"a client does not send {kind.name.lower()}")
    reader.end()


class _Taker:
    """Takes one client's message apart into what was seen."""

    def __init__(self, seen: Seen, one: Recorded, shape: RunShape, *, reader: Reader) -> None:
        self._seen = seen
        self._one = one
        self._shape = shape
        self._reader = reader

    def fresh(self, kind: str, value: bytes) -> None:
        self._seen.fresh.append(
            Fresh(kind=kind, round_id=self._one.round_id, sender=self._one.sender, value=value)
        )

    def advertise(self) -> None:
        advert = Advertise.decode(self._reader.take(Advertise.SIZE), peer=self._one.sender)
        self.fresh("ML-KEM key", advert.kem)
        self.fresh("X25519 key", advert.x25519)
        self.fresh("sealing key", advert.sealing)
        self._reader.take(SIGNATURE_BYTES)

    def deal(self, spoke: _Spoke) -> None:
        deal = Deal.decode(self._reader.take(Deal.SIZE), peer=self._one.sender)
        self._reader.take(SIGNATURE_BYTES)
        for name in ("root_commitment", "self_commitment", "own_root_commitment", "own_self_commitment"):
            self.fresh(name.replace("_", " "), getattr(deal, name))
        self.fresh("escrow digest", deal.escrow_digest)
        self.fresh("parcels root", deal.parcels_root)
        adverts = sorted(spoke.get((self._one.round_id, MessageType.ADVERTISE), []))
        own = self._shape.cohort.index(ClientId(self._one.sender))
        others = [place for name in adverts if (place := self._shape.cohort.index(ClientId(name))) != own]
        later = sum(place > own for place in others)
        escrow = self._reader.take(escrow_bytes(later))
        self.fresh("escrow nonce", escrow[:NONCE_BYTES])
        if later:
            self.fresh("escrow", escrow[NONCE_BYTES:])
        ciphertexts = b""
        for place in others:
            data = self._reader.take(Parcel.size(sender=own, recipient=place))
            parcel = Parcel.decode(data, peer=self._one.sender, sender=own, recipient=place)
            if parcel.kem_ciphertext:
                self.fresh("KEM ciphertext", parcel.kem_ciphertext)
                ciphertexts += parcel.kem_ciphertext
            self.fresh("sealed shares", parcel.sealed)
            self._box(deal, parcel.sealed, holder=self._shape.cohort[place])
            self.fresh("share commitment", parcel.root_commitment)
            self.fresh("share commitment", parcel.self_commitment)
        if later:
            self._box(deal, escrow, ciphertexts=ciphertexts)

    def _box(self, deal: Deal, content: bytes, *, holder: str = "", ciphertexts: bytes = b"") -> None:
        self._seen.boxes.append(
            Box(
                round_id=self._one.round_id,
                dealer=self._one.sender,
                holder=holder,
                content=content,
                directory=deal.directory_digest,
                ciphertexts=ciphertexts,
            )
        )

    def unmask(self) -> None:
        size = len(self._one.payload) - FRAME_BYTES - SIGNATURE_BYTES
        if size <= 0 or size % SECRET_BYTES:
            raise RemoteProtocolError(self._one.sender, f"unmask message of {size} bytes")
        parts = tuple(self._reader.take(SECRET_BYTES) for _ in range(size // SECRET_BYTES))
        self._seen.shares.setdefault(self._one.round_id, {})[self._one.sender] = parts
        self._reader.take(SIGNATURE_BYTES)

    def sealed_keys(self) -> None:
        size = SealedKey.SIZE + SIGNATURE_BYTES
        for _ in range((len(self._one.payload) - FRAME_BYTES) // size):
            key = SealedKey.decode(self._reader.take(SealedKey.SIZE), peer=self._one.sender)
            self._reader.take(SIGNATURE_BYTES)
            self.fresh("sealed ring key", key.box)

    def input(self, kind: MessageType) -> None:
        reader, peer = self._reader, self._one.sender
        if kind is MessageType.MASKED_INPUT:
            header = InputHeader.decode(reader.take(InputHeader.SIZE), peer=peer)
            self.fresh("input digest", header.input_digest)
        elif kind is MessageType.PLAIN_INPUT:
            # In clear, equal updates are equal bytes: a site whose model did not move sends what another one sends.
            PlainHeader.decode(reader.take(PlainHeader.SIZE), peer=peer)
        else:
            shared = SharedInput.decode(reader.take(SharedInput.SIZE), peer=peer)
            self.fresh("ciphertext nonce", shared.nonce)
            self.fresh("input digest", shared.ciphertext_digest)
        reader.take(SIGNATURE_BYTES)
        residues = {}
        for vector in self._shape.sent_vectors(kind):
            data = reader.take(packed_size(vector.length, bits=vector.modulus_bits))
            residues[vector.name] = unpack(data, length=vector.length, bits=vector.modulus_bits)
        self._seen.inputs.append(Input(round_id=self._one.round_id, sender=peer, residues=residues))
