"""From secrets to keys and digests: every derivation of a masking round in one place.

Each value is HKDF-SHA256 of one secret under a label of its own, with the digest of the round and the names of
those concerned bound in. A pair seed is derived from an X25519 secret and an ML-KEM-768 secret together with
everything public that went into both, so it stays secret unless both fail. No two vectors, pairs or rounds
ever share a mask key.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from secfl.crypto.hazmat.sealed import (
    HYBRID_SEED_BYTES,
    KEM_SEED_BYTES,
    NONCE_BYTES,
    X25519_BYTES,
    AgreementKey,
    SealingKey,
    derive,
)
from secfl.crypto.hazmat.shamir import coefficient_bytes
from secfl.crypto.messages import SECRET_BYTES, Advertise
from secfl.crypto.wire import Signed
from secfl.errors import LocalProtocolError
from secfl.randomness import Rng
from secfl.types import PROTOCOL_VERSION, ClientId, VectorSpec, join_fields

__all__ = [
    "ClientSecrets",
    "PairParts",
    "ShareKind",
    "directory_digest",
    "escrow_context",
    "escrow_key",
    "mask_key_pair",
    "members_digest",
    "pair_key",
    "pair_seed",
    "root_commitment",
    "self_commitment",
    "self_key",
    "share_commitment",
    "share_context",
    "survivors_digest",
]

_DEALT_BYTES: Final = 2 * SECRET_BYTES


class ShareKind(StrEnum):
    """Which of a client's two secrets a share belongs to."""

    ROOT = "root"
    SELF_MASK = "self"


def mask_key_pair(root: bytes, *, digest: bytes, client: ClientId) -> AgreementKey:
    """The key pair of pairwise masks, derived from a client's root.

    Whoever learns the root (the aggregator, for a client that dropped out) can derive it again.
    """
    bound = (digest, client.encode())
    return AgreementKey(
        derive(root, b"mask-key/ml-kem-768", *bound, length=KEM_SEED_BYTES)
        + derive(root, b"mask-key/x25519", *bound, length=X25519_BYTES)
    )


@dataclass(frozen=True, slots=True)
class ClientSecrets:
    """All secret randomness of one client in one round, drawn at once so that a snapshot can hold it.

    Attributes:
        root: r_u, 32 bytes: the pairwise mask keys follow from it.
        self_mask: b_u, 32 bytes: the seed of the self mask.
        sealing: The key that receives shares; independent of the root.
        nonce: Of the escrow.
        coefficients: Of the polynomials that share root and self-mask seed.
    """

    root: bytes = field(repr=False)
    self_mask: bytes = field(repr=False)
    sealing: SealingKey = field(repr=False)
    nonce: bytes = field(repr=False)
    coefficients: bytes = field(repr=False)

    @classmethod
    def draw(cls, rng: Rng, *, threshold: int) -> Self:
        """Fresh secrets for one client and round."""
        return cls(
            root=rng.bytes(SECRET_BYTES),
            self_mask=rng.bytes(SECRET_BYTES),
            sealing=SealingKey(rng.bytes(HYBRID_SEED_BYTES)),
            nonce=rng.bytes(NONCE_BYTES),
            coefficients=rng.bytes(coefficient_bytes(_DEALT_BYTES, threshold)),
        )

    def encode(self) -> bytes:
        """All secrets in a row, for a snapshot."""
        return self.root + self.self_mask + self.sealing.seed + self.nonce + self.coefficients

    @classmethod
    def decode(cls, data: bytes, *, threshold: int) -> Self:
        """Undo `encode`.

        Raises:
            LocalProtocolError: It has another size.
        """
        sizes = (SECRET_BYTES, SECRET_BYTES, HYBRID_SEED_BYTES, NONCE_BYTES)
        parts = []
        start = 0
        for size in (*sizes, coefficient_bytes(_DEALT_BYTES, threshold)):
            parts.append(data[start : start + size])
            start += size
        if start != len(data):
            raise LocalProtocolError("snapshot: the client's secrets have another size")
        root, self_mask, sealing, nonce, coefficients = parts
        return cls(root, self_mask, SealingKey(sealing), nonce, coefficients)


def root_commitment(root: bytes, *, digest: bytes, client: ClientId) -> bytes:
    """Binds a client to the root that it shares."""
    return derive(root, b"commitment/root", digest, client.encode())


