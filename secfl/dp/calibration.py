"""Searches beside a plan: the least noise that meets a target, and the modulus that a noisy sum needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from secfl.dp.noise import NoiseFamily, noise_tail_bound
from secfl.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from secfl.dp.plan import PrivacyPlan

__all__ = ["LARGEST_MULTIPLIER", "SMALLEST_MULTIPLIER", "least_noise", "modulus_bits"]

LARGEST_MULTIPLIER: Final = 1e5
SMALLEST_MULTIPLIER: Final = 1e-3
_WRAP_BITS: Final = 40


def least_noise(plan: PrivacyPlan, target: float, reached: Callable[[PrivacyPlan], float]) -> PrivacyPlan:
    """The plan with the least noise multiplier (relative 1e-4, by bisection) that meets the target.

    Args:
        plan: Everything but the multiplier.
        target: Largest ε, above 0.
        reached: ε of a plan; must fall as its multiplier grows.

    Raises:
        ConfigError: The target is not a positive number.
        PrivacyError: No multiplier up to 1e5 reaches the target.
    """
    if not (target > 0 and math.isfinite(target)):
        raise ConfigError("epsilon: expected a positive number")

    def at(z: float) -> PrivacyPlan:
        return replace(plan, noise_multiplier=z)

    def meets(z: float) -> bool:
        try:
            return reached(at(z)) <= target
        except ConfigError:  # too little noise for the grid: search above
            return False

    high = max(plan.noise_multiplier, 0.5)
    while not meets(high):
        high *= 2
        if high > LARGEST_MULTIPLIER:
            raise PrivacyError(f"no noise multiplier up to {LARGEST_MULTIPLIER:g} reaches epsilon {target:g}")
    low = high / 2
    while low > SMALLEST_MULTIPLIER and meets(low):
        low, high = low / 2, low
    while high > low * (1 + 1e-4):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if meets(middle) else (middle, high)
    return at(high)


def modulus_bits(
    *,
    signal_bound: int,
    family: NoiseFamily,
    total_sigma: float,
    coordinates: int,
    releases: int,
) -> int:
    """Least b such that the sum fits into ``[-2**(b-1), 2**(b-1))`` except with probability 2^-40 per run.

    Args:
        signal_bound: Public bound of one coordinate's sum without noise, over all clients, grid units.
        family: Noise family.
        total_sigma: Width of all clients' noise together, grid units; 0 without noise.
        coordinates: d.
        releases: T; the union is over d·T draws.
    """
    noise = 0
    if total_sigma > 0:
        log2_probability = -_WRAP_BITS - math.log2(coordinates) - math.log2(releases)
        noise = noise_tail_bound(family, total_sigma, log2_probability=log2_probability)
    return (signal_bound + noise).bit_length() + 1
