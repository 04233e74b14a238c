"""Every message's content, as values with ``encode`` and ``decode``. See `secfl.crypto.wire` for the rules.

The bodies are what clients sign. `Parcel` and `Delivery` are parts that signed bodies bind by hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Final, Self

from secfl.crypto.hazmat.merkle import HASH_BYTES, depth
from secfl.crypto.hazmat.sealed import (
    HYBRID_PUBLIC_BYTES,
    KEM_CIPHERTEXT_BYTES,
    KEM_PUBLIC_BYTES,
    NONCE_BYTES,
    SEAL_OVERHEAD,
    TAG_BYTES,
    X25519_BYTES,
)
from secfl.crypto.wire import DIGEST_BYTES, Reader, Roster, check_size

__all__ = [
    "SECRET_BYTES",
    "Advertise",
    "Consistency",
    "Deal",
    "Delivery",
    "FixedBody",
    "InputHeader",
    "Parcel",
    "PlainHeader",
    "Unmask",
    "escrow_bytes",
]

SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedBody:
    """A body of byte strings of fixed sizes, one after the other in the order of the attributes."""

    SIZES: ClassVar[tuple[int, ...]] = ()
    SIZE: ClassVar[int] = 0

    def encode(self) -> bytes:
        """The body, `SIZE` bytes."""
        return b"".join(getattr(self, one.name) for one in fields(self))

    @classmethod
    def decode(cls, body: bytes, *, peer: str) -> Self:
        """Parse a body."""
        reader = Reader(body, peer=peer)
        values = {one.name: reader.take(size) for one, size in zip(fields(cls), cls.SIZES, strict=True)}
        reader.end()
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertise(FixedBody):
    """Phase 1, client to all: fresh public keys. The first two are the public half of the mask key pair.

    Attributes:
        kem: Mask key, ML-KEM-768, 1184 bytes.
        x25519: Mask key, 32 bytes.
        sealing: Key to which shares are sealed, 1216 bytes.
    """

    kem: bytes
    x25519: bytes
    sealing: bytes

    SIZES: ClassVar[tuple[int, ...]] = (KEM_PUBLIC_BYTES, X25519_BYTES, HYBRID_PUBLIC_BYTES)
    SIZE: ClassVar[int] = sum(SIZES)

    @property
    def mask_key(self) -> bytes:
        """The public half of the mask key pair, 1216 bytes."""
        return self.kem + self.x25519


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal(FixedBody):
    """Phase 2, client to all: what binds its secrets and everything that it deals out.

    Attributes:
        directory_digest: Of the phase-1 messages that the client saw.
        root_commitment: To the root of its mask keys.
        self_commitment: To its self-mask seed.
        own_root_commitment: To its own share of the root.
        own_self_commitment: To its own share of the self-mask seed.
        escrow_digest: SHA-256 of the escrow of its KEM secrets.
        parcels_root: Merkle root of the parcels, by recipient.
    """

    directory_digest: bytes
    root_commitment: bytes
    self_commitment: bytes
    own_root_commitment: bytes
    own_self_commitment: bytes
    escrow_digest: bytes
    parcels_root: bytes

    SIZES: ClassVar[tuple[int, ...]] = (DIGEST_BYTES,) * 7
    SIZE: ClassVar[int] = sum(SIZES)


def escrow_bytes(secrets: int) -> int:
    """Bytes of an escrow: nonce, the encrypted KEM secrets and a tag."""
    return NONCE_BYTES + secrets * SECRET_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Phase 2, client to one other, through the aggregator.

    Attributes:
        kem_ciphertext: For a recipient with a higher position, 1088 bytes; otherwise empty.
        sealed: Both shares for the recipient, sealed to it.
        root_commitment: To the recipient's share of the root.
        self_commitment: To the recipient's share of the self-mask seed.
    """

    kem_ciphertext: bytes
    sealed: bytes
    root_commitment: bytes
    self_commitment: bytes

    SEALED_BYTES: ClassVar[int] = 2 * SECRET_BYTES + SEAL_OVERHEAD

    @classmethod
    def size(cls, *, sender: int, recipient: int) -> int:
        """Bytes of the parcel between two cohort positions."""
        return (KEM_CIPHERTEXT_BYTES if recipient > sender else 0) + cls.SEALED_BYTES + 2 * DIGEST_BYTES

    def encode(self) -> bytes:
        """The parcel, `size` bytes: a leaf of the sender's tree."""
        return b"".join(self.fields())

    def fields(self) -> tuple[bytes, bytes, bytes, bytes]:
        """The parts in order, for a snapshot."""
        return self.kem_ciphertext, self.sealed, self.root_commitment, self.self_commitment

    @classmethod
    def from_fields(cls, parts: Sequence[bytes]) -> Self:
        """Undo `fields`."""
        kem_ciphertext, sealed, root_commitment, self_commitment = parts
        return cls(
            kem_ciphertext=kem_ciphertext,
            sealed=sealed,
            root_commitment=root_commitment,
            self_commitment=self_commitment,
        )

    def delivered(self) -> Self:
        """The parcel without the sealed shares, which nobody needs once the holder has them."""
        return replace(self, sealed=b"")

    @classmethod
    def decode(cls, data: bytes | memoryview, *, peer: str, sender: int, recipient: int) -> Self:
        """Parse a parcel."""
        reader = Reader(data, peer=peer)
        value = cls(
            kem_ciphertext=reader.take(KEM_CIPHERTEXT_BYTES if recipient > sender else 0),
            sealed=reader.take(cls.SEALED_BYTES),
            root_commitment=reader.take(DIGEST_BYTES),
            self_commitment=reader.take(DIGEST_BYTES),
        )
        reader.end()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Phase 3, aggregator to one client: the members' deals and the parcels for this client.

    Attributes:
        deals: Every member's signed `Deal`.
        parcels: For every member but the recipient, the encoded parcel and its Merkle path.
    """

    deals: Roster
    parcels: Mapping[int, tuple[bytes, tuple[bytes, ...]]]

    def encode(self) -> bytes:
        """The content: the roster, then parcel and path of each member in rising order."""
        parts = [self.deals.encode()]
        for index in sorted(self.parcels):
            parcel, path = self.parcels[index]
            parts.append(parcel)
            parts.extend(path)
        return b"".join(parts)

    @classmethod
    def decode(cls, content: memoryview, *, peer: str, recipient: int, clients: int) -> Self:
        """Parse the content of a message for the client at cohort position ``recipient``."""
        members = Roster.read_members(content, peer=peer, clients=clients)
        others = [index for index in members if index != recipient]
        siblings = depth(clients)
        sizes = [Parcel.size(sender=index, recipient=recipient) + siblings * HASH_BYTES for index in others]
        check_size(content, Roster.size(len(members), body_bytes=Deal.SIZE) + sum(sizes), peer=peer)
        reader = Reader(content, peer=peer)
        deals = Roster.take(reader, members=members, body_bytes=Deal.SIZE)
        parcels = {}
        for index in others:
            parcel = reader.take(Parcel.size(sender=index, recipient=recipient))
            parcels[index] = (parcel, tuple(reader.take(HASH_BYTES) for _ in range(siblings)))
        return cls(deals=deals, parcels=parcels)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputHeader(FixedBody):
    """Phase 3, client to all: which members its masks are for, and the digest of its masked input."""

    members_digest: bytes
    input_digest: bytes

    SIZES: ClassVar[tuple[int, ...]] = (DIGEST_BYTES, DIGEST_BYTES)
    SIZE: ClassVar[int] = sum(SIZES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency(FixedBody):
    """Phase 4, client to all: which members, and the digest of the survivors' headers."""

    members_digest: bytes
    survivors_digest: bytes

    SIZES: ClassVar[tuple[int, ...]] = (DIGEST_BYTES, DIGEST_BYTES)
    SIZE: ClassVar[int] = sum(SIZES)


