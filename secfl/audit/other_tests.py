"""Detectors for single faults: adaptive clips that run away, noise with gaps, streams that collide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from secfl.audit.findings import Finding
from secfl.audit.mechanism import Calls, MechanismAudit, audit_mechanism
from secfl.audit.verdicts import REFUTED_LEVEL

__all__ = ["collision_test", "convergence_test", "granularity", "reachability_audit"]

_NEAR = 2.0**-5
_FAR_SCORE = -4096.0


def convergence_test(
    run: Callable[[float], float], target: float, *, starts: tuple[float, ...] = (0.01, 100.0)
) -> Finding:
    """Does an adaptive clip find the quantile it is meant to find, from far below and from far above?

    Args:
        run: From a first clip, as a multiple of ``target``, to the clip after the planned rounds.
        target: The clip that it should find.
        starts: First clips as multiples of the target.

    Flags a clip that ends outside a factor of 2. With the noise of an honest run (σ_b a twentieth of the units,
    η = 0.2) the logarithm of the clip has a standard deviation below 0.1 once it has arrived, so a factor of 2 is
    seven of them.
    """
    ratios = [run(start * target) / target for start in starts]
    return Finding(
        name="adaptive clip converges",
        flagged=any(not 0.5 <= ratio <= 2 for ratio in ratios),
        statistic="ends at " + " and ".join(f"{ratio:.3g}" for ratio in ratios) + " times the quantile",
        level=REFUTED_LEVEL,
        power="from 0.01 and from 100 times the quantile",
    )


def granularity(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponent of the lowest set bit of numbers near zero; a very low score for all others.

    Floating-point noise added to 0 has fine bits near zero; added to 1 it cannot have them, because noise near -1
    is coarser. So some outputs can be reached from one neighbour only (Mironov 2012; Jin et al. 2022).
    """
    values = rows[:, 0]
    mantissa, exponent = np.frexp(values)
    scaled = np.abs(mantissa * 2.0**53).astype(np.int64)
    lowest = scaled & -scaled
    zeros = np.log2(np.where(lowest > 0, lowest, 1))
    score: NDArray[np.float64] = exponent - 53 + zeros
    return np.where((np.abs(values) < _NEAR) & (values != 0), score, _FAR_SCORE)


def reachability_audit(
    fn: Callable[[float, int], NDArray[np.float64]], *, claimed: tuple[float, float], draws: int
) -> MechanismAudit:
    """Audit additive noise for outputs that one neighbour cannot reach; neighbours 0 and 1 (one sensitivity).

    Args:
        fn: From a value and a count to that many noisy values, in units of the sensitivity.
        claimed: (ε, δ).
        draws: Of each neighbour.
    """
    return audit_mechanism(
        fn, neighbours=(1.0, 0.0), claimed=claimed, draws=draws, calls=Calls.BATCH, score=granularity
    )


def collision_test(streams: Iterable[bytes], *, name: str = "mask streams collide") -> Finding:
    """Do two of many mask streams begin with the same 16 bytes?

    Among N streams under keys of full entropy a repetition has probability below ``N²/2^129``. Seeds of k bits
    repeat about ``N²/2^(k+1)`` times: 2^18 streams show 32 bits with probability 0.9997.
    """
    beginnings = np.frombuffer(b"".join(stream[:16] for stream in streams), dtype="<u8").reshape(-1, 2)
    count = len(beginnings)
    distinct = len(np.unique(beginnings.view([("a", "<u8"), ("b", "<u8")])))
    seen = math.log2(max(2, count)) * 2 - 1
    return Finding(
        name=name,
        flagged=distinct < count,
        statistic=f"{count - distinct} repetitions among {count} streams",
        level=count**2 * 2.0**-129,
        power=f"shows seeds of up to {seen - 3:.0f} bits",
    )
