"""Ordinary runs as jobs of a study: started, gone on with where they were interrupted, and summarised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from secfl.config import RunConfig, load_config
from secfl.errors import ConfigError
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver
from secfl.federation.rundir import RunDirectory, read_summary
from secfl.ledger.verify import verify_file
from secfl.studies.jobs import Job, read_result, store_result

__all__ = ["Collect", "finished_rounds", "ledgers_of", "run_job"]

Collect: TypeAlias = Callable[[Path, Mapping[str, Any]], Mapping[str, Any]]
"""Takes a finished run directory and its summary; returns further facts. A function of a module."""


def run_job(
    name: str,
    settings: Mapping[str, Any],
    *,
    runs: Path,
    collect: Collect | None = None,
) -> Job:
    """A job that is one ordinary simulated run.

    Its result holds ``config_sha256``, ``final_model_sha256``, ``evaluation`` (the summary's), ``rounds``,
    ``parameters``, ``megabytes``, ``time_s``, ``privacy``, ``scheme``, ``ledgers`` (see `ledgers_of`), ``seconds``
    and ``processor_seconds`` of the whole job (``None`` when it was interrupted), and what ``collect`` adds.

    Args:
        name: Of its run directory and, with ``.json``, of its result.
        settings: The configuration as a tree.
        runs: Where both are.
        collect: Adds facts.

    Raises:
        ConfigError: The settings cannot be used, or what is there comes from other ones.
    """
    config = load_config(None, settings)
    folder, result = runs / name, runs / f"{name}.json"
    if result.exists():
        _require_same(read_result(result).get("config_sha256"), config, result)
    elif folder.exists():
        _require_same(RunDirectory.open(folder).config().digest().hex(), config, folder)
    return Job(
        name=name,
        result=result,
        rounds=_rounds(config),
        work=_work,
        arguments=(dict(settings), folder, result, collect),
        done_rounds=lambda: finished_rounds(folder),
    )


def _rounds(config: RunConfig) -> int:
    privacy = config.privacy
    if privacy.mode.value == "patient":
        return privacy.steps if privacy.schedule.value == "step" else privacy.steps // privacy.local_steps
    return config.training.rounds


def _require_same(digest: object, config: RunConfig, path: Path) -> None:
    if digest != config.digest().hex():
        raise ConfigError(f"{path}: was run with other settings; expected a new folder")


def finished_rounds(folder: Path) -> int:
    """Rounds that a run directory shows to be done; 0 where there is none."""
    try:
        return (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    except OSError:
        return 0


def _work(settings: Mapping[str, Any], folder: Path, result: Path, collect: Collect | None) -> None:
    began, busy, interrupted = time.perf_counter(), time.process_time(), folder.exists()
    if (folder / "summary.json").exists():
        summary = read_summary(folder)
    elif interrupted:
        summary = simulation.resume(folder, observer=SilentObserver())
    else:
        summary = simulation.simulate(load_config(None, settings), out=folder, observer=SilentObserver())
    facts = {
        "config_sha256": summary["config_sha256"],
        "final_model_sha256": summary["final_model_sha256"],
        "evaluation": summary["evaluation_only"],
        "rounds": summary["rounds_completed"],
        "parameters": summary["parameters"],
        "scheme": summary["secure_agg"]["scheme"],
        "megabytes": summary["megabytes"],
        "time_s": summary["time_s"],
        "privacy": summary["privacy"],
        "ledgers": ledgers_of(folder),
    }
    facts |= {} if collect is None else collect(folder, summary)
    times = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - busy}
    store_result(
        result,
        facts | {name: None if interrupted else round(seconds, 1) for name, seconds in times.items()},
    )


def ledgers_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every ledger of a run directory, verified from its file alone, by its path inside the directory.

    Raises:
        LedgerCorrupted: One does not verify.
    """
    found = {}
    for path in sorted(folder.rglob("ledger.jsonl")):
        verdict = verify_file(path)
        found[path.relative_to(folder).as_posix()] = {
            "status": verdict.status.value,
            "rounds": verdict.rounds,
            "root": verdict.root,
            "statements": [
                {
                    "view": one.view.value,
                    "adversary": one.adversary.value,
                    "colluders": one.colluders,
                    "epsilon": one.epsilon,
                    "holds_if": one.holds_if,
                    "non_private": one.non_private,
                    "unprotected": list(one.unprotected),
                }
                for one in verdict.statements
            ],
        }
    return found
