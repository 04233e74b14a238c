"""What the machine itself allows: expanding one mask, and adding one vector."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["Limits", "limiting_operations", "measure_limits"]

_BLOCK_BYTES: Final = 1 << 17
_AES_BLOCK: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on one core, in nanoseconds of processor time per parameter.

    Attributes:
        aes_ctr_ns_per_param: AES-256-CTR key stream of one 32-bit word, added to a vector in blocks that stay in
            the cache: nobody who masks 32-bit words with AES in Python is faster, per mask.
        add_ns_per_param: Adding a uint32 vector to another in place.
    """

    aes_ctr_ns_per_param: float
    add_ns_per_param: float

    def least(self, other: Limits) -> Limits:
        """The better of two measurements: limits are what the machine can do when it is left alone."""
        return Limits(
            aes_ctr_ns_per_param=min(self.aes_ctr_ns_per_param, other.aes_ctr_ns_per_param),
            add_ns_per_param=min(self.add_ns_per_param, other.add_ns_per_param),
        )


def measure_limits(parameters: int, *, repeats: int) -> Limits:
    """Measure both on a vector of ``parameters`` words, ``repeats`` times, and keep the least."""
    expand, add = limiting_operations(parameters)
    return Limits(
        aes_ctr_ns_per_param=_best(expand, repeats) / parameters * 1e9,
        add_ns_per_param=_best(add, repeats) / parameters * 1e9,
    )


def limiting_operations(parameters: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Expanding one mask, and adding one vector, of ``parameters`` words each."""
    vector = np.zeros(parameters, np.uint32)
    other = np.ones(parameters, np.uint32)

    def expand() -> None:
        cipher = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(_AES_BLOCK))).encryptor()
        zeros = memoryview(bytes(_BLOCK_BYTES))
        stream = bytearray(_BLOCK_BYTES + _AES_BLOCK)
        step = _BLOCK_BYTES // 4
        words = np.frombuffer(stream, np.dtype("<u4"), step)
        for start in range(0, parameters, step):
            block = vector[start : start + step]
            cipher.update_into(zeros[: 4 * block.size], stream)
            np.add(block, words[: block.size], out=block)

    def add() -> None:
        np.add(vector, other, out=vector)

    return expand, add


def _best(work: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)
