"""What all messages on the wire have in common: frame, signatures, rosters, and a strict reader.

All sizes follow from the round and from who takes part, so they are checked before anything is parsed, and
signatures are checked before anything inside is believed. Parsers accept one encoding of a message and no
other. Hostile bytes end in `RemoteProtocolError` that names the peer they came from, and in nothing else.

Frame, in front of every message: ``b"SFL1"``, type (1 byte), digest of the round (32), sender (2 bytes,
little-endian: 0 for the aggregator, otherwise the cohort position plus 1).

From a client: frame, body, Ed25519 signature over the body, then parts that the body binds by hash.
From the aggregator, which has no key: frame, then a `Roster` of clients' bodies and signatures, then parts
that those bodies bind.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, Self

from secfl.crypto.identity import SIGNATURE_BYTES, Directory, Identity
from secfl.errors import RemoteProtocolError
from secfl.types import AGGREGATOR, ClientId

__all__ = [
    "AGGREGATOR_INDEX",
    "DIGEST_BYTES",
    "FRAME_BYTES",
    "Equivocation",
    "MessageType",
    "Phase",
    "Reader",
    "Roster",
    "Signed",
    "check_size",
    "frame",
    "open_frame",
    "sign_body",
    "take_signed",
    "verify_body",
]

_MAGIC: Final = b"SFL1"
DIGEST_BYTES: Final = 32
FRAME_BYTES: Final = 4 + 1 + DIGEST_BYTES + 2
AGGREGATOR_INDEX: Final = -1
_MEMBERS_BYTES: Final = 8


class MessageType(IntEnum):
    """The type byte. In masking, odd types come from clients and even ones from the aggregator."""

    ADVERTISE = 1
    DIRECTORY = 2
    SHARES = 3
    DELIVERY = 4
    MASKED_INPUT = 5
    SURVIVORS = 6
    CONSISTENCY = 7
    SIGNERS = 8
    UNMASK = 9
    PLAIN_INPUT = 17
    CKKS_ADVERTISE = 33
    CKKS_DIRECTORY = 34
    CKKS_KEYS = 35
    CKKS_DELIVERY = 36
    CKKS_INPUT = 37
    CKKS_OPEN = 38
    CKKS_SUMS = 39
    CKKS_CLOSE = 40


class Phase(StrEnum):
    """The phases of a round, by the client's message that each one collects."""

    ADVERTISE = "advertise"
    SHARE = "share"
    MASKED_INPUT = "masked-input"
    CONSISTENCY = "consistency"
    UNMASK = "unmask"
    PLAIN_INPUT = "plain-input"
    CKKS_KEY = "ckks-key"
    CKKS_INPUT = "ckks-input"
    CKKS_OPEN = "ckks-open"

    @property
    def recipient(self) -> str:
        """To whom a client's statement in this phase is addressed, as its signature says."""
        return AGGREGATOR if self in (Phase.UNMASK, Phase.PLAIN_INPUT, Phase.CKKS_OPEN) else "all"


class Reader:
    """Takes fields off the front of a peer's bytes."""

    __slots__ = ("_data", "_peer", "_position")

    def __init__(self, data: bytes | memoryview, *, peer: str) -> None:
        self._data = memoryview(data)
        self._peer = peer
        self._position = 0

    def view(self, size: int) -> memoryview:
        """The next ``size`` bytes, not copied.

        Raises:
            RemoteProtocolError: The message is too short.
        """
        end = self._position + size
        if end > len(self._data):
            raise RemoteProtocolError(self._peer, f"message of {len(self._data)} bytes is too short")
        part = self._data[self._position : end]
        self._position = end
        return part

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        return bytes(self.view(size))

    def end(self) -> None:
        """Refuse what is left over.

        Raises:
            RemoteProtocolError: Something is left.
        """
        if self._position != len(self._data):
            excess = len(self._data) - self._position
            raise RemoteProtocolError(self._peer, f"{excess} bytes follow the end of the message")


def check_size(data: memoryview, expected: int, *, peer: str) -> None:
    """Refuse a message whose content has not the one size that it can have.

    Raises:
        RemoteProtocolError: It has not.
    """
    if len(data) != expected:
        raise RemoteProtocolError(peer, f"message content of {len(data)} bytes, expected {expected}")


