"""Replays of our own models and readers: every family under both schedules, and images read from folders."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from secfl.audit.client_round import replay_patient_round
from secfl.audit.client_step import (
    patient_names,
    replay_metrics,
    replay_patient_step,
    without_patient,
)
from secfl.audit.findings import Finding
from secfl.config import RunConfig, load_config
from secfl.federation.privacy import run_terms
from secfl.federation.state import count_parameters
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.phantom_files import write_phantom
from secfl.segmentation.data.phantom_tasks import phantom_task
from secfl.segmentation.segmentation_task import SegmentationTask, build_task

__all__ = ["replay_family", "replay_folder"]

_THRESHOLD = 3
_LOCAL_STEPS = 3
_PATIENTS = 10
_CHANNELS = (4, 4, 8)


def replay_family(family: str, *, size: int) -> list[Finding]:
    """One model family with either normalisation, and under schedule ``round``; phantoms left out in memory.

    Args:
        family: Its name.
        size: Pixels of the phantom.
    """
    found: list[Finding] = []
    for normalization, schedule in (("instance", "step"), ("group", "step"), ("instance", "round")):
        settings = _settings(family, normalization, schedule, {"image_size": size, "phantom_images": 12})
        task = _task(settings)
        site = task.sites[0]
        neighbour = without_patient(task, settings, site, patient_names(task, site)[0])
        rows = _replay(settings, task, [neighbour], patients=(0,))
        label = f"{family}, {normalization} normalisation, schedule {schedule}"
        found += [replace(one, name=f"{label}: {one.name}") for one in rows]
    return found


def replay_folder(*, size: int, family: str = "cnn") -> list[Finding]:
    """A site's folder with and without one patient's files, through readers and preparation, under both schedules.

    The split into training and test patients is written down (``splits.json``) and stays; where it is drawn, other
    patients move as well when one is gone.

    Args:
        family: The model.
        size: Pixels of the phantom.
    """
    found: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="secfl-replay-") as held:
        whole, less = Path(held) / "whole", Path(held) / "less"
        write_phantom(
            phantom_task("leg-ct"), whole, sites=3, images_per_site=12, size=size, seed=ExperimentSeed(0)
        )
        _leave_out_first_patient(whole, less)
        for schedule in ("step", "round"):
            tasks = [
                _task(_settings(family, "instance", schedule, {"source": str(folder), "image_size": size}))
                for folder in (whole, less)
            ]
            settings = _settings(family, "instance", schedule, {"source": str(whole), "image_size": size})
            rows = _replay(settings, tasks[0], tasks[1:], patients=(0,))
            found += [
                replace(one, name=f"folder, schedule {schedule}: {one.name}")
                for one in rows
                if "neighbouring data" in one.name or "metrics" in one.name
            ]
    return found


def _settings(family: str, normalization: str, schedule: str, data: dict[str, object]) -> RunConfig:
    local = {"local_steps": _LOCAL_STEPS, "steps": 2 * _LOCAL_STEPS} if schedule == "round" else {}
    return load_config(
        None,
        {
            "data": data,
            "model": {"name": family, "channels": _CHANNELS, "normalization": normalization},
            "privacy": {
                "mode": "patient",
                "schedule": schedule,
                "noise_multiplier": 1.0,
                "accept_weak": True,
                "physical_batch": 4,
                "nominal_patients": _PATIENTS,
                **local,
            },
        },
    )


def _task(settings: RunConfig) -> SegmentationTask:
    task = build_task(settings)
    assert isinstance(task, SegmentationTask)
    return task


def _replay(
    settings: RunConfig,
    task: SegmentationTask,
    neighbours: Sequence[SegmentationTask],
    *,
    patients: Sequence[int],
) -> list[Finding]:
    terms = run_terms(settings, task, parameters=count_parameters(task.initial_state()), threshold=_THRESHOLD)
    local = settings.privacy.schedule.value == "round"
    measure = replay_patient_round if local else replay_patient_step
    found = measure(task, terms, patients=patients, neighbours=neighbours)
    return found if local else [*found, replay_metrics(task, neighbours)]


def _leave_out_first_patient(whole: Path, less: Path) -> None:
    """Copy a data folder without one training patient of its first site; write the split of both down."""
    rows = [line.split(",") for line in (whole / "patients.csv").read_text().splitlines()[1:]]
    site = min(folder.name for folder in whole.iterdir() if folder.is_dir())
    gone = min(patient for stem, patient in rows if stem.startswith(site))
    shutil.copytree(whole, less)
    for root, absent in ((whole, ""), (less, gone)):
        kept = [(stem, patient) for stem, patient in rows if patient != absent]
        split: dict[str, dict[str, list[str]]] = {}
        for folder in (one for one in root.iterdir() if one.is_dir()):
            stems = [(stem, patient) for stem, patient in rows if stem.startswith(f"{folder.name}-")]
            last = max(patient for _, patient in stems)
            split[folder.name] = {
                "train": [stem for stem, patient in stems if patient not in (last, absent)],
                "test": [stem for stem, patient in stems if patient == last],
            }
        (root / "splits.json").write_text(json.dumps(split))
        (root / "patients.csv").write_text(
            "\n".join(["stem,patient", *(",".join(row) for row in kept)]) + "\n"
        )
    for kind in ("images", "masks"):
        for stem, patient in rows:
            if patient == gone:
                for path in (less / site / kind).glob(f"{stem}.*"):
                    path.unlink()
