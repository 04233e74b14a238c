"""Models as named tensors: difference, application and digest, in NumPy."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from secfl.errors import LocalProtocolError
from secfl.segmentation.task import State
from secfl.types import PROTOCOL_VERSION, Update, join_fields

__all__ = ["apply_update", "count_parameters", "difference", "state_digest"]


def count_parameters(state: State) -> int:
    """Number of elements over all tensors."""
    return sum(tensor.size for tensor in state.values())


def difference(after: State, before: State) -> Update:
    """``after - before`` as one float32 vector, tensors in the order of ``before``.

    Raises:
        LocalProtocolError: The two differ in names or shapes.
    """
    if list(after) != list(before):
        raise LocalProtocolError("the trained model has other tensors than the global model")
    for name, tensor in before.items():
        if after[name].shape != tensor.shape:
            raise LocalProtocolError(f"tensor {name}: trained shape differs from the global model's")
    values = np.concatenate([(after[name] - before[name]).ravel() for name in before])
    return Update(
        values=values.astype(np.float32, copy=False),
        names=tuple(before),
        sizes=tuple(tensor.size for tensor in before.values()),
    )


def apply_update(state: State, step: NDArray[np.float64]) -> State:
    """A new state: every element plus its step, added in float64 and rounded once to float32.

    Args:
        state: The global model.
        step: float64, shape ``(d,)``, tensors in the order of ``state``.

    Raises:
        LocalProtocolError: The step has another length than the state has parameters.
    """
    if step.shape != (count_parameters(state),):
        raise LocalProtocolError(f"step of shape {step.shape} for {count_parameters(state)} parameters")
    moved: dict[str, NDArray[np.float32]] = {}
    start = 0
    for name, tensor in state.items():
        part = step[start : start + tensor.size].reshape(tensor.shape)
        moved[name] = (tensor.astype(np.float64) + part).astype(np.float32)
        start += tensor.size
    return moved


def state_digest(state: State) -> bytes:
    """SHA-256 over names, shapes and little-endian float32 bytes, in order."""
    digest = hashlib.sha256(join_fields(PROTOCOL_VERSION, b"model"))
    for name, tensor in state.items():
        shape = struct.pack(f"<{tensor.ndim}Q", *tensor.shape)
        digest.update(join_fields(name.encode(), shape))
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    return digest.digest()
