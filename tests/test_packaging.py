"""What is shipped, what it needs, and the files that hold the project together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope="module")
def pyproject(project) -> dict:
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def constraints(project) -> dict[str, Version]:
    pins = {}
    for line in (project / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, exact, version = line.partition("==")
            assert exact, f"constraints.txt: {line}: expected name==version"
            pins[canonicalize_name(name)] = Version(version)
    return pins


@pytest.fixture(scope="module")
def wheel(project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=project,
        capture_output=True,
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


class TestRequirements:
    def test_the_library_asks_for_lower_bounds_only(self, pyproject):
        for text in pyproject["project"]["dependencies"]:
            operators = [specifier.operator for specifier in Requirement(text).specifier]
            assert operators == [">="], text

    def test_every_requirement_is_pinned_within_its_bounds(self, pyproject, constraints):
        groups = pyproject["dependency-groups"]
        wanted = [
            *pyproject["project"]["dependencies"],
            *pyproject["project"]["optional-dependencies"]["flower"],
            *groups["test"],
            *groups["lint"],
            *pyproject["build-system"]["requires"],
        ]
        for text in wanted:
            requirement = Requirement(text)
            pin = constraints.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{requirement.name} is not in constraints.txt"
            assert requirement.specifier.contains(pin), f"{text} does not allow {pin}"

    def test_the_environment_agrees_with_flower(self, constraints):
        """flwr 1.41 wants these; the extra must resolve together with everything else."""
        for name, below in (("cryptography", "51"), ("rich", "15"), ("typer", "0.21"), ("protobuf", "7")):
            assert constraints[name] < Version(below)

    def test_no_pinned_package_is_a_cuda_build(self, constraints):
        assert constraints["torch"] == Version("2.13.0")
        assert not [name for name in constraints if name.startswith(("nvidia-", "triton"))]


class TestWheel:
    def test_it_holds_the_package_with_its_data_and_nothing_else(self, wheel, project):
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
        expected = {
            path.relative_to(project).as_posix()
            for pattern in ("*.py", "*.json", "py.typed", "*.j2", "*.css", "*.js")
            for path in (project / "secfl").rglob(pattern)
        }
        assert {"secfl/py.typed", "secfl/federation/summary.schema.json"} <= names
        assert names == expected

    def test_it_carries_the_licence_and_the_command(self, wheel):
        with zipfile.ZipFile(wheel) as archive:
            (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
            (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
            assert "secfl = secfl.cli.main:main" in archive.read(entry).decode()
            assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()
            assert [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]

    def test_the_command_runs_from_the_wheel_alone(self, wheel, tmp_path):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", "import secfl.cli.main as m; print(m.__file__); m.main(['--help'])"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith(str(tmp_path))
        assert "Usage: secfl" in done.stdout


class TestHouse:
    def test_every_ignored_rule_has_its_reason(self, project):
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
        section = text[text.index("[tool.ruff.lint]") : text.index("[tool.ruff.lint.pydocstyle]")]
        bare = [
            line for line in section.splitlines() if re.match(r'\s+"[A-Z]+[0-9]*",', line) and "#" not in line
        ]
        assert bare == []

    @pytest.mark.parametrize("folder", ["secfl", "tests", "benchmarks", "examples", "docs"])
    def test_every_silenced_line_has_its_reason(self, project, folder):
        bare = [
            f"{path.relative_to(project)}:{number}"
            for path in sorted((project / folder).rglob("*.py"))
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            if re.search(r"#\s*(noqa: [A-Z0-9, ]+|type: ignore\[[^]]*\])\s*$", line)
            or re.search(r"#\s*(noqa|type: ignore)\s*$", line)
        ]
        assert bare == []

    def test_make_has_the_targets_that_people_are_told_about(self, project):
        targets = set(
            re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        )
        assert targets >= {"setup", "simulate", "test", "test-slow", "check", "bench", "constraints", "clean"}
        for page in ("README.md", "CONTRIBUTING.md"):
            told = re.findall(
                r"(?:^|`)make ([a-z-]+)", (project / page).read_text(encoding="utf-8"), re.MULTILINE
            )
            assert set(told) <= targets, page

    def test_ci_fails_when_either_half_fails(self, project, tmp_path):
        script = (project / ".ci" / "run").read_text(encoding="utf-8")
        (tmp_path / ".ci").mkdir()
        copy = tmp_path / ".ci" / "run"
        copy.write_text(script, encoding="utf-8")
        for check, test in ((0, 0), (0, 1), (1, 0), (1, 1)):
            (tmp_path / "Makefile").write_text(
                f"check:\n\t@exit {check}\ntest:\n\t@echo tested; exit {test}\n"
            )
            done = subprocess.run(["bash", str(copy)], capture_output=True, text=True, check=False)
            assert (done.returncode == 0) == (check == test == 0)
            assert "tested" in done.stdout
