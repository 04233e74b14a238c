"""Bit packing: residues of b bits to bytes and back, at b/8 bytes a value.

The format is one little-endian bit stream: value i occupies the bits ``[i*b, (i+1)*b)``, where bit j of the
stream is bit ``j % 8`` of byte ``j // 8``. The unused bits of the last byte are zero.

Eight values fill exactly b bytes, so the work is done on groups of eight, in blocks that stay in the cache:
neighbouring values are merged into *lanes* of up to 64 bits, lanes are shifted into 64-bit words, and words
are stored at a stride of b bytes. A word that reaches beyond its group is stored first and its excess, which
is zero, is overwritten by the next group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfl.errors import LocalProtocolError

__all__ = ["MAX_BITS", "MIN_BITS", "pack", "packed_size", "unpack"]

MIN_BITS = 2
MAX_BITS = 62
_GROUP = 8
_BLOCK = 1 << 16  # values; smaller blocks fit the cache better but pay more for each NumPy call (measured)
_WORDS: Final[dict[int, np.dtype[Any]]] = {
    8: np.dtype("u1"),
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
}  # widths that are words of their own


def packed_size(length: int, *, bits: int) -> int:
    """Bytes that ``length`` values of ``bits`` bits take: ``ceil(length * bits / 8)``.

    Raises:
        LocalProtocolError: ``length`` is negative, or ``bits`` is out of range.
    """
    _check_bits(bits)
    if length < 0:
        raise LocalProtocolError(f"packing: length {length}, expected 0 or more")
    return (length * bits + 7) // 8


def pack(values: NDArray[np.uint32] | NDArray[np.uint64], *, bits: int) -> bytes:
    """Pack residues below ``2**bits``.

    Args:
        values: uint32 or uint64, shape ``(length,)``; every element below ``2**bits``.
        bits: 2 to 62.

    Returns:
        ``packed_size(length, bits=bits)`` bytes.

    Raises:
        LocalProtocolError: Another type or shape, or an element that needs more bits.
    """
    size = packed_size(values.size, bits=bits)
    if values.ndim != 1 or values.dtype not in (np.dtype(np.uint32), np.dtype(np.uint64)):
        raise LocalProtocolError("packing: expected one vector of uint32 or uint64")
    if not values.flags.c_contiguous:
        values = values.copy()
    if bits in _WORDS:
        if values.size and int(values.max()) >> bits:
            raise LocalProtocolError(f"packing: an element needs more than {bits} bits")
        return values.astype(_WORDS[bits]).tobytes()
    # The last word of the last group may reach beyond the end, and the last group may be filled up with
    # zeros.
    out = np.empty(size + bits + 8, np.uint8)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        if int(block.max()) >> bits:
            raise LocalProtocolError(f"packing: an element needs more than {bits} bits")
        if block.size % _GROUP:
            whole = np.zeros(-(-block.size // _GROUP) * _GROUP, block.dtype)
            whole[: block.size] = block
            block = whole
        _pack_groups(block, out, offset=start // _GROUP * bits, layout=_layout(bits))
    return out[:size].tobytes()


def unpack(data: bytes | memoryview, *, length: int, bits: int) -> NDArray[np.uint32] | NDArray[np.uint64]:
    """Invert `pack`.

    Returns:
        ``length`` values below ``2**bits``: uint32 up to 32 bits, else uint64.

    Raises:
        LocalProtocolError: ``data`` is not exactly ``packed_size(length, bits=bits)`` bytes, or an unused bit
            of its last byte is set, so that two byte strings never mean the same vector. Who parses a peer's
            bytes turns this into a `RemoteProtocolError` that names the peer.
    """
    size = packed_size(length, bits=bits)
    source = np.frombuffer(data, np.uint8)
    if source.size != size:
        raise LocalProtocolError(
            f"packing: {source.size} bytes, expected {size} for {length} values of {bits} bits"
        )
    used = length * bits % 8
    if used and int(source[-1]) >> used:
        raise LocalProtocolError("packing: an unused bit of the last byte is set")
    values: NDArray[np.uint32] | NDArray[np.uint64]
    values = np.empty(length, np.uint32) if bits <= 32 else np.empty(length, np.uint64)
    if bits in _WORDS:
        values[...] = source.view(_WORDS[bits])
        return values
    layout = _layout(bits)
    for start in range(0, length, _BLOCK):
        count = min(_BLOCK, length - start)
        groups = -(-count // _GROUP)
        offset = start // _GROUP * bits
        if offset + groups * bits + 8 > size:  # the last words reach beyond the data: read from a padded copy
            tail = np.zeros(groups * bits + 8, np.uint8)
            tail[: size - offset] = source[offset:]
            block = _unpack_groups(tail, groups, offset=0, layout=layout)
        else:
            block = _unpack_groups(source, groups, offset=offset, layout=layout)
        values[start : start + count] = block[:count]
    return values


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a group of eight values lies in b bytes.

    Attributes:
        bits: b.
        merged: Values in one lane: 1, 2, 4 or 8.
        lanes: ``8 / merged`` lanes of ``merged * bits`` bits, at most 64.
        words: For each 64-bit word, the lanes that reach into it, with the lane's bit position in the word
            (negative when the lane began in an earlier word).
    """

    bits: int
    merged: int
    lanes: int
    words: tuple[tuple[tuple[int, int], ...], ...]


