"""Bit packing: values of b bits in one little-endian bit stream, and bytes that are no such stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from secfl.crypto.packing import pack, unpack
from secfl.errors import LocalProtocolError
from secfl.randomness import InsecureSeededRng


def make(previous: Any) -> Any:
    """Widths below, at and above every boundary of words."""
    rng = InsecureSeededRng(30)
    cases = []
    for bits in (2, 3, 7, 8, 12, 16, 20, 22, 31, 32, 33, 40, 47, 60, 62):
        for length in (1, 8, 19):
            drawn = [int.from_bytes(rng.bytes(8), "little") % (1 << bits) for _ in range(length)]
            values = [(1 << bits) - 1, *drawn][:length]
            packed = pack(np.array(values, np.uint32 if bits <= 32 else np.uint64), bits=bits)
            assert unpack(packed, length=length, bits=bits).tolist() == values
            bad = {"bad_short": packed[:-1], "bad_long": packed + b"\x00"}
            if bits * length % 8:
                bad["bad_unused_bit"] = packed[:-1] + bytes([packed[-1] | 0x80])
            for data in bad.values():
                _refused(data, length=length, bits=bits)
            cases.append(
                {
                    "bits": bits,
                    "values": values,
                    "packed": packed.hex(),
                    **{name: data.hex() for name, data in bad.items()},
                }
            )
    return cases


def _refused(data: bytes, *, length: int, bits: int) -> None:
    try:
        unpack(data, length=length, bits=bits)
    except LocalProtocolError:
        return
    raise AssertionError(f"{length} values of {bits} bits: accepted")
