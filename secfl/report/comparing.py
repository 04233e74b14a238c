"""Runs side by side: what differs in settings, models, figures, cost and guarantees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secfl.ledger.statement import Statement
from secfl.ledger.words import in_short
from secfl.report.facts import RunFacts

__all__ = ["ComparedRow", "compare_runs"]

Value = str | float | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """One line of the comparison.

    Attributes:
        part: ``setting``, ``model``, ``score``, ``cost``, ``ledger`` or ``guarantee``.
        name: What is compared.
        values: One for each run, in their order; ``None`` where a run has none.
    """

    part: str
    name: str
    values: tuple[Value, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs disagree."""
        return len({repr(value) for value in self.values}) > 1


def compare_runs(runs: Sequence[RunFacts]) -> tuple[ComparedRow, ...]:
    """Everything of a guarantee, a score or a cost; of the settings only those that differ.

    Args:
        runs: At least two.
    """
    settings = [row for row in _settings(runs) if row.differs]
    return (*settings, *_models(runs), *_scores(runs), *_costs(runs), *_ledgers(runs), *_guarantees(runs))


def _settings(runs: Sequence[RunFacts]) -> list[ComparedRow]:
    flat = [_flat(run.config.model_dump(mode="json")) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    return [
        ComparedRow(part="setting", name=key, values=tuple(settings.get(key) for settings in flat))
        for key in keys
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str | int | float | None) else str(value)
    return found


def _row(
    part: str, name: str, runs: Sequence[RunFacts], read: Callable[[Mapping[str, Any]], Value]
) -> ComparedRow:
    def value(run: RunFacts) -> Value:
        if run.summary is None:
            return None
        try:
            return read(run.summary)
        except (KeyError, TypeError):
            return None

    return ComparedRow(part=part, name=name, values=tuple(value(run) for run in runs))


def _models(runs: Sequence[RunFacts]) -> list[ComparedRow]:
    wanted: dict[str, Callable[[Mapping[str, Any]], Value]] = {
        "family": lambda summary: summary["model"],
        "parameters": lambda summary: summary["parameters"],
        "final model, SHA-256": lambda summary: summary["final_model_sha256"][:16],
        "rounds": lambda summary: summary["rounds_completed"],
        "ended because": lambda summary: summary["stopped_because"],
    }
    return [_row("model", name, runs, read) for name, read in wanted.items()]


def _scores(runs: Sequence[RunFacts]) -> list[ComparedRow]:
    sites = list(dict.fromkeys(site for run in runs for site in run.sites))
    rows = [
        _row("score", "Dice, mean", runs, lambda summary: summary["evaluation_only"]["dice"]["mean"]),
        _row("score", "Dice, worst site", runs, lambda summary: summary["evaluation_only"]["dice"]["worst"]),
    ]
    rows += [
        _row("score", f"Dice, {site}", runs, lambda summary, site=site: _dice(summary, site))
        for site in sites
    ]
    return rows


def _dice(summary: Mapping[str, Any], site: str) -> Value:
    found: Value = summary["evaluation_only"]["dice"]["per_site"][site]
    return found


def _costs(runs: Sequence[RunFacts]) -> list[ComparedRow]:
    wanted: dict[str, Callable[[Mapping[str, Any]], Value]] = {
        "MB up": lambda summary: summary["megabytes"]["up"],
        "MB down": lambda summary: summary["megabytes"]["down"],
        "bytes per parameter up": lambda summary: summary["bytes_per_parameter"]["up"],
        "seconds": lambda summary: summary["time_s"]["total"],
        "protection's share of the work": lambda summary: summary["time_s"]["protection_share"],
        "drop-outs": lambda summary: summary["dropouts"]["total"],
    }
    return [_row("cost", name, runs, read) for name, read in wanted.items()]


def _ledgers(runs: Sequence[RunFacts]) -> list[ComparedRow]:
    status = tuple("DOES NOT VERIFY" if run.verdict is None else run.verdict.status.value for run in runs)
    root = tuple(None if run.verdict is None else run.verdict.root[:16] for run in runs)
    return [
        ComparedRow(part="ledger", name="status", values=status),
        ComparedRow(part="ledger", name="Merkle root", values=root),
    ]


def _guarantees(runs: Sequence[RunFacts]) -> list[ComparedRow]:
    tables = [
        {} if run.verdict is None else {_adversary(row): _epsilon(row) for row in run.verdict.statements}
        for run in runs
    ]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [
        ComparedRow(part="guarantee", name=name, values=tuple(table.get(name) for table in tables))
        for name in names
    ]


def _adversary(row: Statement) -> str:
    site = f" ({row.site})" if row.site else ""
    return f"ε {in_short(row.view, row.colluders)}, {row.adversary.value}{site}"


def _epsilon(row: Statement) -> Value:
    return "none" if row.epsilon is None else round(row.epsilon, 4)