@cache
def _layout(bits: int) -> _Layout:
    merged = 1
    while merged < _GROUP and 2 * merged * bits <= 64:
        merged *= 2
    lanes = _GROUP // merged
    width = merged * bits
    words = []
    for word in range(-(-bits // 8)):
        reach = [
            (lane, lane * width - 64 * word)
            for lane in range(lanes)
            if lane * width < 64 * (word + 1) and (lane + 1) * width > 64 * word
        ]
        words.append(tuple(reach))
    return _Layout(bits, merged, lanes, tuple(words))


def _shift(count: int) -> np.uint64:
    return np.uint64(count)


def _strided(buffer: NDArray[np.uint8], groups: int, *, offset: int, stride: int) -> NDArray[np.uint64]:
    """One 64-bit little-endian word of every group, at any alignment."""
    return np.ndarray((groups,), np.dtype("<u8"), buffer.data, offset, (stride,))


def _pack_groups(
    block: NDArray[np.uint32] | NDArray[np.uint64], out: NDArray[np.uint8], *, offset: int, layout: _Layout
) -> None:
    bits = layout.bits
    groups = block.size // _GROUP
    merged, width = 1, bits
    if block.dtype == np.uint32 and layout.merged > 1:
        pairs = block.view(np.dtype("<u8"))
        lanes = pairs >> _shift(32 - bits)
        if bits < 32:
            lanes &= _shift((1 << bits) - 1 << bits)
            lanes |= pairs & _shift(0xFFFFFFFF)
        merged, width = 2, 2 * bits
    else:
        lanes = block.astype(np.uint64)
    while merged < layout.merged:
        high = lanes[1::2] << _shift(width)
        high |= lanes[0::2]
        lanes, merged, width = high, 2 * merged, 2 * width
    columns = lanes.reshape(groups, layout.lanes)
    last = len(layout.words) - 1
    for word in (last, *range(last)):
        total: NDArray[np.uint64] | None = None
        for lane, position in layout.words[word]:
            column = columns[:, lane]
            if position > 0:
                column = column << _shift(position)
            elif position < 0:
                column = column >> _shift(-position)
            total = column if total is None else np.bitwise_or(total, column)
        assert total is not None
        _strided(out, groups, offset=offset + 8 * word, stride=bits)[...] = total


def _unpack_groups(
    source: NDArray[np.uint8], groups: int, *, offset: int, layout: _Layout
) -> NDArray[np.uint32] | NDArray[np.uint64]:
    bits = layout.bits
    width = layout.merged * bits
    mask = _shift((1 << width) - 1)
    lanes = np.empty((groups, layout.lanes), np.uint64)
    parts: list[NDArray[np.uint64] | None] = [None] * layout.lanes
    for word, reach in enumerate(layout.words):
        loaded = _strided(source, groups, offset=offset + 8 * word, stride=bits).copy()
        for lane, position in reach:
            if position > 0:
                piece = loaded >> _shift(position)
            elif position < 0:
                piece = loaded << _shift(-position)
            else:
                piece = loaded
            begun = parts[lane]
            parts[lane] = piece if begun is None else np.bitwise_or(begun, piece)
    for lane, part in enumerate(parts):
        assert part is not None
        np.bitwise_and(part, mask, out=lanes[:, lane])
    flat = lanes.reshape(-1)
    merged = layout.merged
    while merged > 2 or (merged == 2 and bits > 32):
        merged //= 2
        width = merged * bits
        halves = np.empty(2 * flat.size, np.uint64)
        np.bitwise_and(flat, _shift((1 << width) - 1), out=halves[0::2])
        np.right_shift(flat, _shift(width), out=halves[1::2])
        flat = halves
    if merged == 2:
        spread = flat << _shift(32 - bits)
        spread &= _shift(((1 << bits) - 1) << 32)
        spread |= flat & _shift((1 << bits) - 1)
        return spread.view(np.uint32)
    return flat


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise LocalProtocolError(f"packing: {bits} bits, expected {MIN_BITS} to {MAX_BITS}")
