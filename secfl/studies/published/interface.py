"""What a study of a published system gives, and what it is asked for; `secfl.studies.published.runner` runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol, TypeAlias

from secfl.config import Scheme
from secfl.studies.jobs import Job

__all__ = ["Definition", "Drawing", "Preset", "Prose", "PublishedStudy", "Request", "Results", "Row"]

Results: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Result of every job by the job's name."""

Drawing: TypeAlias = Callable[[Any], None]
"""Draws on an empty figure of matplotlib."""


class Preset(StrEnum):
    """Size of a study."""

    SMOKE = "smoke"
    """Less than two minutes; figures without meaning."""
    SMALL = "small"
    """Small images and models, for two processor cores."""
    PAPER = "paper"
    """The published size, for a GPU."""


class Definition(StrEnum):
    """Whose definition a figure follows."""

    THEIRS = "theirs"
    OURS = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a study is asked for.

    Attributes:
        preset: Its size.
        seeds: Experiment seeds; public.
        data: A data folder, or ``phantom``.
        scheme: How updates are added.
    """

    preset: Preset
    seeds: tuple[int, ...]
    data: str = "phantom"
    scheme: Scheme = Scheme.MASKING


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured figure beside the published one.

    Attributes:
        name: What is measured.
        where: Further columns of its table, label by name: an arm, a modality, a phase.
        values: Figure by seed; empty where it was not measured, and ``note`` says why.
        definition: Whether the publication defines what is measured, or we do.
        unit: Of the figure; empty for a share.
        published: The published figure.
        source: Where it was published; needed with ``published``.
        decimals: How many are printed.
        note: A short clause.
        group: Rows of one group are one table, under this heading.
    """

    name: str
    where: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    definition: Definition
    unit: str = ""
    published: float | None = None
    source: str = ""
    decimals: int = 3
    note: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if self.published is not None and not self.source:
            raise ValueError(f"{self.name}: a published figure needs its source")
        if not all(math.isfinite(value) for value in self.values.values()):
            raise ValueError(f"{self.name}: expected finite figures")
        if not self.values and not self.note:
            raise ValueError(f"{self.name}: expected figures, or a note why there are none")

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return fmean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; ``None`` for fewer than two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "group": self.group,
            "name": self.name,
            "where": dict(self.where),
            "unit": self.unit,
            "mean": _rounded(self.mean),
            "spread": _rounded(self.spread),
            "per_seed": {str(seed): _rounded(value) for seed, value in self.values.items()},
            "seeds": list(self.values),
            "published": self.published,
            "source": self.source,
            "definition": self.definition.value,
            "note": self.note,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """What ``README.md`` says, in paragraphs of Markdown.

    Attributes:
        run: What was run.
        known: What the publication tells.
        ours: What it leaves open, and what we define.
        conclusions: What the figures show, whether or not it was hoped for.
    """

    run: tuple[str, ...]
    known: tuple[str, ...]
    ours: tuple[str, ...]
    conclusions: tuple[str, ...]


class PublishedStudy(Protocol):
    """One published system as a list of jobs, most of them ordinary runs, and a table."""

    @property
    def name(self) -> str:
        """The word on the command line."""
        ...

    @property
    def title(self) -> str:
        """Headline."""
        ...

    @property
    def source(self) -> str:
        """The publication, in one line."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose versions the figures depend on."""
        ...

    def stages(self, request: Request, runs: Path) -> Sequence[Sequence[Job]]:
        """Jobs; a stage begins when the one before it is done, its jobs are independent of each other.

        Args:
            request: What is asked for.
            runs: Where job ``name`` writes its result, ``<name>.json``, and its run directory, ``<name>``.

        Raises:
            ConfigError: It cannot be done as asked.
        """
        ...

    def expected_seconds(self, request: Request, job: Job) -> float:
        """What this job took on the machine that the stored figures come from, with one thread."""
        ...

    def rows(self, request: Request, results: Results) -> Sequence[Row]:
        """The table."""
        ...

    def figures(self, request: Request, rows: Sequence[Row], results: Results) -> Mapping[str, Drawing]:
        """Pictures by the stem of their files' names."""
        ...

    def prose(self, request: Request, rows: Sequence[Row], results: Results) -> Prose:
        """What is said beside the table; conclusions follow from the figures."""
        ...
