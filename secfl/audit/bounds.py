"""From counts to ε: bounds that hold for every mechanism, and one estimate that assumes a Gaussian.

Clopper and Pearson 1934 for error rates, hence ε >= log((p - δ)/q) for any event (Kairouz, Oh, Viswanath 2015;
Jagielski, Ullman, Oprea 2020); Steinke, Nasr, Jagielski 2023 ("Privacy auditing with one (1) training run",
Theorem 5.2) for many guesses in one run; Dong, Roth, Su 2022 for Gaussian differential privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfl.dp.analytic import analytic_gaussian_delta, analytic_gaussian_epsilon
from secfl.errors import ConfigError

__all__ = [
    "GaussianEstimate",
    "clopper_pearson",
    "epsilon_of_rates",
    "epsilon_of_separation",
    "gaussian_estimate",
    "largest_provable_epsilon",
    "one_run_epsilon",
    "one_run_p_value",
    "separation_of_epsilon",
]


def clopper_pearson(
    successes: NDArray[np.int64] | int, trials: int, *, level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One-sided lower and upper limits of a probability; each is wrong with probability at most ``level``."""
    from scipy.stats import beta

    count = np.asarray(successes, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        low = np.where(count <= 0, 0.0, beta.ppf(level, count, trials - count + 1))
        high = np.where(count >= trials, 1.0, beta.ppf(1 - level, count + 1, trials - count))
    return low, high


def epsilon_of_rates(
    hits: NDArray[np.int64] | int,
    other_hits: NDArray[np.int64] | int,
    *,
    trials: int,
    delta: float,
    level: float,
) -> NDArray[np.float64]:
    """Lower bound of ε from how often one event happened under two neighbours.

    ``P(E) <= e^ε·Q(E) + δ`` gives ``ε >= log((p - δ)/q)`` with the lower limit of p and the upper limit of q, each
    at half the level. Arrays give one bound each; whoever takes their largest must split the level or the draws.

    Args:
        hits: How often the event happened with the first neighbour.
        other_hits: The same with the second.
        trials: Independent draws of each.
        delta: δ of the claim.
        level: Probability that one bound is too large, at most.
    """
    low, _ = clopper_pearson(hits, trials, level=level / 2)
    _, high = clopper_pearson(other_hits, trials, level=level / 2)
    excess = np.maximum(low - delta, 0.0)
    with np.errstate(divide="ignore"):
        bound: NDArray[np.float64] = np.maximum(0.0, np.log(excess) - np.log(high))
    return bound


def largest_provable_epsilon(trials: int, *, delta: float, level: float) -> float:
    """The bound when the event always happens with one neighbour and never with the other."""
    return float(epsilon_of_rates(trials, 0, trials=trials, delta=delta, level=level))


def epsilon_of_separation(separation: float, *, delta: float) -> float:
    """ε at δ of telling N(0, 1) from N(µ, 1), µ = ``separation``."""
    return 0.0 if separation <= 0 else analytic_gaussian_epsilon(delta, 1 / separation)


def separation_of_epsilon(epsilon: float, *, delta: float) -> float:
    """µ whose ε at δ is ``epsilon``; the inverse of `epsilon_of_separation`, by bisection."""
    low, high = 0.0, 1.0
    while analytic_gaussian_delta(epsilon, 1 / high) <= delta:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if analytic_gaussian_delta(epsilon, 1 / middle) <= delta else (low, middle)
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianEstimate:
    """How far apart two samples of scores are, read as Gaussian differential privacy.

    Attributes:
        separation: µ, difference of the means over the pooled standard deviation.
        lower: Its lower confidence limit.
        confidence: Of that limit, one-sided.
        epsilon: ε at δ of `lower`.
        epsilon_central: ε at δ of `separation`.
    """

    separation: float
    lower: float
    confidence: float
    epsilon: float
    epsilon_central: float


def gaussian_estimate(
    present: NDArray[np.float64], absent: NDArray[np.float64], *, delta: float, confidence: float = 0.95
) -> GaussianEstimate:
    """Estimate of µ and ε from scores with and without a canary; right only where scores are nearly Gaussian.

    The standard error of ``µ̂ = (m1 - m0)/s`` is ``sqrt(1/n1 + 1/n0 + µ²/(2(n1 + n0)))`` (Hedges and Olkin 1985).

    Raises:
        ConfigError: Fewer than two scores on a side, or δ is zero.
    """
    from scipy.stats import norm

    if min(present.size, absent.size) < 2:
        raise ConfigError("gaussian estimate: expected at least two scores on each side")
    if not 0 < delta < 1:
        raise ConfigError("gaussian estimate: expected δ above 0 and below 1")
    pooled = math.sqrt(
        ((present.size - 1) * present.var(ddof=1) + (absent.size - 1) * absent.var(ddof=1))
        / (present.size + absent.size - 2)
    )
    difference = float(present.mean() - absent.mean())
    certain = 0.0 if difference <= 0 else 1e3  # no spread at all: told apart with certainty, or not at all
    separation = difference / pooled if pooled > 0 else certain
    error = math.sqrt(1 / present.size + 1 / absent.size + separation**2 / (2 * (present.size + absent.size)))
    lower = separation - float(norm.ppf(confidence)) * error
    return GaussianEstimate(
        separation=separation,
        lower=lower,
        confidence=confidence,
        epsilon=epsilon_of_separation(lower, delta=delta),
        epsilon_central=epsilon_of_separation(separation, delta=delta),
    )


def one_run_p_value(epsilon: float, *, correct: int, guesses: int, canaries: int, delta: float) -> float:
    """Probability that an (ε, δ) mechanism lets ``correct`` or more of ``guesses`` be right, at most.

    ``P[Bin(r, q') >= v] + 2mδ·max_i P[v - i <= Bin(r, q') < v]/i`` with ``q' = e^ε/(1 + e^ε)``: v right of r
    guesses about m canaries, each in by a fair coin (Steinke, Nasr, Jagielski 2023).
    """
    from scipy.stats import binom

    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
    largest = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2 * canaries * delta * largest)


def one_run_epsilon(*, correct: int, guesses: int, canaries: int, delta: float, level: float = 0.05) -> float:
    """Lower bound of ε from one run: the largest ε that ``level`` rejects.

    Args:
        correct: v, guesses that were right.
        guesses: r, fixed before the run.
        canaries: m, each in by a fair coin.
        delta: δ of the claim.
        level: Probability that the bound is too large, at most.

    Raises:
        ConfigError: Not 0 <= correct <= guesses <= canaries.
    """

    def rejected(epsilon: float) -> bool:
        value = one_run_p_value(epsilon, correct=correct, guesses=guesses, canaries=canaries, delta=delta)
        return value < level

    if not 0 <= correct <= guesses <= canaries:
        raise ConfigError("one-run bound: expected correct <= guesses <= canaries")
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejected(high) and high < 64:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low
