"""A disk that refuses ends in one line that names the file."""

from pathlib import Path

import pytest

from secfl.errors import ConfigError
from secfl.federation.rundir import RunDirectory

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs the device /dev/full")
@pytest.mark.parametrize(
    ("name", "write"),
    [("log.txt", lambda run: run.log("text")), ("metrics.jsonl", lambda run: run.add_metrics({"round": 0}))],
)
def test_a_run_directory_on_a_full_disk(tmp_path, name, write):
    (tmp_path / name).symlink_to(FULL)
    with pytest.raises(
        ConfigError, match=rf"{name}: cannot be written \(No space left on device\)"
    ) as caught:
        write(RunDirectory(tmp_path))
    assert "\n" not in str(caught.value)
