"""A folder that appears whole or not at all."""

from __future__ import annotations

import pytest

from secfl.errors import ConfigError, DataError
from secfl.segmentation.new_folder import new_folder


def test_it_appears_at_the_end_with_what_was_written(tmp_path):
    out = tmp_path / "deep" / "new"
    with new_folder(out) as staging:
        (staging / "file").write_text("7")
        assert not out.exists()
    assert (out / "file").read_text() == "7"
    assert [path.name for path in out.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [DataError("x"), KeyboardInterrupt()], ids=["refused", "interrupted"])
def test_whatever_goes_wrong_leaves_nothing(tmp_path, error):
    def write() -> None:
        with new_folder(tmp_path / "new") as staging:
            (staging / "file").write_text("7")
            raise error

    with pytest.raises(type(error)):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written \\(No space left"), new_folder(tmp_path / "new"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("7")
    with pytest.raises(ConfigError, match="exists already"), new_folder(tmp_path):
        pytest.fail("the block ran")
    assert (tmp_path / "file").read_text() == "7"
