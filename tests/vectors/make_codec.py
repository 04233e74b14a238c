"""Real vectors on grids, the widths that sums need, weights, and what is refused.

Real numbers are written as the hexadecimal of their big-endian IEEE 754 bytes: float32 for updates, float64 for
parameters.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from secfl.crypto.codec import Grid, centre, dequantise, quantise, required_bits, to_residues
from secfl.crypto.weights import Weighting
from secfl.errors import CapacityError, ConfigError, DataError, RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import Update


def f64(value: float) -> str:
    """A double, exactly."""
    return struct.pack(">d", value).hex()


def make(previous: Any) -> Any:
    """Grids with and without an L2 clip, and everything around them."""
    return {
        "grids": [_grid(**case) for case in _GRIDS],
        "bad_grids": [_bad_grid(**case) for case in _BAD_GRIDS],
        "bad_updates": [_bad_update(value) for value in (math.nan, math.inf, -math.inf)],
        "widths": [_width(**case) for case in _WIDTHS],
        "weights": [_weights(**case) for case in _WEIGHTS],
    }


_GRIDS: tuple[dict[str, Any], ...] = (
    {"scale": 1.0, "clip_norm": 5.0, "grid_norm": 4096, "coordinate_bound": math.inf, "bits": 16},
    {"scale": 3.0, "clip_norm": 1.0, "grid_norm": 257, "coordinate_bound": 0.5, "bits": 12},
    {"scale": 0.25, "clip_norm": 2.0, "grid_norm": 2**40, "coordinate_bound": 1.0, "bits": 44},
    {"scale": 1.0, "clip_norm": 5.0, "grid_norm": 1000, "coordinate_bound": 1.5, "bits": 20, "share": 0.375},
)
_BAD_GRIDS: tuple[dict[str, Any], ...] = (
    {"name": "bad_grid_norm_too_small", "length": 100, "grid_norm": 5},
    {"name": "bad_grid_norm_too_large", "length": 100, "grid_norm": 2**52},
    {"name": "bad_length", "length": 0, "grid_norm": 100},
)
_WIDTHS: tuple[dict[str, Any], ...] = (
    {"grid_norm": 4096, "clients": 3, "noise_bound": 0, "weight_factor": 1},
    {"grid_norm": 4096, "clients": 10, "noise_bound": 100_000, "weight_factor": 1},
    {"grid_norm": 2**20, "clients": 64, "noise_bound": 12_345, "weight_factor": 40},
    {"grid_norm": 2**51, "clients": 512, "noise_bound": 0, "weight_factor": 1},
    {"grid_norm": 2**51, "clients": 1024, "noise_bound": 0, "weight_factor": 1},
)
_WEIGHTS: tuple[dict[str, Any], ...] = (
    {"largest": 1, "weights": [1, 1, 1]},
    {"largest": 100, "weights": [0, 7, 250]},
    {"largest": 2**31 - 1, "weights": [5, 2**31 - 1, 1, 9]},
)


def _floats(scale: float, count: int = 24) -> list[float]:
    rng = InsecureSeededRng(31)
    drawn = [int.from_bytes(rng.bytes(4), "little") / 2**31 - 1 for _ in range(count)]
    return [float(np.float32(scale * value)) for value in drawn]


def _update(values: list[float]) -> Update:
    return Update(values=np.array(values, np.float32), names=("first", "second"), sizes=(4, len(values) - 4))


def _grid(
    *,
    scale: float,
    clip_norm: float,
    grid_norm: int,
    coordinate_bound: float,
    bits: int,
    share: float = 1.0,
) -> Any:
    values = _floats(scale)
    grid = Grid(
        length=len(values), clip_norm=clip_norm, grid_norm=grid_norm, coordinate_bound=coordinate_bound
    )
    rounded = quantise(_update(values), grid, share=share).values
    residues = to_residues(rounded, bits=bits)
    back = dequantise(residues, grid, bits=bits, divisor=3.0)
    assert centre(residues, bits=bits).tolist() == rounded.tolist()
    return {
        "length": len(values),
        "clip_norm": f64(clip_norm),
        "grid_norm": grid_norm,
        "coordinate_bound": f64(coordinate_bound),
        "encoded": grid.encode().hex(),
        "share": f64(share),
        "values": [struct.pack(">f", value).hex() for value in values],
        "largest_value": grid.largest_value,
        "rounded": rounded.tolist(),
        "bits": bits,
        "residues": residues.tolist(),
        "divided_by_three": [f64(value) for value in back.tolist()],
    }


def _bad_grid(*, name: str, length: int, grid_norm: int) -> Any:
    try:
        Grid(length=length, clip_norm=1.0, grid_norm=grid_norm, coordinate_bound=1.0)
    except ConfigError as error:
        return {"name": name, "length": length, "grid_norm": grid_norm, "refused_as": str(error)}
    raise AssertionError(name)


def _bad_update(value: float) -> Any:
    values = [*_floats(1.0)[:6], value]
    grid = Grid(length=7, clip_norm=1.0, grid_norm=100, coordinate_bound=1.0)
    try:
        quantise(_update(values), grid)
    except DataError as error:
        raw = [struct.pack(">f", one).hex() for one in values]
        return {"name": "bad_not_finite", "values": raw, "refused_as": str(error)}
    raise AssertionError(value)


def _width(*, grid_norm: int, clients: int, noise_bound: int, weight_factor: int) -> Any:
    grid = Grid(length=10, clip_norm=1.0, grid_norm=grid_norm, coordinate_bound=math.inf)
    case = {
        "largest_value": grid.largest_value,
        "clients": clients,
        "noise_bound": noise_bound,
        "weight_factor": weight_factor,
    }
    try:
        bits = required_bits(grid, clients=clients, noise_bound=noise_bound, weight_factor=weight_factor)
    except CapacityError:
        return case | {"name": "bad_too_wide"}
    return case | {"name": "fits", "bits": bits}


def _weights(*, largest: int, weights: list[int]) -> Any:
    weighting = Weighting(largest=largest)
    spec = weighting.vector_spec(clients=len(weights))
    rows = [weighting.vector(weight, spec) for weight in weights]
    total = weighting.total(
        sum(rows[1:], start=rows[0]) % rows[0].dtype.type(1 << spec.modulus_bits),
        spec,
        survivors=len(weights),
    )
    refused = []
    for name, wrong in (("bad_below", len(weights) - 1), ("bad_above", len(weights) * largest + 1)):
        try:
            weighting.total(np.array([wrong], rows[0].dtype), spec, survivors=len(weights))
        except RemoteProtocolError:
            refused.append({"name": name, "total": wrong})
    assert len(refused) == 2
    return {
        "largest": largest,
        "weights": weights,
        "bits": spec.modulus_bits,
        "clipped": [int(row[0]) for row in rows],
        "total": total,
        "bad_totals": refused,
    }
