"""Evaluation in simulation: per-site metrics, previews and the references that no deployment has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secfl.config import RunConfig
from secfl.federation.checkpoint import Checkpoint, load, store
from secfl.federation.rundir import RunDirectory
from secfl.ledger.entry import KeyCustody
from secfl.segmentation.task import DescribedTask, MeasuringTask, OwnClassesTask, SiteMetrics, State, Task

__all__ = ["by_class", "by_site", "describe", "evaluate", "references", "shown", "write_previews"]

_PREVIEWS_PER_SITE = 3
_SMALLER_IS_BETTER = frozenset({"hd95"})
_COMPARED = (
    "the largest share of clipped coordinates and the error of the opened mean, every round "
    "(evaluation_only, simulation)"
)


def evaluate(task: Task, state: State) -> dict[str, SiteMetrics]:
    """Metrics of one model on every site's test images; none where this process cannot measure."""
    if not _measures(task):
        return {}
    return {site: task.evaluate(site, state) for site in task.sites}


def shown(config: RunConfig, task: Task, custody: KeyCustody) -> list[str]:
    """What will be shown of the sites' data without protection, one sentence each, for the ledger.

    Args:
        config: The run.
        task: What is learned.
        custody: Only where one process holds all keys are the sites' own updates there to be compared with.
    """
    sentences = [_COMPARED] if custody is KeyCustody.ONE_PROCESS else []
    if not _measures(task):
        return sentences
    sentences.append("per-site metrics on the test images (evaluation_only, simulation)")
    if isinstance(task, DescribedTask):
        sentences.append("how unlike the sites' training data are (evaluation_only, simulation)")
    if config.references:
        sentences.append("local and pooled reference models (evaluation_only, simulation)")
    if task.is_phantom or config.include_images:
        sentences.append("previews of test images (evaluation_only, simulation)")
    return sentences


def _measures(task: Task) -> bool:
    return not isinstance(task, MeasuringTask) or task.measures


def describe(task: Task) -> list[str]:
    """How unlike the sites are, in a sentence; nothing where the task cannot tell."""
    if not isinstance(task, DescribedTask) or not _measures(task):
        return []
    figures = ", ".join(f"{name} {value:.3f}" for name, value in task.heterogeneity().items())
    return [f"heterogeneity of the sites (0 alike, 1 nothing in common; simulation only): {figures}"]


def by_site(metrics: Mapping[str, SiteMetrics], name: str) -> dict[str, Any]:
    """One metric as ``{"mean", "worst", "worst_site", "per_site"}``, over the sites that have a value."""
    values = {site: getattr(row, name) for site, row in metrics.items()}
    return over_sites(values, smaller_is_better=name in _SMALLER_IS_BETTER)


def over_sites(values: Mapping[str, float | None], *, smaller_is_better: bool = False) -> dict[str, Any]:
    """Mean, worst and each of one value per site; mean and worst are over the sites that have one."""
    present = [value for value in values.values() if value is not None]
    rounded = {site: None if value is None else round(float(value), 6) for site, value in values.items()}
    order = sorted((value, site) for site, value in rounded.items() if value is not None)
    worst, site = (order[-1] if smaller_is_better else order[0]) if order else (None, None)
    mean = round(sum(present) / len(present), 6) if present else None
    return {"mean": mean, "worst": worst, "worst_site": site, "per_site": rounded}


def by_class(metrics: Mapping[str, SiteMetrics]) -> dict[str, Any]:
    """Dice of every foreground class, each as `over_sites`; empty where the task gives none."""
    names = dict.fromkeys(name for row in metrics.values() for name in row.dice_by_class)
    return {
        name: over_sites({site: row.dice_by_class.get(name) for site, row in metrics.items()})
        for name in names
    }


def references(
    task: Task,
    run: RunDirectory,
    *,
    rounds: int,
    config_digest: str,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any] | None:
    """Dice of every site's local model and of the pooled model, on every site; ``None`` where nothing can be measured.

    Where sites have classes of their own, a local model is measured at its own site, and nothing is pooled. Each
    trained reference is kept as a checkpoint, so that an interrupted run does not train it again.
    """
    if not _measures(task):
        return None
    common = not isinstance(task, OwnClassesTask) or task.classes_are_common
    names = [*task.sites, "pooled"] if common else [*task.sites]
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
        found = evaluate(task, state) if common else {name: task.evaluate(name, state)}
        dice[name] = by_site(found, "dice")
    progress("references", len(names), len(names))
    pooled = {"pooled": dice.pop("pooled")} if common else {}
    return {"local": dice, **pooled}


def write_previews(task: Task, run: RunDirectory, state: State) -> list[Path]:
    """A few pictures per site: image, truth, prediction."""
    for site in task.sites if _measures(task) else ():
        for number, preview in enumerate(task.previews(site, state)[:_PREVIEWS_PER_SITE]):
            run.write_preview(preview, number=number)
    return sorted((run.root / "previews").glob("*.png"))