def self_commitment(seed: bytes, *, digest: bytes, client: ClientId) -> bytes:
    """Binds a client to the self-mask seed that it shares."""
    return derive(seed, b"commitment/self", digest, client.encode())


def share_commitment(
    share: bytes, kind: ShareKind, *, digest: bytes, dealer: ClientId, holder: ClientId
) -> bytes:
    """Binds dealer and holder to one share, so that a wrong one is blamed on who sent it."""
    return derive(share, b"commitment/share", kind.encode(), digest, dealer.encode(), holder.encode())


def share_context(*, digest: bytes, dealer: ClientId, holder: ClientId) -> bytes:
    """What a sealed share is bound to."""
    return join_fields(PROTOCOL_VERSION, b"share", digest, dealer.encode(), holder.encode())


def escrow_key(
    root: bytes, *, digest: bytes, client: ClientId, directory: bytes, ciphertexts: bytes
) -> bytes:
    """The key of the escrow of KEM secrets.

    The KEM ciphertexts determine what is in the escrow. They are bound into the key, so that one key and nonce
    never meet two contents, not even when a client is wrongly started twice from one snapshot.
    """
    content = hashlib.sha256(ciphertexts).digest()
    return derive(root, b"escrow", digest, client.encode(), directory, content)


def escrow_context(*, digest: bytes, client: ClientId, directory: bytes) -> bytes:
    """The associated data of the escrow."""
    return join_fields(PROTOCOL_VERSION, b"escrow", digest, client.encode(), directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairParts:
    """The public half of what two clients agreed on; ``low`` is the one earlier in the cohort."""

    low: ClientId
    high: ClientId
    low_keys: Advertise
    high_keys: Advertise
    ciphertext: bytes = field(repr=False)


def pair_seed(x25519_secret: bytes, kem_secret: bytes, parts: PairParts, *, digest: bytes) -> bytes:
    """The hybrid seed of a pair: secret as long as X25519 or ML-KEM-768 is."""
    return derive(
        x25519_secret + kem_secret,
        b"pair",
        digest,
        parts.low.encode(),
        parts.high.encode(),
        parts.low_keys.x25519,
        parts.high_keys.x25519,
        parts.high_keys.kem,
        parts.ciphertext,
    )


def pair_key(seed: bytes, vector: VectorSpec, *, digest: bytes, low: ClientId, high: ClientId) -> bytes:
    """The mask key of a pair for one vector."""
    return derive(seed, b"mask", b"pair", digest, low.encode(), high.encode(), *_named(vector))


def self_key(seed: bytes, vector: VectorSpec, *, digest: bytes, client: ClientId) -> bytes:
    """The key of a client's self mask for one vector."""
    return derive(seed, b"mask", b"self", digest, client.encode(), *_named(vector))


def _named(vector: VectorSpec) -> tuple[bytes, bytes]:
    return vector.name.encode(), struct.pack("<B", vector.modulus_bits)


def directory_digest(digest: bytes, cohort: Sequence[ClientId], adverts: Mapping[int, Signed]) -> bytes:
    """Of the phase-1 messages that a client saw."""
    rows = {index: (signed.body,) for index, signed in adverts.items()}
    return _transcript(b"directory", digest, cohort, rows)


def members_digest(
    digest: bytes, cohort: Sequence[ClientId], *, adverts: Mapping[int, Signed], deals: Mapping[int, Signed]
) -> bytes:
    """T2: of all phase-1 and phase-2 messages of the members, who are those with a deal.

    Without it, an aggregator could tell one client that it is alone and have the others unmask it.
    """
    rows = {index: (adverts[index].body, signed.body) for index, signed in deals.items()}
    return _transcript(b"members", digest, cohort, rows)


def survivors_digest(digest: bytes, cohort: Sequence[ClientId], headers: Mapping[int, Signed]) -> bytes:
    """Of the survivors' headers."""
    rows = {index: (signed.body,) for index, signed in headers.items()}
    return _transcript(b"survivors", digest, cohort, rows)


def _transcript(
    label: bytes, digest: bytes, cohort: Sequence[ClientId], rows: Mapping[int, tuple[bytes, ...]]
) -> bytes:
    flat = (join_fields(cohort[index].encode(), *rows[index]) for index in sorted(rows))
    return hashlib.sha256(join_fields(PROTOCOL_VERSION, label, digest, *flat)).digest()