@dataclass(frozen=True, slots=True)
class Unmask:
    """Phase 5, client to aggregator: one share for every member, in rising order of position.

    A share of the self-mask seed for a survivor, a share of the root for a dropped client; never both.
    """

    shares: Sequence[bytes] = field(repr=False)

    @staticmethod
    def size(members: int) -> int:
        """Bytes of the body."""
        return members * SECRET_BYTES

    def encode(self) -> bytes:
        """The body."""
        return b"".join(self.shares)

    @classmethod
    def decode(cls, body: bytes, *, peer: str, members: int) -> Self:
        """Parse a body."""
        reader = Reader(body, peer=peer)
        value = cls(tuple(reader.take(SECRET_BYTES) for _ in range(members)))
        reader.end()
        return value


@dataclass(frozen=True, slots=True)
class PlainHeader:
    """The scheme ``plain``, client to aggregator: the digest of an input that is sent in clear."""

    input_digest: bytes

    SIZE: ClassVar[int] = DIGEST_BYTES

    def encode(self) -> bytes:
        """The body, `SIZE` bytes."""
        return self.input_digest

    @classmethod
    def decode(cls, body: bytes, *, peer: str) -> Self:
        """Parse a body."""
        reader = Reader(body, peer=peer)
        value = cls(reader.take(DIGEST_BYTES))
        reader.end()
        return value
