"""The study's picture: both backbones on every task, in all three tests."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from secfl.studies.published.interface import Drawing, Request, Results
from secfl.studies.published.universal.tables import COMPARISONS, arm_values, comparisons

__all__ = ["drawings"]

_COLOURS = {"federated": "#1b6ca8", "without federation": "#d98e04"}


def drawings(request: Request, results: Results) -> Mapping[str, Drawing]:
    """One picture, three panels."""
    return {"universal": lambda figure: _draw(figure, request, results)}


def _draw(figure: Any, request: Request, results: Results) -> None:
    figure.set_size_inches(11, 5.2)
    tested = comparisons(results, request.seeds)
    panels = figure.subplots(1, len(COMPARISONS), sharey=True)
    for panel, where in zip(panels, COMPARISONS, strict=True):
        arms = {which: arm_values(results, request.seeds, (where, which)) for which in _COLOURS}
        tasks = list(dict.fromkeys(task for task, _ in arms["federated"]))
        for offset, (which, values) in zip((-0.17, 0.17), arms.items(), strict=True):
            places = [place + offset for place in range(len(tasks))]
            means = [fmean(values[task, seed] for seed in request.seeds) for task in tasks]
            panel.barh(places, means, height=0.32, color=_COLOURS[which], label=which)
            for place, task in zip(places, tasks, strict=True):
                dots = [values[task, seed] for seed in request.seeds]
                panel.plot(dots, [place] * len(dots), ".", color="black", markersize=3)
        one = tested[where]
        panel.set_title(f"{where}\ngain {one.mean:+.3f}, p = {one.p:.2g}, r = {one.effect:.2f}", fontsize=9)
        panel.set_yticks(range(len(tasks)), tasks)
        panel.set_xlim(0, 1)
        panel.set_xlabel("Dice")
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, title="backbone")
