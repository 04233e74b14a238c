"""Poisson sampling of patients from the secret source, and bounds for the size of a batch.

A schedule that an experiment's seed reproduces gives no amplification: with 20 participations in 500 steps the
example of docs/privacy.md has ε = 28.4 instead of 5.88. So the sampler takes an `Rng`, never a seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from secfl.errors import ConfigError
from secfl.randomness import Rng

__all__ = ["PoissonSampler", "batch_tail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonSampler:
    """Each of a client's patients takes part in a step independently with probability ``rate``.

    The comparison is exact: 128 random bits against ``floor(rate · 2^128)``, so the true probability is the
    double ``rate`` itself, or less by at most 2^-128.

    Attributes:
        population: The client's number of patients. Local, and so is the size of a drawn batch.
        rate: q, public.
    """

    population: int
    rate: float

    def __post_init__(self) -> None:
        if self.population < 0:
            raise ConfigError("population: expected 0 or more patients")
        if not 0 < self.rate <= 1:
            raise ConfigError("sampling_rate: expected above 0 and at most 1")

    def draw(self, rng: Rng) -> NDArray[np.intp]:
        """Indices of the patients in this step's batch, increasing; may be empty."""
        threshold = math.floor(Fraction(self.rate) * 2**128)
        if threshold == 2**128:
            return np.arange(self.population)
        words = np.frombuffer(rng.bytes(8 * self.population), dtype="<u8")
        high, low = divmod(threshold, 2**64)
        chosen = words < np.uint64(high)
        for index in np.flatnonzero(words == np.uint64(high)):
            chosen[index] = int.from_bytes(rng.bytes(8), "little") < low
        return np.flatnonzero(chosen)


def batch_tail(patients: int, rate: float, *, log2_probability: float) -> int:
    """Batch size that a Poisson-sampled batch exceeds with probability at most ``2**log2_probability``.

    Chernoff's bound for the binomial, ``P(X >= k) <= exp(-N·KL(k/N, q))``. A Poisson batch has no other bound:
    the modulus must be wide enough for this one (a wrap costs utility, never δ).

    Args:
        patients: Public upper bound for the number of patients, of one client or of all.
        rate: q.
        log2_probability: For example ``-40 - log2(steps)``.

    Raises:
        ConfigError: A negative number of patients, or a rate that is not above 0 and at most 1.
    """
    if patients < 0 or not 0 < rate <= 1:
        raise ConfigError("expected 0 or more patients and a rate above 0 and at most 1")
    wanted = -log2_probability * math.log(2)

    def exponent(size: int) -> float:
        share = size / patients
        rest = (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1 else 0.0
        return patients * (share * math.log(share / rate) + rest)

    low, high = math.floor(patients * rate), patients
    if rate == 1 or patients == 0 or exponent(high) < wanted:
        return patients
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exponent(middle) >= wanted else (middle, high)
    return high
