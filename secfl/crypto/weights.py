"""The weighted mean without differential privacy.

Each client multiplies its update by ``w / w_max`` before the grid and sends the integer w, clipped to
1..w_max, as a vector of its own outside the L2 clip (docs/protocol.md, section 1, point 6). The aggregator
learns Σ w·x and Σ w.

Public then: Σ w for each set of survivors. Two rounds that differ by one drop-out reveal that client's w, so
use public constants as weights where counts are sensitive. With differential privacy the weights are public
constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.codec import Grid, centre, dequantise
from secfl.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from secfl.types import AGGREGATOR, VectorSpec

__all__ = ["WEIGHT_VECTOR", "Weighting", "weighted_mean"]

WEIGHT_VECTOR = "weight"
"""The name of the vector, of length 1, that carries w."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """The public bound on weights.

    Attributes:
        largest: w_max, from 1 to 2**31 - 1.
    """

    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.largest < 2**31:
            raise ConfigError(f"largest weight {self.largest}, expected 1 to 2**31 - 1")

    def clip(self, weight: int) -> int:
        """The weight clipped to 1..w_max."""
        return max(1, min(int(weight), self.largest))

    def share(self, weight: int) -> float:
        """``w / w_max``, in (0, 1], for `secfl.crypto.codec.quantise`."""
        return self.clip(weight) / self.largest

    def vector_spec(self, *, clients: int) -> VectorSpec:
        """The round's vector for the weights of ``clients`` clients; it cannot wrap.

        Raises:
            LocalProtocolError: Fewer than one client.
        """
        if clients < 1:
            raise LocalProtocolError(f"weights: {clients} clients, expected at least 1")
        return VectorSpec(
            name=WEIGHT_VECTOR, length=1, modulus_bits=max(2, (clients * self.largest).bit_length() + 1)
        )

    def vector(self, weight: int, spec: VectorSpec) -> NDArray[np.uint32] | NDArray[np.uint64]:
        """The client's value for that vector."""
        clipped = self.clip(weight)
        return np.array([clipped], np.uint32) if spec.modulus_bits <= 32 else np.array([clipped], np.uint64)

    def total(
        self, summed: NDArray[np.uint32] | NDArray[np.uint64], spec: VectorSpec, *, survivors: int
    ) -> int:
        """Σ w of the survivors.

        Raises:
            LocalProtocolError: The sum's shape is not ``(1,)``.
            RemoteProtocolError: It lies outside ``[survivors, survivors * w_max]``, so some client's weight
                is not one. Which client cannot be told from the sum, so the aggregate is blamed.
        """
        if summed.shape != (1,):
            raise LocalProtocolError(f"weights: sum of shape {summed.shape}, expected (1,)")
        total = int(centre(summed, bits=spec.modulus_bits)[0])
        if not survivors <= total <= survivors * self.largest:
            raise RemoteProtocolError(
                AGGREGATOR, f"the summed weight of {survivors} clients is outside the range of valid weights"
            )
        return total


def weighted_mean(
    total: NDArray[np.uint32] | NDArray[np.uint64] | NDArray[np.int64],
    grid: Grid,
    *,
    bits: int,
    weighting: Weighting,
    total_weight: int,
) -> NDArray[np.float64]:
    """Σ w·x / Σ w from the sum of the grid vectors of ``x * w / w_max``; float64, shape ``(d,)``."""
    return dequantise(total, grid, bits=bits, divisor=total_weight / weighting.largest)
