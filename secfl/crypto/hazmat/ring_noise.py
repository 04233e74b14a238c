"""Hazard: the secret keys and errors of ring ciphertexts. Wrong noise here breaks the encryption silently.

Discrete Gaussian with σ = 9/2 on the integers, the width of keys and errors in `secfl.crypto.ckks_ring`. Why 9/2: an
adversary who learns the *sum* of two honest clients' keys (or errors) is left with a discrete Gaussian of
width σ/√2 = 3.18 for each, which is the σ = 3.2 of the HomomorphicEncryption.org standard.

Sampling inverts the distribution function. A draw is a uniform number U of 128 bits against thresholds of 128
bits; its first 16 bits decide all but one draw in about 1,500, and only for those are the other 112 bits
generated. The table's distance from the ideal distribution is below 2^-120 a draw (`TOTAL_VARIATION_LOG2`),
where a double would leave 2^-53 and a 64-bit threshold 2^-58.

The table look-up depends on secret bits and is not constant-time: an attacker who shares the processor's
cache with the client is out of scope.
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secfl.errors import LocalProtocolError

__all__ = ["KEY_BYTES", "REACH", "SIGMA", "TOTAL_VARIATION_LOG2", "RingNoise"]

SIGMA: Final = 4.5
KEY_BYTES: Final = 32
REACH: Final = 59
"""No draw is larger in absolute value: beyond it the thresholds of 128 bits leave no room."""
TOTAL_VARIATION_LOG2: Final = -120.0
_BITS: Final = 128
_PREFIX_BITS: Final = 16
_UNDECIDED: Final = -128
_BLOCK: Final = 1 << 15


class RingNoise:
    """A stream of draws from one 32-byte key: AES-256-CTR twice, once for prefixes and once for the rest.

    The same key gives the same draws, in whatever portions they are read. One key serves one purpose.
    """

    __slots__ = ("_more", "_prefixes")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise LocalProtocolError(f"ring noise: key of {len(key)} bytes, expected {KEY_BYTES}")
        self._prefixes = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._more = Cipher(algorithms.AES(key), modes.CTR(b"\x80" + bytes(15))).encryptor()

    def __repr__(self) -> str:
        return "RingNoise(<redacted>)"

    def draw(self, count: int) -> NDArray[np.int8]:
        """The next ``count`` draws, int8 in ``[-REACH, REACH]``."""
        thresholds, guide = _table()
        out = np.empty(count, np.int8)
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            prefixes = np.frombuffer(self._prefixes.update(bytes(2 * size)), np.dtype("<u2"))
            part = out[start : start + size]
            np.take(guide, prefixes, out=part, mode="clip")
            for position in np.flatnonzero(part == _UNDECIDED).tolist():
                rest = int.from_bytes(self._more.update(bytes(14)), "little")
                uniform = int(prefixes[position]) << (_BITS - _PREFIX_BITS) | rest
                part[position] = bisect_right(thresholds, uniform) - REACH
        return out


@cache
def _table() -> tuple[tuple[int, ...], NDArray[np.int8]]:
    """The thresholds of the values ``-REACH .. REACH - 1``, and the value that each 16-bit prefix decides."""
    with localcontext(Context(prec=80)):
        variance = Decimal(SIGMA) ** 2  # 20.25, exact
        weights = [(-Decimal(x * x) / (2 * variance)).exp() for x in range(REACH + 1)]
        total = weights[0] + 2 * sum(weights[1:])
        line = [*reversed(weights[1:]), *weights]
        cumulative = Decimal(0)
        thresholds = []
        for weight in line[:-1]:
            cumulative += weight
            thresholds.append(int(cumulative / total * (1 << _BITS) + Decimal("0.5")))
    guide = np.empty(1 << _PREFIX_BITS, np.int8)
    rest = _BITS - _PREFIX_BITS
    for prefix in range(1 << _PREFIX_BITS):
        first = bisect_right(thresholds, prefix << rest)
        last = bisect_right(thresholds, (prefix + 1 << rest) - 1)
        guide[prefix] = first - REACH if first == last else _UNDECIDED
    return tuple(thresholds), guide
