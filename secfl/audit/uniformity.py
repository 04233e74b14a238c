"""Do vectors of residues look like independent uniform numbers modulo 2^b? For anybody's transcript of updates.

Every test is exact or conservative under that hypothesis, whatever the vectors hide; their levels add up to the level
asked for. Passing proves nothing: a stream cipher with a known key passes too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from secfl.audit.findings import Finding, from_p_value
from secfl.audit.verdicts import REFUTED_LEVEL
from secfl.errors import ConfigError

__all__ = ["audit_updates", "column_test", "high_bits_test", "low_bits_test", "pair_test", "serial_test"]

_CELL_BITS = 8
_MOST_PAIRS = 2000

Residues = NDArray[np.uint32] | NDArray[np.uint64]


def audit_updates(
    updates: Residues, *, bits: int, level: float = REFUTED_LEVEL, name: str = "updates"
) -> list[Finding]:
    """Test what an adversary was sent: one row per message, each masked or encrypted afresh.

    Args:
        updates: uint32 or uint64 residues below ``2**bits``, shape ``(messages, d)``.
        bits: b, 2 to 62.
        level: False-alarm rate of all five tests together.
        name: For the table.

    Raises:
        ConfigError: No messages, or residues out of range.
    """
    if updates.ndim != 2 or not updates.size:
        raise ConfigError("updates: expected messages as rows")
    if not 2 <= bits <= 62 or int(updates.max()) >> bits:
        raise ConfigError(f"updates: expected residues of {bits} bits, 2 to 62")
    share = level / 5
    return [
        high_bits_test(updates, bits=bits, level=share, name=f"{name}: chi-square of the high bits"),
        low_bits_test(updates, bits=bits, level=share, name=f"{name}: chi-square of the low bits"),
        serial_test(updates, bits=bits, level=share, name=f"{name}: serial test of neighbours"),
        column_test(updates, bits=bits, level=share, name=f"{name}: every coordinate moves"),
        pair_test(updates, bits=bits, level=share, name=f"{name}: differences of messages"),
    ]


def high_bits_test(
    updates: Residues, *, bits: int, level: float = REFUTED_LEVEL, name: str = "high bits"
) -> Finding:
    """Chi-square of the highest (up to 8) bits: values in clear are small, so their high bits are not uniform.

    Each message is tested on its own (Bonferroni), so that one in clear is not lost among many, and all together, so
    that many short ones count.
    """
    width = _cell_bits(bits, updates.shape[1])
    return _worst_row(
        [
            *(_chi_square(row >> row.dtype.type(bits - width), width) for row in updates),
            _pooled(updates, bits=bits),
        ],
        level=level,
        name=name,
        detail=f"{1 << width} cells",
    )


def low_bits_test(
    updates: Residues, *, bits: int, level: float = REFUTED_LEVEL, name: str = "low bits"
) -> Finding:
    """Chi-square of the lowest (up to 8) bits, message by message."""
    width = _cell_bits(bits, updates.shape[1])
    mask = updates.dtype.type((1 << width) - 1)
    return _worst_row(
        [_chi_square(row & mask, width) for row in updates],
        level=level,
        name=name,
        detail=f"{1 << width} cells",
    )


def serial_test(
    updates: Residues, *, bits: int, level: float = REFUTED_LEVEL, name: str = "serial test"
) -> Finding:
    """Chi-square of disjoint pairs of neighbouring coordinates, each by its highest (up to 4) bits."""
    width = min(bits, _CELL_BITS // 2, max(1, _cell_bits(bits, updates.shape[1] // 2) // 2))
    shift = updates.dtype.type(bits - width)
    rows = []
    for row in updates:
        even = row.size - row.size % 2
        high = (row[:even] >> shift).astype(np.int64)
        rows.append(_chi_square(high[0::2] << width | high[1::2], 2 * width))
    return _worst_row(rows, level=level, name=name, detail=f"{1 << 2 * width} cells")


def column_test(
    updates: Residues, *, bits: int, level: float = REFUTED_LEVEL, name: str = "coordinates"
) -> Finding:
    """Does one coordinate stay within a short arc in all messages? It does where it is sent in clear.

    N uniform points on a circle lie in some arc of length a (of the whole) with probability at most ``N·a^(N-1)``,
    exactly that for a up to 1/2. Union over coordinates.
    """
    count, length = updates.shape
    if count < 3:
        return _not_run(name, level, "fewer than 3 messages")
    points = np.sort(updates, axis=0).astype(np.float64) / 2.0**bits
    gaps = np.concatenate([np.diff(points, axis=0), points[:1] + 1 - points[-1:]])
    arcs = np.maximum(1 - gaps.max(axis=0), 2.0**-bits)  # an arc is at least one residue wide
    place = int(np.argmin(arcs))
    log_p = math.log(length) + math.log(count) + (count - 1) * math.log(float(arcs[place]))
    least = math.exp((math.log(level) - math.log(length) - math.log(count)) / (count - 1))
    return from_p_value(
        name,
        min(1.0, math.exp(min(0.0, log_p))),
        statistic=f"shortest arc {arcs[place]:.3g} of the circle in {count} messages (coordinate {place})",
        level=level,
        power=f"finds a coordinate that stays within {least:.2g} of the circle",
    )


def pair_test(
    updates: Residues, *, bits: int, level: float = REFUTED_LEVEL, name: str = "differences"
) -> Finding:
    """Chi-square of the high bits of differences and sums of two messages: a mask used twice cancels.

    Pairs: each message with the 20 after it, at most 2000 in all; Bonferroni over pairs and both signs.
    """
    count, length = updates.shape
    pairs = [(i, j) for i in range(count) for j in range(i + 1, min(count, i + 21))][:_MOST_PAIRS]
    if not pairs:
        return _not_run(name, level, "a single message")
    width = _cell_bits(bits, length)
    mask, shift = np.uint64((1 << bits) - 1), np.uint64(bits - width)
    wide = updates.astype(np.uint64)
    rows = [
        _chi_square((combined & mask) >> shift, width)
        for one, other in pairs
        for combined in (wide[one] - wide[other], wide[one] + wide[other])
    ]
    return _worst_row(rows, level=level, name=name, detail=f"{len(pairs)} pairs")


def _pooled(updates: Residues, *, bits: int) -> float:
    width = _cell_bits(bits, updates.size)
    return _chi_square(updates.ravel() >> updates.dtype.type(bits - width), width)


def _cell_bits(bits: int, draws: int) -> int:
    """As many bits as leave 16 expected draws in every cell, so that chi-square holds far out in its tail."""
    return max(1, min(bits, _CELL_BITS, int(math.log2(max(2, draws / 16)))))


def _chi_square(values: NDArray[np.unsignedinteger] | NDArray[np.int64], width: int) -> float:
    """p-value of uniformity over ``2**width`` cells, upper tail; exact for two cells."""
    from scipy.stats import binom, chi2

    cells = 1 << width
    counts = np.bincount(values.astype(np.int64), minlength=cells)
    total = int(counts.sum())
    if cells == 2:
        least = int(counts.min())
        return min(1.0, 2 * float(binom.cdf(least, total, 0.5)))
    expected = total / cells
    statistic = float(((counts - expected) ** 2).sum()) / expected
    return float(chi2.sf(statistic, cells - 1))


def _worst_row(p_values: Iterable[float], *, level: float, name: str, detail: str) -> Finding:
    """The smallest p-value times their number.

    Beyond 6 standard deviations chi-square with 16 draws a cell is too small by a factor of less than 10; the
    factor is granted here, so that the level holds.
    """
    values = list(p_values)
    smallest = min(values)
    corrected = min(1.0, 10 * len(values) * smallest)
    return from_p_value(
        name,
        corrected,
        statistic=f"smallest p-value {smallest:.3g} of {len(values)} ({detail})",
        level=level,
    )


def _not_run(name: str, level: float, reason: str) -> Finding:
    return Finding(name=name, flagged=False, statistic="", level=level, power=f"not run: {reason}")
