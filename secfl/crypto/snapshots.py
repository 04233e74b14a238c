"""Snapshots of parties: a canonical encoding without code, and encryption at rest.

A snapshot holds signing seeds, mask secrets and updates. It is written by the party as plain bytes, so that
tests can look inside; whoever stores it must seal it with `seal_snapshot` under a key that stays on the host,
and destroy both with the secrets of the round. It is never sent. Two parties must never continue from one
snapshot: the journal of the federation refuses a snapshot older than what the client already answered.

A record is a kind and named byte strings, sorted by name, followed by the SHA-256 of all before it. The hash
finds damage, not malice: authenticity comes from the seal.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from secfl.crypto.hazmat.sealed import NONCE_BYTES, TAG_BYTES, aead_open, aead_seal, derive
from secfl.errors import LocalProtocolError
from secfl.randomness import Rng, SystemRng
from secfl.types import join_fields

__all__ = [
    "decode_record",
    "encode_record",
    "join_indexed",
    "open_snapshot",
    "record_kind",
    "restoring",
    "seal_snapshot",
    "split_fields",
    "split_indexed",
]

_MAGIC: Final = b"SFLR\x01"
_SEALED_MAGIC: Final = b"SFLS\x01"
_HASH_BYTES: Final = 32
_SALT_BYTES: Final = 32
_KEY_BYTES: Final = 32


def encode_record(kind: str, fields: Mapping[str, bytes]) -> bytes:
    """Canonical bytes of a record."""
    flat = [part for name in sorted(fields) for part in (name.encode(), fields[name])]
    body = _MAGIC + join_fields(kind.encode(), *flat)
    return body + hashlib.sha256(body).digest()


def decode_record(data: bytes, kind: str) -> dict[str, bytes]:
    """The fields of a record of this kind; `LocalProtocolError` when it is damaged or another kind."""
    body = data[:-_HASH_BYTES]
    if not body.startswith(_MAGIC) or not hmac.compare_digest(
        hashlib.sha256(body).digest(), data[-_HASH_BYTES:]
    ):
        raise LocalProtocolError("snapshot: damaged, or not a snapshot of this version")
    with restoring("record"):
        found, *flat = split_fields(body[len(_MAGIC) :])
        if found != kind.encode():
            raise LocalProtocolError(f"snapshot: not one of {kind}")
        return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def record_kind(data: bytes) -> str:
    """The kind that a record claims, before anything else is checked.

    Raises:
        LocalProtocolError: It is damaged, or no snapshot of this version.
    """
    try:
        return split_fields(data[len(_MAGIC) : -_HASH_BYTES], limit=1)[0].decode("ascii")
    except (IndexError, UnicodeDecodeError):
        raise LocalProtocolError("snapshot: damaged, or not a snapshot of this version") from None


def split_fields(data: bytes, *, limit: int | None = None) -> list[bytes]:
    """Undo `secfl.types.join_fields`, up to ``limit`` fields; `LocalProtocolError` when it is damaged."""
    fields: list[bytes] = []
    start = 0
    while start < len(data) and (limit is None or len(fields) < limit):
        if start + 8 > len(data):
            raise LocalProtocolError("snapshot: damaged fields")
        end = start + 8 + struct.unpack_from("<Q", data, start)[0]
        if end > len(data):
            raise LocalProtocolError("snapshot: damaged fields")
        fields.append(data[start + 8 : end])
        start = end
    return fields


def join_indexed(values: Mapping[int, Sequence[bytes]]) -> bytes:
    """Byte strings by cohort position, in rising order."""
    return join_fields(*(join_fields(struct.pack("<I", index), *values[index]) for index in sorted(values)))


def split_indexed(data: bytes) -> dict[int, list[bytes]]:
    """Undo `join_indexed`; `LocalProtocolError` when it is damaged."""
    values = {}
    for row in split_fields(data):
        index, *parts = split_fields(row)
        values[struct.unpack("<I", index)[0]] = parts
    return values


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Turn whatever a damaged record causes while it is read into `LocalProtocolError`."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, struct.error) as error:
        raise LocalProtocolError(f"snapshot: a damaged {what}") from error


def seal_snapshot(snapshot: bytes, key: bytes, *, context: bytes, rng: Rng | None = None) -> bytes:
    """Encrypt a snapshot for storage on the host: AES-256-GCM under a key derived for this one use.

    Args:
        snapshot: From `Party.snapshot`.
        key: 32 secret bytes that never leave the host.
        context: What the snapshot belongs to, for example run, round and client; must be given to open it.
        rng: Where the 32-byte salt comes from; the operating system's source by default.
    """
    _check_key(key)
    salt = (rng or SystemRng()).bytes(_SALT_BYTES)
    # Every salt gives its own key, so the nonce may stay zero and the number of seals is not limited by
    # the 96 bits of a GCM nonce.
    use = derive(key, b"snapshot", salt)
    return _SEALED_MAGIC + salt + aead_seal(use, bytes(NONCE_BYTES), snapshot, associated=context)


def open_snapshot(sealed: bytes, key: bytes, *, context: bytes) -> bytes:
    """Undo `seal_snapshot`; `LocalProtocolError` for another key, another context or damaged bytes."""
    _check_key(key)
    start = len(_SEALED_MAGIC) + _SALT_BYTES
    if not sealed.startswith(_SEALED_MAGIC) or len(sealed) < start + TAG_BYTES:
        raise LocalProtocolError("snapshot: not a sealed snapshot of this version")
    use = derive(key, b"snapshot", sealed[len(_SEALED_MAGIC) : start])
    try:
        return aead_open(use, bytes(NONCE_BYTES), sealed[start:], associated=context)
    except ValueError:
        raise LocalProtocolError("snapshot: does not open with this key and context") from None


def _check_key(key: bytes) -> None:
    if len(key) != _KEY_BYTES:
        raise LocalProtocolError(f"snapshot key of {len(key)} bytes, expected {_KEY_BYTES}")
