"""Audit anybody's mechanism: call it on two neighbouring inputs, often, and try to refute its (ε, δ).

The first half of the draws chooses what to look for (a score, a threshold, a direction); the second half, which
had no part in the choice, is counted. So the bound holds whatever the mechanism and whatever the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secfl.audit.bounds import epsilon_of_rates, gaussian_estimate, largest_provable_epsilon
from secfl.audit.verdicts import REFUTED_LEVEL, SUSPECT_LEVEL, Verdict
from secfl.errors import ConfigError

__all__ = ["Assumed", "Calls", "MechanismAudit", "audit_mechanism", "audit_samples"]

_THRESHOLDS = 512
_ATOMS = 64
_LEAST_DRAWS = 100


class Calls(StrEnum):
    """How the mechanism is called: ``fn(x)`` gives one output, or ``fn(x, count)`` gives ``count`` rows."""

    SINGLE = "single"
    BATCH = "batch"


class Assumed(StrEnum):
    """What may be assumed about the scores, for the estimate beside the bound.

    GAUSSIAN makes a verdict SUSPECT when the Gaussian estimate's lower limit exceeds the claim. It would wrong a
    mechanism whose output is not Gaussian (Laplace, sampling), so nothing is assumed unless it is asked for.
    """

    NOTHING = "nothing"
    GAUSSIAN = "gaussian"


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismAudit:
    """What an audit of a mechanism found.

    Attributes:
        verdict: REFUTED when `epsilon_lower` exceeds the claim; SUSPECT when only `epsilon_suspected` does, or
            the Gaussian estimate (if one was asked for); else NOT REFUTED.
        epsilon_lower: Lower bound of ε at δ; above the true ε with probability at most `level`.
        level: Of `epsilon_lower`.
        epsilon_suspected: The same bound at `suspect_level`.
        suspect_level: Of `epsilon_suspected` and of the Gaussian estimate.
        epsilon_gaussian: ε of the Gaussian estimate's lower limit, or ``None`` where none was asked for.
        epsilon_reachable: The largest `epsilon_lower` that so many draws could give. A claim above it cannot be
            refuted by them at all.
        claimed_epsilon: ε of the claim.
        claimed_delta: δ of the claim.
        draws: Calls for each neighbour.
        event: The event that was counted, in words.
        rates: How often it happened with the neighbour that makes it more likely, and with the other one.
    """

    verdict: Verdict
    epsilon_lower: float
    level: float
    epsilon_suspected: float
    suspect_level: float
    epsilon_gaussian: float | None
    epsilon_reachable: float
    claimed_epsilon: float
    claimed_delta: float
    draws: int
    event: str
    rates: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict.value,
            "epsilon_lower": self.epsilon_lower,
            "level": self.level,
            "epsilon_suspected": self.epsilon_suspected,
            "suspect_level": self.suspect_level,
            "epsilon_gaussian": self.epsilon_gaussian,
            "epsilon_reachable": self.epsilon_reachable,
            "claimed_epsilon": self.claimed_epsilon,
            "claimed_delta": self.claimed_delta,
            "draws": self.draws,
            "event": self.event,
            "rates": list(self.rates),
        }

    def __str__(self) -> str:
        return (
            f"{self.verdict.value}: ε >= {self.epsilon_lower:.3f} (level {self.level:g}) against a claim of "
            f"{self.claimed_epsilon:.3f} at δ = {self.claimed_delta:g}; {self.draws} draws could show up to "
            f"{self.epsilon_reachable:.2f}"
        )


def audit_mechanism(
    fn: Callable[..., Any],
    *,
    neighbours: tuple[Any, Any],
    claimed: tuple[float, float],
    draws: int,
    calls: Calls = Calls.SINGLE,
    score: Callable[[NDArray[np.float64]], ArrayLike] | None = None,
    assume: Assumed = Assumed.NOTHING,
    level: float = REFUTED_LEVEL,
    suspect_level: float = SUSPECT_LEVEL,
) -> MechanismAudit:
    """Try to refute that ``fn`` is (ε, δ)-differentially private for one pair of neighbours.

    Args:
        fn: The mechanism. Every call must use fresh randomness; outputs are numbers or arrays of one shape.
        neighbours: Two inputs that the claim calls neighbours; the pair that is worst is the auditor's choice.
        claimed: (ε, δ).
        draws: Calls for each neighbour, at least 100. What they can show at most is in the result.
        calls: Whether ``fn`` gives one output a call or many.
        score: From outputs, shape ``(count, d)``, to ``count`` numbers, fixed before the audit. By default a
            linear score and the distance from the centre are learned from the first half of the draws.
        assume: See `Assumed`.
        level: False-alarm rate of REFUTED.
        suspect_level: False-alarm rate of SUSPECT.

    Raises:
        ConfigError: A claim, a level or a number of draws out of range, or outputs of different shapes.
    """
    if draws < _LEAST_DRAWS:
        raise ConfigError(f"draws {draws}: expected at least {_LEAST_DRAWS}")
    first, second = (_outputs(fn, value, draws, calls) for value in neighbours)
    return audit_samples(
        first,
        second,
        claimed=claimed,
        score=score,
        assume=assume,
        level=level,
        suspect_level=suspect_level,
    )


def audit_samples(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    claimed: tuple[float, float],
    score: Callable[[NDArray[np.float64]], ArrayLike] | None = None,
    assume: Assumed = Assumed.NOTHING,
    level: float = REFUTED_LEVEL,
    suspect_level: float = SUSPECT_LEVEL,
) -> MechanismAudit:
    """The same on outputs that were drawn already: independent rows, one array per neighbour.

    Args:
        first: Shape ``(draws,)`` or ``(draws, d)``.
        second: The same shape.
        claimed: See `audit_mechanism`, as for the other arguments.
        score: See there.
        assume: See there.
        level: See there.
        suspect_level: See there.

    Raises:
        ConfigError: The two arrays differ in shape.
    """
    epsilon, delta = claimed
    _check_claim(epsilon, delta, level, suspect_level)
    if first.shape != second.shape:
        raise ConfigError(f"outputs of shapes {first.shape} and {second.shape}: expected the same")
    first, second = (values.reshape(len(values), -1) for values in (first, second))
    half = len(first) // 2
    event, chosen = _choose(first[:half], second[:half], score=score, delta=delta, level=level)
    held = (chosen(first[half:]), chosen(second[half:]))
    trials = len(first) - half
    hits = [int(event.holds(values).sum()) for values in held]
    if event.reverse:
        hits.reverse()
    bounds = [
        float(epsilon_of_rates(hits[0], hits[1], trials=trials, delta=delta, level=which))
        for which in (level, suspect_level)
    ]
    gaussian = _gaussian(held, delta=delta, level=suspect_level) if assume is Assumed.GAUSSIAN else None
    verdict = Verdict.NOT_REFUTED
    if bounds[1] > epsilon or (gaussian is not None and gaussian > epsilon):
        verdict = Verdict.SUSPECT
    if bounds[0] > epsilon:
        verdict = Verdict.REFUTED
    return MechanismAudit(
        verdict=verdict,
        epsilon_lower=bounds[0],
        level=level,
        epsilon_suspected=bounds[1],
        suspect_level=suspect_level,
        epsilon_gaussian=gaussian,
        epsilon_reachable=largest_provable_epsilon(trials, delta=delta, level=level),
        claimed_epsilon=epsilon,
        claimed_delta=delta,
        draws=len(first),
        event=str(event),
        rates=(hits[0] / trials, hits[1] / trials),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """A set of scores: ``score <op> value``; ``reverse`` when the second neighbour makes it more likely."""

    name: str
    operator: str
    value: float
    reverse: bool

    def holds(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_]
        match self.operator:
            case ">=":
                found = scores >= self.value
            case "<":
                found = scores < self.value
            case _:
                found = scores == self.value
        return found

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.value:.6g}"


_Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _choose(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    score: Callable[[NDArray[np.float64]], ArrayLike] | None,
    delta: float,
    level: float,
) -> tuple[_Event, _Score]:
    """The score and the event with the largest bound on this half of the draws."""
    best: tuple[float, _Event, _Score] | None = None
    for name, candidate in _scores(first, second, score).items():
        scores = candidate(first), candidate(second)
        pooled = np.sort(np.concatenate(scores))
        places = np.linspace(0, pooled.size - 1, min(_THRESHOLDS, pooled.size)).astype(int)
        values = np.unique(pooled[places])
        below = [np.searchsorted(np.sort(side), values) for side in scores]
        counts = {"<": below, ">=": [len(first) - side for side in below]}
        atoms, often = np.unique(pooled, return_counts=True)
        common = atoms[np.argsort(often)[::-1][:_ATOMS]]
        common = common[np.isfinite(common)]
        for operator, thresholds in (("<", values), (">=", values), ("=", common)):
            sides = counts.get(operator) or [
                np.array([int((side == atom).sum()) for atom in common]) for side in scores
            ]
            for reverse in (False, True):
                found, other = sides[::-1] if reverse else sides
                if not len(found):
                    continue
                reached = epsilon_of_rates(found, other, trials=len(first), delta=delta, level=level)
                place = int(np.argmax(reached))
                event = _Event(name=name, operator=operator, value=float(thresholds[place]), reverse=reverse)
                if best is None or reached[place] > best[0]:
                    best = (float(reached[place]), event, candidate)
    assert best is not None
    return best[1], best[2]


def _scores(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    score: Callable[[NDArray[np.float64]], ArrayLike] | None,
) -> dict[str, _Score]:
    """Candidates: the given score, or a linear one and a distance, both learned here. Not finite: +infinity."""
    if score is not None:
        given = score
        return {"score": lambda rows: _finite(rows, np.asarray(given(rows), dtype=np.float64))}
    if first.shape[1] == 1:
        return {
            "output": lambda rows: _finite(rows, rows[:, 0]),
            "|output - centre|": _distance(np.concatenate([first, second])),
        }
    with np.errstate(all="ignore"):
        finite = [side[np.isfinite(side).all(axis=1)] for side in (first, second)]
        if min(len(side) for side in finite) < 2:
            finite = [np.zeros((2, first.shape[1]))] * 2
        spread = sum(side.var(axis=0) for side in finite)
        weights = (finite[0].mean(axis=0) - finite[1].mean(axis=0)) / np.where(spread > 0, spread, 1e-30)
    weights = weights / (np.abs(weights).max() or 1.0)
    return {
        "linear score": lambda rows: _finite(rows, rows @ weights),
        "distance from the centre": _distance(np.concatenate([first, second])),
    }


def _distance(rows: NDArray[np.float64]) -> _Score:
    finite = rows[np.isfinite(rows).all(axis=1)]
    centre = np.median(finite, axis=0) if len(finite) else np.zeros(rows.shape[1])

    def distance(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return _finite(values, np.sqrt(((values - centre) ** 2).sum(axis=1)))

    return distance


def _finite(rows: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """An output with NaN or infinity is an event of its own: it gets the largest score."""
    if scores.shape != (len(rows),):
        raise ConfigError(f"score: expected {len(rows)} numbers, got shape {scores.shape}")
    whole = np.isfinite(rows).all(axis=1) & np.isfinite(scores)
    return np.where(whole, scores, np.inf)


def _gaussian(
    held: tuple[NDArray[np.float64], NDArray[np.float64]], *, delta: float, level: float
) -> float | None:
    if delta == 0 or not all(np.isfinite(side).all() for side in held):
        return None
    above, below = sorted(held, key=lambda side: -float(side.mean()))
    # Which side is the larger was seen in these draws, so each side gets half the level.
    return gaussian_estimate(above, below, delta=delta, confidence=1 - level / 2).epsilon


def _outputs(fn: Callable[..., Any], value: Any, draws: int, calls: Calls) -> NDArray[np.float64]:
    if calls is Calls.BATCH:
        outputs = np.asarray(fn(value, draws), dtype=np.float64)
        if outputs.ndim < 1 or len(outputs) != draws:
            raise ConfigError(f"fn: expected {draws} rows, got shape {outputs.shape}")
        return outputs
    rows = [np.asarray(fn(value), dtype=np.float64) for _ in range(draws)]
    if len({row.shape for row in rows}) > 1:
        raise ConfigError("fn: outputs of different shapes; expected one shape")
    return np.stack(rows)


def _check_claim(epsilon: float, delta: float, level: float, suspect_level: float) -> None:
    if not epsilon >= 0 or math.isnan(epsilon):
        raise ConfigError(f"claimed ε {epsilon:g}: expected 0 or more")
    if not 0 <= delta < 1:
        raise ConfigError(f"claimed δ {delta:g}: expected 0 or more and below 1")
    if not 0 < level <= suspect_level < 0.5:
        raise ConfigError("levels: expected 0 < level <= suspect_level < 0.5")
