"""The wheel and the source archive, each installed into a clean environment and used there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CONFIG = """
threads = 1
[data]
phantom_images = 8
image_size = 32
[model]
channels = [4, 4, 8]
[training]
rounds = 1
local_epochs = 1
"""


@pytest.fixture(scope="module")
def dist(project, tmp_path_factory) -> Path:
    """The folder with both; built here unless SECFL_TEST_DIST names one."""
    named = os.environ.get("SECFL_TEST_DIST")
    if named:
        return Path(named)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=project, capture_output=True, check=True)
    return folder


@pytest.mark.parametrize("ending", ["*.whl", "*.tar.gz"])
def test_it_installs_into_a_clean_environment_and_works(dist, project, tmp_path, ending):
    (built,) = dist.glob(ending)
    venv.create(tmp_path / "clean", with_pip=True)
    scripts = tmp_path / "clean" / "bin"
    constraints = str(project / "constraints.txt")
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        constraints,
        "--build-constraint",
        constraints,
    ]
    run(
        scripts / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--upgrade",
        "--constraint",
        constraints,
        "pip",
        at=tmp_path,
    )
    run(scripts / "python", *install, str(built), at=tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    assert run(scripts / "secfl", "--version", at=tmp_path).startswith("secfl ")
    run(scripts / "secfl", "doctor", at=tmp_path)
    run(scripts / "secfl", "simulate", "--config", "small.toml", "--out", "run", "--quiet", at=tmp_path)
    run(scripts / "secfl", "ledger", "verify", "run", at=tmp_path)
    run(scripts / "secfl", "report", "run", at=tmp_path)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10**6
    where = run(scripts / "python", "-c", "import secfl; print(secfl.__file__)", at=tmp_path)
    assert str(tmp_path) in where


def run(*command: object, at: Path) -> str:
    """Standard output of a command in a folder, away from the project."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=at, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
