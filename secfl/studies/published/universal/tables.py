"""The figures of the study: Dice of every arm by task, the tests over tasks and seeds, and what federating costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from secfl.studies.published.interface import Definition, Request, Results, Row
from secfl.studies.published.universal.comparison import Comparison, Pair, compare, holm

__all__ = ["ARMS", "COMPARISONS", "Arm", "arm_values", "comparisons", "rows_of"]

Arm = tuple[str, str]
"""Which test, and which backbone."""

_IN, _PROBE, _TUNE = "in the federation", "linear probe of an unseen task", "fine-tuning on an unseen task"
_FEDERATED, _ALONE = "federated", "without federation"
ARMS: tuple[Arm, ...] = tuple(
    (where, which) for where in (_IN, _PROBE, _TUNE) for which in (_FEDERATED, _ALONE)
)
COMPARISONS = (_IN, _PROBE, _TUNE)
_GROUP = {
    _IN: "All tasks in one federation",
    _PROBE: "A task that the federation has not seen: linear probe",
    _TUNE: "A task that the federation has not seen: fine-tuning",
}


def arm_values(results: Results, seeds: Sequence[int], arm: Arm) -> dict[Pair, float]:
    """Dice of every task and seed in one arm."""
    where, which = arm
    found: dict[Pair, float] = {}
    for seed in seeds:
        alone = results[f"alone-{seed}"]["tasks"]
        for task in alone:
            if where == _IN:
                block = results[f"all-{seed}"]["tasks"][task]["federated"]
                block = block if which == _FEDERATED else alone[task]["alone"]
            else:
                key = "probe" if where == _PROBE else "fine-tune"
                without = results[f"without-{task}-{seed}"]["tasks"][task]
                block = (without if which == _FEDERATED else alone[task])["unseen"][key]
            found[task, seed] = block["dice"]
    return found


def comparisons(results: Results, seeds: Sequence[int]) -> dict[str, Comparison]:
    """The federated backbone against the one without federation, each with its p-value corrected for all three."""
    found = {
        where: compare(
            arm_values(results, seeds, (where, _FEDERATED)), arm_values(results, seeds, (where, _ALONE))
        )
        for where in COMPARISONS
    }
    corrected = holm([one.p for one in found.values()])
    return {where: replace(one, p=p) for (where, one), p in zip(found.items(), corrected, strict=True)}


def rows_of(request: Request, results: Results) -> list[Row]:
    """The table."""
    seeds = request.seeds
    tested = comparisons(results, seeds)
    rows: list[Row] = []
    for where in COMPARISONS:
        by_arm = {which: arm_values(results, seeds, (where, which)) for which in (_FEDERATED, _ALONE)}
        tasks = list(dict.fromkeys(task for task, _ in by_arm[_ALONE]))
        for task in tasks:
            rows += [
                _row(where, task, which, {seed: by_arm[which][task, seed] for seed in seeds})
                for which in by_arm
            ]
        means = {
            which: {seed: fmean(values[task, seed] for task in tasks) for seed in seeds}
            for which, values in by_arm.items()
        }
        rows += [_row(where, "mean", which, means[which]) for which in by_arm]
        gain = {seed: means[_FEDERATED][seed] - means[_ALONE][seed] for seed in seeds}
        rows.append(
            Row(
                name="gain in Dice",
                where={"task": "mean", "backbone": f"{_FEDERATED} less {_ALONE}"},
                values=gain,
                definition=Definition.OURS,
                note=tested[where].as_note() + ", p corrected by Holm for three tests",
                group=_GROUP[where],
            )
        )
    return rows + _cost(request, results)


def _row(where: str, task: str, which: str, values: Mapping[int, float]) -> Row:
    return Row(
        name="Dice",
        where={"task": task, "backbone": which},
        values=dict(values),
        definition=Definition.OURS,
        group=_GROUP[where],
    )


def _cost(request: Request, results: Results) -> list[Row]:
    group = "What the federation of all tasks costs"
    runs = {seed: results[f"all-{seed}"] for seed in request.seeds}

    def row(name: str, values: Mapping[int, float], *, unit: str, decimals: int, note: str = "") -> Row:
        return Row(
            name=name,
            values=dict(values),
            definition=Definition.OURS,
            unit=unit,
            decimals=decimals,
            note=note,
            group=group,
        )

    explained = {seed: fmean(results[f"pretraining-{seed}"]["explained"].values()) for seed in request.seeds}
    return [
        row("MB up", {seed: run["megabytes"]["up"] for seed, run in runs.items()}, unit="MB", decimals=2),
        row("MB down", {seed: run["megabytes"]["down"] for seed, run in runs.items()}, unit="MB", decimals=2),
        row(
            "shared parameters",
            {seed: float(run["parameters"]) for seed, run in runs.items()},
            unit="",
            decimals=0,
            note="the heads are no part of them",
        ),
        row(
            "training",
            {seed: run["time_s"]["train"] for seed, run in runs.items()},
            unit="s",
            decimals=1,
            note="all clients together",
        ),
        row(
            "secure aggregation",
            {
                seed: run["time_s"]["protect"] + run["time_s"]["aggregate"] + run["time_s"]["open"]
                for seed, run in runs.items()
            },
            unit="s",
            decimals=1,
            note="all clients and the aggregator together",
        ),
        row(
            "hidden pixels explained by the server's backbone",
            explained,
            unit="",
            decimals=3,
            note="share of their variance, mean over modalities, on images of the server that it did not train on",
        ),
    ]
