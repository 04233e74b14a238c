"""Rényi differential privacy at integer orders, computed here and not by a library.

It is the accountant of the integer mechanisms that no library knows, the budget curve of the filters, and the
second opinion on the Gaussian ones (it must never fall below the tighter PLD figure, and must agree with
dp-accounting's RDP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfl.dp.events import DpEvent, Gaussian, IntegerNoise, Leaf, NonPrivate, ZeroConcentrated, leaves
from secfl.dp.integer import gaussian_equivalent
from secfl.dp.noise import NoiseFamily
from secfl.errors import ConfigError, UnsupportedEvent

__all__ = [
    "LARGEST_ORDER",
    "ORDERS",
    "curve_of_leaves",
    "linear_slope",
    "linear_to_epsilon",
    "rdp_curve",
    "rdp_of_leaf",
    "rdp_to_epsilon",
]

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


@lru_cache(maxsize=LARGEST_ORDER)
def _log_binomials(order: int) -> NDArray[np.float64]:
    """Logarithms of C(α, j) for j = 0 .. α."""
    logs = np.array([math.lgamma(j + 1) for j in range(order + 1)])
    result: NDArray[np.float64] = logs[order] - logs - logs[::-1]
    result.setflags(write=False)
    return result


def _plain(mechanisms: Sequence[_Mechanism], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rényi divergences without sampling, shape (mechanisms, orders)."""
    linear = np.array([mechanism.linear for mechanism in mechanisms])[:, None]
    skellam = np.array([mechanism.skellam for mechanism in mechanisms])
    quadratic, constant, cap = skellam[:, 0:1], skellam[:, 1:2], skellam[:, 2:3]
    divergence: NDArray[np.float64] = order * linear + np.minimum(quadratic * (2 * order - 1) + constant, cap)
    return divergence


@dataclass(frozen=True, slots=True)
class _Mechanism:
    """Divergence of order α: ``α·linear + min(a(2α-1) + b, c)``, densities off by at most e^±remainder.

    Gaussian: 1/(2z²) (Mironov 2017, Corollary 3). zCDP: ρ (Bun and Steinke 2016, Definition 1.1). Skellam, µ
    the variance of the sum: Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism", section 3, with
    ``Δ1 <= min(sqrt(d)·Δ2, Δ2²)`` because integers are at most their squares.
    """

    linear: float
    skellam: tuple[float, float, float] = (0.0, 0.0, 0.0)
    remainder: float = 0.0


def _mechanism(leaf: Leaf) -> _Mechanism:
    match leaf.mechanism:
        case NonPrivate():
            return _Mechanism(math.inf)
        case ZeroConcentrated(rho=rho):
            if leaf.sampling_probability < 1:  # `leaves` refuses that, but a leaf can be made by hand
                raise UnsupportedEvent("zCDP under sampling loses the amplification; use RDP or PLD")
            return _Mechanism(rho)
        case Gaussian(noise_multiplier=z):
            return _Mechanism(1 / (2 * z * z))
        case IntegerNoise(family=NoiseFamily.DISCRETE_GAUSSIAN) as noise:
            equivalent = gaussian_equivalent(noise)
            return _Mechanism(1 / (2 * equivalent.noise_multiplier**2), remainder=equivalent.remainder)
        case IntegerNoise() as noise:
            variance = noise.sigma**2
            l2 = float(noise.sensitivity)
            l1 = min(math.sqrt(noise.dimension) * l2, l2 * l2)
            terms = (l2 * l2 / (4 * variance**2), 6 * l1 / (4 * variance**2), 3 * l1 / (2 * variance))
            return _Mechanism(l2 * l2 / (2 * variance), skellam=terms)


_CHUNK: Final = 512


def _divergences(leaves_: Sequence[Leaf], order: int) -> NDArray[np.float64]:
    """Rényi divergence bounds of order α for several mechanisms with their Poisson sampling."""
    if len(leaves_) > _CHUNK:
        parts = [leaves_[start : start + _CHUNK] for start in range(0, len(leaves_), _CHUNK)]
        return np.concatenate([_divergences(part, order) for part in parts])
    mechanisms = [_mechanism(leaf) for leaf in leaves_]
    rates = np.array([leaf.sampling_probability for leaf in leaves_])
    # Densities within e^±R of the ideal ones: D_α grows by at most (α + α - 1)/(α - 1) · R.
    remainders = np.array([m.remainder for m in mechanisms]) * ((2 * order - 1) / (order - 1))
    result = _plain(mechanisms, np.array([order]))[:, 0]
    sampled = np.flatnonzero((rates < 1) & np.isfinite(result))
    if sampled.size:
        j = np.arange(2, order + 1)
        log_rate = np.log(rates[sampled])[:, None]
        log_rest = np.log1p(-rates[sampled])[:, None]
        plain = _plain([mechanisms[index] for index in sampled], j)
        terms = np.concatenate(
            [
                (order - 1) * log_rest + np.log1p((order - 1) * rates[sampled])[:, None],
                _log_binomials(order)[2:] + (order - j) * log_rest + j * log_rate + (j - 1) * plain,
            ],
            axis=1,
        )
        top = terms.max(axis=1)
        logarithm = top + np.log(np.exp(np.maximum(terms - top[:, None], -700.0)).sum(axis=1))
        # The sum is at least 1; rounding must not make the divergence negative.
        result[sampled] = np.maximum(logarithm, 0.0) / (order - 1)
    return result + remainders


