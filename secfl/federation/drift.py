"""How far the sites pull apart, from sums that fit secure aggregation.

RMS drift of a round is ``sqrt(mean_k ||Δ_k||² - ||m||²) / ||m||``, where m is the mean update: 0 where all sites
send the same, and growing with their disagreement. Besides the sum that is opened anyway it needs the sum of the
squared norms alone, one more integer in the same round. That number is not protected by any noise, so it is
measured only on request and never together with differential privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.codec import Grid, centre
from secfl.errors import RemoteProtocolError
from secfl.types import AGGREGATOR, VectorSpec

__all__ = ["DRIFT_VECTOR", "DriftMeter"]

DRIFT_VECTOR = "drift"
"""The name of the vector, of length 1, that carries a client's squared norm."""

_BITS = 38
"""Of the squared norm, as a share of the largest one that the grid allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftMeter:
    """The share of the largest squared norm that an update has, on a fine scale.

    Attributes:
        grid: The grid of the update.
    """

    grid: Grid

    @staticmethod
    def vector_spec(*, clients: int) -> VectorSpec:
        """The round's vector for the squared norms of ``clients`` clients; it cannot wrap."""
        return VectorSpec(name=DRIFT_VECTOR, length=1, modulus_bits=(clients << _BITS).bit_length() + 1)

    def vector(self, values: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.uint64]:
        """A client's number: the squared norm of its grid values, rounded to the scale."""
        squared = float(np.square(values.astype(np.float64)).sum())
        return np.array([round(squared / self._largest * 2**_BITS)], np.uint64)

    def drift(
        self,
        summed: NDArray[np.uint32] | NDArray[np.uint64],
        summed_bits: int,
        total: NDArray[np.uint32] | NDArray[np.uint64],
        *,
        bits: int,
        survivors: int,
    ) -> float | None:
        """RMS drift from the two opened sums; ``None`` where the mean update is zero.

        Args:
            summed: Sum of the clients' numbers, shape ``(1,)``.
            summed_bits: Modulus width of that sum.
            total: Sum of the updates, shape ``(d,)``.
            bits: Modulus width of the updates.
            survivors: Clients in the sums.

        Raises:
            RemoteProtocolError: No squared norms of updates with this sum add up to that number.
        """
        found = int(centre(summed, bits=summed_bits)[0])
        if not 0 <= found <= survivors << _BITS:
            raise RemoteProtocolError(AGGREGATOR, "the summed squared norms are outside their range")
        mean_of_squares = found / 2**_BITS * self._largest / survivors
        square_of_mean = float(np.square(centre(total, bits=bits) / survivors).sum())
        if not square_of_mean:
            return None
        return math.sqrt(max(mean_of_squares - square_of_mean, 0.0) / square_of_mean)

    @property
    def _largest(self) -> float:
        return float(self.grid.length) * float(self.grid.largest_value) ** 2
