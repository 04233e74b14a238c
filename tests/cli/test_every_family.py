"""Every family by the command line: a federation with noise per patient, in two and three dimensions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from secfl.cli.main import main
from secfl.segmentation.models import families

CONFIG = """
clients = 3
threads = 1
[data]
phantom_task = "{task}"
phantom_images = 8
image_size = 32
[model]
name = "{family}"
channels = [4, 8, 8]
normalization = "group"
{more}
[training]
rounds = 1
crop = 16
[secure_agg]
scheme = "masking"
[privacy]
mode = "patient"
epsilon = 8.0
steps = 1
sampling_rate = 0.5
physical_batch = 4
"""
MORE = {
    "monai:SegResNet": "arguments = { init_filters = 8 }\nmultiple = 8",
    "monai:UNet": "arguments = { channels = [8, 16, 16], strides = [2, 2] }\nmultiple = 4",
    "small_net:build": "arguments = { width = 8 }\nmultiple = 1",
}
EVERY = (*families(), *MORE)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ultrasound", "kidney-ct"])
@pytest.mark.parametrize("family", EVERY)
def test_trains_with_noise_per_patient_and_keeps_its_model(
    family, task, project, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(project / "examples" / "own_model"))
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(family=family, task=task, more=MORE.get(family, "")))
    run = tmp_path / "run"
    assert main(["simulate", "--config", str(config), "--out", str(run), "--quiet"]) == 0, (
        capsys.readouterr().err
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rounds_completed"] == 1
    assert summary["model"] == family
    epsilons = [row["epsilon"] for row in summary["privacy"]["views"] if row["view"] == "aggregator"]
    assert 0 < max(epsilons) <= 8.0
    model = load_file(run / "checkpoints" / "final.safetensors")
    assert sum(tensor.size for tensor in model.values()) == summary["parameters"]
    assert {tensor.ndim for tensor in model.values()} >= {5 if task == "kidney-ct" else 4}
    assert all(np.isfinite(tensor).all() for tensor in model.values())