def rdp_of_leaf(leaf: Leaf, order: int) -> float:
    """Rényi divergence bound of order α for one mechanism with its Poisson sampling.

    Without sampling as in `_Mechanism`; the discrete Gaussian through its Gaussian equivalent plus the pure
    remainder (docs/privacy.md). With sampling, for add/remove neighbours,

        ε_α <= 1/(α-1) · log[(1-q)^(α-1) (1+(α-1)q) + Σ_{j=2..α} C(α,j) (1-q)^(α-j) q^j e^((j-1) ε_j)],

    which is exact for the Gaussian (Mironov, Talwar, Zhang 2019, section 3.3) and a bound for the other noises
    here: for removal it is the binomial expansion (Steinke 2022, "Composition of Differential Privacy & Privacy
    Amplification by Subsampling"), and addition costs no more because the noise is symmetric (Mironov, Talwar,
    Zhang 2019, section 3.1). Without symmetry the general bound has a factor 3 (Zhu and Wang 2019).

    Raises:
        ConfigError: The order is not an integer from 2 to `LARGEST_ORDER`.
        UnsupportedEvent: zCDP under sampling.
    """
    _check_order(order)
    return float(_divergences([leaf], order)[0])


def rdp_curve(event: DpEvent, orders: Sequence[int] = ORDERS) -> dict[int, float]:
    """Rényi divergence bound of a whole event at each order; composition adds (Mironov 2017, Prop. 1)."""
    return curve_of_leaves(leaves(event), orders)


def curve_of_leaves(counts: Mapping[Leaf, int], orders: Sequence[int] = ORDERS) -> dict[int, float]:
    """The same from a multiset of mechanisms.

    Raises:
        ConfigError: As `rdp_of_leaf`.
        UnsupportedEvent: zCDP under sampling.
    """
    return dict(_curve(tuple(counts.items()), tuple(orders)))


@lru_cache(maxsize=64)
def _curve(counts: tuple[tuple[Leaf, int], ...], orders: tuple[int, ...]) -> dict[int, float]:
    """Pure, so results are kept: several accountants ask for the same curve."""
    keys = [leaf for leaf, _ in counts]
    multiplicity = np.array([count for _, count in counts], dtype=np.float64)
    curve = {}
    for order in orders:
        _check_order(order)
        curve[order] = float(np.sum(multiplicity * _divergences(keys, order))) if keys else 0.0
    return curve


def linear_slope(counts: Mapping[Leaf, int]) -> float | None:
    """ρ when the whole curve is ρ·α at every real order: Gaussians and zCDP without sampling or remainder."""
    slope = 0.0
    for leaf, count in counts.items():
        mechanism = _mechanism(leaf)
        if leaf.sampling_probability < 1 or any(mechanism.skellam) or mechanism.remainder:
            return None
        slope += count * mechanism.linear
    return slope


def linear_to_epsilon(slope: float, delta: float) -> float:
    """ε at δ from the curve ρ·α, the order chosen among all real ones above 1 (as `rdp_to_epsilon`)."""
    # The bound is unimodal in log(α - 1); the optimum lies near sqrt(log(1/δ)/ρ).
    centre = 0.5 * math.log(-math.log(delta) / slope)

    def at(logarithm: float) -> float:
        order = 1 + math.exp(logarithm)
        return slope * order + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)

    low, high = centre - 6, centre + 6
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if at(left) <= at(right) else (left, high)
    return max(0.0, at(low))


def rdp_to_epsilon(curve: Mapping[int, float], delta: float) -> float:
    """ε at δ from a Rényi curve: Canonne, Kamath and Steinke 2020, Proposition 12.

    ``ε = D_α + log(1 - 1/α) - (log δ + log α)/(α - 1)``. Every order gives a valid bound, so the least is taken.

    Raises:
        ConfigError: δ is not above 0 and below 1.
    """
    if not 0 < delta < 1:
        raise ConfigError("delta: expected above 0 and below 1")
    best = math.inf
    for order, divergence in curve.items():
        _check_order(order)
        candidate = divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, candidate)
    return max(0.0, best)
