"""The study's pictures: the trend over the phases, and the student among its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secfl.studies.published.dvt.phases import Phase, phases_of
from secfl.studies.published.dvt.tables import COMPARISON, STUDENT, TRAFFIC, where
from secfl.studies.published.interface import Drawing, Request, Row

__all__ = ["drawings"]

_TREND = ((STUDENT, "accuracy"), (STUDENT, "F1"), (STUDENT, "validation loss"), (TRAFFIC, "up and down"))
_OURS, _THEIRS, _ALONE, _POOLED = "#0b6e99", "#c44536", "#9aa5ab", "#5a5a5a"


def drawings(request: Request, rows: Sequence[Row]) -> Mapping[str, Drawing]:
    """``trend`` and ``student-and-rivals``."""
    phases = phases_of(request)
    return {
        "trend": lambda figure: _trend(figure, rows, phases),
        "student-and-rivals": lambda figure: _rivals(figure, rows, phases),
    }


def _trend(figure: Any, rows: Sequence[Row], phases: Sequence[Phase]) -> None:
    figure.set_size_inches(12, 3.2)
    axes = figure.subplots(1, len(_TREND))
    for axis, (group, name) in zip(axes, _TREND, strict=True):
        found = [row for row in rows if row.group == group and row.name == name]
        numbers = [phase.number for phase in phases]
        axis.errorbar(
            numbers,
            [row.mean for row in found],
            yerr=[row.spread or 0.0 for row in found],
            label="measured here",
            color=_OURS,
            marker="o",
            capsize=3,
        )
        told = [
            (number, row.published)
            for number, row in zip(numbers, found, strict=True)
            if row.published is not None
        ]
        if told:
            axis.plot(*zip(*told, strict=True), color=_THEIRS, marker="s", linestyle="--", label="published")
        unit = found[0].unit
        axis.set_title(f"{name} ({unit})" if unit else name)
        axis.set_xticks(numbers)
        axis.set_xlabel("phase")
        axis.grid(axis="y", alpha=0.3)
        if unit:
            axis.set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def _rivals(figure: Any, rows: Sequence[Row], phases: Sequence[Phase]) -> None:
    figure.set_size_inches(12, 4.2)
    axes = figure.subplots(
        1, len(phases), sharey=True, squeeze=False, width_ratios=[phase.clients + 2 for phase in phases]
    )[0]
    for axis, phase in zip(axes, phases, strict=True):
        found = [
            row
            for row in rows
            if row.group == COMPARISON
            and row.where["phase"] == where(phase)["phase"]
            and (row.where["model"].endswith(", alone") or row.where["model"] in {"global student", "pooled"})
        ]
        names = [row.where["model"].removesuffix(", alone") for row in found]
        colours = [{"global student": _OURS, "pooled": _POOLED}.get(name, _ALONE) for name in names]
        axis.bar(
            range(len(found)),
            [row.mean for row in found],
            yerr=[row.spread or 0.0 for row in found],
            color=colours,
            capsize=2,
        )
        axis.axhline(found[0].mean, color=_OURS, linewidth=0.8, linestyle="--")
        axis.set_xticks(range(len(found)), names, rotation=60, ha="right")
        axis.set_title(f"phase {where(phase)['phase']}")
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("Dice on all test images")
    axes[0].set_ylim(0, 1)
