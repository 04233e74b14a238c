"""The sum and nothing else: one line for people who only want secure aggregation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secfl.config import KeyMode, Scheme, SecureAggregationConfig, check_cohort
from secfl.crypto import codec
from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError, DataError
from secfl.federation.inprocess import InProcessDriver
from secfl.federation.schemes import scheme_for, scheme_spec
from secfl.randomness import Rng, SystemRng
from secfl.types import PrivatizedUpdate, RoundId, RoundSpec, Update, VectorSpec, client_id

__all__ = ["secure_sum"]

_VECTOR = "sum"
_NO_DIGEST = bytes(32)


def secure_sum(
    inputs: Mapping[str, NDArray[np.generic]],
    *,
    scheme: str = "masking",
    key_mode: str = "sum-key",
    threshold: int | None = None,
    bound: float | None = None,
    value_bits: int = 24,
    rng: Rng | None = None,
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Add one array per client through a secure aggregation scheme, all parties in this process.

    Integer arrays are summed exactly. Real arrays are rounded to a grid of ``2**value_bits`` steps over
    ``[-bound, bound]`` first, so the sum is within ``clients * bound / 2**value_bits`` of the exact one.

    One process holds all inputs here, so nothing is hidden from the caller: this shows the protocol and checks
    it. No noise is added. Across machines use the parties of `secfl.crypto.aggregation` with an engine.

    Args:
        inputs: Client name -> array of any shape, the same for all; integers within ±2**53, or finite floats.
        scheme: ``plain``, ``masking`` or ``ckks``.
        key_mode: ``sum-key`` or ``shared``, for ``ckks``.
        threshold: Fewest clients for which a sum is opened; default ``max(3, floor(2n/3) + 1)``.
        bound: Public bound of real values; larger ones are clipped. The default is the largest absolute value
            of all inputs, which only a simulation can know.
        value_bits: Resolution of real values, 8 to 30.
        rng: Source of keys and masks; the operating system by default.

    Returns:
        int64 or float64, the inputs' shape.

    Raises:
        ConfigError: Too few clients, unknown scheme, or arrays that do not match.
        DataError: NaN or infinity.
        CapacityError: The sum does not fit.

    >>> import numpy as np
    >>> hospitals = {"a": np.arange(4), "b": np.ones(4, int), "c": np.full(4, -2)}
    >>> secure_sum(hospitals, scheme="masking")
    array([-1,  0,  1,  2])
    """
    names = sorted(client_id(name) for name in inputs)
    if scheme not in set(Scheme) or key_mode not in set(KeyMode):
        raise ConfigError(
            f"secure_sum: scheme {scheme!r} with key_mode {key_mode!r}; expected one of {', '.join(Scheme)} "
            f"and one of {', '.join(KeyMode)}"
        )
    settings = SecureAggregationConfig(scheme=Scheme(scheme), ckks_key=KeyMode(key_mode))
    try:
        least = check_cohort(len(names), settings.scheme, threshold, dropout=0.0)
    except ValueError as error:
        raise ConfigError(f"secure_sum: {error}") from None
    arrays = {name: np.asarray(inputs[name]) for name in names}
    shape = arrays[names[0]].shape if names else ()
    if not names or any(array.shape != shape for array in arrays.values()) or math.prod(shape) == 0:
        raise ConfigError("secure_sum: expected non-empty arrays of one shape")
    if all(np.issubdtype(array.dtype, np.integer) for array in arrays.values()):
        values, bits = _integers(arrays)
        grid = None
    else:
        grid = _grid(arrays, bound=bound, value_bits=value_bits)
        values = {name: _quantise(name, array, grid) for name, array in arrays.items()}
        bits = codec.required_bits(grid, clients=len(names))
    vector = VectorSpec(name=_VECTOR, length=math.prod(shape), modulus_bits=bits)
    source = rng or SystemRng()
    identities = {name: Identity.generate(name, source) for name in names}
    directory = Directory.enroll(identities.values())
    spec = RoundSpec(
        run_id=source.bytes(16),
        round_id=RoundId(0),
        cohort=tuple(names),
        threshold=least,
        vectors=(vector,),
        scheme=scheme_spec(settings),
        manifest_digest=directory.digest(),
        model_digest=_NO_DIGEST,
        task_digest=_NO_DIGEST,
        plan_digest=_NO_DIGEST,
    )
    aggregation = scheme_for(spec.scheme)
    parties = {
        name: aggregation.client(
            spec,
            identities[name],
            directory=directory,
            update=PrivatizedUpdate.without_noise({_VECTOR: codec.to_residues(values[name], bits=bits)}),
            rng=source,
        )
        for name in names
    }
    aggregator = aggregation.aggregator(spec, directory=directory)
    carriage = InProcessDriver().carry(aggregator, parties, watch=lambda _: None)
    total = carriage.result.sums[_VECTOR]
    if grid is None:
        return codec.centre(total, bits=bits).reshape(shape)
    return codec.dequantise(total, grid, bits=bits).reshape(shape)


def _integers(arrays: Mapping[str, NDArray[np.generic]]) -> tuple[dict[str, NDArray[np.int64]], int]:
    largest = max(max(abs(int(array.max())), abs(int(array.min()))) for array in arrays.values())
    if largest > 2**53:
        raise ConfigError("secure_sum: integers beyond 2**53 in absolute value are not supported")
    bits = max(2, (largest * len(arrays)).bit_length() + 1)
    return {name: array.ravel().astype(np.int64) for name, array in arrays.items()}, bits


def _grid(arrays: Mapping[str, NDArray[np.generic]], *, bound: float | None, value_bits: int) -> codec.Grid:
    if not 8 <= value_bits <= 30:
        raise ConfigError(f"secure_sum: value_bits {value_bits}, expected 8 to 30")
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise ConfigError(f"secure_sum: {name}: expected real numbers, got {array.dtype}")
        if not np.isfinite(array).all():
            raise DataError(f"secure_sum: {name}: NaN or infinity, expected finite numbers")
    limit = bound if bound is not None else max(float(np.abs(array).max()) for array in arrays.values())
    size = next(iter(arrays.values())).size
    return codec.Grid.for_coordinates(size, coordinate_bound=limit or 1.0, value_bits=value_bits)


def _quantise(
    name: str, array: NDArray[np.generic], grid: codec.Grid
) -> NDArray[np.int32] | NDArray[np.int64]:
    flat = array.astype(np.float32).ravel()
    return codec.quantise(Update(values=flat, names=(name,), sizes=(flat.size,)), grid).values
