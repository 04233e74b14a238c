r"""The file under a journal: appended records, chained by hash, on the disk before the caller goes on.

Format: ``b"secfl journal\x00"``, the format version (1 byte), then records. A record is the length of its body
(8 bytes, little-endian), 16 bytes of SHA-256 over the chain so far and that length, the body, and the chain
after it: SHA-256 over the chain so far and the body. The chain starts from the file's first bytes.

A crash while a record is written leaves a file that ends inside it. Such a tail is cut when the file is opened:
its writer never came back from the disk, so nothing of it was acted upon. Whatever is complete and wrong is
damage, and the file is refused as a whole: cutting it could forget what was already said.

Two locks keep a second process out. The lock file lasts while a journal is made or replaced; the lock on the journal
itself holds under whatever name it is opened (links), and when somebody has removed the lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from secfl.errors import LocalProtocolError
from secfl.ledger.storage import sync_folder

__all__ = ["JOURNAL_FORMAT_VERSION", "JournalFile", "StoredRecord"]

JOURNAL_FORMAT_VERSION: Final = 1
_MAGIC: Final = b"secfl journal\x00"
_PREAMBLE: Final = _MAGIC + struct.pack("<B", JOURNAL_FORMAT_VERSION)
_CHECK_BYTES: Final = 16
_HEAD_BYTES: Final = 8 + _CHECK_BYTES
_CHAIN_BYTES: Final = 32
_FIRST_CHAIN: Final = hashlib.sha256(_PREAMBLE).digest()


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """Where the body of a record lies in the file, and the chain before and after it."""

    offset: int
    length: int
    before: bytes
    after: bytes


class JournalFile:
    """One file of records, held by one process at a time; not for several threads.

    Args:
        path: The file, or a symbolic link to it; a lock file with ``.lock`` appended to its name lies beside it. A
            missing file is made.

    Raises:
        LocalProtocolError: Another process holds it, it cannot be read or written, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        # Links are followed here: a new file must take the place of the file, not of a link to it.
        self.path = path = Path(os.path.realpath(path))
        self._descriptor = -1
        self._end = 0
        self._chain = _FIRST_CHAIN
        self._lock = FileLock(f"{path}.lock", thread_local=False, mode=0o600)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise self._held() from None
        except OSError as error:
            raise self._trouble(error) from None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether it has let go of the file, also after a write that failed."""
        return self._descriptor < 0

    def close(self) -> None:
        """Let go of the file and its lock; safe to call again."""
        self._let_go()
        with contextlib.suppress(OSError):
            self._lock.release()

    def records(self) -> Iterator[tuple[StoredRecord, bytes]]:
        """Every record from the start, checked; cuts a torn tail.

        Call it to the end, once, before `append`.

        Raises:
            LocalProtocolError: A record is damaged, or the disk cannot be read.
        """
        size = self._size()
        position, chain = len(_PREAMBLE), _FIRST_CHAIN
        number = 0
        while position + _HEAD_BYTES <= size:
            head = self._read(position, _HEAD_BYTES)
            length = struct.unpack_from("<Q", head)[0]
            if not hmac.compare_digest(_head(chain, length), head):
                raise LocalProtocolError(f"{self.path}: record {number} is damaged")
            end = position + _HEAD_BYTES + length + _CHAIN_BYTES
            if end > size:
                break
            body = self._read(position + _HEAD_BYTES, length)
            following = _extend(chain, (body,))
            if not hmac.compare_digest(following, self._read(end - _CHAIN_BYTES, _CHAIN_BYTES)):
                raise LocalProtocolError(f"{self.path}: record {number} is damaged")
            yield StoredRecord(position + _HEAD_BYTES, length, chain, following), body
            position, chain = end, following
            number += 1
        self._end, self._chain = position, chain
        if position < size:
            self._cut(position)

    def append(self, parts: Iterable[bytes]) -> StoredRecord:
        """Write one record, whose body is the concatenation of ``parts``, and wait until it is on the disk.

        Raises:
            LocalProtocolError: It could not be written. What was written of it is cut again where possible, and
                this object refuses to go on; opening the file anew recovers it. The same holds when the call is
                interrupted.
        """
        body = list(parts)
        length = sum(map(len, body))
        following = _extend(self._chain, body)
        descriptor = self._live()
        try:
            _write_all(descriptor, self._end, (_head(self._chain, length), *body, following))
            os.fsync(descriptor)
        except BaseException as error:
            with contextlib.suppress(LocalProtocolError):
                self._cut(self._end)
            self.close()
            if not isinstance(error, OSError):
                raise
            raise LocalProtocolError(
                f"{self.path}: cannot be written ({error.strerror}); nothing was sent"
            ) from None
        record = StoredRecord(self._end + _HEAD_BYTES, length, self._chain, following)
        self._end = record.offset + length + _CHAIN_BYTES
        self._chain = following
        return record

    def read(self, record: StoredRecord) -> bytes:
        """The body of a record again; `LocalProtocolError` when it is not what was written."""
        body = self._read(record.offset, record.length)
        if not hmac.compare_digest(_extend(record.before, (body,)), record.after):
            raise LocalProtocolError(f"{self.path}: changed while it was in use")
        return body

    def replace_with(self, bodies: Iterable[bytes]) -> None:
        """Put a new file with these records in the place of this one; a crash leaves one or the other.

        This object then has the new file open, and `records` must be read again.
        """
        self._live()  # without its lock the file may be somebody else's by now
        temporary = self.path.with_name(self.path.name + ".new")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                position, chain = _write_all(descriptor, 0, (_PREAMBLE,)), _FIRST_CHAIN
                for body in bodies:
                    following = _extend(chain, (body,))
                    parts = (_head(chain, len(body)), body, following)
                    position, chain = _write_all(descriptor, position, parts), following
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(self.path)
            sync_folder(self.path.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise self._trouble(error) from None
        self._let_go()
        self._open()

    def _open(self) -> None:
        try:
            if not self.path.exists():
                self._create()
            self._descriptor = os.open(self.path, os.O_RDWR)
            locked = self._lock_it()
            if locked:
                # A process that was killed may have left records, or the file's name, in memory only: what is read
                # here is acted upon, so it must not be undone by a loss of power.
                os.fsync(self._descriptor)
                sync_folder(self.path.parent)
            preamble = os.pread(self._descriptor, len(_PREAMBLE), 0)
        except OSError as error:
            raise self._trouble(error) from None
        if not locked:
            raise self._held()
        if len(preamble) < len(_PREAMBLE) or not preamble.startswith(_MAGIC):
            raise LocalProtocolError(f"{self.path}: not a journal written by secfl")
        if preamble != _PREAMBLE:
            raise LocalProtocolError(
                f"{self.path}: format_version {preamble[-1]} is not one that this secfl reads; upgrade secfl"
            )

    def _lock_it(self) -> bool:
        """Lock the open file; whether it worked, and the path still leads to this file."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return os.path.samestat(os.fstat(self._descriptor), self.path.stat())

    def _create(self) -> None:
        """The first bytes go to another name first: a file with this name always has all of them."""
        temporary = self.path.with_name(self.path.name + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(descriptor, 0, (_PREAMBLE,))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(self.path)
        sync_folder(self.path.parent)

    def _cut(self, end: int) -> None:
        try:
            os.ftruncate(self._live(), end)
            os.fsync(self._live())
        except OSError as error:
            raise self._trouble(error) from None

    def _read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._live(), length, offset)
            while len(data) < length:  # one call reads at most 2 GiB
                more = os.pread(self._live(), length - len(data), offset + len(data))
                if not more:
                    raise LocalProtocolError(f"{self.path}: became shorter while it was in use")
                data += more
        except OSError as error:
            raise self._trouble(error) from None
        return data

    def _size(self) -> int:
        try:
            return os.fstat(self._live()).st_size
        except OSError as error:
            raise self._trouble(error) from None

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # What counts is on the disk; and after an error, too, the number may belong to another file.
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _live(self) -> int:
        if self._descriptor < 0:
            raise LocalProtocolError(f"{self.path}: the journal is closed; open it again")
        return self._descriptor

    def _held(self) -> LocalProtocolError:
        return LocalProtocolError(f"{self.path}: another process holds this journal")

    def _trouble(self, error: OSError) -> LocalProtocolError:
        return LocalProtocolError(f"{self.path}: {error.strerror or error}")


def _head(chain: bytes, length: int) -> bytes:
    size = struct.pack("<Q", length)
    return size + hashlib.sha256(chain + b"head" + size).digest()[:_CHECK_BYTES]


def _extend(chain: bytes, parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256(chain + b"body")
    for part in parts:
        digest.update(part)
    return digest.digest()


def _write_all(descriptor: int, offset: int, parts: Iterable[bytes]) -> int:
    """Write parts one after the other from ``offset``; returns where they end."""
    for part in parts:
        view = memoryview(part)
        while view:
            written = os.pwrite(descriptor, view, offset)
            offset += written
            view = view[written:]
    return offset
