"""Work and a reference operation, timed in turns, so that what disturbs one disturbs the other.

A ratio of two times is steady only if both were taken under the same conditions: on a shared machine those change
within seconds. Every repetition therefore times the reference before and after the work, and the median over the
repetitions counts. Processor time of this process only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

import numpy as np

__all__ = ["UNSTEADY", "Paired", "PassRecorder", "Yardstick", "paired"]

UNSTEADY: Final = 0.3
"""A ratio whose quarters are further apart than this share of it says little about small changes."""

_LEAST_SECONDS: Final = 5e-3
"""Shorter operations are repeated, because clocks of processor time are coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A time beside a reference's.

    Attributes:
        value: Least time over the repetitions, in the unit in which it was given.
        ratio: Median over the repetitions of time over reference.
        spread: Distance between the first and the third quarter of those ratios, over their median.
    """

    value: float
    ratio: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float], references: Sequence[float]) -> Paired:
        """From the times of every repetition and of the references around it.

        Args:
            values: One for each repetition.
            references: One more: before the first and after each, in the same unit.
        """
        around = [(before + after) / 2 for before, after in pairwise(references)]
        ratios = [value / reference for value, reference in zip(values, around, strict=True)]
        middle = median(ratios)
        low, high = np.quantile(ratios, [0.25, 0.75])
        return cls(value=min(values), ratio=middle, spread=float(high - low) / middle)


class Yardstick:
    """A reference operation that takes long enough to be timed.

    Args:
        work: The operation.
        unit: Pieces that one call of it processes; times are per piece.
    """

    def __init__(self, work: Callable[[], object], *, unit: int = 1) -> None:
        self._work = work
        self._unit = unit
        work()
        self._calls = max(1, round(_LEAST_SECONDS / max(_seconds(work), 1e-7)))

    def read(self) -> float:
        """Seconds of processor time per piece, now."""

        def often() -> None:
            for _ in range(self._calls):
                self._work()

        return max(_seconds(often), 1e-9) / self._calls / self._unit


class PassRecorder:
    """Times of passes that somebody else runs, each beside references taken right after it.

    Args:
        yardsticks: By name.
    """

    def __init__(self, yardsticks: Mapping[str, Yardstick]) -> None:
        self._yardsticks = yardsticks
        self._references = {name: [yardstick.read()] for name, yardstick in yardsticks.items()}
        self._values: dict[str, list[float]] = {}

    def take(self, figures: Mapping[str, float]) -> None:
        """The figures of a pass that has just ended, in seconds per piece."""
        for name, value in figures.items():
            self._values.setdefault(name, []).append(value)
        for name, yardstick in self._yardsticks.items():
            self._references[name].append(yardstick.read())

    def beside(self, figure: str, yardstick: str) -> Paired:
        """One figure beside one reference."""
        return Paired.of(self._values[figure], self._references[yardstick])


def paired(work: Callable[[], object], reference: Yardstick, *, repeats: int, unit: int = 1) -> Paired:
    """Time some work beside a reference, in turns, after one pass that does not count.

    Args:
        work: What is measured.
        reference: What it is compared with.
        repeats: Passes.
        unit: Pieces that one call processes; the time is in seconds per piece.
    """
    own = Yardstick(work, unit=unit)
    references, values = [reference.read()], []
    for _ in range(repeats):
        values.append(own.read())
        references.append(reference.read())
    return Paired.of(values, references)


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
