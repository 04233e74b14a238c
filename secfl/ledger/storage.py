"""The file under a ledger: one writer, appended whole lines, fsynced before the caller goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from filelock import FileLock, Timeout

from secfl.errors import ConfigError, LedgerCorrupted, LocalProtocolError

__all__ = ["LedgerFile", "make_folder", "sync_folder"]

_DISK_FAILED: Final = frozenset(
    getattr(errno, name) for name in ("EIO", "ENOSPC", "EDQUOT") if hasattr(errno, name)
)


class LedgerFile:
    """An append-only file, held by one process at a time.

    Args:
        path: The file; a lock file with ``.lock`` appended to its name lies beside it.
        wait_seconds: How long to wait for another writer.

    Raises:
        ConfigError: Another process writes to it, or the folder does not allow it.
    """

    def __init__(self, path: Path, *, wait_seconds: float = 0.0) -> None:
        # Two names of one file must lead to one lock.
        path = self._path = Path(os.path.realpath(path))
        self._lock = FileLock(f"{path}.lock", thread_local=False)
        try:
            self._lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise ConfigError(f"{path}: another process holds this ledger") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        self._descriptor: int | None = None

    def create(self, first_line: bytes) -> None:
        """Write the first line to a new file; a file with a torn first line never gets this name.

        Raises:
            ConfigError: The file exists.
        """
        if self._path.exists():
            raise ConfigError(f"{self._path}: a ledger exists already")
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            with temporary.open("wb") as stream:
                stream.write(first_line + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self._path)
            sync_folder(self._path.parent)
            self._open()
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from None

    def read(self, start: int = 0) -> bytes:
        """What follows the first ``start`` bytes.

        Raises:
            ConfigError: The file cannot be read.
            LedgerCorrupted: It became shorter than it was.
        """
        try:
            with self._path.open("rb") as stream:
                if stream.seek(0, os.SEEK_END) < start:
                    raise LedgerCorrupted(None, f"{self._path} was cut off while it was in use")
                stream.seek(start)
                return stream.read()
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from None

    def append(self, data: bytes) -> None:
        """Append whole lines and wait until they are on the disk.

        After a failed write the file may end in a torn line, so this object refuses to go on; opening the
        ledger again recovers it.

        Raises:
            ConfigError: The file cannot be written; it is let go of.
        """
        descriptor = self._open()
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError as error:
            self.release()
            raise ConfigError(f"{self._path}: {error.strerror}") from None

    def overwrite_tail(self, offset: int, data: bytes) -> None:
        """Replace a torn tail by lines that are at least as long, in one write.

        A crash in the middle leaves a torn tail again, never a file without a trace of it.

        Raises:
            LocalProtocolError: The lines are shorter than what they replace.
        """
        descriptor = self._open()
        if os.fstat(descriptor).st_size > offset + len(data):
            raise LocalProtocolError("a recovered line is shorter than what it replaces")
        os.lseek(descriptor, offset, os.SEEK_SET)
        _write_all(descriptor, data)
        os.fsync(descriptor)

    def require_held(self) -> None:
        """`LocalProtocolError` after `release`."""
        if not self._lock.is_locked:
            raise LocalProtocolError(f"{self._path}: the ledger was released")

    def release(self) -> None:
        """Close the file and let others write. The lock file stays: removing it would race."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _open(self) -> int:
        self.require_held()
        if self._descriptor is None:
            flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
            self._descriptor = os.open(self._path, flags)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        return self._descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, each durable in the folder above it; one that is there is left alone.

    Args:
        folder: Where.
        mode: Permissions of ``folder`` itself, before the process's mask.

    Raises:
        OSError: It cannot be made, or something else has its name.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a new name durable; not every system can open or sync folders, and then the rename must do.

    Raises:
        OSError: The disk failed or is full: nobody knows whether the name is on it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _DISK_FAILED:
            raise
    finally:
        os.close(descriptor)
