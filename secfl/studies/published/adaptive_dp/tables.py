"""The rows: Dice, share of the loss recovered, boundary, speed, stability, ε, traffic, and the tries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from secfl.studies.published.adaptive_dp.arms import (
    PRIVATE,
    PROXY_RULES,
    RULES,
    SOURCE,
    Arm,
    Modality,
    published_share,
)
from secfl.studies.published.adaptive_dp.figures import (
    LEAST_LOSS,
    absent_of,
    classes_of,
    dice_of,
    dice_of_classes,
    learned_classes,
    movement,
    noise_over_clip,
    rounds_to,
    share_of_means,
    statement,
)
from secfl.studies.published.adaptive_dp.settings import DELTA, EPSILON, modalities_of
from secfl.studies.published.adaptive_dp.study import TRY_SEED, arm_job, tried, try_job
from secfl.studies.published.interface import Definition, Request, Results, Row

__all__ = ["table"]

_REACHED: Final = 0.95


def table(request: Request, results: Results) -> list[Row]:
    """All rows, group by group."""
    modalities = modalities_of(request)
    makers = (_dice, _shares, _distances, _speed, _epsilons, _noises, _traffic)
    rows = [row for make in makers for modality in modalities for row in make(request, results, modality)]
    return rows + [row for modality in modalities for row in _tries(request, results, modality)]


def _dice(request: Request, results: Results, modality: Modality) -> list[Row]:
    rows = []
    classes = classes_of(request, results, modality)
    for arm in Arm:
        for label in classes:
            theirs = modality.published.get(arm) if label == modality.published_class else None
            rows.append(
                Row(
                    name="Dice",
                    where={"modality": modality.name, "arm": arm.value, "class": label},
                    values=_percent(dice_of(request, results, modality, arm, label=label)),
                    unit="%",
                    decimals=1,
                    published=theirs,
                    source="" if theirs is None else SOURCE,
                    definition=Definition.THEIRS,
                    note="" if theirs is None else f"published for {modality.published_as}",
                    group="Dice by class",
                )
            )
        if len(classes) > 1:
            rows.append(
                Row(
                    name="Dice",
                    where={"modality": modality.name, "arm": arm.value, "class": "all"},
                    values=_percent(dice_of(request, results, modality, arm)),
                    unit="%",
                    decimals=1,
                    definition=Definition.OURS,
                    note="mean over classes",
                    group="Dice by class",
                )
            )
    return rows


def _shares(request: Request, results: Results, modality: Modality) -> list[Row]:
    learned = learned_classes(request, results, modality)
    choices = {modality.published_class: (modality.published_class,)}
    if learned != (modality.published_class,):
        choices["all that are learned"] = learned
    known = classes_of(request, results, modality)
    return [
        _share(request, results, (modality, arm), name, labels)
        for arm in (Arm.ADAPTIVE, Arm.TUNED)
        for name, labels in choices.items()
        if set(labels) <= set(known)
    ]


def _share(
    request: Request, results: Results, which: tuple[Modality, Arm], name: str, labels: Sequence[str]
) -> Row:
    modality, arm = which
    theirs = name == modality.published_class
    values: dict[int, float] = {}
    if theirs and name not in learned_classes(request, results, modality):
        note = f"not learned without privacy either: never predicting it gives {_absence(request, results, modality)}"
    elif not labels:
        note = "no class is learned without privacy"
    else:
        free, static, mine = (
            dice_of_classes(request, results, modality, one, labels) for one in (Arm.OPEN, Arm.STATIC, arm)
        )
        lost = {seed: free[seed] - static[seed] for seed in free}
        share = share_of_means(request, results, modality, arm, labels)
        if share is None:
            note = f"static DP loses {100 * fmean(lost.values()):.1f} points: no share is stated"
        else:
            note = f"of the means over seeds: {100 * share:.0f} %" + (
                "" if theirs else f"; {', '.join(labels)}"
            )
            values = {
                seed: 100 * (mine[seed] - static[seed]) / lost[seed]
                for seed in free
                if lost[seed] >= LEAST_LOSS
            }
    return Row(
        name="loss recovered",
        where={"modality": modality.name, "arm": arm.value, "class": name},
        values=values,
        unit="%",
        decimals=0,
        published=round(published_share(modality)) if theirs and arm is Arm.ADAPTIVE else None,
        source=SOURCE if theirs and arm is Arm.ADAPTIVE else "",
        definition=Definition.THEIRS if theirs else Definition.OURS,
        note=note,
        group="Share of static DP's loss that is recovered",
    )


def _absence(request: Request, results: Results, modality: Modality) -> str:
    return f"{100 * absent_of(request, results, modality, modality.published_class):.0f} % Dice"


def _distances(request: Request, results: Results, modality: Modality) -> list[Row]:
    rows = []
    for arm in Arm:
        found = {seed: results[arm_job(modality, arm, seed)]["evaluation"] for seed in request.seeds}
        means = {seed: evaluation["hd95"]["mean"] for seed, evaluation in found.items()}
        values = {seed: float(mean) for seed, mean in means.items() if mean is not None}
        cases = [site for evaluation in found.values() for site in evaluation["cases"].values()]
        left_out = f"left out: {sum(site['empty'] for site in cases)} of {sum(site['count'] for site in cases)} cases"
        rows.append(
            Row(
                name="HD95",
                where={"modality": modality.name, "arm": arm.value},
                values=values,
                unit="px" if modality.name == "skin" else "mm",
                decimals=1,
                definition=Definition.OURS,
                note=left_out if values else "nothing was found in any case",
                group="95 % Hausdorff distance, where both truth and prediction hold the class",
            )
        )
    return rows


def _speed(request: Request, results: Results, modality: Modality) -> list[Row]:
    rows = []
    for arm in Arm:
        where = {"modality": modality.name, "arm": arm.value}
        of_arm = {seed: results[arm_job(modality, arm, seed)] for seed in request.seeds}
        curves = {seed: result["curve"] for seed, result in of_arm.items()}
        private = arm in PRIVATE
        total = fmean(result["rounds"] for result in of_arm.values())
        rows.append(
            Row(
                name="rounds to 95 % of the final Dice",
                where=where,
                values={seed: float(rounds_to(curve, _REACHED)) for seed, curve in curves.items()},
                decimals=0,
                definition=Definition.OURS,
                note=f"of {total:.0f}; a round is {'one private step' if private else 'one pass over the data'}",
                group="Speed and stability",
            )
        )
        rows.append(
            Row(
                name="movement",
                where=where,
                values={seed: 100 * movement(curve) for seed, curve in curves.items()},
                unit="points of Dice",
                decimals=2,
                definition=Definition.OURS,
                note="mean change from one evaluation to the next, second half of training",
                group="Speed and stability",
            )
        )
    return rows


def _epsilons(request: Request, results: Results, modality: Modality) -> list[Row]:
    rows = []
    for arm in Arm:
        where = {"modality": modality.name, "arm": arm.value}
        group = f"ε proved by the runs' own ledgers (asked: {EPSILON:g} for a patient, δ = {DELTA:g})"
        of_arm = {seed: results[arm_job(modality, arm, seed)] for seed in request.seeds}
        if arm not in PRIVATE:
            recipe = "the ledger says NonPrivate: the noise does not cover what is released"
            rows.append(
                Row(
                    name="ε",
                    where=where,
                    definition=Definition.OURS,
                    note="the ledger says NonPrivate: no noise" if arm is Arm.OPEN else recipe,
                    group=group,
                )
            )
            continue
        for adversary in ("curious", "malicious"):
            values = {seed: statement(result, adversary)["epsilon"] for seed, result in of_arm.items()}
            rows.append(
                Row(
                    name=f"ε, {adversary} aggregator",
                    where=where,
                    values={
                        seed: float(value)
                        for seed, value in values.items()
                        if value is not None and math.isfinite(value)
                    },
                    decimals=2,
                    definition=Definition.OURS,
                    note="nobody colludes",
                    group=group,
                )
            )
    return rows


def _noises(request: Request, results: Results, modality: Modality) -> list[Row]:
    return [
        Row(
            name="noise of a step over the clip norm",
            where={"modality": modality.name, "arm": arm.value},
            values=values,
            decimals=2,
            definition=Definition.OURS,
            note="z √d / (q N), known before training",
            group="Noise",
        )
        for arm in PRIVATE
        if (values := noise_over_clip(request, results, modality, arm))
    ]


def _traffic(request: Request, results: Results, modality: Modality) -> list[Row]:
    return [
        Row(
            name="sent up",
            where={"modality": modality.name, "arm": arm.value},
            values={seed: results[arm_job(modality, arm, seed)]["megabytes"]["up"] for seed in request.seeds},
            unit="MB",
            decimals=1,
            definition=Definition.OURS,
            note="all clinics and rounds, cryptography included",
            group="Traffic",
        )
        for arm in Arm
    ]


def _tries(request: Request, results: Results, modality: Modality) -> list[Row]:
    if modality.name not in tried(request):
        return []
    rows = []
    for rule in (*RULES, *PROXY_RULES):
        if try_job(modality, rule) not in results:
            continue
        result = results[try_job(modality, rule)]
        rows.append(
            Row(
                name="Dice",
                where={"modality": modality.name, "rule": rule.name},
                values={TRY_SEED: 100 * float(result["evaluation"]["dice"]["mean"])},
                unit="%",
                decimals=1,
                definition=Definition.OURS,
                note=rule.text,
                group=f"Rules that were tried, on seed {TRY_SEED} alone, mean over classes",
            )
        )
    return rows


def _percent(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: 100 * value for seed, value in values.items()}
