"""Models and tasks from outside the package, as the example shows them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from secfl.config import load_config
from secfl.errors import ConfigError
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver
from secfl.segmentation.models import ModelSpec, build_model
from secfl.segmentation.segmentation_task import build_task


@pytest.fixture
def example(project, monkeypatch):
    folder = project / "examples" / "own_model"
    monkeypatch.syspath_prepend(str(folder))
    return folder


def settings(**model):
    return load_config(
        None,
        {
            "clients": 3,
            "threads": 1,
            "data": {"phantom_images": 8, "image_size": 32},
            "model": {"name": "small_net:build", **model},
            "training": {"rounds": 1, "local_epochs": 1},
        },
    )


def test_the_example_trains_in_a_federation(example, tmp_path):
    config = settings(arguments={"width": 8}, multiple=1)
    summary = simulation.simulate(config, out=tmp_path / "run", observer=SilentObserver())
    assert summary["model"] == "small_net:build"
    assert summary["rounds_completed"] == 1


def test_other_code_is_another_task(example, tmp_path, monkeypatch):
    before = build_task(settings()).digest()
    (tmp_path / "small_net.py").write_text((example / "small_net.py").read_text() + "# changed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "small_net")
    assert build_task(settings()).digest() != before


def test_the_example_of_a_task_runs_as_its_page_says(project, tmp_path):
    done = subprocess.run(
        [sys.executable, str(project / "examples" / "own_model" / "own_task.py"), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split()[1].rstrip(",")) > 0.99
    assert (tmp_path / "run" / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "cannot be imported"),
        ("import absent_package", "cannot be imported"),
        ("build = 3", "has no function build"),
        ("def build(**_): return 3", "returned int; expected a torch"),
        ("def build(**_): raise ValueError('first\\nsecond')", "ValueError in the factory: first"),
        (
            "import torch\ndef build(classes, **_): return torch.nn.BatchNorm2d(classes)",
            "keeps running statistics",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch, source, message):
    if source is not None:
        (tmp_path / "broken_model.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_model", raising=False)
    spec = ModelSpec(
        family="broken_model:build", in_channels=1, classes=2, channels=(4, 4, 4), normalization="group"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(spec, seed=0)
    assert "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "broken_model", raising=False)
