"""From one unit's real-valued contribution to a bounded vector on the integer grid.

One grid step is C/G. The vector is clipped to ``C - (sqrt(d)/2)·(C/G)``, so that rounding to the nearest grid
point cannot carry it above G, and the bound is checked again in exact integers (`ClippedUpdate`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secfl.dp.noise import PatientSum
from secfl.errors import ConfigError, LocalProtocolError
from secfl.types import ClippedUpdate

__all__ = ["ClipGroup", "GridClip", "PatientAccumulator", "group_noise_multiplier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipGroup:
    """Consecutive coordinates with a clip of their own, for example the tensors of one layer.

    Attributes:
        size: Number of coordinates.
        clip_norm: C_l, in units of the update.
        grid_norm: G_l; one grid step of this group is C_l/G_l.
    """

    size: int
    clip_norm: float
    grid_norm: int

    def __post_init__(self) -> None:
        if self.size < 1 or not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise ConfigError("clip group: expected a positive size and clip norm")
        if self.grid_norm <= math.sqrt(self.size) / 2:
            raise ConfigError(
                f"grid_norm {self.grid_norm}: expected above sqrt(d)/2 = {math.sqrt(self.size) / 2:.1f}, "
                "else rounding alone exceeds the bound"
            )

    @property
    def step(self) -> float:
        """Size of one grid step in units of the update."""
        return self.clip_norm / self.grid_norm

    @property
    def real_bound(self) -> float:
        """L2 bound before rounding, in grid units: ``G - sqrt(d)/2``, a little less for rounding errors."""
        return (self.grid_norm - math.sqrt(self.size) / 2) * (1 - 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridClip:
    """How one unit's vector is clipped and put on the grid.

    With several groups the integer vector's L2 norm is at most ``sqrt(Σ G_l²)``, which is the sensitivity; with
    one width σ of noise for all coordinates this is ``Σ (C_l/σ_l)² = 1/z²`` (σ_l the noise in units of group l).

    Attributes:
        groups: In the order of the vector.
        bit_slot: g, the size of the clip bit's slot after the last coordinate; 0 without it. See
            `secfl.dp.adaptive`.
    """

    groups: tuple[ClipGroup, ...]
    bit_slot: int = 0

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError("clipping: expected at least one group")
        if self.bit_slot < 0:
            raise ConfigError("bit_slot: expected 0 or more")

    @classmethod
    def single(cls, *, dimension: int, clip_norm: float, grid_norm: int, bit_slot: int = 0) -> GridClip:
        """One clip for the whole vector, within the total bound ``grid_norm``.

        The bit's slot takes its part of the bound: the vector gets ``floor(sqrt(G² - g²))``.

        Raises:
            ConfigError: The bit's slot does not fit below ``grid_norm``.
        """
        if bit_slot >= grid_norm:
            raise ConfigError(f"bit_slot {bit_slot}: expected below grid_norm {grid_norm}")
        rest = math.isqrt(grid_norm**2 - bit_slot**2)
        return cls(
            groups=(ClipGroup(size=dimension, clip_norm=clip_norm, grid_norm=rest),), bit_slot=bit_slot
        )

    @property
    def dimension(self) -> int:
        """Coordinates of the real vector."""
        return sum(group.size for group in self.groups)

    @property
    def length(self) -> int:
        """Coordinates of the integer vector: one more with a bit slot."""
        return self.dimension + (1 if self.bit_slot else 0)

    @property
    def sensitivity(self) -> int:
        """L2 bound of the integer vector: ``ceil(sqrt(Σ G_l² + g²))``."""
        square = sum(group.grid_norm**2 for group in self.groups) + self.bit_slot**2
        return math.isqrt(square - 1) + 1

    def clip(self, vector: NDArray[np.float32] | NDArray[np.float64]) -> ClippedUpdate:
        """Clip, round to the grid, and prove the bound.

        Args:
            vector: Shape ``(dimension,)``. A vector that holds NaN or infinity counts as zero: nothing about
                it may leave, not even that it was broken.

        Returns:
            int32, shape ``(length,)``; ``clipped_fraction`` is the share of groups that were scaled down.

        Raises:
            LocalProtocolError: The vector has another shape than ``(dimension,)``.
        """
        if vector.shape != (self.dimension,):
            raise LocalProtocolError(f"clipping: expected {self.dimension} coordinates, got {vector.shape}")
        values = vector.astype(np.float64)
        # NaN and infinity reach the extremes.
        if not (math.isfinite(float(values.max())) and math.isfinite(float(values.min()))):
            values[:] = 0.0
        whole = np.empty(self.length, dtype=np.int32)
        start = scaled = 0
        for group in self.groups:
            part = values[start : start + group.size]
            scale, clipped = _scale(part, group)
            scaled += clipped
            part *= scale
            np.rint(part, out=part)
            whole[start : start + group.size] = part
            start += group.size
        if self.bit_slot:
            whole[-1] = self.bit_slot if scaled == 0 else -self.bit_slot
        return ClippedUpdate(
            values=whole, norm_bound=self.sensitivity, clipped_fraction=scaled / len(self.groups)
        )

    def to_real(self, sums: NDArray[np.int64]) -> NDArray[np.float64]:
        """Grid units back to units of the update (without the bit's slot).

        Raises:
            LocalProtocolError: The sums have another shape than ``(length,)``.
        """
        if sums.shape != (self.length,):
            raise LocalProtocolError(f"clipping: expected {self.length} coordinates, got {sums.shape}")
        steps = np.repeat([group.step for group in self.groups], [group.size for group in self.groups])
        real: NDArray[np.float64] = sums[: self.dimension] * steps
        return real


def _scale(part: NDArray[np.float64], group: ClipGroup) -> tuple[float, int]:
    """Factor from real to grid units, and 1 if the group was longer than its clip."""
    largest = max(float(part.max()), -float(part.min()))
    if largest == 0:
        return 0.0, 0
    if 1e-140 < largest < 1e140:
        norm = math.sqrt(float(np.einsum("i,i", part, part)))
    else:  # squares would overflow or vanish: take the largest coordinate out first
        norm = largest * math.sqrt(float(np.sum((part / largest) ** 2)))
    clipped = norm > group.clip_norm
    if norm / group.step <= group.real_bound:
        return 1 / group.step, 0
    return group.real_bound / norm, int(clipped)


@dataclass(slots=True)
class PatientAccumulator:
    """A client's sum over one batch: every patient is clipped and rounded before it is added.

    So one patient more or less changes the integer sum by at most `GridClip.sensitivity`, exactly.
    """

    grid: GridClip
    _sum: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.grid.length, dtype=np.int64)

    def add(self, gradient: NDArray[np.float32] | NDArray[np.float64]) -> None:
        """Add one patient's gradient (the mean over the patient's slices or patches)."""
        self._sum += self.grid.clip(gradient).values

    def add_all(self, gradients: Iterable[NDArray[np.float32] | NDArray[np.float64]]) -> None:
        """Add several patients, one gradient each."""
        for gradient in gradients:
            self.add(gradient)

    def total(self) -> PatientSum:
        """The sum; an empty batch gives zeros, which get the same noise."""
        return PatientSum(values=self._sum.copy(), sensitivity=self.grid.sensitivity)


def group_noise_multiplier(clip_norms: Iterable[float], sigmas: Iterable[float]) -> float:
    """Multiplier z of several groups that are released together: ``(Σ (C_l/σ_l)²)^(-1/2)``."""
    return 1 / math.sqrt(math.fsum((c / s) ** 2 for c, s in zip(clip_norms, sigmas, strict=True)))
