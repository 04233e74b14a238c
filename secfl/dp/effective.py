"""How much noise is left for each adversary. Reasons: docs/privacy.md, "Who sees how much noise"."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secfl.errors import ConfigError
from secfl.guarantees import Behaviour

__all__ = ["colluder_limit", "unknown_shares", "z_broken", "z_effective"]


def colluder_limit(*, survivors: int, threshold: int, cohort_size: int, behaviour: Behaviour) -> int:
    """Most colluding clients for which the aggregator still sees nothing but the sum; may be negative.

    Honest-but-curious aggregator: ``min(t - 1, |U3| - 2)``. Malicious: ``min(2t - n - 1, t - 2)``.
    """
    if behaviour is Behaviour.CURIOUS:
        return min(threshold - 1, survivors - 2)
    return min(2 * threshold - cohort_size - 1, threshold - 2)


def z_broken(z: float, planned_clients: int) -> float:
    """The multiplier of a single share: every update is seen alone."""
    return z / math.sqrt(planned_clients)


def z_effective(
    z: float,
    planned_clients: int,
    *,
    survivors: int,
    colluders: int,
    threshold: int,
    cohort_size: int,
    behaviour: Behaviour,
) -> float:
    """Noise multiplier that the aggregator with ``colluders`` clients faces.

    Args:
        z: Multiplier of all ``planned_clients`` equal shares together.
        planned_clients: m; each client adds variance σ²/m.
        survivors: |U3|, clients in the sum.
        colluders: k, they tell their own noise and data.
        threshold: t. A malicious aggregator can always declare n - t drop-outs, so only t shares count.
        cohort_size: n.
        behaviour: Curious or malicious aggregator.

    Returns:
        ``z·sqrt((|U3|-k)/m)`` (curious) or ``z·sqrt((t-k)/m)`` (malicious) up to `colluder_limit`, beyond it
        the figure of broken cryptography.

    Raises:
        ConfigError: A number that no cohort can have: survivors, colluders, threshold or multiplier out of range.
    """
    if not (z > 0 and planned_clients >= 1 and 1 <= threshold <= cohort_size):
        raise ConfigError("noise multiplier, planned clients, threshold and cohort must be positive")
    if not (1 <= survivors <= cohort_size and colluders >= 0):
        raise ConfigError("survivors: expected 1 to the cohort's size; colluders: 0 or more")
    unknown = unknown_shares(
        [1.0 / planned_clients] * survivors,
        colluders=colluders,
        threshold=threshold,
        cohort_size=cohort_size,
        behaviour=behaviour,
    )
    return z * math.sqrt(math.fsum(unknown))


def unknown_shares(
    shares: Sequence[float], *, colluders: int, threshold: int, cohort_size: int, behaviour: Behaviour
) -> list[float]:
    """The shares that stay unknown in the worst case when they are unequal: the k largest are removed.

    Args:
        shares: Variance of each survivor's share, any unit.
        colluders: k.
        threshold: t. A malicious aggregator keeps the t smallest shares.
        cohort_size: n.
        behaviour: Curious or malicious aggregator.

    Returns:
        Variances in increasing order; the smallest alone beyond `colluder_limit`.
    """
    ordered = sorted(shares)
    limit = colluder_limit(
        survivors=len(ordered), threshold=threshold, cohort_size=cohort_size, behaviour=behaviour
    )
    if colluders > limit:
        return ordered[:1]
    kept = ordered if behaviour is Behaviour.CURIOUS else ordered[:threshold]
    return kept[: len(kept) - colluders]
