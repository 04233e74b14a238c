"""Ways to damage a message. Every one of them must end in `RemoteProtocolError` at its recipient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import numpy as np

from secfl.crypto.wire import FRAME_BYTES

__all__ = ["HEADER_BYTES", "Fault", "damage"]

HEADER_BYTES: Final = 48
"""How many bytes at the front of a message `Fault.HEADER` and `Fault.NUMBER` aim at."""
_FIELD_BYTES: Final = 32


class Fault(StrEnum):
    """What happens to the bytes on their way."""

    EMPTY = "empty"
    TRUNCATE = "truncate"
    EXTEND = "extend"
    FLIP = "flip"
    HEADER = "header"
    NUMBER = "number"
    FIELD = "field"
    NOISE = "noise"
    ZEROS = "zeros"
    ONES = "ones"
    DELETE = "delete"
    INSERT = "insert"
    DUPLICATE = "duplicate"
    SWAP = "swap"
    SPLICE = "splice"


def damage(payload: bytes, fault: Fault, *, source: np.random.Generator, other: bytes = b"") -> bytes:
    """A damaged copy that differs from the payload.

    Args:
        payload: The message; not empty.
        fault: What to do to it.
        source: Chooses places and values. Public randomness: nothing here is private.
        other: Another message, whose tail `Fault.SPLICE` takes over.
    """
    for _ in range(8):
        damaged = _DAMAGES[fault](payload, source, other)
        if damaged != payload:
            return damaged
    return payload[:-1] + bytes([payload[-1] ^ 1])  # zeros over zeros, for example


def _cut(data: bytes, source: np.random.Generator) -> tuple[int, int]:
    """A random piece, often small: first byte and the byte after the last."""
    longest = max(1, len(data))
    size = int(source.integers(1, 1 + min(longest, int(source.choice((4, 32, 256, longest))))))
    start = int(source.integers(0, len(data) - size + 1)) if len(data) > size else 0
    return start, min(len(data), start + size)


def _truncate(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    return data[: int(source.integers(0, len(data)))]


def _extend(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    return data + source.bytes(int(source.choice((1, 2, 8, 32, 64, 1088))))


def _flip(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    place = int(source.integers(0, len(data)))
    return _replace(data, place, bytes([data[place] ^ 1 << int(source.integers(0, 8))]))


def _header(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    place = int(source.integers(0, min(HEADER_BYTES, len(data))))
    return _replace(data, place, source.bytes(1))


def _number(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    width = int(source.choice((1, 2, 4, 8)))
    value = int(source.choice((0, 1, 2, 2**7, 2**8 - 1)))
    everywhere = source.integers(0, 2)
    place = int(source.integers(0, len(data) if everywhere else min(HEADER_BYTES, len(data))))
    small = int(source.integers(0, 2))
    number = value.to_bytes(width, "little") if small else bytes([value]) * width
    return _replace(data, place, number)[: len(data)]


def _field(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    """Keys, hashes and shares are 32 bytes wide: one of them becomes zero, all ones, small or random."""
    fields = max(1, (len(data) - FRAME_BYTES) // _FIELD_BYTES)
    start = FRAME_BYTES + _FIELD_BYTES * int(source.integers(0, fields))
    small = b"\x01" + bytes(_FIELD_BYTES - 1)
    values = (bytes(_FIELD_BYTES), b"\xff" * _FIELD_BYTES, small, source.bytes(_FIELD_BYTES))
    return _replace(data, start, values[int(source.integers(0, len(values)))])[: len(data)]


def _noise(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    start, end = _cut(data, source)
    return _replace(data, start, source.bytes(end - start))


def _zeros(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    start, end = _cut(data, source)
    return _replace(data, start, bytes(end - start))


def _ones(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    start, end = _cut(data, source)
    return _replace(data, start, b"\xff" * (end - start))


def _delete(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    start, end = _cut(data, source)
    return data[:start] + data[end:]


def _insert(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    start, end = _cut(data, source)
    return data[:start] + source.bytes(end - start) + data[start:]


def _duplicate(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    start, end = _cut(data, source)
    return data[:end] + data[start:end] + data[end:]


def _swap(data: bytes, source: np.random.Generator, _: bytes) -> bytes:
    start, end = _cut(data, source)
    middle = (start + end) // 2
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def _splice(data: bytes, source: np.random.Generator, other: bytes) -> bytes:
    if not other:
        return _noise(data, source, other)
    place = int(source.integers(0, min(len(data), len(other))))
    return data[:place] + other[place:]


def _replace(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


_DAMAGES: Final[Mapping[Fault, Callable[[bytes, np.random.Generator, bytes], bytes]]] = MappingProxyType(
    {
        Fault.EMPTY: lambda *_: b"",
        Fault.TRUNCATE: _truncate,
        Fault.EXTEND: _extend,
        Fault.FLIP: _flip,
        Fault.HEADER: _header,
        Fault.NUMBER: _number,
        Fault.FIELD: _field,
        Fault.NOISE: _noise,
        Fault.ZEROS: _zeros,
        Fault.ONES: _ones,
        Fault.DELETE: _delete,
        Fault.INSERT: _insert,
        Fault.DUPLICATE: _duplicate,
        Fault.SWAP: _swap,
        Fault.SPLICE: _splice,
    }
)
