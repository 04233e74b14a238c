"""Two arms on the same tasks and seeds: Wilcoxon's signed-rank test, its effect size, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

__all__ = ["LEVEL", "Comparison", "Pair", "compare", "holm"]

LEVEL = 0.05

Pair = tuple[str, int]
"""A task and a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What pairs tell.

    Attributes:
        pairs: How many.
        better: In how many the first arm is better.
        equal: In how many both are the same.
        mean: Mean difference, first arm less second.
        median: Median difference.
        p: Two-sided, of Wilcoxon's signed-rank test: that differences lie around 0.
        effect: Matched-pairs rank-biserial correlation, from -1 (always worse) to 1 (always better).
    """

    pairs: int
    better: int
    equal: int
    mean: float
    median: float
    p: float
    effect: float

    @property
    def verdict(self) -> str:
        """In words."""
        if self.p >= LEVEL:
            return "no significant difference"
        return "better" if self.effect > 0 else "worse"

    def as_note(self) -> str:
        """For a table."""
        return (
            f"{self.verdict}: Wilcoxon p = {self.p:.2g} over {self.pairs} pairs, rank-biserial r = {self.effect:.2f}, "
            f"better in {self.better}, equal in {self.equal}, median {self.median:+.3f}"
        )


def compare(first: Mapping[Pair, float], second: Mapping[Pair, float]) -> Comparison:
    """Compare two arms pair by pair; pairs without a difference are left out of ranks, as Wilcoxon did.

    Raises:
        ValueError: The arms have different pairs, or none.
    """
    if set(first) != set(second) or not first:
        raise ValueError("expected both arms on the same tasks and seeds")
    from scipy.stats import rankdata, wilcoxon

    differences = [first[pair] - second[pair] for pair in sorted(first)]
    unequal = [value for value in differences if value]
    if not unequal:
        return Comparison(
            pairs=len(differences), better=0, equal=len(differences), mean=0.0, median=0.0, p=1.0, effect=0.0
        )
    ranks = rankdata([abs(value) for value in unequal])
    up = sum(rank for rank, value in zip(ranks, unequal, strict=True) if value > 0)
    down = sum(rank for rank, value in zip(ranks, unequal, strict=True) if value < 0)
    return Comparison(
        pairs=len(differences),
        better=sum(value > 0 for value in differences),
        equal=len(differences) - len(unequal),
        mean=fmean(differences),
        median=median(differences),
        p=float(wilcoxon(unequal).pvalue),
        effect=float((up - down) / (up + down)),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected by Holm's method, in the same order."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    corrected = [0.0] * len(values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected
