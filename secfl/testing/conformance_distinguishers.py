"""Distinguishers: programs that look at transcripts of two worlds and try to tell which is which.

A scheme that hides single inputs makes the transcripts of two cohorts with equal sums equally distributed, up to the
advantage that its cryptography leaves. Runs are independent, so under that hypothesis the labels of all runs are
exchangeable, and every p-value here is exact; the false-alarm rates follow by the union bound and hold whatever the
transcripts look like.

They find careless schemes (values in clear, deterministic encryption, masks that repeat, seeds that are too short). No
test of transcripts proves that a scheme is secure.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.aggregation import Envelope

__all__ = [
    "FALSE_ALARM",
    "Alarm",
    "Slots",
    "Transcript",
    "compare_bits",
    "compare_features",
    "find_repeats",
    "slots_of",
]

FALSE_ALARM = 1e-6
"""Each comparison of two worlds raises a false alarm with at most this probability."""

_WINDOW = 8

Slots = Mapping[tuple[str, str, int], bytes]
"""A transcript by sender, recipient and which of their messages it is."""

Transcript = Sequence[Envelope]


def slots_of(transcript: Transcript) -> dict[tuple[str, str, int], bytes]:
    """A transcript's messages by place, so that two runs can be laid over each other."""
    slots: dict[tuple[str, str, int], bytes] = {}
    for envelope in transcript:
        number = 0
        while (envelope.sender, envelope.recipient, number) in slots:
            number += 1
        slots[envelope.sender, envelope.recipient, number] = envelope.payload
    return slots


@dataclass(frozen=True, slots=True)
class Alarm:
    """What gave the worlds away."""

    where: str
    p_value: float


def compare_bits(first: Sequence[Slots], second: Sequence[Slots]) -> Alarm | None:
    """Fisher's exact test of every bit of every message, with Bonferroni's correction.

    Finds any bit that depends on the input alone. False alarms: at most `FALSE_ALARM`. With 24 runs in each world, a
    bit that is constant in each world and differs has p = 6e-14, which is significant among up to 1.6e7 bits.

    A message that is missing in some run, or changes its size, is itself an alarm: sizes must be public.
    """
    runs = [*first, *second]
    shape = {slot: len(payload) for slot, payload in runs[0].items()}
    for run in runs[1:]:
        if {slot: len(payload) for slot, payload in run.items()} != shape:
            return Alarm("which messages are sent, or their sizes", 0.0)
    table = _fisher_table(len(first), len(second))
    total_bits = 8 * sum(shape.values())
    for slot in shape:
        ones_first = _ones(first, slot)
        ones_second = _ones(second, slot)
        p_values = table[ones_first, ones_second]
        place = int(np.argmin(p_values))
        if float(p_values[place]) < FALSE_ALARM / total_bits:
            sender, recipient, number = slot
            where = f"bit {place % 8} of byte {place // 8} of message {number} from {sender} to {recipient}"
            return Alarm(where, float(p_values[place]))
    return None


def compare_features(first: Sequence[Slots], second: Sequence[Slots]) -> Alarm | None:
    """Fisher's exact test of whole-transcript features against their pooled medians.

    The features: bytes after compression, windows of 8 bytes that occur twice in a transcript, and the number of
    zero bytes. They find structure that moves from run to run, such as one mask under two equal vectors. False
    alarms: at most `FALSE_ALARM`.
    """
    table = _fisher_table(len(first), len(second))
    for name, feature in _FEATURES.items():
        values = np.array([feature(run) for run in (*first, *second)])
        above = values > np.median(values)
        p_value = float(table[int(above[: len(first)].sum()), int(above[len(first) :].sum())])
        if p_value < FALSE_ALARM / len(_FEATURES):
            return Alarm(name, p_value)
    return None


def find_repeats(runs: Sequence[Slots]) -> Alarm | None:
    """Windows of 8 bytes that are equal in two runs at one place, although each of the bytes varies from run to run.

    Where those bytes are fresh randomness, a pair of runs and a window repeat with probability 2^-64: among 64 runs
    and 2^13 windows a false alarm has probability below 1e-12. If a message depends on seeds of k bits in all, R runs
    repeat it about R^2 / 2^(k+1) times: 64 runs find 8 bits, 1,024 find 16, 2^17 would find 32.
    """
    for slot in runs[0]:
        payloads = [run[slot] for run in runs if slot in run]
        size = min(map(len, payloads)) // _WINDOW
        table = np.array([np.frombuffer(payload, np.uint8, size * _WINDOW) for payload in payloads])
        varies = (table != table[0]).any(axis=0).reshape(size, _WINDOW).all(axis=1)
        words = np.sort(table.view("<u8")[:, varies], axis=0)
        repeated = (words[1:] == words[:-1]).any(axis=0)
        if repeated.any():
            place = int(np.flatnonzero(varies)[np.flatnonzero(repeated)[0]]) * _WINDOW
            sender, recipient, number = slot
            return Alarm(f"byte {place} of message {number} from {sender} to {recipient}", 0.0)
    return None


def _ones(runs: Sequence[Slots], slot: tuple[str, str, int]) -> NDArray[np.int64]:
    rows = np.array([np.frombuffer(run[slot], np.uint8) for run in runs])
    ones: NDArray[np.int64] = np.unpackbits(rows, axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    return ones


@cache
def _fisher_table(first: int, second: int) -> NDArray[np.float64]:
    """Two-sided exact p-value for ``a`` ones among ``first`` runs and ``b`` among ``second``, indexed by both.

    Twice the smaller tail of the hypergeometric distribution that holds when the a + b ones fell on any runs.
    """
    table = np.ones((first + 1, second + 1))
    for a in range(first + 1):
        for b in range(second + 1):
            ones = a + b
            everything = math.comb(first + second, ones)
            smallest, largest = max(0, ones - second), min(first, ones)
            weights = {
                x: math.comb(first, x) * math.comb(second, ones - x) for x in range(smallest, largest + 1)
            }
            low = sum(weight for x, weight in weights.items() if x <= a)
            high = sum(weight for x, weight in weights.items() if x >= a)
            table[a, b] = min(1.0, 2 * min(low, high) / everything)
    return table


def _compressed(run: Slots) -> int:
    return len(zlib.compress(b"".join(run.values()), level=1))


def _repeated_windows(run: Slots) -> int:
    repeats = 0
    for payload in run.values():
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(payload, np.uint8), _WINDOW)
        words = np.ascontiguousarray(windows).view("<u8").ravel() if len(payload) >= _WINDOW else np.empty(0)
        repeats += words.size - np.unique(words).size
    return repeats


def _zero_bytes(run: Slots) -> int:
    return sum(payload.count(0) for payload in run.values())


_FEATURES = {
    "its compressibility": _compressed,
    "windows that occur twice": _repeated_windows,
    "the number of zero bytes": _zero_bytes,
}
