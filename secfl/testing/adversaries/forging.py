"""Signing again what was tampered with, so that it gets past the signatures and reaches the parsers.

A client that is malicious, or whose key was stolen, signs what it likes. `reseal` does that to a damaged message of
secfl's own schemes: it finds the signed statements in it by their places, repairs on request the hashes by which
they cover the rest of the message, and signs them with the valid keys of those who signed the original.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from secfl.crypto.aggregation import Envelope, Party
from secfl.crypto.ckks_shared_messages import (
    SEALING_BODY_BYTES,
    SealedKey,
    SharedInput,
    SharedRound,
    SharedSums,
)
from secfl.crypto.ckks_sum_key import SumKeyRound
from secfl.crypto.hazmat import merkle
from secfl.crypto.identity import SIGNATURE_BYTES
from secfl.crypto.inputs import ATTACHMENT_PIECE_BYTES, Accumulator, hash_pieces, input_digest
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import (
    Advertise,
    Consistency,
    Deal,
    InputHeader,
    Parcel,
    PlainHeader,
    escrow_bytes,
)
from secfl.crypto.wire import DIGEST_BYTES, FRAME_BYTES, MessageType, Phase, Signed, sign_body
from secfl.errors import ConfigError
from secfl.testing.stage import Cast
from secfl.types import AGGREGATOR, ClientId, VectorSpec

__all__ = ["Repair", "kind_of", "masked_round", "own_up", "reseal"]

_ROSTER_BYTES: Final = 8


class Repair(StrEnum):
    """How much of a tampered message the attacker makes good again."""

    NOTHING = "nothing"
    SIGNATURES = "signatures"
    BINDINGS = "bindings"


@dataclass(frozen=True, slots=True)
class _Statement:
    """Where a signed body lies in a message, who signs it, and for which phase."""

    start: int
    size: int
    phase: Phase
    signer: ClientId


_STATEMENTS: Final[Mapping[MessageType, tuple[Phase, int]]] = MappingProxyType(
    {
        MessageType.ADVERTISE: (Phase.ADVERTISE, Advertise.SIZE),
        MessageType.SHARES: (Phase.SHARE, Deal.SIZE),
        MessageType.MASKED_INPUT: (Phase.MASKED_INPUT, InputHeader.SIZE),
        MessageType.CONSISTENCY: (Phase.CONSISTENCY, Consistency.SIZE),
        MessageType.PLAIN_INPUT: (Phase.PLAIN_INPUT, PlainHeader.SIZE),
        MessageType.CKKS_ADVERTISE: (Phase.ADVERTISE, SEALING_BODY_BYTES),
        MessageType.CKKS_INPUT: (Phase.CKKS_INPUT, SharedInput.SIZE),
        MessageType.CKKS_SUMS: (Phase.CKKS_OPEN, SharedSums.SIZE),
    }
)
"""What clients send: one statement behind the frame."""

_ROSTERS: Final[Mapping[MessageType, tuple[Phase, int]]] = MappingProxyType(
    {
        MessageType.DIRECTORY: (Phase.ADVERTISE, Advertise.SIZE),
        MessageType.DELIVERY: (Phase.SHARE, Deal.SIZE),
        MessageType.SURVIVORS: (Phase.MASKED_INPUT, InputHeader.SIZE),
        MessageType.SIGNERS: (Phase.CONSISTENCY, Consistency.SIZE),
        MessageType.CKKS_DIRECTORY: (Phase.ADVERTISE, SEALING_BODY_BYTES),
        MessageType.CKKS_OPEN: (Phase.CKKS_INPUT, SharedInput.SIZE),
    }
)
"""What the aggregator relays: a roster of statements behind the frame."""


def kind_of(payload: bytes) -> MessageType | None:
    """The type that a message claims, if it is one."""
    if len(payload) < FRAME_BYTES:
        return None
    try:
        return MessageType(payload[4])
    except ValueError:
        return None


def reseal(cast: Cast, envelope: Envelope, repair: Repair, *, present: Sequence[ClientId] = ()) -> Envelope:
    """A tampered message as a signer of the original would send it.

    Args:
        cast: Whose keys sign.
        envelope: The tampered message. What cannot be made good, because the message is too short for it or of
            no type that a round like this one can have, stays as it is.
        repair: ``SIGNATURES`` signs the bodies as they are; ``BINDINGS`` first writes the hashes of the message's
            other parts into them.
        present: Who advertised, where not everybody did; sizes follow from it.
    """
    kind = kind_of(envelope.payload)
    if kind is None or repair is Repair.NOTHING:
        return envelope
    payload = bytearray(envelope.payload)
    if repair is Repair.BINDINGS:
        # Damage may have given it the type of another scheme, for which a round like this has no shape.
        with suppress(ConfigError):
            _Bindings(cast, envelope, tuple(present) or cast.cohort).repair(kind, payload)
    for one in _statements(cast, envelope, kind):
        end = one.start + one.size
        if end + SIGNATURE_BYTES > len(payload):
            break
        body = bytes(payload[one.start : end])
        signed = sign_body(cast.identities[one.signer], one.phase, digest=cast.spec.digest(), body=body)
        payload[end : end + SIGNATURE_BYTES] = signed.signature
    return Envelope(envelope.sender, envelope.recipient, bytes(payload))


def _statements(cast: Cast, envelope: Envelope, kind: MessageType) -> Iterator[_Statement]:
    if envelope.sender == AGGREGATOR:
        yield from _relayed(cast, envelope.payload, kind)
    elif envelope.sender in cast.identities:
        yield from _own(envelope, kind)


def _relayed(cast: Cast, payload: bytes, kind: MessageType) -> Iterator[_Statement]:
    """The statements of clients in a message of the aggregator."""
    if kind is MessageType.CKKS_DELIVERY:
        lead = struct.unpack_from("<H", payload.ljust(FRAME_BYTES + 2, b"\0"), FRAME_BYTES)[0]
        if lead < len(cast.cohort):
            yield _Statement(FRAME_BYTES + 2, SealedKey.SIZE, Phase.CKKS_KEY, cast.cohort[lead])
    elif kind in _ROSTERS:
        phase, size = _ROSTERS[kind]
        start = FRAME_BYTES + _ROSTER_BYTES
        for index in _members(cast, payload):
            yield _Statement(start, size, phase, cast.cohort[index])
            start += size + SIGNATURE_BYTES


def _own(envelope: Envelope, kind: MessageType) -> Iterator[_Statement]:
    """The statements in a client's own message."""
    payload, sender = envelope.payload, envelope.sender
    if kind is MessageType.UNMASK:
        size = max(0, len(payload) - FRAME_BYTES - SIGNATURE_BYTES)
        yield _Statement(FRAME_BYTES, size, Phase.UNMASK, sender)
    elif kind is MessageType.CKKS_KEYS:
        for start in range(FRAME_BYTES, len(payload), SealedKey.SIZE + SIGNATURE_BYTES):
            yield _Statement(start, SealedKey.SIZE, Phase.CKKS_KEY, sender)
    elif kind in _STATEMENTS:
        phase, size = _STATEMENTS[kind]
        yield _Statement(FRAME_BYTES, size, phase, sender)


