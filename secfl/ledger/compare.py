"""What differs between two ledgers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secfl.ledger.state import LedgerState
from secfl.ledger.statement import Statement
from secfl.ledger.views import statements

__all__ = ["Comparison", "compare"]

_OF_THE_RUN = frozenset({"run_id", "keys", "manifest_digest"})  # differ between any two runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two ledgers side by side.

    Attributes:
        header: Field -> (left, right) where the headers differ; keys and run ids are left out.
        rounds: Field -> (left, right), always both.
        views: Rows of both, by (view, adversary, colluders, site) -> (left ε, right ε); a row that only one
            has is ``None`` on the other side, as is one without finite ε.
    """

    header: Mapping[str, tuple[Any, Any]]
    rounds: Mapping[str, tuple[int, int]]
    views: Mapping[tuple[str, str, int, str], tuple[float | None, float | None]]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "header": {name: list(pair) for name, pair in self.header.items()},
            "rounds": {name: list(pair) for name, pair in self.rounds.items()},
            "views": [
                {
                    "view": view,
                    "adversary": adversary,
                    "colluders": colluders,
                    "site": site or None,
                    "epsilon": list(pair),
                }
                for (view, adversary, colluders, site), pair in self.views.items()
            ],
        }


def compare(left: LedgerState, right: LedgerState, *, delta: float | None = None) -> Comparison:
    """Compare two ledgers that verify; ``delta`` overrides both headers' δ."""
    first, second = left.header.to_json(), right.header.to_json()
    header = {
        name: (first[name], second[name])
        for name in first
        if name not in _OF_THE_RUN and first[name] != second[name]
    }
    rows = {_key(row): row.epsilon for row in statements(left, delta)}
    others = {_key(row): row.epsilon for row in statements(right, delta)}
    counts, other_counts = _counts(left), _counts(right)
    return Comparison(
        header=header,
        rounds={name: (counts[name], other_counts[name]) for name in counts},
        views={
            key: (rows.get(key), others.get(key))
            for key in [*rows, *(key for key in others if key not in rows)]
        },
    )


def _key(row: Statement) -> tuple[str, str, int, str]:
    return (row.view.value, row.adversary.value, row.colluders, row.site or "")


def _counts(state: LedgerState) -> dict[str, int]:
    settled = len(state.commits) + len(state.aborts)
    return {
        "entries": state.size,
        "committed": len(state.commits),
        "aborted": len(state.aborts),
        "unsettled": len(state.reservations) - settled,
        "torn": len(state.recovered),
        "dropouts": sum(
            len(state.header.cohort) - len(commit.survivors) for commit in state.commits.values()
        ),
    }
