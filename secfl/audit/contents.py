"""Every byte of every envelope by message type, field and author: what could be in a recording at all.

The sizes come from the protocol's own formulas (docs/protocol.md). A client's message is a frame, signed bodies of
fixed sizes, and vectors whose lengths and widths the round fixes; a message of the aggregator is a frame and copies of
what clients signed. Bytes beyond that are findings, and so are copies of something that nobody sent. What remains are
fields that have to look random (keys, nonces, commitments, ciphertexts, signatures) and the vectors themselves:
`secfl.audit.salted` looks for images in those.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from secfl.audit.recording import Recorded, Recording, is_from_client
from secfl.audit.seen import RunShape
from secfl.crypto.ckks_shared_messages import SEALING_BODY_BYTES, SealedKey, SharedInput, SharedSums
from secfl.crypto.hazmat.merkle import HASH_BYTES, depth
from secfl.crypto.hazmat.sealed import (
    KEM_CIPHERTEXT_BYTES,
    KEM_PUBLIC_BYTES,
    NONCE_BYTES,
    SEAL_OVERHEAD,
    TAG_BYTES,
    X25519_BYTES,
)
from secfl.crypto.identity import SIGNATURE_BYTES
from secfl.crypto.messages import SECRET_BYTES, Advertise, Consistency, Deal, InputHeader, Parcel
from secfl.crypto.packing import packed_size, unpack
from secfl.crypto.wire import AGGREGATOR_INDEX, DIGEST_BYTES, FRAME_BYTES, MessageType, Reader, Roster, frame
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.types import AGGREGATOR, ClientId, VectorSpec

__all__ = ["Contents", "Field", "Origin", "take_apart"]

_INPUTS = {MessageType.MASKED_INPUT, MessageType.PLAIN_INPUT, MessageType.CKKS_INPUT}
_RELAYED = {
    MessageType.DIRECTORY: (MessageType.ADVERTISE, Advertise.SIZE),
    MessageType.SURVIVORS: (MessageType.MASKED_INPUT, InputHeader.SIZE),
    MessageType.SIGNERS: (MessageType.CONSISTENCY, Consistency.SIZE),
    MessageType.CKKS_DIRECTORY: (MessageType.CKKS_ADVERTISE, SEALING_BODY_BYTES),
    MessageType.CKKS_OPEN: (MessageType.CKKS_INPUT, SharedInput.SIZE),
}
"""Rosters of the aggregator: of which message they repeat the signed bodies, and how long each is."""


class Origin(StrEnum):
    """Where the content of a field comes from."""

    ROUND = "follows from the round"
    """Known before it is sent: frame, digest, roster, position."""
    FRESH = "fresh"
    """Keys, nonces, digests, commitments, ciphertexts, signatures: each has to look random."""
    VECTOR = "vector"
    """Residues, as many and as wide as the round says, packed without a spare byte."""
    COPY = "copy"
    """What a client signed and sent before, byte for byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Some bytes of one envelope.

    Attributes:
        round_id: Of the envelope.
        author: Who made the bytes: the sender, or the client whose bytes the aggregator repeats.
        message: Type of the envelope's message.
        name: Of the field.
        origin: Where its content comes from.
        value: The bytes.
        bits: Width of a residue; 0 where it is no vector.
        length: Residues in it.
    """

    round_id: int
    author: str
    message: MessageType
    name: str
    origin: Origin
    value: bytes = field(repr=False)
    bits: int = 0
    length: int = 0


@dataclass(slots=True)
class Contents:
    """What a recording is made of.

    Attributes:
        fields: Every byte of every envelope that fits the protocol, in the order sent.
        unaccounted: What does not fit, one sentence each; their envelopes have no fields.
        total_bytes: Of all envelopes.
    """

    fields: list[Field] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)
    total_bytes: int = 0

    @property
    def accounted_bytes(self) -> int:
        """Bytes of all fields; equal to `total_bytes` when nothing is unaccounted for."""
        return sum(len(one.value) for one in self.fields)

    def sizes(self) -> Counter[tuple[str, str, str]]:
        """(message, field, origin) -> bytes."""
        found: Counter[tuple[str, str, str]] = Counter()
        for one in self.fields:
            found[one.message.name.lower(), one.name, one.origin.value] += len(one.value)
        return found

    def largest(self, origin: Origin) -> int:
        """Bytes of the largest single field of this origin."""
        return max((len(one.value) for one in self.fields if one.origin is origin), default=0)

    def most_fresh(self) -> int:
        """The most fresh bytes that one party sends in one round: what an encrypted secret would have to fit in."""
        found: Counter[tuple[int, str]] = Counter()
        for one in self.fields:
            if one.origin is Origin.FRESH:
                found[one.round_id, one.author] += len(one.value)
        return max(found.values(), default=0)


def take_apart(recording: Recording, shape: RunShape) -> Contents:
    """Account for every byte of a recording.

    Args:
        recording: Whole rounds of one sum, in the order sent.
        shape: What is public about them.
    """
    contents = Contents()
    rounds: dict[int, _Round] = {}
    for one in recording.envelopes:
        known = rounds.setdefault(one.round_id, _Round())
        contents.total_bytes += len(one.payload)
        try:
            contents.fields += _Apart(one, shape, known).fields()
        except (RemoteProtocolError, LocalProtocolError, ValueError, IndexError) as error:
            contents.unaccounted.append(f"round {one.round_id}, from {one.sender}: {error}")
    return contents


@dataclass(slots=True)
class _Round:
    """What was sent in a round so far.

    Attributes:
        digest: The round's, as its first envelope names it.
        sent: (message, client) -> its signed body, or parts that the aggregator may repeat.
        told: Who was in the aggregator's latest roster of each type.
    """

    digest: bytes = b""
    sent: dict[tuple[MessageType, str], bytes] = field(default_factory=dict)
    told: dict[MessageType, tuple[int, ...]] = field(default_factory=dict)


class _Apart:
    """Takes one envelope apart."""

    def __init__(self, one: Recorded, shape: RunShape, known: _Round) -> None:
        self._one = one
        self._shape = shape
        self._known = known
        self._reader = Reader(one.payload, peer=one.sender)
        self._fields: list[Field] = []
        self._kind = MessageType.PLAIN_INPUT

    def fields(self) -> list[Field]:
        one = self._one
        head = self._take_head()
        if is_from_client(one):
            self._client()
        else:
            self._aggregator()
        self._reader.end()
        self._known.digest = self._known.digest or head
        return self._fields

    # Pieces

    def _take_head(self) -> bytes:
        one = self._one
        head = self._reader.take(FRAME_BYTES)
        self._kind = MessageType(head[4])
        digest = head[5 : 5 + DIGEST_BYTES]
        place = self._place(one.sender) if is_from_client(one) else AGGREGATOR_INDEX
        if head != frame(self._kind, digest=self._known.digest or digest, sender=place):
            raise RemoteProtocolError(one.sender, "a frame of another round or sender")
        self._note("frame", head, Origin.ROUND)
        return digest

    def _note(
        self, name: str, value: bytes, origin: Origin, *, author: str = "", vector: VectorSpec | None = None
    ) -> bytes:
        self._fields.append(
            Field(
                round_id=self._one.round_id,
                author=author or self._one.sender,
                message=self._kind,
                name=name,
                origin=origin,
                value=value,
                bits=0 if vector is None else vector.modulus_bits,
                length=0 if vector is None else vector.length,
            )
        )
        return value

    def _fresh(self, name: str, size: int) -> bytes:
        return self._note(name, self._reader.take(size), Origin.FRESH)

    def _known_bytes(self, name: str, expected: bytes) -> None:
        if self._reader.take(len(expected)) != expected:
            raise RemoteProtocolError(self._one.sender, f"{name}: not what follows from the round")
        self._note(name, expected, Origin.ROUND)

    def _copy(self, name: str, author: str, kind: MessageType) -> None:
        expected = self._known.sent.get((kind, author))
        if expected is None or self._reader.take(len(expected)) != expected:
            raise RemoteProtocolError(self._one.sender, f"{name}: not what {author} sent")
        self._note(name, expected, Origin.COPY, author=author)

    def _vector(self, vector: VectorSpec) -> None:
        value = self._reader.take(packed_size(vector.length, bits=vector.modulus_bits))
        unpack(value, length=vector.length, bits=vector.modulus_bits)  # refuses a spare bit that is set
        self._note(vector.name, value, Origin.VECTOR, vector=vector)

    def _place(self, name: str) -> int:
        return self._shape.cohort.index(ClientId(name))

    def _spoke(self, kind: MessageType) -> list[int]:
        return sorted(self._place(name) for which, name in self._known.sent if which is kind)

    # A client's message

    def _client(self) -> None:
        one, kind = self._one, self._kind
        if kind is MessageType.CKKS_KEYS:
            self._sealed_keys()
            return
        parts = self._statement()
        for name, size in parts:
            self._fresh(name, size)
        self._fresh("signature", SIGNATURE_BYTES)
        body = sum(size for _, size in parts)
        self._known.sent[kind, one.sender] = one.payload[FRAME_BYTES : FRAME_BYTES + body + SIGNATURE_BYTES]
        if kind is MessageType.SHARES:
            self._parcels()
        vectors: tuple[VectorSpec, ...] = ()
        if kind in _INPUTS:
            vectors = self._shape.sent_vectors(kind)
        elif kind is MessageType.CKKS_SUMS:
            vectors = self._shape.vectors
        for vector in vectors:
            self._vector(vector)

    def _statement(self) -> list[tuple[str, int]]:
        """The fields of the signed body."""
        if self._kind is MessageType.UNMASK:
            # One share for each client that dealt; the aggregator told which.
            return [("share", SECRET_BYTES)] * len(self._known.told.get(MessageType.DELIVERY, ()))
        if self._kind not in _SIGNED:
            raise RemoteProtocolError(self._one.sender, f"a client does not send {self._kind.name.lower()}")
        return list(_SIGNED[self._kind].items())

    def _parcels(self) -> None:
        sender = self._one.sender
        own = self._place(sender)
        others = [place for place in self._known.told.get(MessageType.DIRECTORY, ()) if place != own]
        self._fresh("escrow nonce", NONCE_BYTES)
        later = sum(place > own for place in others)
        self._fresh("escrow", later * SECRET_BYTES + TAG_BYTES)
        for place in others:
            before = len(self._fields)
            if place > own:
                self._fresh("KEM ciphertext", KEM_CIPHERTEXT_BYTES)
            self._fresh("sealed shares", Parcel.SEALED_BYTES)
            self._fresh("share commitment", DIGEST_BYTES)
            self._fresh("share commitment", DIGEST_BYTES)
            parcel = b"".join(part.value for part in self._fields[before:])
            self._known.sent[MessageType.DELIVERY, f"{sender}>{place}"] = parcel

    def _sealed_keys(self) -> None:
        for place in self._known.told.get(MessageType.CKKS_DIRECTORY, ()):
            before = len(self._fields)
            self._known_bytes("recipient", struct.pack("<H", place))
            self._fresh("key identifier", DIGEST_BYTES)
            self._fresh("sealed ring key", SECRET_BYTES + SEAL_OVERHEAD)
            self._fresh("signature", SIGNATURE_BYTES)
            sealed = b"".join(part.value for part in self._fields[before:])
            if len(sealed) != SealedKey.SIZE + SIGNATURE_BYTES:
                raise RemoteProtocolError(self._one.sender, "a sealed key of another size")
            self._known.sent[MessageType.CKKS_DELIVERY, f"{self._one.sender}>{place}"] = sealed

    # A message of the aggregator

    def _aggregator(self) -> None:
        one, kind = self._one, self._kind
        if kind in _RELAYED:
            source, size = _RELAYED[kind]
            members = self._roster(source, size=size)
            if kind is MessageType.CKKS_OPEN:
                for place in members:
                    self._ciphertext(self._shape.cohort[place])
        elif kind is MessageType.DELIVERY:
            own = self._place(one.recipient)
            for place in self._roster(MessageType.SHARES, size=Deal.SIZE):
                if place == own:
                    continue
                dealer = self._shape.cohort[place]
                self._copy("parcel", f"{dealer}>{own}", MessageType.DELIVERY)
                for _ in range(depth(len(self._shape.cohort))):
                    self._fresh("Merkle path", HASH_BYTES)
        elif kind is MessageType.CKKS_DELIVERY:
            lead = struct.unpack("<H", self._reader.view(2))[0]
            self._note("lead", struct.pack("<H", lead), Origin.ROUND)
            to = self._place(one.recipient)
            self._copy("sealed key", f"{self._shape.cohort[lead]}>{to}", MessageType.CKKS_DELIVERY)
        elif kind is not MessageType.CKKS_CLOSE:
            raise RemoteProtocolError(AGGREGATOR, f"does not send {kind.name.lower()}")

    def _roster(self, source: MessageType, *, size: int) -> tuple[int, ...]:
        content = memoryview(self._one.payload)[FRAME_BYTES:]
        clients = len(self._shape.cohort)
        members = Roster.read_members(content, peer=AGGREGATOR, clients=clients)
        self._note("members", self._reader.take(Roster.size(0, body_bytes=size)), Origin.ROUND)
        for place in members:
            self._copy("signed body", self._shape.cohort[place], source)
        self._known.told[self._kind] = members
        return members

    def _ciphertext(self, name: str) -> None:
        (ring,) = self._shape.sent_vectors(MessageType.CKKS_INPUT)
        value = self._reader.take(packed_size(ring.length, bits=ring.modulus_bits))
        self._note(ring.name, value, Origin.VECTOR, author=name, vector=ring)


_SIGNED: Mapping[MessageType, Mapping[str, int]] = {
    MessageType.ADVERTISE: {
        "ML-KEM key": KEM_PUBLIC_BYTES,
        "X25519 key": X25519_BYTES,
        "sealing key": Advertise.SIZE - KEM_PUBLIC_BYTES - X25519_BYTES,
    },
    MessageType.SHARES: {
        "directory digest": DIGEST_BYTES,
        "root commitment": DIGEST_BYTES,
        "self commitment": DIGEST_BYTES,
        "own root commitment": DIGEST_BYTES,
        "own self commitment": DIGEST_BYTES,
        "escrow digest": DIGEST_BYTES,
        "parcels root": DIGEST_BYTES,
    },
    MessageType.MASKED_INPUT: {"members digest": DIGEST_BYTES, "input digest": DIGEST_BYTES},
    MessageType.CONSISTENCY: {"members digest": DIGEST_BYTES, "survivors digest": DIGEST_BYTES},
    MessageType.PLAIN_INPUT: {"input digest": DIGEST_BYTES},
    MessageType.CKKS_ADVERTISE: {"sealing key": SEALING_BODY_BYTES},
    MessageType.CKKS_INPUT: {
        "key identifier": DIGEST_BYTES,
        "ciphertext nonce": SharedInput.SIZE - 2 * DIGEST_BYTES,
        "ciphertext digest": DIGEST_BYTES,
    },
    MessageType.CKKS_SUMS: {"survivors digest": DIGEST_BYTES, "sums digest": SharedSums.SIZE - DIGEST_BYTES},
}
"""The signed bodies, field by field."""
