"""Real vectors to integers modulo 2^b and back: grid, clipping, capacity.

A client's update becomes a bounded vector of integers (docs/protocol.md, section 1):

1. all tensors are one float vector x of length d; a NaN or an infinity is refused with the tensor's name;
2. every coordinate is clipped to a public bound B, then the vector to an L2 norm a little below the clip norm
   C;
3. it is multiplied by G/C and rounded to the nearest integers y, so that ``||y||_2 <= G`` in exact integers;
4. integer noise is added elsewhere, and ``y + z`` is sent modulo ``2**b``, with b the least width in which
   the sum of all clients fits.

Everything here is public arithmetic on the client's own data: there is no randomness and nothing secret but
the values themselves. The same integers go into every scheme.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.packing import MAX_BITS, MIN_BITS, pack, packed_size, unpack
from secfl.errors import CapacityError, ConfigError, DataError, LocalProtocolError
from secfl.types import ClippedUpdate, Update, join_fields

__all__ = [
    "Grid",
    "centre",
    "check_capacity",
    "dequantise",
    "pack",
    "packed_size",
    "quantise",
    "relative_error",
    "required_bits",
    "to_residues",
    "unpack",
]

_BLOCK = 1 << 16  # elements; 512 KiB in float64, which stays in the second-level cache between passes
_ROUNDING_MARGIN = 2.0**-32
"""Relative room for the float64 arithmetic of the L2 clip: pairwise sums err by far less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The public grid on which every client's update is rounded.

    Build it with `for_clip` when a clip norm matters (differential privacy), or with `for_coordinates` when
    only single coordinates are bounded.

    Attributes:
        length: d, the number of coordinates.
        clip_norm: C > 0, the L2 bound of the real update.
        grid_norm: G, an integer above ``sqrt(d)/2``: the L2 bound of the integer vector.
        coordinate_bound: B > 0, the bound of each real coordinate; infinite for none.
    """

    length: int
    clip_norm: float
    grid_norm: int
    coordinate_bound: float

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"grid: length {self.length}, expected at least 1")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ConfigError(f"grid: clip_norm {self.clip_norm}, expected a finite number above 0")
        if not self.coordinate_bound > 0:
            raise ConfigError(f"grid: coordinate_bound {self.coordinate_bound}, expected a number above 0")
        if self.grid_norm < 1 or 4 * self.grid_norm**2 <= self.length:
            raise ConfigError(
                f"grid: grid_norm {self.grid_norm}, expected an integer above sqrt(length)/2 = "
                f"{math.sqrt(self.length) / 2:.1f}"
            )
        if self.grid_norm >= 2**52:
            raise ConfigError(
                f"grid: grid_norm {self.grid_norm}, expected below 2**52, where float64 is exact"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError("grid: grid_norm / clip_norm is outside the range of float64")

    @classmethod
    def for_clip(
        cls,
        length: int,
        *,
        clip_norm: float,
        relative_precision: float | None = None,
        grid_norm: int | None = None,
        coordinate_bound: float = math.inf,
    ) -> Grid:
        """A grid with an L2 clip norm.

        Args:
            length: d.
            clip_norm: C.
            relative_precision: Root mean square rounding error of the whole vector relative to C; the grid
                norm is then ``ceil(sqrt(d/12) / relative_precision)``. Give this or ``grid_norm``.
            grid_norm: G.
            coordinate_bound: B; without one, an update above the clip norm keeps its direction.

        Raises:
            ConfigError: Both or neither of the two are given, or a value is out of range.
        """
        if (relative_precision is None) == (grid_norm is None):
            raise ConfigError("grid: give either relative_precision or grid_norm")
        if grid_norm is None:
            assert relative_precision is not None
            if not 0 < relative_precision < 1:
                raise ConfigError(f"grid: relative_precision {relative_precision}, expected between 0 and 1")
            grid_norm = math.ceil(math.sqrt(length / 12) / relative_precision)
        return cls(
            length=length,
            clip_norm=float(clip_norm),
            grid_norm=grid_norm,
            coordinate_bound=float(coordinate_bound),
        )

    @classmethod
    def for_coordinates(cls, length: int, *, coordinate_bound: float, value_bits: int = 16) -> Grid:
        """A grid whose integers fit ``value_bits`` bits with their sign, without an effective L2 clip.

        C and G are chosen so that a vector with every coordinate at the bound still passes the L2 clip; B
        falls on ``2**(value_bits - 1) - 1``.

        Raises:
            ConfigError: ``value_bits`` is not 2 to 32, or the bound is not a finite number above 0.
        """
        if not 2 <= value_bits <= 32:
            raise ConfigError(f"grid: value_bits {value_bits}, expected 2 to 32")
        if not (math.isfinite(coordinate_bound) and coordinate_bound > 0):
            raise ConfigError(f"grid: coordinate_bound {coordinate_bound}, expected a finite number above 0")
        steps = 2 ** (value_bits - 1) - 1
        grid_norm = math.isqrt(length * (steps + 1) ** 2) + 1
        return cls(
            length=length,
            clip_norm=grid_norm * (coordinate_bound / steps),
            grid_norm=grid_norm,
            coordinate_bound=float(coordinate_bound),
        )

    @property
    def scale(self) -> float:
        """G/C: grid steps per unit."""
        return self.grid_norm / self.clip_norm

    @property
    def largest_value(self) -> int:
        """The exact bound on ``|y_i|``: multiplication and rounding are monotone, so it is reached at B."""
        return min(
            self.grid_norm, int(np.rint(min(self.coordinate_bound * self.scale, float(self.grid_norm))))
        )

    @property
    def real_norm_limit(self) -> float:
        """The L2 norm to which a real update is clipped, ``C - (sqrt(d)/2)(C/G)``, less the room for float64.

        Rounding moves a vector by at most ``sqrt(d)/2`` grid steps, so ``||y|| <= G`` follows.
        """
        return (self.grid_norm - math.sqrt(self.length) / 2) / self.scale * (1 - _ROUNDING_MARGIN)

    def encode(self) -> bytes:
        """Canonical bytes for digests."""
        return join_fields(
            b"grid",
            struct.pack("<QdQd", self.length, self.clip_norm, self.grid_norm, self.coordinate_bound),
        )


def quantise(update: Update, grid: Grid, *, share: float = 1.0) -> ClippedUpdate:
    """Clip an update and round it to the grid.

    Passes over blocks that stay in the cache: one finds the largest coordinates, one measures the L2 norm after
    the coordinate clip where it could exceed the limit, one multiplies and rounds. Ties round to even.

    Args:
        update: float32, d = ``grid.length``.
        grid: The public grid.
        share: In (0, 1]; the update is multiplied by it before it is clipped. Without differential privacy a
            weighted mean uses ``w / w_max`` (`secfl.crypto.weights`).

    Returns:
        int32 values (int64 when `Grid.largest_value` needs it) with ``norm_bound = G``.

    Raises:
        DataError: A coordinate is NaN or infinite; the message names the tensor.
        LocalProtocolError: The length differs from the grid's, or ``share`` is outside (0, 1].
    """
    values = update.values
    if values.size != grid.length:
        raise LocalProtocolError(f"codec: update of {values.size} elements, the grid has {grid.length}")
    if not 0 < share <= 1:
        raise LocalProtocolError(f"codec: share {share}, expected above 0 and at most 1")
    bound = grid.coordinate_bound
    wide = np.empty(min(_BLOCK, values.size), np.float64)
    # Most blocks have no coordinate beyond the bound and skip the clip.
    largest = [share * one for one in _largest_by_block(update)]
    outside = [one > bound for one in largest]
    norm, clipped = 0.0, 0
    # The norm needs no measuring when the largest coordinate alone keeps it below the limit.
    far = math.sqrt(values.size) * min(max(largest), bound) > grid.real_norm_limit
    if far or any(outside):
        norm, clipped = _measure(values, outside, bound=bound, share=share)
    factor = grid.scale
    if norm > grid.real_norm_limit:
        factor *= grid.real_norm_limit / norm
        clipped = values.size
    rounded: NDArray[np.int32] | NDArray[np.int64]
    rounded = (
        np.empty(values.size, np.int32) if grid.largest_value < 2**31 else np.empty(values.size, np.int64)
    )
    for index, start in enumerate(range(0, values.size, _BLOCK)):
        block = values[start : start + _BLOCK]
        work = wide[: block.size]
        if outside[index]:
            np.multiply(block, share, out=work, dtype=np.float64)
            np.clip(work, -bound, bound, out=work)
            work *= factor
        elif share == 1:
            np.multiply(block, factor, out=work, dtype=np.float64)
        else:
            np.multiply(block, share, out=work, dtype=np.float64)
            work *= factor
        np.rint(work, out=work)
        rounded[start : start + block.size] = work
    return ClippedUpdate(values=rounded, norm_bound=grid.grid_norm, clipped_fraction=clipped / values.size)


def to_residues(
    values: NDArray[np.int32] | NDArray[np.int64], *, bits: int
) -> NDArray[np.uint32] | NDArray[np.uint64]:
    """Signed integers modulo ``2**bits``: uint32 up to 32 bits, else uint64. Shape is kept.

    Raises `LocalProtocolError` for other types than int32 and int64.
    """
    _check_bits(bits)
    if values.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise LocalProtocolError(f"codec: expected int32 or int64, got {values.dtype}")
    if bits <= 32:
        narrow = values.astype(np.uint32)  # modulo 2**32, which 2**bits divides
        narrow &= np.uint32((1 << bits) - 1)
        return narrow
    wide = values.astype(np.int64).view(np.uint64)
    wide &= np.uint64((1 << bits) - 1)
    return wide


def centre(residues: NDArray[np.uint32] | NDArray[np.uint64], *, bits: int) -> NDArray[np.int64]:
    """The representatives in ``[-2**(bits-1), 2**(bits-1))`` of residues below ``2**bits``; shape is kept.

    Raises `LocalProtocolError` for other types than uint32 and uint64.
    """
    _check_bits(bits)
    if residues.dtype not in (np.dtype(np.uint32), np.dtype(np.uint64)):
        raise LocalProtocolError(f"codec: expected uint32 or uint64, got {residues.dtype}")
    shift = 64 - bits
    signed = (residues.astype(np.uint64) << np.uint64(shift)).view(np.int64)
    signed >>= shift
    return signed


def required_bits(grid: Grid, *, clients: int, noise_bound: int = 0, weight_factor: int = 1) -> int:
    """The least modulus width in which the sum of all clients fits, from public bounds only.

    The sum lies in ``[-S, S]`` with ``S = clients * weight_factor * largest_value + noise_bound`` and needs
    ``S <= 2**(b-1) - 1``.

    Args:
        grid: The grid of one unit.
        clients: n, all invited clients.
        noise_bound: Bound on the absolute sum of all clients' noise in one coordinate that is exceeded with
            probability at most 2^-40 in the whole run (the union over coordinates and rounds is the
            caller's).
        weight_factor: Most grid vectors that one client adds up (patients in a batch, or a public integer
            weight).

    Raises:
        LocalProtocolError: Fewer than one client, a negative noise bound, or a weight factor below 1.
        CapacityError: More than 62 bits would be needed.
    """
    if clients < 1 or noise_bound < 0 or weight_factor < 1:
        raise LocalProtocolError(
            "codec: clients and weight_factor must be at least 1 and noise_bound at least 0"
        )
    largest_sum = clients * weight_factor * grid.largest_value + noise_bound
    bits = max(MIN_BITS, largest_sum.bit_length() + 1)
    if bits > MAX_BITS:
        raise CapacityError(
            f"the sum of {clients} clients needs {bits} bits, at most {MAX_BITS} are available: "
            "choose a coarser grid, fewer clients or less noise"
        )
    return bits


def check_capacity(
    grid: Grid, *, bits: int, clients: int, noise_bound: int = 0, weight_factor: int = 1
) -> None:
    """Refuse a modulus that is too narrow for the sum; `CapacityError` before anything is sent."""
    needed = required_bits(grid, clients=clients, noise_bound=noise_bound, weight_factor=weight_factor)
    if needed > bits:
        raise CapacityError(f"the sum of {clients} clients needs {needed} bits, the round has {bits}")


def dequantise(
    total: NDArray[np.uint32] | NDArray[np.uint64] | NDArray[np.int64],
    grid: Grid,
    *,
    bits: int,
    divisor: float = 1.0,
) -> NDArray[np.float64]:
    """The real vector that a sum on the grid stands for, divided by a public number.

    Args:
        total: Residues modulo ``2**bits``, or the same already centred as int64; shape ``(d,)``.
        grid: The grid on which the addends were rounded.
        bits: b.
        divisor: For a mean: the number of survivors, the total weight, or a constant.

    Returns:
        float64, shape ``(d,)``.

    Raises:
        LocalProtocolError: The sum's shape is not ``(grid.length,)``, or the divisor is not a finite number above 0.
    """
    if total.shape != (grid.length,):
        raise LocalProtocolError(f"codec: sum of shape {total.shape}, the grid has {grid.length} coordinates")
    if not (math.isfinite(divisor) and divisor > 0):
        raise LocalProtocolError(f"codec: divisor {divisor}, expected a finite number above 0")
    signed = total if total.dtype == np.int64 else centre(total, bits=bits)  # type: ignore[arg-type]  # int64 was just ruled out
    return np.multiply(signed, 1 / (grid.scale * divisor), dtype=np.float64)


def relative_error(update: Update, quantised: ClippedUpdate, grid: Grid) -> float:
    """``||x - y/scale||_2 / ||x||_2``, clipping included; 0.0 for zeros. For the summary, never sent.

    Raises:
        LocalProtocolError: The two differ in length.
    """
    if update.values.size != quantised.values.size:
        raise LocalProtocolError("codec: the update and its grid vector differ in length")
    error, norm = [], []
    for start in range(0, update.values.size, _BLOCK):
        real = update.values[start : start + _BLOCK].astype(np.float64)
        difference = real - quantised.values[start : start + _BLOCK] / grid.scale
        norm.append(_square_sum(real))
        error.append(_square_sum(difference))
    total = math.fsum(norm)
    return math.sqrt(math.fsum(error) / total) if total else 0.0


def _largest_by_block(update: Update) -> list[float]:
    """The largest absolute value of every block; `DataError` names the tensor of a NaN or an infinity."""
    found = []
    for start in range(0, update.values.size, _BLOCK):
        block = update.values[start : start + _BLOCK]
        largest = max(abs(float(block.max())), abs(float(block.min())))  # max and min propagate NaN
        if not math.isfinite(largest):
            _refuse_not_finite(update, start, block)
        found.append(largest)
    return found


def _measure(
    values: NDArray[np.float32], outside: list[bool], *, bound: float, share: float
) -> tuple[float, int]:
    """The L2 norm after the coordinate clip, and how many coordinates that clip changes."""
    wide = np.empty(min(_BLOCK, values.size), np.float64)
    squares: list[float] = []
    clipped = 0
    for index, start in enumerate(range(0, values.size, _BLOCK)):
        block = values[start : start + _BLOCK]
        work = wide[: block.size]
        np.multiply(block, share, out=work, dtype=np.float64)
        if outside[index]:
            clipped += int(np.count_nonzero(np.abs(work) > bound))
            np.clip(work, -bound, bound, out=work)
        squares.append(_square_sum(work))
    return math.sqrt(math.fsum(squares)), clipped


def _square_sum(values: NDArray[np.float64]) -> float:
    """Sum of squares; overwrites ``values``. Not ``np.dot``: its threads wait for each other on a busy machine."""
    np.multiply(values, values, out=values)
    return float(values.sum())


def _refuse_not_finite(update: Update, start: int, block: NDArray[np.float32]) -> None:
    position = start + int(np.flatnonzero(~np.isfinite(block))[0])
    raise DataError(
        f"tensor {update.tensor_at(position)}: NaN or infinity in the update, expected finite numbers"
    )


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise LocalProtocolError(f"codec: {bits} bits, expected {MIN_BITS} to {MAX_BITS}")