def _members(cast: Cast, payload: bytes) -> list[int]:
    bits = int.from_bytes(payload[FRAME_BYTES : FRAME_BYTES + _ROSTER_BYTES], "little")
    return [index for index in range(len(cast.cohort)) if bits >> index & 1]


def own_up(liar: Party, *, before: bytes, after: bytes) -> None:
    """Let a masking client know what it really sent, so that it does not refuse its own lie when it is relayed.

    Args:
        liar: The client, or what wraps it.
        before: The payload that it made.
        after: The payload that was sent in its name.
    """
    inner: Any = getattr(liar, "inner", liar)
    own = inner._memory.own  # noqa: SLF001 - a liar changes its own memory
    for phase, statement in own.items():
        end = FRAME_BYTES + len(statement.encode())
        if statement.encode() == before[FRAME_BYTES:end]:
            own[phase] = Signed.decode(after[FRAME_BYTES:end])
            return


def masked_round(cast: Cast) -> MaskedRound:
    """The masking round inside a round of ``masking`` or of ``ckks`` with sum keys."""
    if cast.spec.scheme.name == "ckks":
        return SumKeyRound(cast.spec).masked
    return MaskedRound(spec=cast.spec, vectors=cast.spec.vectors)


class _Bindings:
    """Writes into the bodies of a message the hashes by which they cover its other parts."""

    def __init__(self, cast: Cast, envelope: Envelope, present: tuple[ClientId, ...]) -> None:
        self._cast = cast
        self._envelope = envelope
        self._present = [cast.cohort.index(name) for name in present]

    def repair(self, kind: MessageType, payload: bytearray) -> None:
        """Change the bodies in ``payload`` in place; a message that is too short is left alone."""
        if self._envelope.sender == AGGREGATOR:
            if kind is MessageType.DELIVERY:
                self._delivery(payload)
            elif kind is MessageType.CKKS_OPEN:
                self._opening(payload)
            return
        if self._envelope.sender not in self._cast.identities:
            return
        match kind:
            case MessageType.SHARES:
                self._shares(payload)
            case MessageType.MASKED_INPUT:
                masked = masked_round(self._cast)
                canaries = {vector.name: masked.canaries(vector) for vector in masked.vectors}
                self._input(payload, masked.vectors, canaries, header=InputHeader.SIZE)
            case MessageType.PLAIN_INPUT:
                vectors = self._cast.spec.vectors
                canaries = {vector.name: 0 for vector in vectors}
                self._input(payload, vectors, canaries, header=PlainHeader.SIZE)
            case MessageType.CKKS_INPUT:
                self._last_hash(payload, SharedInput.SIZE, SharedRound.ciphertext_digest)
            case MessageType.CKKS_SUMS:
                self._last_hash(payload, SharedSums.SIZE, SharedRound.sums_digest)
            case _:
                return

    def _shares(self, payload: bytearray) -> None:
        sender = self._cast.cohort.index(self._envelope.sender)
        others = [index for index in self._present if index != sender]
        start = FRAME_BYTES + Deal.SIZE + SIGNATURE_BYTES
        end = start + escrow_bytes(sum(index > sender for index in others))
        escrow = bytes(payload[start:end])
        leaves = {}
        for index in others:
            size = Parcel.size(sender=sender, recipient=index)
            leaves[index] = bytes(payload[end : end + size])
            end += size
        if len(payload) < start:
            return
        root = merkle.root(leaves, places=len(self._cast.cohort))
        hashes = hashlib.sha256(escrow).digest() + root
        payload[FRAME_BYTES + Deal.SIZE - len(hashes) : FRAME_BYTES + Deal.SIZE] = hashes

    def _input(
        self, payload: bytearray, vectors: Sequence[VectorSpec], canaries: Mapping[str, int], *, header: int
    ) -> None:
        start = FRAME_BYTES + header + SIGNATURE_BYTES
        sums = Accumulator(vectors, canaries=canaries)
        data = memoryview(bytes(payload[start:]))
        if len(data) < sums.input_bytes:
            return
        hashes = sums.hashes(data[: sums.input_bytes])
        hashes += hash_pieces(data[sums.input_bytes :], piece_bytes=ATTACHMENT_PIECE_BYTES)
        covered = input_digest(self._cast.spec.digest(), len(data), hashes)
        place = FRAME_BYTES + header
        payload[place - DIGEST_BYTES : place] = covered

    def _last_hash(
        self, payload: bytearray, size: int, hashing: Callable[[SharedRound, bytes], bytes]
    ) -> None:
        place = FRAME_BYTES + size
        if len(payload) < place + SIGNATURE_BYTES:
            return
        data = bytes(payload[place + SIGNATURE_BYTES :])
        payload[place - DIGEST_BYTES : place] = hashing(SharedRound(self._cast.spec), data)

    def _delivery(self, payload: bytearray) -> None:
        """Each dealer signs the root to which its parcel and path lead."""
        members = _members(self._cast, bytes(payload[: FRAME_BYTES + _ROSTER_BYTES]))
        recipient = self._cast.cohort.index(self._envelope.recipient)
        row = Deal.SIZE + SIGNATURE_BYTES
        place = FRAME_BYTES + _ROSTER_BYTES + len(members) * row
        siblings = merkle.depth(len(self._cast.cohort))
        for position, dealer in enumerate(members):
            if dealer == recipient:
                continue
            size = Parcel.size(sender=dealer, recipient=recipient)
            leaf = bytes(payload[place : place + size])
            path = bytes(payload[place + size : place + size + siblings * merkle.HASH_BYTES])
            place += size + siblings * merkle.HASH_BYTES
            if place > len(payload):
                return
            end = FRAME_BYTES + _ROSTER_BYTES + position * row + Deal.SIZE
            payload[end - DIGEST_BYTES : end] = _climb(leaf, recipient, path)

    def _opening(self, payload: bytearray) -> None:
        """Each survivor signs the ciphertext that is shown as its own."""
        shared = SharedRound(self._cast.spec)
        members = _members(self._cast, bytes(payload[: FRAME_BYTES + _ROSTER_BYTES]))
        row = SharedInput.SIZE + SIGNATURE_BYTES
        size = shared.layout.packed_bytes
        for position in range(len(members)):
            start = FRAME_BYTES + _ROSTER_BYTES + len(members) * row + position * size
            end = FRAME_BYTES + _ROSTER_BYTES + position * row + SharedInput.SIZE
            if start + size > len(payload):
                return
            ciphertext = bytes(payload[start : start + size])
            payload[end - DIGEST_BYTES : end] = shared.ciphertext_digest(ciphertext)


def _climb(leaf: bytes, place: int, path: bytes) -> bytes:
    """The root to which a leaf and its path lead (RFC 9162, section 2.1.1, as in `secfl.crypto.hazmat.merkle`)."""
    current = hashlib.sha256(b"\x00" + leaf).digest()
    for start in range(0, len(path), merkle.HASH_BYTES):
        sibling = path[start : start + merkle.HASH_BYTES]
        pair = sibling + current if place & 1 else current + sibling
        current = hashlib.sha256(b"\x01" + pair).digest()
        place >>= 1
    return current
