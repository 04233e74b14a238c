"""Privacy loss distributions of (Poisson-sampled) Gaussians, composed by one FFT. NumPy alone.

Every rounding goes to the pessimistic side: "connect the dots" (Doroshenko, Ghazi, Kamath, Kumar, Manurangsi
2022) splits the mass between two grid points so that both measures keep their mass, cut tails count as infinite
loss, and the rounding errors of the FFT are bounded and added to δ. The result agrees with dp-accounting's
PLD (tests) and is an order of magnitude faster to load, which a verifier notices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfl.errors import UnsupportedEvent

__all__ = ["ComposedLoss", "compose_gaussians"]

_TAIL: Final = 1e-22  # mass of one distribution's tail that is moved to infinite loss
_WRAP: Final = 1e-18  # mass that may leave the circle of the FFT
_FINEST: Final = 2.0**-26
_COARSEST: Final = 2.0**-11  # about 5e-4
_MOST_POINTS: Final = 1 << 22
_FAR: Final = 40.0


def _upper(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - Φ(x)."""
    return 0.5 * np.array([math.erfc(value) for value in (x / math.sqrt(2)).tolist()])


def _masses(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal mass between neighbouring edges, precise in both tails."""
    right = _upper(np.abs(edges))
    same_side = np.sign(edges[:-1]) * np.sign(edges[1:]) > 0
    across = 1 - right[:-1] - right[1:]
    return np.maximum(0.0, np.where(same_side, np.abs(right[:-1] - right[1:]), across))


@dataclass(frozen=True, slots=True)
class _Loss:
    """One mechanism's loss on the grid: mass at ``(first + k) * interval``, and at infinity."""

    first: int
    mass: NDArray[np.float64] = field(repr=False)
    infinite: float


def _connect(
    first: int, p: NDArray[np.float64], q: NDArray[np.float64], interval: float
) -> NDArray[np.float64]:
    """Split each interval's P-mass between its ends so that the Q-mass is kept as well.

    ``a + b = p`` and ``a e^(-l) + b e^(-l-h) = q``, hence ``b = (p - e^l q) / (1 - e^(-h))``.
    """
    low = interval * (first + np.arange(p.size))
    # Where Q has no mass that a double can hold, all of P goes to the right end: the pessimistic one.
    held = q > 1e-290
    scaled = np.exp(np.where(held, low, -np.inf) + np.log(np.where(held, q, 1.0)))
    right = np.clip((p - scaled) / -math.expm1(-interval), 0.0, p)
    mass = np.zeros(p.size + 1)
    mass[:-1] += p - right
    mass[1:] += right
    return mass


@lru_cache(maxsize=256)
def _gaussian_losses(multiplier: float, rate: float, interval: float) -> tuple[_Loss, _Loss]:
    """Losses of one release: (a unit is removed, a unit is added).

    Removed: P = (1-q) N(0, z²) + q N(1, z²) against Q = N(0, z²), whose log ratio rises with x. Added: the
    same with P and Q exchanged and the sign of the loss reversed.
    """
    z, q = multiplier, rate
    reach = 10.0  # 1 - Φ(10) = 7.6e-24

    def loss_at(x: float) -> float:
        exponent = (2 * x - 1) / (2 * z * z)
        if q == 1:
            return exponent
        return float(np.logaddexp(math.log1p(-q), math.log(q) + exponent))

    first = math.floor(loss_at(-reach * z) / interval)
    last = math.ceil(loss_at(1 + reach * z) / interval)
    if last - first > _MOST_POINTS:
        raise UnsupportedEvent(f"noise multiplier {z:g}: too little noise for the PLD accountant")
    grid = interval * np.arange(first, last + 1)
    if q == 1:
        x = 0.5 + z * z * grid
    else:
        # e^l - (1 - q), without cancellation for small l; -inf below the least loss log(1 - q)
        with np.errstate(divide="ignore", invalid="ignore"):
            large = grid > 30
            inner = np.expm1(np.where(large, 0.0, grid)) + q
            logarithm = np.where(large, grid, np.log(np.where(inner > 0, inner, 0.0)))
            x = 0.5 + z * z * (logarithm - math.log(q))
    x = np.clip(x, -1e3 * (1 + z), 1e3 * (1 + z))
    without = _masses(x / z)
    with_unit = (1 - q) * without + q * _masses((x - 1) / z)
    # Mass outside the grid. Removed: above -> infinite; below -> to the first point (a larger loss).
    above_without, above_with = (float(_upper(np.array([(x[-1] - m) / z]))[0]) for m in (0, 1))
    below_without, below_with = (float(_upper(np.array([(m - x[0]) / z]))[0]) for m in (0, 1))
    above = (1 - q) * above_without + q * above_with
    removed = _connect(first, with_unit, without, interval)
    removed[0] += (1 - q) * below_without + q * below_with
    added = _connect(-last, without[::-1], with_unit[::-1], interval)
    added[0] += above_without
    return (
        _Loss(first=first, mass=removed, infinite=above + _TAIL),
        _Loss(first=-last, mass=added, infinite=below_without + _TAIL),
    )


@dataclass(frozen=True, slots=True)
class _Direction:
    """Composed losses in increasing order, their masses, the mass from each on, and the lost mass."""

    losses: NDArray[np.float64]
    mass: NDArray[np.float64]
    lost: float
    tail: NDArray[np.float64]

    @classmethod
    def of(cls, losses: NDArray[np.float64], mass: NDArray[np.float64], lost: float) -> _Direction:
        tail = np.append(np.cumsum(mass[::-1])[::-1], 0.0)
        tail *= 1 + mass.size * 2.0**-52  # the sum's own rounding errors
        return cls(losses, mass, lost, tail)

    def delta(self, epsilon: float) -> float:
        start, far = np.searchsorted(self.losses, (epsilon, epsilon + _FAR), side="right")
        near = self.mass[start:far] * -np.expm1(epsilon - self.losses[start:far])
        # Farther losses count in full, which is more by less than e**-40 of their mass.
        return float(near.sum()) + float(self.tail[far]) + self.lost


@dataclass(frozen=True, slots=True)
class ComposedLoss:
    """The composed loss, one direction after the other: removal and addition of a unit."""

    _directions: tuple[_Direction, ...] = field(repr=False)

    def delta(self, epsilon: float) -> float:
        """Upper bound of δ(ε), the larger of both directions."""
        return min(1.0, max(direction.delta(epsilon) for direction in self._directions))

    def epsilon(self, delta: float) -> float:
        """Smallest ε with δ(ε) <= ``delta``, rounded up (relative 1e-9); infinite where none is known."""
        if any(direction.lost > delta for direction in self._directions):
            return math.inf
        low, high = 0.0, 1.0
        if self.delta(0.0) <= delta:
            return 0.0
        top = max(float(direction.losses[-1]) for direction in self._directions)
        while self.delta(high) > delta:
            if high > top:
                return math.inf
            low, high = high, 2 * high
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return high


def compose_gaussians(gaussians: tuple[tuple[float, float, int], ...]) -> ComposedLoss:
    """Compose releases given as (noise multiplier, Poisson sampling probability, count)."""
    interval = _interval(gaussians)
    directions = []
    for index in range(2):
        parts = [(_gaussian_losses(z, q, interval)[index], count) for z, q, count in gaussians]
        directions.append(
            _Direction.of(*_compose(parts, interval, narrowest=min(z for z, _, _ in gaussians)))
        )
    return ComposedLoss(tuple(directions))


def _interval(gaussians: tuple[tuple[float, float, int], ...]) -> float:
    """Width of the grid: a twentieth of the typical loss of one release, coarser where losses are large."""
    variance = total = 0.0
    for z, q, count in gaussians:
        spread = min(q * q * math.expm1(min(1 / (z * z), 60.0)), 2 / (z * z))
        variance += count * spread
        total += count
    typical = math.sqrt(variance / total)
    wanted = min(max(typical / 20, _FINEST), _COARSEST)
    largest = max(1 / (2 * z * z) + 10 / z for z, _, _ in gaussians)
    span = variance + 20 * math.sqrt(variance) + largest
    while span / wanted > 4e5:
        wanted *= 2
    return 2.0 ** math.floor(math.log2(wanted))


def _compose(
    parts: list[tuple[_Loss, int]], interval: float, *, narrowest: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Losses, masses and lost mass of a composition. Lost mass counts as infinite loss."""
    lost = math.fsum(count * part.infinite for part, count in parts)
    low, high = _range(parts, interval)
    size = 1 << max(10, math.ceil(math.log2(high - low + 1)))
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    shift = 0
    total = 0
    for part, count in parts:
        folded = np.zeros(size)
        # A distribution longer than the circle wraps; what leaves the circle is bounded by _range.
        for start in range(0, part.mass.size, size):
            piece = part.mass[start : start + size]
            folded[: piece.size] += piece
        spectrum *= np.fft.rfft(folded) ** count
        shift += part.first * count
        total += count
    mass = np.fft.irfft(spectrum, n=size)
    # Entry k of the result holds the losses shift + k modulo size; put [low, low + size) in order.
    mass = np.maximum(np.roll(mass, -((low - shift) % size)), 0.0)
    # The masses of intervals are differences of nearly equal tails.
    mass *= 1 + total * 2.0**-50 / (narrowest * interval)
    # L1 error of FFT, power and inverse, from the relative error of each coefficient.
    rounding = (
        math.sqrt(size) * math.sqrt(float(np.sum(mass * mass))) * (total + 4 * math.log2(size)) * 2.0**-52
    )
    losses = np.arange(low, low + size, dtype=np.float64) * interval
    return losses, mass, lost + 2 * _WRAP + rounding


def _range(parts: list[tuple[_Loss, int]], interval: float) -> tuple[int, int]:
    """Grid range that the composed loss leaves with probability at most `_WRAP`, by Chernoff's bound."""
    wanted = -math.log(_WRAP)
    hard_low = sum(part.first * count for part, count in parts)
    hard_high = sum((part.first + part.mass.size - 1) * count for part, count in parts)

    def bound(sign: int) -> float:
        best = math.inf
        t = 2.0**-6
        while t <= 2.0**9:
            exponent = wanted
            for part, count in parts:
                losses = sign * interval * (part.first + np.arange(part.mass.size))
                exponents = t * losses
                top = float(exponents.max())
                # Larger terms keep the bound; without the floor, subnormal numbers make this very slow.
                terms = np.exp(np.maximum(exponents - top, -100.0))
                exponent += count * (top + math.log(float(np.sum(part.mass * terms))))
            best = min(best, exponent / t)
            t *= 2
        return best

    high = min(hard_high, math.ceil(bound(1) / interval) + 1)
    low = max(hard_low, math.floor(-bound(-1) / interval) - 1)
    return low, max(high, low + 1)
