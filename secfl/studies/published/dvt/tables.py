"""The rows of the study, each from the results of its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from secfl.studies.published.dvt.names import job_name, second_scheme
from secfl.studies.published.dvt.phases import SIZES, Phase, phases_of
from secfl.studies.published.interface import Definition, Request, Results, Row

__all__ = [
    "COMPARISON",
    "MARGIN",
    "SCHEMES",
    "SOURCE",
    "STUDENT",
    "TRAFFIC",
    "margins",
    "rows",
    "runs_of",
    "where",
]

SOURCE = "Scientific Reports 16, 11333"

STUDENT = "The global student"
COMPARISON = "The student beside models trained without federation"
TRAFFIC = "Traffic and time"
MARGIN = "student less the best model trained alone"
SCHEMES = "Schemes, ledgers and data"


@dataclass(frozen=True, slots=True)
class _Figure:
    """One row of every phase."""

    name: str
    take: Callable[[Mapping[str, Any]], float | None]
    definition: Definition = Definition.OURS
    unit: str = ""
    decimals: int = 3
    note: str = ""
    published: Mapping[int, float] | None = None
    """By the phase's number; the publication tells the first and the last."""


def _mean(facts: Mapping[str, float]) -> float:
    return fmean(facts.values())


_STUDENT_FIGURES = (
    _Figure(
        "accuracy",
        lambda run: run["evaluation"]["accuracy"]["mean"],
        Definition.THEIRS,
        decimals=4,
        note="share of pixels; background counts",
        published={1: 0.91, 3: 0.96},
    ),
    _Figure("balanced accuracy", lambda run: run["evaluation"]["balanced_accuracy"]["mean"]),
    _Figure(
        "F1",
        lambda run: run["evaluation"]["dice"]["mean"],
        Definition.THEIRS,
        note="Dice, mean over cases",
        published={1: 0.89, 3: 0.95},
    ),
    _Figure("IoU", lambda run: run["evaluation"]["iou"]["mean"], Definition.THEIRS, note="mean over cases"),
    _Figure("Tversky index", lambda run: _mean(run["tversky"]), note="soft; α = 0.3, β = 0.7"),
    _Figure(
        "validation loss",
        lambda run: _mean(run["validation_loss"]),
        note="cross-entropy plus soft Dice loss on test images",
        published={1: 0.910, 3: 0.061},
    ),
)

_TRAFFIC_FIGURES = (
    _Figure(
        "up and down",
        lambda run: run["megabytes"]["up"] + run["megabytes"]["down"],
        unit="MB",
        decimals=2,
        note="payload of all clients and rounds",
        published={1: 14.0, 3: 3279.0},
    ),
    _Figure("up", lambda run: run["megabytes"]["up"], unit="MB", decimals=2),
    _Figure("down", lambda run: run["megabytes"]["down"], unit="MB", decimals=2),
    _Figure(
        "cryptographic overhead, up",
        lambda run: run["megabytes"]["up"] - run["plain_megabytes_up"],
        unit="MB",
        decimals=3,
        note="beyond the packed numbers themselves",
    ),
    _Figure(
        "cryptographic overhead, down",
        lambda run: run["megabytes"]["down"],
        unit="MB",
        decimals=3,
        note="keys, shares, signatures: all that the protocol sends down",
    ),
    _Figure(
        "training",
        lambda run: run["time_s"]["train"],
        unit="s",
        decimals=1,
        note="by the clock, one core, all clients",
    ),
    _Figure(
        "protection",
        lambda run: run["time_s"]["protect"],
        unit="s",
        decimals=2,
        note="by the clock, all clients",
    ),
    _Figure(
        "aggregation",
        lambda run: run["time_s"]["aggregate"] + run["time_s"]["open"],
        unit="s",
        decimals=2,
        note="by the clock",
    ),
    _Figure(
        "processor time",
        lambda run: run["processor_seconds"],
        unit="s",
        decimals=0,
        note="uninterrupted jobs, models trained alone and pooled included",
    ),
)

_DATA_FIGURES = (
    _Figure(
        "divergence of intensities",
        lambda run: run["heterogeneity"]["intensity"],
        note="Jensen-Shannon between clients, 0 to 1",
    ),
    _Figure(
        "divergence of foreground",
        lambda run: run["heterogeneity"]["foreground"],
        note="of the share of foreground in an image",
    ),
    _Figure("foreground", lambda run: 100 * run["foreground"], unit="% of pixels", decimals=2),
)


