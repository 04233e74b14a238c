"""The messages of CKKS with one shared key, and what all its parties know about a round.

A round in four phases (docs/protocol.md, section 4):

1. **advertise**: every client signs a fresh key to which others can seal;
2. **key**: one of them, the lead, draws the round's key and seals it to every advertised key, its own included;
3. **input**: each client encrypts under that key and sends its signed ciphertext;
4. **open**: one survivor, the opener, receives *all* survivors' signed ciphertexts, adds them up itself, decrypts the
   sum, rounds it to the exact integers and returns those.

Bodies are what clients sign; see `secfl.crypto.wire` for frames and signatures.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from secfl.crypto.attachments import Words
from secfl.crypto.ckks_layout import RoundLayout
from secfl.crypto.hazmat.sealed import HYBRID_PUBLIC_BYTES, SEAL_OVERHEAD, derive
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import FixedBody
from secfl.crypto.packing import pack, packed_size, unpack
from secfl.crypto.wire import DIGEST_BYTES, Reader, Signed
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.types import PROTOCOL_VERSION, ClientId, RoundSpec, join_fields

__all__ = [
    "KEY_SEED_BYTES",
    "NONCE_BYTES",
    "SealedKey",
    "SharedInput",
    "SharedRound",
    "SharedSums",
    "key_context",
    "key_identifier",
]

KEY_SEED_BYTES: Final = 32
NONCE_BYTES: Final = 32
SEALING_BODY_BYTES: Final = HYBRID_PUBLIC_BYTES
"""The body of phase 1 is the sealing key alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedKey:
    """Phase 2, lead to one client through the aggregator: the round's key, sealed.

    Attributes:
        recipient: Cohort position.
        identifier: Commits to the key, see `key_identifier`.
        box: The 32-byte seed of the key, sealed to the recipient.
    """

    recipient: int
    identifier: bytes
    box: bytes = field(repr=False)

    SIZE: ClassVar[int] = 2 + DIGEST_BYTES + KEY_SEED_BYTES + SEAL_OVERHEAD

    def encode(self) -> bytes:
        """The body, `SIZE` bytes."""
        return struct.pack("<H", self.recipient) + self.identifier + self.box

    @classmethod
    def decode(cls, body: bytes, *, peer: str) -> Self:
        """Parse a body."""
        reader = Reader(body, peer=peer)
        value = cls(
            recipient=struct.unpack("<H", reader.view(2))[0],
            identifier=reader.take(DIGEST_BYTES),
            box=reader.take(KEY_SEED_BYTES + SEAL_OVERHEAD),
        )
        reader.end()
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedInput(FixedBody):
    """Phase 3, client to all: under which key it encrypted, from which nonce, and the ciphertext's digest."""

    identifier: bytes
    nonce: bytes
    ciphertext_digest: bytes

    SIZES: ClassVar[tuple[int, ...]] = (DIGEST_BYTES, NONCE_BYTES, DIGEST_BYTES)
    SIZE: ClassVar[int] = sum(SIZES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSums(FixedBody):
    """Phase 4, opener to aggregator: whose inputs it added, and the digest of the packed sums."""

    survivors_digest: bytes
    sums_digest: bytes

    SIZES: ClassVar[tuple[int, ...]] = (DIGEST_BYTES, DIGEST_BYTES)
    SIZE: ClassVar[int] = sum(SIZES)


def key_identifier(seed: bytes, *, digest: bytes) -> bytes:
    """A commitment to the key of a round: equal for all who hold the same key, and tells nothing about it."""
    return derive(seed, b"ckks-shared/identifier", digest)


def key_context(*, digest: bytes, lead: ClientId, recipient: ClientId) -> bytes:
    """What a sealed key is bound to."""
    return join_fields(PROTOCOL_VERSION, b"ckks-shared/key", digest, lead.encode(), recipient.encode())


class SharedRound:
    """The shape of one round: sizes, labels and checks that client and aggregator share.

    Args:
        spec: The round.

    Raises:
        ConfigError: Fewer than 3 clients, more than 64, or a threshold that is too small.
        CapacityError: The sum cannot be carried exactly.
    """

    __slots__ = ("digest", "layout", "parties", "spec")

    def __init__(self, spec: RoundSpec) -> None:
        self.spec = spec
        # The rules about cohort, threshold and directory are those of masking.
        self.parties = MaskedRound(spec=spec, vectors=spec.vectors)
        self.digest = self.parties.digest
        self.layout = RoundLayout(spec.vectors, clients=len(spec.cohort))

    @property
    def sums_bytes(self) -> int:
        """Bytes of the packed sums."""
        return sum(packed_size(vector.length, bits=vector.modulus_bits) for vector in self.spec.vectors)

    def ciphertext_digest(self, ciphertext: bytes | memoryview) -> bytes:
        """What a signed header says about its ciphertext."""
        return self._hash(b"ckks-shared/ciphertext", ciphertext)

    def survivors_digest(self, headers: Mapping[int, Signed]) -> bytes:
        """Of the headers whose ciphertexts are added, by cohort position."""
        rows = [join_fields(struct.pack("<H", index), headers[index].body) for index in sorted(headers)]
        return self._hash(b"ckks-shared/survivors", join_fields(*rows))

    def sums_digest(self, packed: bytes | memoryview) -> bytes:
        """Of the packed sums."""
        return self._hash(b"ckks-shared/sums", packed)

    def pack_sums(self, sums: Mapping[str, Words]) -> bytes:
        """The sums, one vector after the other, each packed to its modulus."""
        return b"".join(pack(sums[vector.name], bits=vector.modulus_bits) for vector in self.spec.vectors)

    def unpack_sums(self, packed: memoryview, *, peer: ClientId) -> dict[str, Words]:
        """Undo `pack_sums`; `RemoteProtocolError` when an unused bit is set."""
        sums: dict[str, Words] = {}
        start = 0
        for vector in self.spec.vectors:
            end = start + packed_size(vector.length, bits=vector.modulus_bits)
            try:
                sums[vector.name] = unpack(packed[start:end], length=vector.length, bits=vector.modulus_bits)
            except LocalProtocolError as error:
                raise RemoteProtocolError(peer, f"sum of {vector.name}: {error}") from None
            start = end
        return sums

    def _hash(self, label: bytes, data: bytes | memoryview) -> bytes:
        hasher = hashlib.sha256(join_fields(PROTOCOL_VERSION, label, self.digest))
        hasher.update(data)
        return hasher.digest()
