"""Evaluation in simulation: per-site metrics, previews and the references that no deployment has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secfl.federation.checkpoint import Checkpoint, load, store
from secfl.federation.rundir import RunDirectory
from secfl.segmentation.task import SiteMetrics, State, Task

__all__ = ["by_class", "by_site", "evaluate", "references", "write_previews"]

_PREVIEWS_PER_SITE = 3


def evaluate(task: Task, state: State) -> dict[str, SiteMetrics]:
    """Metrics of one model on every site's test images."""
    return {site: task.evaluate(site, state) for site in task.sites}


def by_site(metrics: Mapping[str, SiteMetrics], name: str) -> dict[str, Any]:
    """One metric as ``{"mean", "per_site"}``; the mean is over the sites that have a value."""
    return mean_over_sites({site: getattr(row, name) for site, row in metrics.items()})


def mean_over_sites(values: Mapping[str, float | None]) -> dict[str, Any]:
    """``{"mean", "per_site"}`` of one value per site; the mean is over the sites that have one."""
    present = [value for value in values.values() if value is not None]
    rounded = {site: None if value is None else round(float(value), 6) for site, value in values.items()}
    return {"mean": round(sum(present) / len(present), 6) if present else None, "per_site": rounded}


def by_class(metrics: Mapping[str, SiteMetrics]) -> dict[str, Any]:
    """Dice of every foreground class as ``{class: {"mean", "per_site"}}``; empty where the task gives none."""
    names = dict.fromkeys(name for row in metrics.values() for name in row.dice_by_class)
    return {
        name: mean_over_sites({site: row.dice_by_class.get(name) for site, row in metrics.items()})
        for name in names
    }


def references(
    task: Task,
    run: RunDirectory,
    *,
    rounds: int,
    config_digest: str,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Dice of every site's local model and of the pooled model, on every site.

    Each trained reference is kept as a checkpoint, so that an interrupted run does not train it again.
    """
    names = [*task.sites, "pooled"]
    dice: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        progress("references", number, len(names))
        path = run.checkpoints / f"reference-{name}.safetensors"
        if path.exists():
            state = load(path).state
        else:
            sites = task.sites if name == "pooled" else (name,)
            state = task.train_reference(sites, rounds=rounds)
            store(path, Checkpoint(state=state, rounds_completed=rounds, config_digest=config_digest))
        dice[name] = by_site(evaluate(task, state), "dice")
    progress("references", len(names), len(names))
    pooled = dice.pop("pooled")
    return {"local": dice, "pooled": pooled}


def write_previews(task: Task, run: RunDirectory, state: State) -> list[Path]:
    """A few pictures per site: image, truth, prediction."""
    for site in task.sites:
        for number, preview in enumerate(task.previews(site, state)[:_PREVIEWS_PER_SITE]):
            run.write_preview(preview, number=number)
    return sorted((run.root / "previews").glob("*.png"))
