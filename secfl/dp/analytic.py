"""The Gaussian mechanism without sampling, exactly (Balle and Wang 2018, Theorem 8). No FFT, no grid."""

from __future__ import annotations

import math

from secfl.errors import ConfigError

__all__ = ["analytic_gaussian_delta", "analytic_gaussian_epsilon", "log_normal_cdf"]


def log_normal_cdf(x: float) -> float:
    """Log of the standard normal distribution function, also far in the left tail."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    # Asymptotic series of Mills' ratio; at x < -30 the next term is below 1e-12 of the first.
    square = x * x
    series = 1 - 1 / square + 3 / square**2 - 15 / square**3 + 105 / square**4
    return -square / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)


def analytic_gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """δ(ε) of one Gaussian release: Φ(1/(2z) - εz) - e^ε Φ(-1/(2z) - εz)."""
    mean = 1 / noise_multiplier
    first = log_normal_cdf(mean / 2 - epsilon / mean)
    second = epsilon + log_normal_cdf(-mean / 2 - epsilon / mean)
    if second >= first:  # both below the smallest double
        return 0.0
    return math.exp(first) * -math.expm1(second - first)


def analytic_gaussian_epsilon(delta: float, noise_multiplier: float) -> float:
    """Smallest ε with δ(ε) <= ``delta``, rounded up (relative 1e-12).

    T full-participation releases with multipliers z_t are one release with ``(Σ z_t**-2)**-0.5``.

    Raises:
        ConfigError: δ is not above 0 and below 1.
    """
    if not 0 < delta < 1:
        raise ConfigError("delta: expected above 0 and below 1")
    if analytic_gaussian_delta(0.0, noise_multiplier) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while analytic_gaussian_delta(high, noise_multiplier) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if analytic_gaussian_delta(middle, noise_multiplier) > delta:
            low = middle
        else:
            high = middle
    return high
