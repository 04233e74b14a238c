"""Replay a client's step on neighbouring data with frozen noise: what is left of the difference is the sensitivity.

With the same bytes from the same `Rng`, noise cancels exactly, so one replay measures what one unit changes, through
loaders, normalisation, clipping, rounding and summation as they run. (The technique of arXiv 2602.17454, which found
13 violations in 12 libraries.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.findings import Finding
from secfl.audit.verdicts import Verdict
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng, Rng

__all__ = ["ReplayAudit", "difference_norm", "replay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayAudit:
    """What replays measured.

    Attributes:
        verdict: REFUTED when `measured` exceeds `planned`: a fact, without a false-alarm rate.
        measured: Largest L2 distance between the outputs of neighbours, in the unit of the outputs; infinite when
            one of them is not finite.
        planned: The sensitivity that the accounting uses.
        worst_pair: Index of the pair of neighbours that gave `measured`.
        pairs: How many pairs were replayed.
    """

    verdict: Verdict
    measured: float
    planned: float
    worst_pair: int
    pairs: int

    def finding(self, name: str) -> Finding:
        """As a row for tables."""
        return Finding(
            name=name,
            flagged=self.verdict is Verdict.REFUTED,
            statistic=f"sensitivity measured {self.measured:.6g}, planned {self.planned:.6g}",
            power=f"{self.pairs} pairs of neighbours; others may do worse",
        )


def replay(
    step: Callable[[Any, Rng], NDArray[Any]],
    *,
    neighbours: Sequence[tuple[Any, Any]],
    sensitivity: float,
    bits: int | None = None,
    seed: int = 0,
    tolerance: float = 0.0,
) -> ReplayAudit:
    """Measure the sensitivity of a client's step.

    Args:
        step: From data and a source of randomness to what leaves the client: one vector, or rows that are releases
            of their own, of which the worst counts. All randomness must come from the source (checked: the same
            bytes must give the same output).
        neighbours: Pairs of data that differ in one unit. The worst pair is the auditor's to find; gradients far
            longer than the clip, opposite to the others, and with NaN are good ones.
        sensitivity: What the accounting uses, in the unit of the output.
        bits: The output holds residues modulo ``2**bits``; ``None`` for plain numbers.
        seed: Of the frozen noise; any will do.
        tolerance: Relative excess that counts as rounding; 0 for integers.

    Raises:
        ConfigError: The step is not deterministic in the source, or outputs differ in shape.
    """
    if not neighbours:
        raise ConfigError("replay: expected at least one pair of neighbours")
    measured, worst = -1.0, 0
    for number, (one, other) in enumerate(neighbours):
        outputs = [np.asarray(step(data, InsecureSeededRng(seed))) for data in (one, other, one)]
        if outputs[0].shape != outputs[1].shape:
            raise ConfigError(f"replay: outputs of shapes {outputs[0].shape} and {outputs[1].shape}")
        if not np.array_equal(outputs[0], outputs[2], equal_nan=outputs[0].dtype.kind == "f"):
            raise ConfigError(
                "replay: the step gave two outputs for the same data and source; all randomness must come from it"
            )
        distance = difference_norm(outputs[0], outputs[1], bits=bits)
        if distance > measured:
            measured, worst = distance, number
    refuted = measured > sensitivity * (1 + tolerance)
    return ReplayAudit(
        verdict=Verdict.REFUTED if refuted else Verdict.NOT_REFUTED,
        measured=measured,
        planned=sensitivity,
        worst_pair=worst,
        pairs=len(neighbours),
    )


def difference_norm(one: NDArray[Any], other: NDArray[Any], *, bits: int | None) -> float:
    """L2 distance; of residues the shortest way around, in exact integers before the root; of rows the largest."""
    if one.ndim > 1:
        return max(difference_norm(row, beside, bits=bits) for row, beside in zip(one, other, strict=True))
    if bits is None:
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return math.inf
        return float(np.linalg.norm((one.astype(np.float64) - other.astype(np.float64)).ravel()))
    mask, half = (1 << bits) - 1, 1 << (bits - 1)
    raw = (one.astype(np.int64) - other.astype(np.int64)) & mask
    centred = np.where(raw >= half, raw - (1 << bits), raw)
    if np.abs(centred).max(initial=0) < 2**15:
        return math.sqrt(int(np.dot(centred, centred)))
    return math.sqrt(sum(int(value) ** 2 for value in centred.tolist()))
