"""Published recipes without a guarantee, kept for comparison. Their event is `NonPrivate`; no ε is printed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfl.dp.events import NonPrivate
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed

__all__ = ["PercentileLaplace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileLaplace:
    """ADP-FL as the paper reads (arXiv 2604.06518): sparsify, clip at a percentile, add Laplace noise.

    The clip threshold is a percentile of the very update that it clips, without noise; the sparsity pattern is
    released exactly; and one coordinate's noise is scaled to one coordinate's bound although all coordinates
    change together. None of this is differentially private at the stated parameter.

    Attributes:
        keep_fraction: Share of coordinates of largest magnitude that are kept.
        percentile: Of the kept magnitudes, 0 to 100: the threshold.
        stated_epsilon: The paper's parameter; noise has scale threshold/stated_epsilon per coordinate.
    """

    keep_fraction: float = 0.1
    percentile: float = 90.0
    stated_epsilon: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.keep_fraction <= 1 and 0 <= self.percentile <= 100 and self.stated_epsilon > 0):
            raise ConfigError(
                "percentile Laplace: expected a fraction, a percentile and a positive parameter"
            )

    @property
    def event(self) -> NonPrivate:
        """What the ledger writes."""
        return NonPrivate(
            "percentile clip from data without noise, exact sparsity pattern, floating-point Laplace"
        )

    def apply(self, update: NDArray[np.float32], *, seed: ExperimentSeed, label: str) -> NDArray[np.float32]:
        """The noised update, float32, shape ``(d,)``; reproducible from the experiment's seed."""
        values = update.astype(np.float64)
        magnitudes = np.abs(values)
        count = max(1, math.ceil(self.keep_fraction * values.size))
        cut = np.partition(magnitudes, values.size - count)[values.size - count]
        kept = magnitudes >= max(cut, np.finfo(np.float64).tiny)
        if not kept.any():
            return np.zeros_like(update)
        threshold = float(np.percentile(magnitudes[kept], self.percentile))
        noise = seed.generator(label).laplace(0.0, threshold / self.stated_epsilon, int(kept.sum()))
        values[~kept] = 0.0
        values[kept] = np.clip(values[kept], -threshold, threshold) + noise
        return values.astype(np.float32)
