"""Rényi differential privacy at integer orders, computed here and not by a library.

It is the accountant of the integer mechanisms that no library knows, the budget curve of the filters, and the
second opinion on the Gaussian ones (it must never fall below the tighter PLD figure, and must agree with
dp-accounting's RDP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from secfl.dp.events import DpEvent, Gaussian, IntegerNoise, Leaf, NonPrivate, ZeroConcentrated, leaves
from secfl.dp.integer import gaussian_equivalent
from secfl.dp.noise import NoiseFamily
from secfl.errors import ConfigError, UnsupportedEvent

__all__ = ["LARGEST_ORDER", "ORDERS", "rdp_curve", "rdp_epsilon", "rdp_of_leaf", "rdp_to_epsilon"]

LARGEST_ORDER: Final = 1024
ORDERS: Final[tuple[int, ...]] = (
    *range(2, 33),
    *range(34, 65, 2),
    *range(72, 129, 8),
    160,
    192,
    256,
    384,
    512,
    768,
    1024,
)


def _check_order(order: int) -> None:
    if not 2 <= order <= LARGEST_ORDER:
        raise ConfigError(f"Rényi order {order}: expected an integer from 2 to {LARGEST_ORDER}")


def _log_sum(terms: Sequence[float]) -> float:
    largest = max(terms)
    if math.isinf(largest):
        return largest
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


@lru_cache(maxsize=4096)
def _log_binomials(order: int) -> tuple[float, ...]:
    return tuple(
        math.lgamma(order + 1) - math.lgamma(j + 1) - math.lgamma(order - j + 1) for j in range(order + 1)
    )


def _gaussian(order: int, noise_multiplier: float) -> float:
    """Order/(2z²): Mironov 2017, Corollary 3."""
    return order / (2 * noise_multiplier**2)


def _skellam(order: int, event: IntegerNoise) -> float:
    """Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism", Corollary 3.1; µ is the variance of the sum."""
    variance = event.sigma**2
    l2 = float(event.sensitivity)
    l1 = min(math.sqrt(event.dimension) * l2, l2 * l2)
    extra = min(
        ((2 * order - 1) * l2 * l2 + 6 * l1) / (4 * variance * variance),
        3 * l1 / (2 * variance),
    )
    return order * l2 * l2 / (2 * variance) + extra


@lru_cache(maxsize=65536)
def rdp_of_leaf(leaf: Leaf, order: int) -> float:
    """Rényi divergence bound of order α for one mechanism with its Poisson sampling.

    Without sampling: Gaussian α/(2z²); Skellam as in Agarwal et al. 2021; the discrete Gaussian through its
    Gaussian equivalent plus the pure remainder (docs/privacy.md). With sampling, for add/remove neighbours,

        ε_α <= 1/(α-1) · log[(1-q)^(α-1) (1+(α-1)q) + Σ_{j=2..α} C(α,j) (1-q)^(α-j) q^j e^((j-1) ε_j)],

    which is exact for the Gaussian (Mironov, Talwar, Zhang 2019, section 3.3) and a bound for every mechanism
    whose divergences are known in both directions (Zhu and Wang 2019; Steinke 2022, Theorem 38).

    Raises:
        ConfigError: The order is not an integer from 2 to `LARGEST_ORDER`.
        UnsupportedEvent: zCDP under sampling.
    """
    _check_order(order)
    mechanism, rate = leaf.mechanism, leaf.sampling_probability
    remainder = 0.0
    match mechanism:
        case NonPrivate():
            return math.inf
        case ZeroConcentrated(rho=rho):
            if rate < 1:
                raise UnsupportedEvent("zCDP under sampling loses the amplification; use RDP or PLD")
            return order * rho
        case IntegerNoise(family=NoiseFamily.DISCRETE_GAUSSIAN):
            equivalent = gaussian_equivalent(mechanism)
            multiplier, remainder = equivalent.noise_multiplier, equivalent.remainder
        case Gaussian(noise_multiplier=multiplier):
            pass
        case IntegerNoise():
            multiplier = 0.0
    skellam = mechanism if isinstance(mechanism, IntegerNoise) and multiplier == 0.0 else None

    def plain(j: int) -> float:
        return _gaussian(j, multiplier) if skellam is None else _skellam(j, skellam)

    # Densities within e^±R of the Gaussian ones: D_α grows by at most (α + α - 1)/(α - 1) · R.
    remainder *= (2 * order - 1) / (order - 1)
    if rate == 1:
        return plain(order) + remainder
    binomials = _log_binomials(order)
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    terms = [(order - 1) * log_rest + math.log1p((order - 1) * rate)]
    terms += [
        binomials[j] + (order - j) * log_rest + j * log_rate + (j - 1) * plain(j) for j in range(2, order + 1)
    ]
    # The sum is at least 1; rounding must not make the divergence negative.
    return max(0.0, _log_sum(terms)) / (order - 1) + remainder


def rdp_curve(event: DpEvent, orders: Sequence[int] = ORDERS) -> dict[int, float]:
    """Rényi divergence bound of a whole event at each order; composition adds (Mironov 2017, Prop. 1)."""
    counts = leaves(event)
    return {
        order: math.fsum(count * rdp_of_leaf(leaf, order) for leaf, count in counts.items())
        for order in orders
    }


def rdp_to_epsilon(curve: Mapping[int, float], delta: float) -> float:
    """ε at δ from a Rényi curve: Canonne, Kamath and Steinke 2020, Proposition 12; Balle et al. 2020.

    Every order gives a valid bound, so the least is taken.
    """
    if not 0 < delta < 1:
        raise ConfigError("delta: expected above 0 and below 1")
    best = math.inf
    for order, divergence in curve.items():
        _check_order(order)
        candidate = divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, candidate)
    return max(0.0, best)


def rdp_epsilon(event: DpEvent, *, delta: float, orders: Sequence[int] = ORDERS) -> float:
    """ε at δ by Rényi accounting, before the sampler's error (see `secfl.dp.accounting.epsilon`)."""
    return rdp_to_epsilon(rdp_curve(event, orders), delta)
