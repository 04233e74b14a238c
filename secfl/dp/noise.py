"""Integer noise from a cryptographic stream, and the step that makes an update private.

Noise is drawn by inverting the distribution function over an AES-256-CTR stream (`secfl.dp.tables`), never
from `numpy.random` or torch: a statistical generator can be predicted, and floating-point noise leaks through
the gaps between floating-point numbers (Mironov 2012, "On significance of the least significant bits for
differential privacy").

Drawing does not take constant time: some draws need a search. Uploads leave at fixed deadlines, so that the
timing of a round does not tell which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from secfl.dp.tables import Table, Thresholds, discrete_gaussian_thresholds, skellam_thresholds
from secfl.dp.tails import discrete_gaussian_tail, skellam_tail
from secfl.errors import ConfigError, LocalProtocolError
from secfl.randomness import Rng
from secfl.types import ClippedUpdate, PrivatizedUpdate

__all__ = [
    "IntegerSampler",
    "NoiseFamily",
    "NoiseShare",
    "PatientSum",
    "integer_sampler",
    "noise_tail_bound",
    "noisy_sum",
    "privatize",
]

LARGEST_SIGMA: Final = 1e6
SMALLEST_SIGMA: Final = 0.25
_ONE_TABLE_UP_TO: Final = 192.0
_BLOCK: Final = 1 << 15


class NoiseFamily(StrEnum):
    """Which integer noise."""

    DISCRETE_GAUSSIAN = "discrete_gaussian"
    SKELLAM = "skellam"


class _WordStream:
    """AES-256-CTR keystream as 64-bit words, under a fresh key from the `Rng`."""

    __slots__ = ("_cipher", "_zeros")

    def __init__(self, rng: Rng) -> None:
        self._cipher: CipherContext = Cipher(algorithms.AES(rng.bytes(32)), modes.CTR(bytes(16))).encryptor()
        self._zeros = memoryview(bytes(8 * _BLOCK))

    def fill(self, words: NDArray[np.uint64]) -> None:
        """Overwrite at most one block of words."""
        self._cipher.update_into(self._zeros[: words.nbytes], words.data.cast("B"))

    def more(self, count: int) -> NDArray[np.uint64]:
        """``count`` further words."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype=np.uint64)

    def __repr__(self) -> str:
        return "_WordStream(<redacted>)"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerSampler:
    """Draws integers of one family and width. Build it with `integer_sampler`, which keeps the tables.

    Attributes:
        family: Discrete Gaussian or Skellam.
        sigma: Grid units: the parameter σ of the discrete Gaussian, the standard deviation of Skellam noise.
        total_variation: Upper bound for the distance between one draw and the ideal distribution. Added to δ.
        reach: Largest absolute value that is ever drawn.
    """

    family: NoiseFamily
    sigma: float
    total_variation: float
    reach: int
    _tables: tuple[Table, ...] = field(repr=False)
    _stride: int = field(repr=False)

    def draw(self, count: int, rng: Rng) -> NDArray[np.int32]:
        """``count`` independent draws, int32, shape ``(count,)``, under one fresh key from ``rng``."""
        out = np.empty(count, dtype=np.int32)
        self._draw_into(out, rng)
        return out

    def _draw_into(self, out: NDArray[np.int32], rng: Rng) -> None:
        stream = _WordStream(rng)
        words = np.empty(min(_BLOCK, out.size), dtype=np.uint64)
        coarse = np.empty(words.size if self._stride > 1 else 0, dtype=np.int32)
        for start in range(0, out.size, _BLOCK):
            part = out[start : start + _BLOCK]
            used = words[: part.size]
            stream.fill(used)
            self._tables[0].invert(used, stream.more, out=part)
            if self._stride > 1:
                stream.fill(used)
                high = coarse[: part.size]
                self._tables[1].invert(used, stream.more, out=high)
                high *= np.int32(self._stride)
                part += high

    def tail_bound(self, *, log2_probability: float) -> int:
        """Smallest known x with ``P(|draw| > x) <= 2**log2_probability``, at most `reach`."""
        bound = noise_tail_bound(self.family, self.sigma, log2_probability=log2_probability)
        return min(self.reach, bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Design:
    """Which thresholds make one draw: ``fine + stride * coarse``."""

    stride: int
    parts: tuple[Thresholds, ...]
    deviation: float  # of the sum of two ideal parts from the ideal whole

    @property
    def total_variation(self) -> float:
        return sum(part.total_variation for part in self.parts) + self.deviation

    @property
    def reach(self) -> int:
        return self.parts[0].reach + (self.stride * self.parts[1].reach if self.stride > 1 else 0)


@lru_cache(maxsize=256)
def _design(family: NoiseFamily, sigma: float) -> _Design:
    if not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
        raise ConfigError(
            f"noise: sigma of {sigma:g} grid units, expected {SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g}"
        )
    variance = Fraction(sigma) ** 2
    gaussian = family is NoiseFamily.DISCRETE_GAUSSIAN
    if sigma <= _ONE_TABLE_UP_TO:
        only = discrete_gaussian_thresholds(variance) if gaussian else skellam_thresholds(variance)
        return _Design(stride=1, parts=(only,), deviation=0.0)
    stride = round(math.sqrt(sigma / 2.5))
    fine_variance = Fraction(25 * stride * stride, 4)
    coarse_variance = variance - fine_variance  # of stride * X2
    if gaussian:
        parts = (
            discrete_gaussian_thresholds(fine_variance),
            discrete_gaussian_thresholds(coarse_variance / stride**2),
        )
        squared = float(fine_variance * coarse_variance / stride**2 / variance)
        deviation = 2.1 * math.exp(-2 * math.pi**2 * squared)
    else:
        parts = (skellam_thresholds(fine_variance), skellam_thresholds(coarse_variance, stride))
        joint = float(fine_variance * coarse_variance / variance)
        deviation = sum(
            math.exp(-2 * joint * math.sin(math.pi * wave / stride) ** 2) for wave in range(1, stride)
        )
    return _Design(stride=stride, parts=parts, deviation=deviation)


@lru_cache(maxsize=32)
def integer_sampler(family: NoiseFamily, sigma: float) -> IntegerSampler:
    """The sampler for one family and width; a pure function, so results are kept.

    Up to σ = 192 one table serves. Above, a draw is ``X1 + k * X2`` with two small tables and s1 / k = 5/2:
    for the discrete Gaussian the sum differs from N_Z(σ²) by a factor within 1 ± 2·exp(-2π²·τ²),
    τ = s1·s2/σ (docs/privacy.md, "Two tables"); for Skellam, k·X2 is conditioned on the multiples of k,
    with the bound given there. The deviation is part of `IntegerSampler.total_variation`.

    Args:
        family: Discrete Gaussian or Skellam.
        sigma: Grid units, 0.25 to 1e6.

    Raises:
        ConfigError: σ outside the range.
    """
    design = _design(family, sigma)
    return IntegerSampler(
        family=family,
        sigma=sigma,
        total_variation=design.total_variation,
        reach=design.reach,
        _tables=tuple(Table(part) for part in design.parts),
        _stride=design.stride,
    )


def noise_tail_bound(family: NoiseFamily, sigma: float, *, log2_probability: float) -> int:
    """Bound x with ``P(|X| > x) <= 2**log2_probability``, X a sum of shares of total width ``sigma``.

    Args:
        family: Discrete Gaussian (sub-Gaussian) or Skellam (Chernoff).
        sigma: Root of the summed variance parameters, grid units.
        log2_probability: For example ``-40 - log2(coordinates * rounds)`` for a union bound.
    """
    tail = discrete_gaussian_tail if family is NoiseFamily.DISCRETE_GAUSSIAN else skellam_tail
    return math.ceil(tail(sigma * sigma, -log2_probability))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseShare:
    """The noise that one client adds.

    Attributes:
        family: Discrete Gaussian or Skellam.
        sigma: The share's own width, grid units; for m planned clients the total's divided by sqrt(m).
    """

    family: NoiseFamily
    sigma: float

    def sampler(self) -> IntegerSampler:
        """The (kept) sampler of this share."""
        return integer_sampler(self.family, self.sigma)

    @property
    def total_variation(self) -> float:
        """That of the sampler; known without building its lookup tables."""
        return _design(self.family, self.sigma).total_variation


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientSum:
    """A client's sum of clipped per-patient grid vectors; its length is no secret, its norm is.

    Attributes:
        values: int64, shape ``(d,)``.
        sensitivity: The integer G: one patient more or less changes ``values`` by at most G in L2.
    """

    values: NDArray[np.int64] = field(repr=False)
    sensitivity: int

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.dtype != np.int64:
            raise LocalProtocolError("patient sum: expected one vector of int64")


def noisy_sum(total: PatientSum, *, noise: NoiseShare, rng: Rng) -> NDArray[np.int64]:
    """The sum with one client's own noise, int64, shape ``(d,)``: a release that needs nobody else's noise.

    Whatever is computed from it afterwards costs no privacy. Private with the multiplier
    ``noise.sigma / total.sensitivity`` if ``rng`` is secret.
    """
    return total.values + noise.sampler().draw(total.values.size, rng)


def privatize(
    clipped: ClippedUpdate | PatientSum,
    *,
    noise: NoiseShare | None,
    bits: int,
    rng: Rng,
    vector_name: str = "update",
    extra: Mapping[str, NDArray[np.uint32] | NDArray[np.uint64]] | None = None,
) -> PrivatizedUpdate:
    """Add this client's noise share and reduce modulo ``2**bits``. Run by the client, once per attempt.

    Args:
        clipped: A bounded vector, or a sum of bounded per-patient vectors.
        noise: The share, or ``None`` for no noise (no differential privacy follows).
        bits: Width of the modulus, 2 to 62; chosen from public bounds so that the sum fits.
        rng: The secret source. A seeded one is allowed for reproducible tests; the result then says so.
        vector_name: Name of the vector in the round's specification.
        extra: Further vectors that travel without noise (for example public or summed weights), reduced.

    Returns:
        The update for a secure aggregation scheme. ``noise`` is ``"none"``, or the family and width, followed
        by ``" (seeded, not private)"`` when ``rng`` is not secret.

    Raises:
        ConfigError: ``bits`` is not 2 to 62.
        LocalProtocolError: A vector is given twice.
    """
    if not 2 <= bits <= 62:
        raise ConfigError(f"bits {bits}: expected 2 to 62")
    mask = np.int64((1 << bits) - 1)
    word = np.dtype(np.uint32 if bits <= 32 else np.uint64)
    values = clipped.values
    encoded = np.empty(values.size, dtype=word)
    drawn = noise.sampler().draw(values.size, rng) if noise is not None else None
    for start in range(0, values.size, _BLOCK):
        part = values[start : start + _BLOCK].astype(np.int64)
        if drawn is not None:
            part += drawn[start : start + _BLOCK]
        part &= mask  # two's complement: the residue modulo 2**bits
        encoded[start : start + _BLOCK] = part.astype(word)
    words = "none"
    if noise is not None:
        words = f"{noise.family} sigma={noise.sigma!r}"
        if not rng.is_secret:
            words += " (seeded, not private)"
    vectors: dict[str, NDArray[np.uint32] | NDArray[np.uint64]] = {vector_name: encoded}
    for name, values_of_name in (extra or {}).items():
        if name in vectors:
            raise LocalProtocolError(f"vector {name}: given twice")
        vectors[name] = values_of_name
    return PrivatizedUpdate(vectors=vectors, noise=words)
