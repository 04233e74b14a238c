"""Is the noise as wide as promised, and does everybody draw their own?

An auditor who knows the sum without noise (canaries, a simulation, their own data) has the noise itself: every
coordinate of every step is one draw.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from secfl.audit.findings import Finding, from_p_value
from secfl.audit.verdicts import REFUTED_LEVEL
from secfl.errors import ConfigError

__all__ = ["correlation_test", "shortfall_found", "variance_test"]


def variance_test(
    noise: NDArray[np.int64] | NDArray[np.float64],
    sigma: float,
    *,
    excess_kurtosis: float = 0.0,
    level: float = REFUTED_LEVEL,
    name: str = "noise variance",
) -> Finding:
    """One-sided test that noise with known mean zero is at least as wide as ``sigma``.

    ``Σ x²/σ²`` is chi-square with one degree of freedom a draw for Gaussian noise (the discrete Gaussian from σ = 4
    on differs by less than 1e-40); for other noise the degrees of freedom are matched to the fourth moment.

    Args:
        noise: Independent draws.
        sigma: The promised standard deviation, same unit.
        excess_kurtosis: 0 for (discrete) Gaussians, ``1/σ²`` for Skellam noise in grid units.
        level: False-alarm rate.
        name: For the table.

    Raises:
        ConfigError: No draws, or ``sigma`` is not positive.
    """
    from scipy.stats import chi2

    draws = noise.size
    if draws == 0 or sigma <= 0:
        raise ConfigError("variance test: expected draws and a positive σ")
    values = noise.astype(np.float64).ravel()
    if not np.isfinite(values).all():
        return Finding(name=name, flagged=True, statistic="noise that is not finite", level=level)
    factor = 2 / (2 + excess_kurtosis)
    total = float(np.dot(values, values)) / sigma**2
    measured = math.sqrt(total / draws)
    return from_p_value(
        name,
        float(chi2.cdf(total * factor, draws * factor)),
        statistic=f"σ measured/promised = {measured:.4f} in {draws} draws",
        level=level,
        power=f"finds a shortfall of {shortfall_found(draws, level=level):.3f} with 98 %",
    )


def shortfall_found(draws: int, *, level: float = REFUTED_LEVEL, power: float = 0.98) -> float:
    """The factor by which noise must be too narrow for `variance_test` to find it with this power."""
    from scipy.stats import chi2

    return math.sqrt(float(chi2.ppf(power, draws)) / float(chi2.ppf(level, draws)))


def correlation_test(
    one: NDArray[np.int64] | NDArray[np.float64],
    other: NDArray[np.int64] | NDArray[np.float64],
    *,
    level: float = REFUTED_LEVEL,
    name: str = "correlation of two noises",
) -> Finding:
    """Two-sided test that two sequences of noise are uncorrelated: two clients, or two attempts of one.

    Under independence ``r·sqrt((n-2)/(1-r²))`` has Student's distribution for Gaussian noise; with hundreds of
    draws and more it does for any noise with a fourth moment.

    Raises:
        ConfigError: The sequences differ in length, or have fewer than 100 draws.
    """
    from scipy.stats import t

    if one.shape != other.shape or one.size < 100:
        raise ConfigError("correlation test: expected two sequences of the same length, 100 draws or more")
    x, y = (values.astype(np.float64).ravel() for values in (one, other))
    spread = float(x.std() * y.std())
    r = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0 else 1.0
    r = min(1.0, max(-1.0, r))
    freedom = x.size - 2
    p_value = 0.0 if abs(r) == 1 else 2 * float(t.sf(abs(r) * math.sqrt(freedom / (1 - r * r)), freedom))
    least = float(t.isf(level / 2, freedom)) / math.sqrt(freedom)
    return from_p_value(
        name,
        p_value,
        statistic=f"r = {r:.4f} in {x.size} draws",
        level=level,
        power=f"finds a correlation of {least:.3f} with 50 %",
    )
