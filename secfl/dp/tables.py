"""Exact tables for integer noise: probabilities in high precision, thresholds of 128 bits.

A distribution on the integers becomes increasing thresholds ``c_0 < c_1 < ...`` in ``[0, 2**128)``. A uniform
128-bit number selects the value whose interval holds it, so the table's own distribution is known exactly,
and so is its total variation distance from the ideal one. That distance is charged to δ, never neglected.

Everything here is arithmetic on Python integers and on `decimal`: no floating-point number decides a
threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfl.dp.tails import skellam_tail

__all__ = ["THRESHOLD_BITS", "Table", "Thresholds", "discrete_gaussian_thresholds", "skellam_thresholds"]

THRESHOLD_BITS: Final = 128
_FRACTION_BITS: Final = 320  # working precision of probabilities
_DIGITS: Final = 115  # decimal digits, more than _FRACTION_BITS bits
_NEGLECTED_BITS: Final = 150  # what is cut off or rounded in between weighs less than 2**-140 in total
_NEGLECTED_MASS: Final = 2.0**-140
_GUIDE_BITS: Final = 16
_AMBIGUOUS: Final = np.int32(-(2**31))


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """One symmetric distribution on ``{-reach, ..., reach}``.

    Attributes:
        reach: Largest absolute value that is ever drawn.
        high: The first 64 bits of each threshold, uint64, increasing, shape ``(2 * reach,)``.
        low: The last 64 bits of each threshold, same shape.
        total_variation: Upper bound for the distance between the thresholds' and the ideal distribution.
    """

    reach: int
    high: NDArray[np.uint64] = field(repr=False)
    low: NDArray[np.uint64] = field(repr=False)
    total_variation: float


class Table:
    """Inverse-CDF table over `Thresholds`, with a guide by the first 16 bits of a draw."""

    __slots__ = ("_guide", "_high", "_low", "_reach")

    def __init__(self, thresholds: Thresholds) -> None:
        self._reach = thresholds.reach
        self._high = thresholds.high
        self._low = thresholds.low
        self._guide = _guide(thresholds.high, thresholds.reach)

    def invert(
        self,
        words: NDArray[np.uint64],
        more_words: Callable[[int], NDArray[np.uint64]],
        *,
        out: NDArray[np.int32],
    ) -> None:
        """Turn uniform words into draws.

        Args:
            words: Uniform 64-bit words, shape ``(count,)``.
            more_words: Gives the second words of the few draws whose first word equals a threshold's prefix.
            out: int32, shape ``(count,)``, receives the values.
        """
        prefix = (words >> np.uint64(64 - _GUIDE_BITS)).astype(np.intp)
        np.take(self._guide, prefix, out=out, mode="clip")
        open_draws = np.flatnonzero(out == _AMBIGUOUS)
        if open_draws.size == 0:
            return
        undecided = words[open_draws]
        right = np.searchsorted(self._high, undecided, side="right")
        out[open_draws] = right - self._reach
        # A tie with a prefix: the thresholds with that prefix are compared with the second word.
        tied = np.flatnonzero(self._high[np.maximum(right - 1, 0)] == undecided)
        if tied.size:
            left = np.searchsorted(self._high, undecided[tied], side="left")
            for position, first, end, second in zip(
                open_draws[tied], left, right[tied], more_words(int(tied.size)), strict=True
            ):
                passed = np.searchsorted(self._low[first:end], second, side="right")
                out[position] = first + passed - self._reach


def _thresholds(weights: list[int]) -> Thresholds:
    """Thresholds from the weights of 0, 1, 2, ... (fixed point, ``_FRACTION_BITS``; symmetric, any scale)."""
    total = weights[0] + 2 * sum(weights[1:])
    line = [*reversed(weights[1:]), *weights]
    top = 1 << THRESHOLD_BITS
    cumulative = 0
    thresholds = []
    for weight in line:
        cumulative += weight
        thresholds.append(((cumulative << (THRESHOLD_BITS + 1)) // total + 1) >> 1)
    # Values whose interval is empty are never drawn; cut them from both ends.
    reach = len(weights) - 1
    while reach > 0 and (
        thresholds[len(weights) - 1 - reach] == 0 or thresholds[len(weights) - 2 + reach] == top
    ):
        reach -= 1
    first = len(weights) - 1 - reach
    inner = thresholds[first : first + 2 * reach]
    bounds = [0, *inner, top]
    covered = 0
    scaled = 0  # sum of |p * total - weight * 2**128|, exact
    for index in range(2 * reach + 1):
        weight = line[first + index]
        covered += weight
        scaled += abs((bounds[index + 1] - bounds[index]) * total - weight * top)
    scaled += (total - covered) * top
    distance = Fraction(scaled, 2 * total * top)
    high = np.array([threshold >> 64 for threshold in inner], dtype=np.uint64)
    low = np.array([threshold & (2**64 - 1) for threshold in inner], dtype=np.uint64)
    return Thresholds(
        reach=reach,
        high=high,
        low=low,
        total_variation=float(distance) * (1 + 2**-40) + _NEGLECTED_MASS,
    )


def _guide(high: NDArray[np.uint64], reach: int) -> NDArray[np.int32]:
    """For each 16-bit prefix the only value it can lead to, or the marker."""
    shift = np.uint64(64 - _GUIDE_BITS)
    starts = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << shift
    ends = starts | np.uint64((1 << (64 - _GUIDE_BITS)) - 1)
    # `left` counts thresholds below the first word: one that equals it leaves the prefix undecided.
    below = np.searchsorted(high, starts, side="left")
    above = np.searchsorted(high, ends, side="right")
    return np.where(below == above, (below - reach).astype(np.int32), _AMBIGUOUS)


def _context() -> Context:
    return Context(prec=_DIGITS)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def _fixed(value: Decimal) -> int:
    return int(value * (1 << _FRACTION_BITS))


@lru_cache(maxsize=64)
def discrete_gaussian_thresholds(variance: Fraction) -> Thresholds:
    """The discrete Gaussian: probability of x proportional to ``exp(-x**2 / (2 * variance))``.

    Args:
        variance: The parameter σ² as an exact rational.
    """
    with localcontext(_context()):
        ratio = _fixed((-1 / _decimal(2 * variance)).exp())
        step = _fixed((-1 / _decimal(variance)).exp())
    # w(x+1) = w(x) r(x) and r(x+1) = r(x) exp(-1/variance).
    weight = 1 << _FRACTION_BITS
    weights = []
    while weight >> (_FRACTION_BITS - _NEGLECTED_BITS):
        weights.append(weight)
        weight = weight * ratio >> _FRACTION_BITS
        ratio = ratio * step >> _FRACTION_BITS
    return _thresholds(weights)


@lru_cache(maxsize=64)
def skellam_thresholds(variance: Fraction, stride: int = 1) -> Thresholds:
    """Skellam noise (difference of two Poisson counts) of the given variance, at the multiples of ``stride``.

    The table's value j stands for the integer ``stride * j``; with ``stride > 1`` it is the Skellam
    distribution conditioned on a multiple of ``stride``. Computed by inverting the characteristic function
    ``exp(variance * (cos t - 1))`` on a circle of L points, whose wrap-around is below ``2**-150``.

    Args:
        variance: µ, the variance of the unconditioned distribution, exact.
        stride: At most a twentieth of the standard deviation, unless 1.

    Raises:
        ValueError: The stride is too coarse for the variance.
    """
    if stride > 1 and Fraction((20 * stride) ** 2) > variance:
        raise ValueError(f"stride {stride} is too coarse")
    reach = math.ceil(skellam_tail(float(variance), _NEGLECTED_BITS) / stride) + 1
    circle = 2 * reach + 2
    with localcontext(_context()):
        pi = _pi()
        full = 2 * pi / circle
        waves = []
        for index in range(circle // 2 + 1):
            angle = full * index / stride
            half = _sine(angle / 2)
            exponent = _decimal(variance) * 2 * half * half
            if exponent > _NEGLECTED_BITS + 10:  # e**-160 is far below 2**-150
                break
            waves.append(_fixed((-exponent).exp()))
        one = _sine(full / 2)
        cosines = _cosines(1 - 2 * one * one, circle)
    weights = []
    for value in range(reach + 1):
        total = waves[0]
        position = 0
        for index in range(1, len(waves)):
            position += value
            if position >= circle:
                position -= circle
            term = waves[index] * cosines[position] >> _FRACTION_BITS
            total += term if 2 * index == circle else 2 * term
        weights.append(max(0, total) // circle)
    return _thresholds(weights)


def _pi() -> Decimal:
    """π by Machin's formula, in the current decimal precision."""

    def arctangent_of_inverse(divisor: int) -> Decimal:
        power = Decimal(1) / divisor
        total = power
        index = 1
        while abs(power) > Decimal(10) ** (-_DIGITS - 5):
            power /= -(divisor * divisor)
            index += 2
            total += power / index
        return total

    return 4 * (4 * arctangent_of_inverse(5) - arctangent_of_inverse(239))


def _sine(angle: Decimal) -> Decimal:
    """sin(angle) for 0 <= angle <= π by its series."""
    term = angle
    total = angle
    index = 1
    while abs(term) > Decimal(10) ** (-_DIGITS - 5):
        term = -term * angle * angle / ((index + 1) * (index + 2))
        total += term
        index += 2
    return total


def _cosines(first: Decimal, count: int) -> list[int]:
    """cos(k·t) for k = 0 .. count-1 in fixed point, given cos(t); Chebyshev's recurrence with guard bits."""
    guard = 64
    scale = _FRACTION_BITS + guard
    twice = int(2 * first * (1 << scale))
    previous, current = 1 << scale, twice >> 1
    values = [previous >> guard]
    for _ in range(1, count):
        values.append(current >> guard)
        previous, current = current, (twice * current >> scale) - previous
    return values
