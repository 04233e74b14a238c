"""New folders are on the disk, in the folder above them, before anything rests on them."""

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
