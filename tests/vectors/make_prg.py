"""Mask streams: the low bits of AES-256-CTR words, and a digest of a stream longer than one block."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from secfl.crypto.hazmat.prg import MaskStream, Sign, add_streams


def make(previous: Any) -> Any:
    """One case for each width, two keys."""
    cases = []
    for key in (bytes(32), bytes(range(32))):
        for bits in (2, 16, 22, 31, 32, 33, 40, 62):
            words = stream(key, 70_001, bits)
            cases.append(
                {
                    "key": key.hex(),
                    "bits": bits,
                    "first": words[:6],
                    "length": len(words),
                    "last": words[-1],
                    "sha256_of_64_bit_words": hashlib.sha256(np.array(words, "<u8").tobytes()).hexdigest(),
                }
            )
    return cases


def stream(key: bytes, length: int, bits: int) -> list[int]:
    """The mask of a vector of zeros."""
    words = np.zeros(length, np.uint32 if bits <= 32 else np.uint64)
    add_streams(words, [MaskStream(key, Sign.ADD)])
    return [word % (1 << bits) for word in words.tolist()]