def rows(request: Request, results: Results) -> list[Row]:
    """All rows, group by group, phase by phase."""
    phases = phases_of(request)
    found = list(_plain_rows(STUDENT, _STUDENT_FIGURES, request, results, phases))
    for phase in phases:
        found += _comparison(request, results, phase)
    found += _plain_rows(TRAFFIC, _TRAFFIC_FIGURES, request, results, phases)
    for phase in phases:
        found += _schemes(request, results, phase)
    found += _plain_rows(SCHEMES, _DATA_FIGURES, request, results, phases)
    return found


def where(phase: Phase) -> dict[str, str]:
    """The column that names a phase."""
    return {"phase": f"{phase.number} ({phase.clients} clients)"}


def runs_of(request: Request, results: Results, phase: Phase) -> dict[int, Mapping[str, Any]]:
    """The results of a phase by seed."""
    return {seed: results[job_name(phase, seed, request.scheme)] for seed in request.seeds}


def _plain_rows(
    group: str, figures: Sequence[_Figure], request: Request, results: Results, phases: Sequence[Phase]
) -> Iterator[Row]:
    for figure in figures:
        for phase in phases:
            published = (figure.published or {}).get(phase.number)
            taken = {seed: figure.take(run) for seed, run in runs_of(request, results, phase).items()}
            values = {seed: value for seed, value in taken.items() if value is not None}
            yield Row(
                name=figure.name,
                where=where(phase),
                values=values,
                definition=figure.definition,
                unit=figure.unit,
                published=published,
                source="" if published is None else SOURCE,
                decimals=figure.decimals,
                note=figure.note,
                group=group,
            )


def margins(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """By seed: Dice of the student less that of the best model that a client trained alone."""
    unions = {seed: run["evaluation"]["union"] for seed, run in runs.items()}
    return {seed: union["student"] - max(union["local"].values()) for seed, union in unions.items()}


def _comparison(request: Request, results: Results, phase: Phase) -> Iterator[Row]:
    runs = runs_of(request, results, phase)
    unions = {seed: run["evaluation"]["union"] for seed, run in runs.items()}

    def row(model: str, values: Mapping[int, float], note: str = "") -> Row:
        return Row(
            name="Dice on all test images",
            where={**where(phase), "model": model},
            values=values,
            definition=Definition.OURS,
            note=note,
            group=COMPARISON,
        )

    yield row("global student", {seed: union["student"] for seed, union in unions.items()})
    for site, family in next(iter(runs.values()))["families"].items():
        yield row(
            f"{family}, alone",
            {seed: union["local"][site] for seed, union in unions.items()},
            note=f"{site}, its own images only",
        )
    yield row(
        "all clients' models",
        {seed: _mean(union["clients"]) for seed, union in unions.items()},
        note="mean over clients, after federation",
    )
    yield row(
        "all models alone",
        {seed: _mean(union["local"]) for seed, union in unions.items()},
        note="mean over clients",
    )
    yield row(
        "pooled",
        {seed: union["pooled"] for seed, union in unions.items()},
        note="the student's architecture on everybody's images and labels: what no federation may do",
    )
    found = margins(runs)
    ahead = sum(value > 0 for value in found.values())
    yield row(MARGIN, found, note=f"ahead with {ahead} of {len(found)} seeds")


def _schemes(request: Request, results: Results, phase: Phase) -> Iterator[Row]:
    runs = runs_of(request, results, phase)
    seed, other = request.seeds[0], second_scheme(request.scheme)
    compared = phase.number in SIZES[request.preset].compared
    same = {}
    if compared:
        second = results[job_name(phase, seed, other)]
        same = {seed: float(second["final_model_sha256"] == runs[seed]["final_model_sha256"])}
    yield Row(
        name=f"{request.scheme.value} and {other.value} agree to the bit",
        where=where(phase),
        values=same,
        definition=Definition.OURS,
        decimals=0,
        note="1: the same global student" if compared else "not run in this phase",
        group=SCHEMES,
    )
    yield Row(
        name="rounds in closed ledgers",
        where=where(phase),
        values={
            seed: float(
                sum(
                    ledger["rounds"]["committed"]
                    for ledger in run["ledgers"].values()
                    if ledger["status"] == "closed"
                )
            )
            for seed, run in runs.items()
        },
        definition=Definition.OURS,
        decimals=0,
        note="each sum from at least 3 clients",
        group=SCHEMES,
    )
