"""New folders are on the disk, in the folder above them, before anything rests on them."""

import errno
import os

import pytest

from secfl.ledger import storage


def test_every_new_folder_is_synced_in_the_one_above(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(storage, "sync_folder", synced.append)
    storage.make_folder(tmp_path / "a" / "b" / "c", mode=0o700)
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert (tmp_path / "a" / "b" / "c").stat().st_mode & 0o777 == 0o700


def test_one_that_is_there_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir(mode=0o755)
    monkeypatch.setattr(storage, "sync_folder", lambda folder: pytest.fail(f"{folder}: synced"))
    storage.make_folder(tmp_path / "a", mode=0o700)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match="exists"):
        storage.make_folder(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_told(tmp_path, monkeypatch, number):
    """The name may be lost with the power, and with it what was agreed or charged under it."""
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        storage.sync_folder(tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_system_that_cannot_sync_folders_does_without(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    storage.sync_folder(tmp_path)


def failing(number):
    def fsync(_descriptor):
        raise OSError(number, os.strerror(number))

    return fsync
