"""What a sum of discrete Gaussians costs, in terms of a continuous Gaussian. Proof: docs/privacy.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from secfl.dp.events import IntegerNoise
from secfl.dp.noise import NoiseFamily
from secfl.errors import UnsupportedEvent

__all__ = ["SMALLEST_SHARE", "GaussianEquivalent", "gaussian_equivalent", "share_sum_remainder"]

SMALLEST_SHARE: Final = 4.0
"""Narrowest share, in grid units, whose sums are accounted as one discrete Gaussian."""

_SMOOTHING_VARIANCE: Final = 4.0  # s**2 with s = 2
_ROUNDING_REMAINDER: Final = 4.1 * math.exp(-2 * math.pi**2 * _SMOOTHING_VARIANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianEquivalent:
    """The mechanism's densities lie within ``exp(±remainder)`` of a post-processed continuous Gaussian.

    Attributes:
        noise_multiplier: z' of that Gaussian.
        remainder: R for one release, over all coordinates; ε grows by at most 2R, δ by a factor e^R.
    """

    noise_multiplier: float
    remainder: float


def share_sum_remainder(share_sigma: float, shares: int) -> float:
    """τ: largest |log ratio| per coordinate of a sum of discrete Gaussians to one of the same total σ.

    ``τ = 10 · Σ_{k=1}^{n-1} exp(-2π² σ_local² k/(k+1))`` with the width of a *single share* (Kairouz, Liu,
    Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
    Aggregation"; proof in docs/privacy.md, "Sums of shares"). With the total σ in its place it is false.
    """
    return 10 * math.fsum(math.exp(-2 * math.pi**2 * share_sigma**2 * k / (k + 1)) for k in range(1, shares))


def gaussian_equivalent(event: IntegerNoise) -> GaussianEquivalent:
    """Account a discrete Gaussian of width σ as the continuous one of variance ``σ² - 4``.

    Raises:
        UnsupportedEvent: Another family, or a share narrower than `SMALLEST_SHARE`.
    """
    if event.family is not NoiseFamily.DISCRETE_GAUSSIAN:
        raise UnsupportedEvent(f"{event.family}: has no Gaussian equivalent")
    if event.smallest_share < SMALLEST_SHARE:
        raise UnsupportedEvent(
            f"discrete Gaussian shares of {event.smallest_share:g} grid units: at least {SMALLEST_SHARE:g} "
            "are needed; use a finer grid"
        )
    variance = event.sigma**2 - _SMOOTHING_VARIANCE
    tau = share_sum_remainder(event.smallest_share, event.shares)
    return GaussianEquivalent(
        noise_multiplier=math.sqrt(variance) / event.sensitivity * (1 - 1e-15),
        remainder=event.dimension * (_ROUNDING_REMAINDER + tau),
    )