def frame(kind: MessageType, *, digest: bytes, sender: int) -> bytes:
    """The frame of a message; ``sender`` is a cohort position or `AGGREGATOR_INDEX`."""
    return _MAGIC + struct.pack("<B", kind) + digest + struct.pack("<H", sender + 1)


def open_frame(payload: bytes, *, peer: str, digest: bytes, sender: int) -> tuple[MessageType, memoryview]:
    """Type and content of a message that must be of this round and from this sender.

    Raises:
        RemoteProtocolError: Too short, of another protocol version or round, of an unknown type, or from another
            sender.
    """
    if len(payload) < FRAME_BYTES:
        raise RemoteProtocolError(peer, f"message of {len(payload)} bytes is too short")
    if payload[:4] != _MAGIC:
        raise RemoteProtocolError(peer, "not a message of this protocol version")
    try:
        kind = MessageType(payload[4])
    except ValueError:
        raise RemoteProtocolError(peer, f"unknown message type {payload[4]}") from None
    if payload[5 : 5 + DIGEST_BYTES] != digest:
        raise RemoteProtocolError(peer, f"{kind.name.lower()} message of another round")
    if struct.unpack_from("<H", payload, FRAME_BYTES - 2)[0] != sender + 1:
        raise RemoteProtocolError(peer, f"{kind.name.lower()} message that names another sender")
    return kind, memoryview(payload)[FRAME_BYTES:]


@dataclass(frozen=True, slots=True)
class Signed:
    """A body and its author's signature, as it is relayed."""

    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Body, then signature."""
        return self.body + self.signature

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Undo `encode`."""
        return cls(data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:])


def sign_body(identity: Identity, phase: Phase, *, digest: bytes, body: bytes) -> Signed:
    """Sign a body under its purpose: round, phase, sender, recipient (``"all"`` or a party) and content."""
    return Signed(body, identity.sign(*_statement(phase, digest, identity.name, body)))


def verify_body(
    directory: Directory, phase: Phase, *, digest: bytes, sender: ClientId, signed: Signed
) -> None:
    """Check a signature of `sign_body`; `RemoteProtocolError` blames ``sender``."""
    directory.verify(sender, signed.signature, *_statement(phase, digest, sender, signed.body))


def _statement(phase: Phase, digest: bytes, sender: ClientId, body: bytes) -> tuple[bytes, ...]:
    name = phase.encode()
    return (b"round/" + name, digest, name, sender.encode(), phase.recipient.encode(), body)


def take_signed(reader: Reader, *, body_bytes: int) -> Signed:
    """A body of known size and its signature."""
    return Signed(reader.take(body_bytes), reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivocation:
    """Two different statements by one client for one phase, both validly signed: evidence for people."""

    phase: Phase
    sender: ClientId
    first: Signed
    second: Signed


@dataclass(frozen=True, slots=True)
class Roster:
    """Signed bodies of some clients, by cohort position: what the aggregator relays to everybody."""

    members: Mapping[int, Signed]

    @staticmethod
    def size(count: int, *, body_bytes: int) -> int:
        """Bytes of a roster of ``count`` members."""
        return _MEMBERS_BYTES + count * (body_bytes + SIGNATURE_BYTES)

    def encode(self) -> bytes:
        """A bit set of the members (8 bytes, little-endian), then their bodies and signatures in order."""
        bits = sum(1 << index for index in self.members)
        rows = (self.members[index].encode() for index in sorted(self.members))
        return struct.pack("<Q", bits) + b"".join(rows)

    @staticmethod
    def read_members(content: memoryview, *, peer: str, clients: int) -> tuple[int, ...]:
        """Who is in the roster at the front of a message: from this follows the message's size.

        Raises:
            RemoteProtocolError: The message is too short, or the roster names members outside the cohort.
        """
        if len(content) < _MEMBERS_BYTES:
            raise RemoteProtocolError(peer, f"message content of {len(content)} bytes is too short")
        bits = struct.unpack_from("<Q", content)[0]
        if bits >> clients:
            raise RemoteProtocolError(peer, "the roster names members outside the cohort")
        return tuple(index for index in range(clients) if bits >> index & 1)

    @classmethod
    def take(cls, reader: Reader, *, members: tuple[int, ...], body_bytes: int) -> Self:
        """Read a roster whose members are known from `read_members`."""
        reader.view(_MEMBERS_BYTES)
        return cls({index: take_signed(reader, body_bytes=body_bytes) for index in members})
