"""Tail bounds of integer noise, for the width of the modulus. They are bounds, not estimates."""

from __future__ import annotations

import math

__all__ = ["discrete_gaussian_tail", "skellam_tail"]


def discrete_gaussian_tail(variance: float, bits: float) -> float:
    """Bound x with ``P(|X| >= x) <= 2**-bits`` for a sum X of discrete Gaussians, ``variance`` in total.

    The discrete Gaussian is sub-Gaussian with its own σ (Canonne, Kamath, Steinke 2020, "The Discrete
    Gaussian for Differential Privacy"), hence so is a sum of independent ones.
    """
    return math.sqrt(2 * variance * (bits + 1) * math.log(2))


def skellam_tail(variance: float, bits: float) -> float:
    """Bound x with ``P(|X| >= x) <= 2**-bits`` for Skellam noise of this variance, by Chernoff's bound.

    ``P(X >= x) <= exp(variance * (cosh(h) - 1) - h x)``, least at ``h = asinh(x / variance)``.
    """
    wanted = (bits + 1) * math.log(2)

    def exponent(x: float) -> float:
        h = math.asinh(x / variance)
        # cosh(h) - 1 without cancellation for small h
        return h * x - 2 * variance * math.sinh(h / 2) ** 2

    low, high = 0.0, 1.0
    while exponent(high) < wanted:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exponent(middle) < wanted else (low, middle)
    return high
