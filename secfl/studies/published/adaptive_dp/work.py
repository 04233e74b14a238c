"""What jobs do beside ordinary runs: facts of a run for the table, and clips that come from a public phantom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secfl.config import load_config
from secfl.federation.rundir import RunDirectory
from secfl.studies.jobs import read_result, store_result
from secfl.studies.published.runs import run_job

__all__ = ["collect", "measure_public_norms", "run_with_public_clip"]

_SMALLEST_CLIP = 1e-3


def collect(run: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Dice while it was learned, the clip of every round where it moved, and how often classes are absent."""
    rows = RunDirectory.open(run).read_metrics()
    curve = [
        {"round": row["round"] + 1, "dice": row["evaluation_only"]["dice"]["mean"]}
        for row in rows
        if row["evaluation_only"] is not None
    ]
    clips = [row["clip_norm"] for row in rows if row.get("clip_norm") is not None]
    return {"curve": curve, "clips": clips, "stopped": summary["stopped"], "absent": _absent(run)}


def _absent(run: Path) -> dict[str, float]:
    """Share of test cases without a class, mean over sites: the Dice of a model that never predicts the class."""
    from secfl.segmentation.segmentation_task import load_dataset

    config = RunDirectory.open(run).config()
    dataset = load_dataset(config)
    sites = [site for name, site in dataset.sites.items() if name not in config.data.public]
    return {
        name: float(
            np.mean([np.mean([not (case.labels == label).any() for case in site.test]) for site in sites])
        )
        for label, name in enumerate(dataset.class_names)
        if label
    }


def measure_public_norms(
    settings: Mapping[str, Any], steps: int, batch: int, step_size: float, result: Path
) -> None:
    """Norms of patients' gradients on a public phantom while a model learns it, whole and by layer.

    Nobody is shown, so nothing is hidden: patients come from the public seed, without noise and without a clip.

    Args:
        settings: Configuration of the phantom and the model.
        steps: Of the server's Adam.
        batch: Patients in each.
        step_size: Of that Adam.
        result: Gets ``norm``, the median over all steps, and ``parts``, the same for each layer.
    """
    from secfl.federation.server_optimizer import Adam
    from secfl.federation.state import apply_update
    from secfl.randomness import ExperimentSeed
    from secfl.segmentation.segmentation_task import build_task
    from secfl.segmentation.task import PatientTask

    began = time.perf_counter()
    config = load_config(None, settings)
    task = build_task(config)
    assert isinstance(task, PatientTask)
    state, optimizer = task.initial_state(), Adam(learning_rate=step_size)
    generator = ExperimentSeed(config.seed).generator("public/patients")
    parts: dict[str, list[int]] = {}
    place = 0
    for name, tensor in state.items():
        parts.setdefault(name.rpartition(".")[0], []).extend(range(place, place + tensor.size))
        place += tensor.size
    whole: list[float] = []
    by_part: dict[str, list[float]] = {name: [] for name in parts}
    for step in range(steps):
        site = task.sites[step % len(task.sites)]
        chosen = np.sort(generator.choice(task.patients(site), size=batch, replace=False))
        rows = np.concatenate(list(task.patient_gradients(site, state, chosen.astype(np.intp))))
        whole += np.linalg.norm(rows, axis=1).tolist()
        for name, places in parts.items():
            by_part[name] += np.linalg.norm(rows[:, places], axis=1).tolist()
        state = apply_update(state, -optimizer.step(rows.mean(axis=0).astype(np.float64)))
    store_result(
        result,
        {
            "norm": _median(whole),
            "parts": {name: _median(norms) for name, norms in by_part.items()},
            "seconds": round(time.perf_counter() - began, 1),
        },
    )


def _median(norms: list[float]) -> float:
    return max(_SMALLEST_CLIP, round(float(np.median(norms)), 4))


def run_with_public_clip(
    name: str, settings: Mapping[str, Any], public: Path, clips: str, runs: Path
) -> None:
    """An ordinary run whose clip, or clips of the network's layers, come from `measure_public_norms`.

    Args:
        name: Of the run.
        settings: Without a clip.
        public: Result of the public job.
        clips: ``clip`` or ``layer_clips``.
        runs: Where the run goes.
    """
    found = read_result(public)
    value = found["norm"] if clips == "clip" else found["parts"]
    privacy = {key: kept for key, kept in settings["privacy"].items() if key != "clip"}
    tree = {**settings, "privacy": {**privacy, clips: value}}
    job = run_job(name, tree, runs=runs, collect=collect)
    job.work(*job.arguments)
