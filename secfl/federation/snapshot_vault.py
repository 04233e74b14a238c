"""Where sealed snapshots of a client's parties lie: a folder on its own host, files named by their hash.

A snapshot holds the round's secrets and often the update, so it is sealed under a key that the caller gives,
never leaves the host, and is destroyed with the round's secrets. Which one may be used is said by the journal,
which pins it by its hash; every other file is rubbish.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from pathlib import Path
from typing import Final, Self

from secfl.crypto.hazmat.sealed import derive
from secfl.crypto.identity import Identity
from secfl.crypto.snapshots import open_snapshot, seal_snapshot
from secfl.errors import LocalProtocolError
from secfl.ledger.storage import make_folder, sync_folder
from secfl.types import ClientId, RoundSpec, join_fields

__all__ = ["SnapshotVault"]

_SUFFIX: Final = ".snapshot"


class SnapshotVault:
    """The snapshots of one client.

    Args:
        folder: A folder of this client alone; made when it is missing, for its owner only.
        client: Whose snapshots they are.
        key: 32 secret bytes that never leave the host. Destroying it destroys every snapshot.
    """

    def __init__(self, folder: Path, *, client: ClientId, key: bytes) -> None:
        self._folder = folder
        self._client = client
        self._key = key
        try:
            make_folder(folder, mode=0o700)
        except OSError as error:
            raise self._trouble(error) from None

    @classmethod
    def of_site(cls, identity: Identity, folder: Path, run_id: bytes) -> Self:
        """The snapshots of a site in one run, under a key that follows from its signing key."""
        return cls(
            folder / "snapshots",
            client=identity.name,
            key=derive(identity.seed, b"site-snapshots", run_id),
        )

    def __repr__(self) -> str:
        return f"SnapshotVault({self._client})"

    def seal(self, spec: RoundSpec, snapshot: bytes) -> bytes:
        """Encrypt a party's snapshot for this client and round."""
        return seal_snapshot(snapshot, self._key, context=self._context(spec))

    def open(self, spec: RoundSpec, sealed: bytes) -> bytes:
        """Undo `seal`; `LocalProtocolError` for another key, client or round, or damaged bytes."""
        return open_snapshot(sealed, self._key, context=self._context(spec))

    def store(self, spec: RoundSpec, sealed: bytes) -> bytes:
        """Write a sealed snapshot and wait until it is on the disk; returns its SHA-256.

        Raises:
            LocalProtocolError: It cannot be written; nothing of it is left.
        """
        name = hashlib.sha256(sealed).digest()
        path = self._path(spec, name)
        temporary = path.with_suffix(".new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(self._folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._trouble(error) from None
        return name

    def load(self, spec: RoundSpec, name: bytes) -> bytes | None:
        """The sealed snapshot with this SHA-256; ``None`` when there is none whose content has that hash."""
        try:
            sealed = self._path(spec, name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._trouble(error) from None
        return sealed if hmac.compare_digest(hashlib.sha256(sealed).digest(), name) else None

    def keep_only(self, spec: RoundSpec, name: bytes) -> None:
        """Destroy every snapshot of the round but this one; an empty ``name`` destroys all of them."""
        kept = self._path(spec, name).name if name else None
        self._destroy(f"{spec.run_id.hex()}-{spec.round_id}-*", but=kept)

    def destroy_run(self, run_id: bytes) -> None:
        """Destroy every snapshot of every round of the run."""
        self._destroy(f"{run_id.hex()}-*")

    def destroy_all_but(self, run_id: bytes) -> None:
        """Destroy what runs have left here that nobody goes on with."""
        self._destroy("*", but=f"{run_id.hex()}-")

    def _destroy(self, pattern: str, *, but: str | None = None) -> None:
        """Unlink what matches the pattern, except for names that start with ``but``."""
        try:
            doomed = [
                path for path in self._folder.glob(pattern) if but is None or not path.name.startswith(but)
            ]
            for path in doomed:
                path.unlink(missing_ok=True)
            if doomed:
                sync_folder(self._folder)
        except OSError as error:
            raise self._trouble(error) from None

    def _path(self, spec: RoundSpec, name: bytes) -> Path:
        return self._folder / f"{spec.run_id.hex()}-{spec.round_id}-{name.hex()}{_SUFFIX}"

    def _context(self, spec: RoundSpec) -> bytes:
        return join_fields(
            b"journaled-party",
            self._client.encode(),
            spec.run_id,
            struct.pack("<Q", spec.round_id),
            spec.digest(),
        )

    def _trouble(self, error: OSError) -> LocalProtocolError:
        return LocalProtocolError(f"{self._folder}: {error.strerror or error}; nothing was sent")
