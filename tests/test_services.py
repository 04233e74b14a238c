"""The units in ``examples/systemd``: systemd accepts them, and the programs know the options that they are given."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = ("secfl-link.service", "secfl-nvflare@.service", "secfl-site.service")


@pytest.fixture
def units(project) -> Path:
    return project / "examples" / "systemd"


def test_these_are_all_and_the_pages_name_them(project, units):
    assert sorted(path.name for path in units.iterdir()) == sorted(UNITS)
    pages = [
        (project / "docs" / f"deploy-{engine}.md").read_text("utf-8") for engine in ("flower", "nvflare")
    ]
    assert all(any(f"examples/systemd/{name}" in page for page in pages) for name in UNITS)


def test_systemd_accepts_them(units, tmp_path):
    if (tool := shutil.which("systemd-analyze")) is None:
        pytest.skip("needs systemd-analyze")
    for name in UNITS:
        text = (units / name).read_text(encoding="utf-8")
        here = tmp_path / name.replace("@", "@north")
        # The programs are not installed where the units say: systemd would miss them.
        here.write_text(re.sub(r"(?<==)/opt/\S+", "/bin/true", text), encoding="utf-8")
        done = subprocess.run(
            [tool, "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
        )
        said = [
            line for line in done.stderr.splitlines() if name.split(".", maxsplit=1)[0].rstrip("@") in line
        ]
        assert (done.returncode, said) == (0, [])
    broken = tmp_path / "broken.service"
    broken.write_text("[Service]\nExecStart=/bin/true\nRestrat=always\n", encoding="utf-8")
    done = subprocess.run(
        [tool, "verify", "--man=no", str(broken)], capture_output=True, text=True, check=False
    )
    assert "Restrat" in done.stderr  # what is wrong is told


@pytest.mark.parametrize("name", ["secfl-link.service", "secfl-site.service"])
def test_flower_knows_every_option(units, name):
    pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")
    (line,) = re.findall(r"^ExecStart=(.*)$", (units / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    program, *rest = line.split()
    tool = Path(sys.executable).with_name(Path(program).name)
    done = subprocess.run([str(tool), "--help"], capture_output=True, text=True, check=True)
    options = [word for word in rest if word.startswith("--")]
    assert len(options) > 3
    assert all(re.search(rf"{option}\b", done.stdout) for option in options)


def test_a_site_cannot_be_read_by_others(units):
    for name in UNITS:
        text = (units / name).read_text(encoding="utf-8")
        for wanted in ("User=secfl", "UMask=0077", "StateDirectoryMode=0700", "NoNewPrivileges=yes"):
            assert wanted in text
        assert "LoadCredential=phrase:" in text
        assert "SECFL_PASSPHRASE_FILE=%d/phrase" in text
