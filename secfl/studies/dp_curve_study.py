"""The whole study: estimate, runs, figures, table and picture. Interrupted, it goes on where it was."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secfl._version import __version__
from secfl.benchmarking.suite import describe_machine
from secfl.federation.checkpoint import write_atomically
from secfl.studies.dp_curve import JobSpec, Preset, job_specs, runs_folder
from secfl.studies.dp_curve_tables import conclusions, figures, markdown
from secfl.studies.dp_curve_work import PUBLIC_MODEL, finished_rounds, measure_costs, pretrain, run_job
from secfl.studies.jobs import Job, Listener, read_result, run_jobs, store_result

__all__ = ["FORMAT_VERSION", "Estimate", "run_study"]

FORMAT_VERSION = 1
_LIBRARIES = ("torch", "monai", "numpy", "opacus", "dp-accounting")
_ROUND_OVERHEAD = 0.25
"""Seconds of one private step besides gradients: protocol, ledger, checkpoint."""

Estimate = Callable[[int, float], None]
"""Told how many runs are left and how many minutes they may take."""


class _Quiet:
    def began(self, rounds: int, runs: int) -> None:
        """Ignore."""

    def moved(self, rounds: int) -> None:
        """Ignore."""

    def finished(self, job: Job) -> None:
        """Ignore."""


def run_study(
    preset: Preset,
    *,
    out: Path,
    runs: Path,
    processes: int,
    listener: Listener,
    estimate: Estimate,
    command: str,
) -> dict[str, Any]:
    """Run what is missing, then write ``curve.json``, ``table.md``, ``dp-curve.png`` and ``dp-curve.svg``.

    Args:
        preset: The study.
        out: Where the figures go; overwritten.
        runs: Where run directories are kept; a later call goes on with them.
        processes: Jobs at once.
        listener: Told about progress, in rounds.
        estimate: Told once, before the first job.
        command: What was typed; goes into ``curve.json``.

    Returns:
        The content of ``curve.json``.

    Raises:
        ConfigError: The run directories belong to other settings.
        DataError: A result file is damaged.
    """
    folder = runs_folder(preset, runs)
    specs = job_specs(preset)
    jobs = {spec: _job(preset, spec, folder) for spec in specs}
    public = _public_job(preset, folder)
    left = [spec for spec in specs if not jobs[spec].result.exists()]
    costs: Mapping[str, Any] = {}
    if left:
        result = folder / "costs.json"
        result.unlink(missing_ok=True)
        run_jobs([_cost_job(preset, result)], processes=1, listener=_Quiet())
        costs = read_result(result)
        estimate(len(left), _minutes(preset, left, costs, processes))
    began = time.perf_counter()
    run_jobs([public], processes=1, listener=_Quiet())
    run_jobs([jobs[spec] for spec in specs], processes=processes, listener=listener)
    results = {spec: read_result(jobs[spec].result) for spec in specs}
    found = figures(preset, results, read_result(public.result))
    document = {
        "format_version": FORMAT_VERSION,
        "study": "dp-curve",
        "command": command,
        "settings": preset.as_dict(),
        "parameters": next(iter(results.values()))["parameters"],
        **found,
        "conclusions": conclusions(found),
        "versions": _versions(),
        "machine": describe_machine(),
        "processes": processes,
        "seconds": {
            "this_call": round(time.perf_counter() - began, 1),
            "all_runs": round(sum(result["seconds"] for result in results.values()), 1),
        },
    }
    store_result(out / "curve.json", document)
    write_atomically(out / "table.md", markdown(document).encode())
    from secfl.studies.dp_curve_plot import draw

    draw(document, out)
    return document


def _versions() -> dict[str, str]:
    found = {"secfl": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _rounds(preset: Preset, spec: JobSpec) -> int:
    return preset.rounds if spec.epsilon is None else preset.steps


def _job(preset: Preset, spec: JobSpec, folder: Path) -> Job:
    result = folder / "results" / f"{spec.name}.json"
    return Job(
        name=spec.name,
        result=result,
        rounds=_rounds(preset, spec),
        work=run_job,
        arguments=(preset, spec, folder, result),
        done_rounds=lambda: finished_rounds(folder / spec.name),
    )


def _public_job(preset: Preset, folder: Path) -> Job:
    result = folder / "results" / "public-model.json"
    if not (folder / PUBLIC_MODEL).exists():
        result.unlink(missing_ok=True)
    return Job(
        name="public model",
        result=result,
        rounds=preset.public_epochs,
        work=pretrain,
        arguments=(preset, folder, result),
        done_rounds=lambda: 0,
    )


def _cost_job(preset: Preset, result: Path) -> Job:
    result.parent.mkdir(parents=True, exist_ok=True)
    return Job(
        name="costs",
        result=result,
        rounds=1,
        work=measure_costs,
        arguments=(preset, result),
        done_rounds=lambda: 0,
    )


def _minutes(preset: Preset, left: list[JobSpec], costs: Mapping[str, Any], processes: int) -> float:
    """From costs measured on this machine a moment ago."""
    everybody = preset.clinics * preset.patients
    images = everybody + preset.clinics * preset.test_patients
    evaluation = costs["evaluation"]
    private = (
        preset.steps * (_ROUND_OVERHEAD + preset.sampling_rate * everybody * costs["patient_gradient"])
        + 5 * evaluation
    )
    open_ = preset.rounds * (everybody * costs["training_image"] + evaluation)
    seconds = (
        sum(images * costs["image"] + (open_ if spec.epsilon is None else private) for spec in left)
        / processes
    )
    seconds += preset.public_epochs * everybody * costs["training_image"]
    return math.ceil(seconds / 6) / 10
