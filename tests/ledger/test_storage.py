"""Files that cannot be used end in one line that names them, and a torn end is never replaced by less."""

from __future__ import annotations

import pytest

from secfl.errors import ConfigError, LocalProtocolError
from secfl.ledger.storage import LedgerFile


def test_a_file_in_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"file/ledger\.jsonl: "):
        LedgerFile(tmp_path / "file" / "ledger.jsonl")


def test_a_file_that_cannot_be_written(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.with_name("ledger.jsonl.new").mkdir()
    with LedgerFile(path) as file, pytest.raises(ConfigError, match=r"ledger\.jsonl: "):
        file.create(b"{}")
    assert not path.exists()


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.mkdir()
    with LedgerFile(path) as file, pytest.raises(ConfigError, match=r"ledger\.jsonl: "):
        file.read()


def test_a_torn_end_is_replaced_whole_or_not_at_all(tmp_path):
    """A shorter line would leave the rest of the torn one behind it."""
    path = tmp_path / "ledger.jsonl"
    with LedgerFile(path) as file:
        file.create(b"first")
        file.append(b"torn and long")
        with pytest.raises(LocalProtocolError, match="than what it replaces"):
            file.overwrite_tail(len(b"first\n"), b"short\n")
        assert path.read_bytes() == b"first\ntorn and long"
        file.overwrite_tail(len(b"first\n"), b"as long as it\n")
    assert path.read_bytes() == b"first\nas long as it\n"


def test_after_its_release_nothing_is_written(tmp_path):
    """Somebody else may hold the ledger by then; two writers would make a fork."""
    path = tmp_path / "ledger.jsonl"
    file = LedgerFile(path)
    file.create(b"first")
    file.release()
    with LedgerFile(path) as other:
        other.append(b"second\n")
        for write in (lambda: file.append(b"mine\n"), lambda: file.overwrite_tail(6, b"mine instead\n")):
            with pytest.raises(LocalProtocolError, match="was released"):
                write()
    assert path.read_bytes() == b"first\nsecond\n"
