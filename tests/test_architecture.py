"""Who may import whom, shown by import-linter, and shown to be shown: planted violations are caught."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import secfl

HEAVY = ("torch", "monai", "opacus", "tenseal", "flwr", "nvflare")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run every contract of the project in ``folder``."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as run; run()",
            "--no-cache",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def imported_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter holds after ``code``."""
    probe = f"{code}\nimport sys\nprint('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


@pytest.fixture
def copy(tmp_path, project) -> Path:
    """A copy of the package in which a violation can be planted."""
    shutil.copytree(
        Path(secfl.__file__).parent, tmp_path / "secfl", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(project / "pyproject.toml", tmp_path)
    return tmp_path


class TestContracts:
    def test_they_hold(self, copy):
        done = lint(copy)
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("module", "line", "contract"),
        [
            ("crypto/identity.py", "import secfl.dp", "Rooms are layered"),
            ("dp/__init__.py", "import secfl.crypto.identity", "Rooms are layered"),
            ("segmentation/task.py", "import secfl.crypto.identity", "Rooms are layered"),
            ("types.py", "import secfl.guarantees", "Rooms are layered"),
            ("ledger/__init__.py", "import secfl.federation", "Rooms are layered"),
            ("federation/observer.py", "import secfl.cli.progress", "Rooms are layered"),
            ("crypto/aggregation.py", "import tenseal", "tenseal has one door"),
            ("crypto/aggregation.py", "import tenseal.sealapi", "tenseal has one door"),
            ("cli/doctor.py", "def probe():\n    import tenseal", "tenseal has one door"),
            ("federation/observer.py", "import flwr", "flwr and nvflare have their doors"),
            ("cli/doctor.py", "from nvflare import app_common", "flwr and nvflare have their doors"),
            ("federation/observer.py", "import torch", "torch, MONAI and Opacus live under segmentation"),
            ("cli/doctor.py", "def probe():\n    import torch.cuda", "torch, MONAI and Opacus live under"),
            ("dp/__init__.py", "from opacus import accountants", "never wait for a heavy library"),
        ],
    )
    def test_a_planted_violation_is_caught(self, copy, module, line, contract):
        path = copy / "secfl" / module
        path.write_text(path.read_text(encoding="utf-8") + f"\n\n{line}\n", encoding="utf-8")
        done = lint(copy)
        assert done.returncode == 1, done.stdout + done.stderr
        assert re.search(rf"{re.escape(contract)}.* BROKEN", done.stdout), done.stdout

    def test_a_room_without_a_place_is_caught(self, copy):
        (copy / "secfl" / "attic").mkdir()
        (copy / "secfl" / "attic" / "__init__.py").write_text("")
        done = lint(copy)
        assert done.returncode == 1
        assert "attic" in done.stdout


class TestLightDoors:
    @pytest.mark.parametrize(
        "code",
        [
            "import secfl",
            "import secfl.config, secfl.types, secfl.guarantees, secfl.errors, secfl.randomness",
            "import secfl.crypto.aggregation, secfl.crypto.identity, secfl.crypto.codec",
            "import secfl.ledger.log",
            "import secfl.federation.observer, secfl.segmentation.task",
            "import secfl.cli.main, secfl.cli.progress, secfl.cli.summary",
            "import secfl; secfl.RunConfig, secfl.SecureAggregation, secfl.Task, secfl.PrivacyLedger",
        ],
    )
    def test_nothing_heavy_is_imported(self, code):
        assert imported_by(code) == set()

    def test_the_probe_would_see_it(self):
        assert "tenseal" in imported_by("import tenseal")


class TestPublicNames:
    def test_every_name_leads_to_its_room(self):
        for name in secfl.__all__:
            assert getattr(secfl, name) is not None
        assert set(secfl.__all__) <= set(dir(secfl))

    def test_the_map_of_rooms_is_complete(self):
        assert {*secfl._ROOM_OF, "__version__"} == set(secfl.__all__)

    def test_each_room_calls_its_names_public_too(self):
        for name, room in secfl._ROOM_OF.items():
            assert name in importlib.import_module(room).__all__

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            secfl.nonsense  # noqa: B018 - the access is what is tested
