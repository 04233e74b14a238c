"""Audit somebody else's transcript of updates: a secure sum that is careless, and the same one mended.

Four clinics send vectors under pairwise masks, ten rounds long. The careless version draws a pair's mask from the
pair's key alone, so every round has the same masks and two messages of one clinic differ by what it wanted to hide.
Run it: ``python examples/audit_updates.py``.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from secfl.audit import audit_updates, worst

CLINICS, ROUNDS, LENGTH, BITS = 4, 10, 2000, 16
SOURCE = np.random.default_rng(2024)  # an example: nothing private rests on this generator
KEYS = {(a, b): SOURCE.bytes(32) for a in range(CLINICS) for b in range(a + 1, CLINICS)}


def mask(key: bytes, label: str) -> NDArray[np.uint32]:
    """Uniform residues from a key and a label."""
    stream = hashlib.shake_256(key + label.encode()).digest(2 * LENGTH)
    return np.frombuffer(stream, dtype="<u2").astype(np.uint32)


def sent(clinic: int, number: int, *, fresh: bool) -> NDArray[np.uint32]:
    """One clinic's message of one round: small values plus the masks of its pairs."""
    total = SOURCE.integers(-100, 100, LENGTH).astype(np.uint32)
    for (one, other), key in KEYS.items():
        if clinic in (one, other):
            stream = mask(key, f"round {number}" if fresh else "")
            total += stream if clinic == one else -stream
    return total & np.uint32((1 << BITS) - 1)


def main() -> None:
    """Audit both versions."""
    for name, fresh in (("one mask for all rounds", False), ("mended", True)):
        rows = np.stack(
            [sent(clinic, number, fresh=fresh) for number in range(ROUNDS) for clinic in range(CLINICS)]
        )
        found = audit_updates(rows, bits=BITS)
        words = ", ".join(one.name.partition(": ")[2] for one in found if one.flagged) or "nothing"
        print(f"{name}: {worst([one.verdict for one in found]).value}; flagged: {words}")


if __name__ == "__main__":
    main()
