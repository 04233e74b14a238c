"""Are patients sampled as the accounting says: each on its own, in secret, at the stated rate?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from secfl.audit.findings import Finding, from_p_value
from secfl.audit.verdicts import REFUTED_LEVEL
from secfl.errors import ConfigError

__all__ = ["batch_size_test", "inclusion_test", "membership_matrix", "repetition_test"]


def membership_matrix(batches: list[NDArray[np.intp]], population: int) -> NDArray[np.bool_]:
    """Batches as a table: shape ``(steps, population)``."""
    table = np.zeros((len(batches), population), dtype=np.bool_)
    for step, chosen in enumerate(batches):
        table[step, chosen] = True
    return table


def batch_size_test(
    table: NDArray[np.bool_], rate: float, *, level: float = REFUTED_LEVEL, name: str = "batch sizes"
) -> Finding:
    """Two-sided dispersion test: Poisson-sampled batches have sizes that vary like Binomial(N, q).

    ``Σ (b - Nq)²/(Nq(1-q))`` against chi-square with degrees of freedom matched to the binomial's fourth moment.
    Fixed sizes (shuffling, drawing without replacement) have dispersion near zero; a wrong rate has a large one.

    Raises:
        ConfigError: Too few steps or patients for the test to hold its false-alarm rate.
    """
    from scipy.stats import chi2

    steps, population = table.shape
    variance = population * rate * (1 - rate)
    if not 0 < rate < 1 or variance < 5 or steps < 20:
        raise ConfigError("batch size test: expected a rate below 1, 20 steps and N·q·(1-q) of 5 or more")
    sizes = table.sum(axis=1)
    total = float(((sizes - population * rate) ** 2).sum()) / variance
    excess = (1 - 6 * rate * (1 - rate)) / variance
    factor = 2 / (2 + excess)
    tail = min(
        float(chi2.cdf(total * factor, steps * factor)), float(chi2.sf(total * factor, steps * factor))
    )
    return from_p_value(
        name,
        min(1.0, 2 * tail),
        statistic=f"dispersion {total / steps:.3f} (1 expected) over {steps} steps",
        level=level,
    )


def inclusion_test(
    table: NDArray[np.bool_], rate: float, *, level: float = REFUTED_LEVEL, name: str = "inclusions"
) -> Finding:
    """Exact test: in windows of 1/q steps, how often does a patient take part exactly once?

    Independent sampling gives ``K·q·(1-q)^(K-1)``, about 0.37; an epoch of shuffled batches gives 1.

    Raises:
        ConfigError: Fewer steps than one window.
    """
    from scipy.stats import binomtest

    window = max(2, round(1 / rate))
    steps, population = table.shape
    windows = steps // window
    if windows < 1:
        raise ConfigError(f"inclusion test: expected at least {window} steps")
    counts = table[: windows * window].reshape(windows, window, population).sum(axis=1)
    once = int((counts == 1).sum())
    chance = window * rate * (1 - rate) ** (window - 1)
    return from_p_value(
        name,
        float(binomtest(once, counts.size, chance).pvalue),
        statistic=f"exactly once in {once / counts.size:.3f} of {counts.size} windows ({chance:.3f} expected)",
        level=level,
    )


def repetition_test(
    start: Callable[[], NDArray[np.bool_]],
    rate: float,
    *,
    level: float = REFUTED_LEVEL,
    name: str = "sampling repeats after a restart",
) -> Finding:
    """Exact test: start the sampler twice, as an adversary who knows the configuration would; do batches agree?

    Independent secret schedules agree on a patient and step with probability ``q² + (1-q)²``.

    Args:
        start: Starts the sampler afresh from its public configuration and gives its membership table.
        rate: q.
        level: False-alarm rate.
        name: For the table.
    """
    from scipy.stats import binom

    one, other = start(), start()
    agree = int((one == other).sum())
    chance = rate**2 + (1 - rate) ** 2
    return from_p_value(
        name,
        float(binom.sf(agree - 1, one.size, chance)),
        statistic=f"agreement {agree / one.size:.4f} ({chance:.4f} expected) in {one.size} decisions",
        level=level,
    )
