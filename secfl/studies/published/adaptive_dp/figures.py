"""Figures from runs: Dice by class, share of the loss recovered, speed, stability, noise, and what is proved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from secfl.studies.published.adaptive_dp.arms import Arm, Modality
from secfl.studies.published.adaptive_dp.presets import PLANS
from secfl.studies.published.adaptive_dp.settings import CLINICS
from secfl.studies.published.adaptive_dp.study import arm_job
from secfl.studies.published.interface import Request, Results

__all__ = [
    "LEAST_LEARNED",
    "LEAST_LOSS",
    "TARGET",
    "absent_of",
    "classes_of",
    "dice_of",
    "dice_of_classes",
    "learned_classes",
    "loss",
    "movement",
    "noise_over_clip",
    "rounds_to",
    "share_of_means",
    "statement",
]

TARGET: Final = 0.5
"""Share of static DP's loss that the adaptive arm should recover in each modality."""

LEAST_LOSS: Final = 0.005
"""Dice; a smaller loss cannot be told from the spread, and no share of it is stated."""

LEAST_LEARNED: Final = 0.05
"""Dice by which training without privacy must beat a model that never predicts a class, for the class to count."""


def dice_of(
    request: Request, results: Results, modality: Modality, arm: Arm, *, label: str | None = None
) -> dict[int, float]:
    """Dice by seed, mean over sites: of one class, or of all."""
    found = {}
    for seed in request.seeds:
        evaluation = results[arm_job(modality, arm, seed)]["evaluation"]
        part = evaluation["dice"] if label is None else evaluation["dice_by_class"][label]
        found[seed] = float(part["mean"])
    return found


def classes_of(request: Request, results: Results, modality: Modality) -> tuple[str, ...]:
    """Foreground classes of a modality's runs."""
    first = results[arm_job(modality, Arm.OPEN, request.seeds[0])]
    return tuple(first["evaluation"]["dice_by_class"])


def absent_of(request: Request, results: Results, modality: Modality, label: str) -> float:
    """Dice of a model that never predicts a class: the share of test cases without it."""
    return fmean(results[arm_job(modality, Arm.OPEN, seed)]["absent"][label] for seed in request.seeds)


def learned_classes(request: Request, results: Results, modality: Modality) -> tuple[str, ...]:
    """Classes that training without privacy learns; of another one nothing can be lost."""
    return tuple(
        label
        for label in classes_of(request, results, modality)
        if fmean(dice_of(request, results, modality, Arm.OPEN, label=label).values())
        >= absent_of(request, results, modality, label) + LEAST_LEARNED
    )


def dice_of_classes(
    request: Request, results: Results, modality: Modality, arm: Arm, labels: Sequence[str]
) -> dict[int, float]:
    """Dice by seed, mean over some classes."""
    each = [dice_of(request, results, modality, arm, label=label) for label in labels]
    return {seed: fmean(one[seed] for one in each) for seed in request.seeds}


def loss(request: Request, results: Results, modality: Modality, arm: Arm, labels: Sequence[str]) -> float:
    """Mean Dice of some classes without privacy less that of an arm."""
    free = dice_of_classes(request, results, modality, Arm.OPEN, labels)
    return fmean(free.values()) - fmean(dice_of_classes(request, results, modality, arm, labels).values())


def share_of_means(
    request: Request, results: Results, modality: Modality, arm: Arm, labels: Sequence[str]
) -> float | None:
    """Share of static DP's loss that an arm recovers, of the means over seeds; ``None`` where there is no loss."""
    if not labels:
        return None
    static = loss(request, results, modality, Arm.STATIC, labels)
    if static < LEAST_LOSS:
        return None
    return 1 - loss(request, results, modality, arm, labels) / static


def statement(result: Mapping[str, Any], adversary: str) -> Mapping[str, Any]:
    """What a run's ledger proves against an aggregator without colluders."""
    (ledger,) = result["ledgers"].values()
    return next(
        one
        for one in ledger["statements"]
        if (one["view"], one["adversary"], one["colluders"]) == ("aggregator", adversary, 0)
    )


def rounds_to(curve: Sequence[Mapping[str, Any]], share: float) -> int:
    """First evaluated round whose Dice is at least this share of the final one."""
    final = curve[-1]["dice"]
    return next(int(point["round"]) for point in curve if point["dice"] >= share * final)


def movement(curve: Sequence[Mapping[str, Any]]) -> float:
    """Mean absolute change of Dice between evaluations in the second half of training; 0 for a single one."""
    late = [point["dice"] for point in curve[(len(curve) - 1) // 2 :]]
    return fmean([abs(after - before) for before, after in itertools.pairwise(late)] or [0.0])


def noise_over_clip(request: Request, results: Results, modality: Modality, arm: Arm) -> dict[int, float]:
    """Norm of the noise in a step's mean as a multiple of the clip norm, by seed: ``z sqrt(d) / (q N)``.

    The mean of clipped gradients is at most 1 on this scale, and as much less as patients disagree. N are the
    phantom's training patients; for a folder it is not stated.
    """
    if request.data != "phantom":
        return {}
    size = PLANS[request.preset].sizes[modality.name]
    expected = size.sampling_rate * size.patients * CLINICS
    found = {}
    for seed in request.seeds:
        result = results[arm_job(modality, arm, seed)]
        multiplier = result["privacy"]["noise_multiplier"]
        found[seed] = float(multiplier) * math.sqrt(result["parameters"]) / expected
    return found
