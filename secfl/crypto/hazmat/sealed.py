"""Derived keys, key agreement and sealed boxes: the recipes that masking is cooked from.

Hazard: every function here is safe for one purpose, named by its label. A label is used for one thing; fields
are joined with their lengths, so that no two calls with different fields see the same bytes. Encapsulation
and HPKE take their randomness from OpenSSL, so ciphertexts cannot be reproduced from a seed.

Sources: HKDF (RFC 5869), HPKE (RFC 9180) with the hybrid MLKEM768-X25519, ML-KEM-768 (FIPS 203), X25519
(RFC 7748), AES-256-GCM (NIST SP 800-38D). Functions that open something raise `ValueError` when it does not
open; who knows the peer turns that into a `RemoteProtocolError`.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secfl.types import PROTOCOL_VERSION, join_fields

__all__ = [
    "HYBRID_PUBLIC_BYTES",
    "HYBRID_SEED_BYTES",
    "KEM_CIPHERTEXT_BYTES",
    "KEM_PUBLIC_BYTES",
    "KEM_SEED_BYTES",
    "NONCE_BYTES",
    "SEAL_OVERHEAD",
    "TAG_BYTES",
    "X25519_BYTES",
    "AgreementKey",
    "HybridKey",
    "SealingKey",
    "aead_open",
    "aead_seal",
    "check_hybrid_public",
    "check_kem_public",
    "check_x25519_public",
    "derive",
    "encapsulate",
    "seal_to",
]

KEM_PUBLIC_BYTES: Final = 1184
KEM_CIPHERTEXT_BYTES: Final = 1088
KEM_SEED_BYTES: Final = 64
X25519_BYTES: Final = 32
HYBRID_PUBLIC_BYTES: Final = KEM_PUBLIC_BYTES + X25519_BYTES
HYBRID_SEED_BYTES: Final = KEM_SEED_BYTES + X25519_BYTES
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SEAL_OVERHEAD: Final = KEM_CIPHERTEXT_BYTES + X25519_BYTES + TAG_BYTES

_SUITE: Final = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_PROBE: Final = X25519PrivateKey.from_private_bytes(bytes(range(32)))


def derive(secret: bytes, label: bytes, *fields: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 of a secret for one purpose; ``label`` and ``fields`` are bound in, with their lengths."""
    info = join_fields(PROTOCOL_VERSION, label, *fields)
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


def check_x25519_public(public: bytes) -> None:
    """Refuse a public key of small order with `ValueError`: it gives zero with every private key."""
    _exchange(_PROBE, public)


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    if shared == bytes(len(shared)):
        raise ValueError("all-zero X25519 result")
    return shared


def check_kem_public(public: bytes) -> None:
    """Refuse bytes that are not an ML-KEM-768 public key (FIPS 203, section 7.2) with `ValueError`."""
    MLKEM768PublicKey.from_public_bytes(public)


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A fresh ``(secret, ciphertext)`` for an ML-KEM-768 public key; `ValueError` if it is not one."""
    return MLKEM768PublicKey.from_public_bytes(public).encapsulate()


class HybridKey:
    """An ML-KEM-768 and an X25519 private key, used side by side.

    Args:
        seed: 96 secret bytes: the ML-KEM seed (64), then the X25519 private key (32).
    """

    __slots__ = ("_kem", "_x25519", "seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != HYBRID_SEED_BYTES:
            raise ValueError(f"seed of {len(seed)} bytes, expected {HYBRID_SEED_BYTES}")
        self.seed = seed
        self._kem = MLKEM768PrivateKey.from_seed_bytes(seed[:KEM_SEED_BYTES])
        self._x25519 = X25519PrivateKey.from_private_bytes(seed[KEM_SEED_BYTES:])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def public(self) -> bytes:
        """1216 bytes: the ML-KEM public key, then the X25519 public key."""
        return self._kem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()


class AgreementKey(HybridKey):
    """A key pair for pair secrets: both halves are used, and their secrets combined by the caller."""

    __slots__ = ()

    def exchange(self, public: bytes) -> bytes:
        """The X25519 secret with a peer; `ValueError` when it is all zero, and so known to everybody."""
        return _exchange(self._x25519, public)

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The secret of a ciphertext of 1088 bytes. A wrong one gives an unrelated secret, not an error."""
        return self._kem.decapsulate(ciphertext)


class SealingKey(HybridKey):
    """A key pair to which others seal: broken only if ML-KEM-768 and X25519 both are."""

    __slots__ = ()

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """Open what `seal_to` made for this key with the same ``info``; `ValueError` otherwise."""
        private = hpke.MLKEM768X25519PrivateKey(self._kem, self._x25519)
        try:
            return _SUITE.decrypt(sealed, private, info)
        except InvalidTag:
            raise ValueError("the sealed box does not open") from None


def check_hybrid_public(public: bytes) -> None:
    """Refuse bytes that are not the public half of a `HybridKey`, for sealing or agreement: `ValueError`."""
    check_kem_public(public[:KEM_PUBLIC_BYTES])
    check_x25519_public(public[KEM_PUBLIC_BYTES:])


def seal_to(public: bytes, plaintext: bytes, *, info: bytes) -> bytes:
    """Seal to a public key of `SealingKey`: HPKE in base mode, one message.

    ``info`` enters the key schedule, so a box opens only under the same ``info``. The result is
    ``len(plaintext) + SEAL_OVERHEAD`` bytes. `ValueError` if the key is not one.
    """
    key = hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:KEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(public[KEM_PUBLIC_BYTES:]),
    )
    return _SUITE.encrypt(plaintext, key, info)


def aead_seal(key: bytes, nonce: bytes, plaintext: bytes, *, associated: bytes) -> bytes:
    """AES-256-GCM. A key and nonce must never meet two plaintexts."""
    return AESGCM(key).encrypt(nonce, plaintext, associated)


def aead_open(key: bytes, nonce: bytes, ciphertext: bytes, *, associated: bytes) -> bytes:
    """Open `aead_seal`; `ValueError` when key, nonce, bytes or associated data differ."""
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, associated)
    except InvalidTag:
        raise ValueError("the ciphertext does not open") from None
