"""How the audits' outcomes are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from secfl.audit.canary_book import CanaryAudit
    from secfl.audit.findings import Finding
    from secfl.audit.release import ReleaseAudit
    from secfl.audit.verdicts import Verdict
    from secfl.guarantees import Adversary

__all__ = [
    "FAILED",
    "FORMAT_VERSION",
    "p_value",
    "print_canaries",
    "print_findings",
    "print_releases",
    "print_table",
]

FORMAT_VERSION = 1
FAILED = 5


def print_canaries(found: CanaryAudit) -> None:
    """Each view's promise beside both figures, what an honest run shows, and the verdict."""
    rows = [
        (
            _short(view.adversary),
            "none" if view.epsilon is None else f"{view.epsilon:.2f}",
            f"{view.measured.gdp:.2f}",
            f"{view.expected.gdp:.2f} ± {view.expected.gdp_spread:.2f}",
            f"{view.measured.one_run:.2f}",
            f"{view.expected.one_run:.2f} ± {view.expected.one_run_spread:.2f}",
            view.verdict.value,
        )
        for view in found.views
    ]
    print_table(("view", "ε ledger", "ε GDP", "expected", "ε one run", "expected", "verdict"), rows)
    for one in found.variance:
        typer.echo(f"{one.name}: {one.statistic}: {one.verdict.value}")
    typer.echo(
        f"{found.canaries} canaries, {found.guesses} guesses, δ = {found.delta:g}, {found.steps} steps: "
        f"{found.verdict.value}"
    )


def print_releases(found: Sequence[ReleaseAudit], *, verdict: Verdict) -> None:
    """Each view's claim for one release beside the bound and the estimate."""
    rows = [
        (
            _short(one.adversary),
            f"{one.audit.claimed_epsilon:.3f}",
            f"{one.audit.epsilon_lower:.3f}",
            f"{one.audit.epsilon_reachable:.2f}",
            "" if one.audit.epsilon_gaussian is None else f"{one.audit.epsilon_gaussian:.3f}",
            one.audit.verdict.value,
        )
        for one in found
    ]
    print_table(("view", "ε claimed", "ε at least", "draws reach", "ε GDP", "verdict"), rows)
    typer.echo(
        f"one release, {found[0].audit.draws} draws of each neighbour and view, δ = {found[0].audit.claimed_delta:g}: "
        f"{verdict.value} (false-alarm rate of all views together below {sum(one.audit.level for one in found):.1e})"
    )


def print_findings(found: Sequence[Finding], *, what: str, as_json: bool) -> None:
    """Print findings with the verdict; exit 5 when something is refuted."""
    from secfl.audit.verdicts import worst

    verdict = worst([one.verdict for one in found])
    if as_json:
        document: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "what": what,
            "verdict": verdict.value,
            "findings": [one.to_dict() for one in found],
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        rows = [
            (
                one.name,
                "-" if one.skipped else one.verdict.value,
                p_value(one.p_value),
                one.statistic or one.power,
            )
            for one in found
        ]
        print_table(("test", "verdict", "p", "statistic"), rows)
        level = sum(one.level for one in found)
        rate = (
            f"false-alarm rate of all tests together below {level:.1e}" if level else "facts, no false alarms"
        )
        typer.echo(f"{what}: {verdict.value} ({rate})")
    if any(one.flagged for one in found):
        raise typer.Exit(FAILED)


def _short(adversary: Adversary) -> str:
    """An adversary in a cell; ``+2`` are colluding clients."""
    from secfl.guarantees import View

    if adversary.view is View.CRYPTO_BROKEN:
        return "broken cryptography"
    more = f" +{adversary.colluders}" if adversary.colluders else ""
    return f"{adversary.behaviour.value} aggregator{more}"


def p_value(value: float | None) -> str:
    """A p-value in a cell; empty where there is none."""
    return "" if value is None else f"{value:.1g}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns with their heads, as wide as the terminal lets them be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
