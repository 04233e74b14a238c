"""A site's signing key as a file, for its owner only, and the passphrase that may encrypt it.

A site makes its key where it will be used; only the public entry leaves (`secfl.federation.manifest`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.types import client_id

__all__ = [
    "PASSPHRASE_VARIABLE",
    "passphrase_of_service",
    "read_identity",
    "read_passphrase",
    "read_small_file",
    "write_identity",
]

PASSPHRASE_VARIABLE: Final = "SECFL_PASSPHRASE_FILE"  # noqa: S105 - names a file; holds no secret
_PASSPHRASE_BYTES: Final = 1024
_MOST_BYTES: Final = 1 << 20
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_EVERYBODY: Final = stat.S_IRWXO | stat.S_IWGRP
"""Of a passphrase. Its group may read it: systemd hands out credentials by an access list, which looks like that."""


def write_identity(path: Path, identity: Identity, *, passphrase: bytes | None) -> None:
    """Write a signing key as PEM (PKCS #8), for its owner only; never over an existing file.

    Args:
        path: The file.
        identity: The key; its name is not in the file.
        passphrase: Encrypts the key; ``None`` leaves that to the disk.

    Raises:
        ConfigError: It exists, or cannot be written.
    """
    encryption: KeySerializationEncryption = (
        NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    )
    key = Ed25519PrivateKey.from_private_bytes(identity.seed)
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConfigError(f"{path}: exists already; expected a new file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def read_identity(path: Path, name: str, *, passphrase: bytes | None) -> Identity:
    """Read a signing key.

    Raises:
        ConfigError: Missing, readable by others, not an Ed25519 key, or another passphrase.
    """
    content = read_small_file(path)
    mode = path.stat().st_mode
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigError(
            f"{path}: others may read it (mode {mode & 0o777:04o}); expected 0600: chmod 600 {path}"
        )
    try:
        key = load_pem_private_key(content, passphrase)
    except TypeError:
        wanted = "needs a passphrase" if passphrase is None else "is not encrypted; expected no passphrase"
        raise ConfigError(f"{path}: the key {wanted}") from None
    except ValueError:
        raise ConfigError(f"{path}: not a PEM key, or another passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: expected an Ed25519 key")
    return Identity(client_id(name), key.private_bytes_raw())


def read_passphrase(file: Path | None) -> bytes | None:
    """The first line of a file that holds a key's passphrase; ``None`` for no file.

    Raises:
        ConfigError: It cannot be read, its first line is empty, or everybody on this host may read it.
    """
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            line = stream.readline(_PASSPHRASE_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    if os.name == "posix" and stat.S_ISREG(mode) and mode & _EVERYBODY:
        raise ConfigError(
            f"{file}: others may read or change it (mode {mode & 0o777:04o}); expected 0600: chmod 600 {file}"
        )
    if not line:
        raise ConfigError(f"{file}: expected a passphrase in the first line")
    return line


def passphrase_of_service() -> bytes | None:
    """The passphrase that a service was given: environment `SECFL_PASSPHRASE_FILE` names its file.

    Raises:
        ConfigError: As in `read_passphrase`.
    """
    named = os.environ.get(PASSPHRASE_VARIABLE)
    return read_passphrase(Path(named) if named else None)


def read_small_file(path: Path) -> bytes:
    """What a key file or manifest holds; `ConfigError` when it cannot be read or is larger than 1 MiB."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: larger than {_MOST_BYTES} bytes; expected a key or manifest")
    return content
