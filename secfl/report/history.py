"""ε over the rounds: the ledger's own statements at points of its past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secfl.guarantees import Behaviour
from secfl.ledger.entry import EntryType
from secfl.ledger.reader import lines_of, read_entry
from secfl.ledger.state import LedgerState
from secfl.ledger.statement import Statement
from secfl.ledger.views import adversaries, statements_about

__all__ = ["EpsilonHistory", "epsilon_history"]

_POINTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonHistory:
    """How ε grew.

    Attributes:
        rounds: Numbers of released rounds at which it was computed, ascending.
        lines: Name of an adversary -> ε after each of them. Rows that agree everywhere share a line.
    """

    rounds: tuple[int, ...]
    lines: Mapping[str, tuple[float, ...]]


def epsilon_history(data: bytes) -> EpsilonHistory | None:
    """Statements at up to ten points of a ledger's past; ``None`` where no finite ε was ever stated.

    Args:
        data: The whole file, which verifies.

    Raises:
        LedgerCorrupted: It does not verify.
    """
    commits = data.count(b'"type":"commit"')
    wanted = {max(1, round(commits * part / _POINTS)) for part in range(1, _POINTS + 1)}
    state = LedgerState()
    points: dict[int, list[Statement]] = {}
    for line in lines_of(data[: data.rfind(b"\n") + 1]):
        entry = read_entry(line, state)
        state.apply(entry)
        if entry.type is EntryType.COMMIT and len(state.commits) in wanted:
            rows = [
                row for row in adversaries(len(state.header.cohort)) if row.behaviour is Behaviour.CURIOUS
            ]
            points[len(state.commits)] = statements_about(state, rows)
            if all(row.epsilon is None for row in points[len(state.commits)]):
                return None
    if not points:
        return None
    return EpsilonHistory(rounds=tuple(points), lines=_lines(list(points.values())))


def _lines(points: list[list[Statement]]) -> dict[str, tuple[float, ...]]:
    named: dict[tuple[float, ...], list[str]] = {}
    for row in points[-1]:
        values = []
        for point in points:
            found = next((other for other in point if _name(other) == _name(row)), None)
            if found is None or found.epsilon is None:
                break
            values.append(round(found.epsilon, 4))
        else:
            named.setdefault(tuple(values), []).append(_name(row))
    return {", ".join(names): values for values, names in named.items()}


def _name(row: Statement) -> str:
    name = row.view.value.replace("_", " ")
    if row.colluders:
        name = f"aggregator + {row.colluders}"
    return name if row.site is None else f"{name} ({row.site})"
