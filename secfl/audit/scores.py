"""Scores of canaries, what they are worth, and what they should be worth.

The score of a canary in one view is the log-likelihood ratio of its projections over all steps,

    L_j = Σ_t log(1 - q + q·exp((x_tj - 1/2)/z²)),

the best test between "in, sampled with rate q" and "out" under Gaussian noise of multiplier z. A linear score Σ x_t
loses most of the power under sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.bounds import gaussian_estimate, one_run_epsilon
from secfl.randomness import ExperimentSeed

__all__ = ["ExpectedPower", "Power", "best_guesses", "expected_power", "guess", "llr_step", "power_of"]

_CONFIDENCE = 0.95
_REPETITIONS = 24


def llr_step(
    projections: NDArray[np.float64], *, rate: float, multiplier: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """One step's part of the score, float64, same shape as ``projections``.

    Args:
        projections: x, 1 in the mean when the canary was sampled, else 0.
        rate: q.
        multiplier: z of this view: standard deviation of x.
    """
    exponent = (projections - 0.5) / np.square(multiplier)
    if rate == 1:
        return exponent
    return np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What scores show.

    Attributes:
        gdp: ε of the Gaussian estimate's lower limit (confidence 0.95): tight, but assumes Gaussian scores.
        gdp_central: ε of the estimate itself.
        one_run: Steinke et al.'s bound from the committed guesses: holds for every mechanism.
        correct: v, right guesses.
        guesses: r, guesses made.
        canaries: m.
    """

    gdp: float
    gdp_central: float
    one_run: float
    correct: int
    guesses: int
    canaries: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "gdp_epsilon": self.gdp,
            "gdp_epsilon_central": self.gdp_central,
            "one_run_epsilon": self.one_run,
            "correct": self.correct,
            "guesses": self.guesses,
            "canaries": self.canaries,
        }


def guess(scores: NDArray[np.float64], guesses: int) -> NDArray[np.int8]:
    """1 for the ``guesses/2`` largest scores (in), -1 for as many of the smallest (out), 0 for the others."""
    order = np.argsort(scores, kind="stable")
    made = np.zeros(scores.size, dtype=np.int8)
    half = guesses // 2
    made[order[:half]] = -1
    made[order[scores.size - half :]] = 1
    return made


def power_of(
    scores: NDArray[np.float64],
    present: NDArray[np.bool_],
    *,
    guesses: int,
    delta: float,
    level: float = 0.05,
) -> Power:
    """Both figures for one view's scores.

    Args:
        scores: One per canary.
        present: The coins.
        guesses: r, committed before.
        delta: δ.
        level: Of the one-run bound.
    """
    estimate = gaussian_estimate(scores[present], scores[~present], delta=delta, confidence=_CONFIDENCE)
    made = guess(scores, guesses)
    correct = int(((made == 1) & present).sum() + ((made == -1) & ~present).sum())
    bound = one_run_epsilon(correct=correct, guesses=guesses, canaries=scores.size, delta=delta, level=level)
    return Power(
        gdp=estimate.epsilon,
        gdp_central=estimate.epsilon_central,
        one_run=bound,
        correct=correct,
        guesses=guesses,
        canaries=scores.size,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedPower:
    """Mean and spread of `Power` in simulated runs with the run's own q, T, z and m."""

    gdp: float
    gdp_spread: float
    one_run: float
    one_run_spread: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "gdp_epsilon": self.gdp,
            "gdp_spread": self.gdp_spread,
            "one_run_epsilon": self.one_run,
            "one_run_spread": self.one_run_spread,
        }


def simulated_scores(
    *, rate: float, steps: int, multiplier: float, canaries: int, seed: int, shortfall: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of one imagined run with continuous noise: no training, no code of ours.

    Args:
        rate: q.
        steps: T.
        multiplier: z of the view, which the score believes.
        canaries: m.
        seed: Of the imagination.
        shortfall: The noise is narrower than ``multiplier`` by this factor.
    """
    source = ExperimentSeed(seed).generator(f"canary-power/{rate}/{steps}/{multiplier}/{shortfall}")
    present = source.integers(0, 2, canaries).astype(np.bool_)
    scores = np.zeros(canaries)
    for _ in range(steps):
        sampled = present & (source.random(canaries) < rate)
        x = sampled + multiplier / shortfall * source.standard_normal(canaries)
        scores += llr_step(x, rate=rate, multiplier=multiplier)
    return scores, present


@lru_cache(maxsize=256)
def expected_power(
    *,
    rate: float,
    steps: int,
    multiplier: float,
    canaries: int,
    guesses: int,
    delta: float,
    level: float = 0.05,
    shortfall: float = 1.0,
    repetitions: int = _REPETITIONS,
) -> ExpectedPower:
    """What an honest run (or one whose noise falls short) should show; see `simulated_scores`.

    A pure function of its arguments, so results are kept.
    """
    found = []
    for seed in range(repetitions):
        scores, present = simulated_scores(
            rate=rate,
            steps=steps,
            multiplier=multiplier,
            canaries=canaries,
            seed=seed,
            shortfall=shortfall,
        )
        power = power_of(scores, present, guesses=guesses, delta=delta, level=level)
        found.append((power.gdp, power.one_run))
    table = np.array(found)
    mean, spread = table.mean(axis=0), table.std(axis=0, ddof=1)
    return ExpectedPower(
        gdp=float(mean[0]),
        gdp_spread=float(spread[0]),
        one_run=float(mean[1]),
        one_run_spread=float(spread[1]),
    )


def best_guesses(*, rate: float, steps: int, multiplier: float, canaries: int, delta: float) -> int:
    """The number of guesses with the largest expected one-run bound, from simulations, before the run."""
    runs = [
        simulated_scores(rate=rate, steps=steps, multiplier=multiplier, canaries=canaries, seed=seed)
        for seed in range(6)
    ]
    sizes = sorted(
        {2 * max(1, round(canaries * share / 2)) for share in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)}
    )
    sizes = [size for size in sizes if size <= canaries]

    def worth(size: int) -> float:
        return float(
            np.mean(
                [power_of(scores, present, guesses=size, delta=delta).one_run for scores, present in runs]
            )
        )

    chooser: Callable[[int], float] = worth
    return max(sizes, key=chooser)
