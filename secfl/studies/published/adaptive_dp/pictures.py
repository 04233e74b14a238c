"""Pictures: Dice by arm beside the published one, Dice while it is learned, and the clip while it moves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Any, Final

from secfl.studies.published.adaptive_dp.arms import PRIVATE, STATIC_CLIP, Arm, Modality
from secfl.studies.published.adaptive_dp.figures import classes_of, dice_of
from secfl.studies.published.adaptive_dp.presets import PLANS
from secfl.studies.published.adaptive_dp.settings import modalities_of
from secfl.studies.published.adaptive_dp.study import arm_job
from secfl.studies.published.interface import Drawing, Request, Results

__all__ = ["pictures"]

_COLOURS: Final = dict(zip(Arm, ("#333333", "#c44e52", "#dd8452", "#4c72b0", "#937860"), strict=True))
_INCH: Final = 3.4


def pictures(request: Request, results: Results) -> Mapping[str, Drawing]:
    """Drawings by file name."""
    return {
        "dice-by-arm": partial(_bars, request, results),
        "dice-while-learning": partial(_curves, request, results),
        "clip-while-learning": partial(_clips, request, results),
    }


def _panels(figure: Any, request: Request) -> list[tuple[Modality, Any]]:
    modalities = modalities_of(request)
    figure.set_size_inches(_INCH * len(modalities), 3.2)
    axes = figure.subplots(1, len(modalities), squeeze=False)[0]
    for modality, panel in zip(modalities, axes, strict=True):
        panel.set_title(modality.name)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return list(zip(modalities, axes, strict=True))


def _bars(request: Request, results: Results, figure: Any) -> None:
    """Of the class that stands beside the published one; dots are seeds, lines the published figures."""
    for modality, panel in _panels(figure, request):
        classes = classes_of(request, results, modality)
        label = modality.published_class if modality.published_class in classes else None
        for place, arm in enumerate(Arm):
            values = list(dice_of(request, results, modality, arm, label=label).values())
            panel.bar(place, 100 * fmean(values), color=_COLOURS[arm], width=0.7)
            panel.plot([place] * len(values), [100 * v for v in values], "o", color="black", markersize=2.5)
            if arm in modality.published:
                panel.hlines(
                    modality.published[arm], place - 0.45, place + 0.45, color="black", linestyle="--"
                )
        panel.set_xticks(range(len(Arm)), [arm.value for arm in Arm], rotation=35, ha="right", fontsize=7)
        panel.set_ylim(0, 100)
        panel.set_ylabel(f"Dice of {label or 'all classes'}, %")


def _curves(request: Request, results: Results, figure: Any) -> None:
    """Means over seeds, over passes through the data."""
    for modality, panel in _panels(figure, request):
        size = PLANS[request.preset].sizes[modality.name]
        for arm in Arm:
            curves = [results[arm_job(modality, arm, seed)]["curve"] for seed in request.seeds]
            passes = size.sampling_rate if arm in PRIVATE else 1.0
            places = [passes * point["round"] for point in curves[0]]
            means = [100 * fmean(point["dice"] for point in points) for points in zip(*curves, strict=False)]
            panel.plot(
                places[: len(means)], means, "-o", color=_COLOURS[arm], markersize=2.5, label=arm.value
            )
        panel.set_xlabel("passes over the data")
        panel.set_ylabel("Dice, mean over classes, %")
        panel.set_ylim(0, 100)
    figure.axes[0].legend(fontsize=6, frameon=False, loc="lower right")


def _clips(request: Request, results: Results, figure: Any) -> None:
    """Of every seed's adaptive run, beside the two fixed ones."""
    for modality, panel in _panels(figure, request):
        size = PLANS[request.preset].sizes[modality.name]
        for seed in request.seeds:
            clips = results[arm_job(modality, Arm.ADAPTIVE, seed)]["clips"]
            panel.plot(range(1, len(clips) + 1), clips, color=_COLOURS[Arm.ADAPTIVE], linewidth=0.9)
        for arm, clip in ((Arm.STATIC, STATIC_CLIP), (Arm.TUNED, size.tuned_clip)):
            panel.axhline(clip, color=_COLOURS[arm], linestyle="--", linewidth=0.9, label=arm.value)
        panel.set_yscale("log")
        panel.set_xlabel("private step")
        panel.set_ylabel("clip norm")
    figure.axes[0].legend(fontsize=6, frameon=False)
