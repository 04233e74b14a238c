"""Ed25519 identities and the signed cohort manifest.

Clients are enrolled out of band. The aggregator is not trusted to name keys: every signature is checked
against the manifest, whose digest is pinned at enrolment and bound into every round.

Ed25519 is not post-quantum: the post-quantum statements of secfl are about confidentiality only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secfl.errors import ConfigError, RemoteProtocolError
from secfl.randomness import Rng
from secfl.types import PROTOCOL_VERSION, ClientId, client_id, join_fields

__all__ = ["SIGNATURE_BYTES", "Directory", "Identity"]

SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """A client's name and signing key."""

    name: ClientId
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls, name: str, rng: Rng) -> Identity:
        """A new identity from 32 bytes of ``rng``."""
        return cls(client_id(name), rng.bytes(32))

    def public_key(self) -> bytes:
        """The 32-byte Ed25519 public key."""
        return self._key().public_key().public_bytes_raw()

    def sign(self, purpose: bytes, *fields: bytes) -> bytes:
        """Sign a purpose label and length-prefixed fields; 64 bytes."""
        return self._key().sign(_signed_bytes(purpose, fields))

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


@dataclass(frozen=True, slots=True)
class Directory:
    """The enrolled public keys of a run, by client.

    Build it with `Directory.enroll`; `digest` is what clients pin and what `RoundSpec.manifest_digest` holds.
    """

    keys: Mapping[ClientId, bytes]

    def __post_init__(self) -> None:
        for name, key in self.keys.items():
            client_id(name)
            if len(key) != 32:
                raise ConfigError(f"manifest: the key of {name} has {len(key)} bytes, expected 32")

    @classmethod
    def enroll(cls, identities: Iterable[Identity]) -> Directory:
        """The directory of these identities' public keys."""
        return cls({identity.name: identity.public_key() for identity in identities})

    def digest(self) -> bytes:
        """SHA-256 over names and keys in sorted order."""
        rows = [join_fields(name.encode(), key) for name, key in sorted(self.keys.items())]
        return hashlib.sha256(join_fields(PROTOCOL_VERSION, b"manifest", *rows)).digest()

    def verify(self, name: ClientId, signature: bytes, purpose: bytes, *fields: bytes) -> None:
        """Check a signature; `RemoteProtocolError` blames ``name`` when it does not hold."""
        key = self.keys.get(name)
        if key is None:
            raise RemoteProtocolError(name, "not enrolled in the manifest")
        if len(signature) != SIGNATURE_BYTES:
            raise RemoteProtocolError(
                name, f"signature of {len(signature)} bytes, expected {SIGNATURE_BYTES}"
            )
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, _signed_bytes(purpose, fields))
        except InvalidSignature:
            raise RemoteProtocolError(
                name, f"bad signature on {purpose.decode('ascii', 'replace')}"
            ) from None
        except ValueError:
            raise RemoteProtocolError(name, "its enrolled key is not an Ed25519 key") from None


def _signed_bytes(purpose: bytes, fields: Iterable[bytes]) -> bytes:
    return join_fields(PROTOCOL_VERSION, b"signature", purpose, *fields)
