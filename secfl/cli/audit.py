"""``secfl audit``: tools that try to prove the ledger wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from secfl.audit.findings import Finding

__all__ = ["app"]

_FORMAT_VERSION = 1
_FAILED = 5

app = typer.Typer(
    help="Try to prove the ledger wrong: REFUTED, SUSPECT or NOT REFUTED, never proved.", no_args_is_help=True
)


class SuiteSize(StrEnum):
    """How much the suite runs."""

    SMOKE = "smoke"
    FULL = "full"


@app.command("suite")
def suite(
    preset: Annotated[SuiteSize, typer.Option(help="smoke takes under three minutes.")] = SuiteSize.SMOKE,
    seed: Annotated[int, typer.Option(min=0, help="Of the controls' randomness.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """Run the controls: detectors must flag what is wrong on purpose, and keep silent about what is right."""
    from secfl.audit.controls import Preset
    from secfl.audit.suite import run_suite

    def progress(name: str, done: int, total: int) -> None:
        typer.echo(f"{done + 1}/{total} {name}", err=True)

    report = run_suite(Preset(preset.value), seed=seed, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        rows = [
            (
                one.control.name,
                one.control.kind.value,
                "flagged" if one.control.expected else "silent",
                "flagged" if one.finding.flagged else "silent",
                _p_value(one.finding.p_value),
                one.finding.statistic,
                f"{one.seconds:.1f} s",
            )
            for one in report.outcomes
        ]
        _table(("control", "kind", "expected", "found", "p", "statistic", "time"), rows)
        wrong = sum(not one.passed for one in report.outcomes)
        typer.echo(
            f"{len(report.outcomes)} controls, {wrong} not as expected; each at a false-alarm rate of 1e-6"
        )
    if not report.passed:
        raise typer.Exit(_FAILED)


@app.command("transcript")
def transcript(
    run: Annotated[Path, typer.Argument(help="A run directory made with --record.")],
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Look through all that a recorded run sent: uniform inputs, fresh keys, constant sizes, nothing in clear."""
    from secfl.audit.transcript import audit_run_transcript

    _report(audit_run_transcript(run), what=f"transcript of {run}", as_json=as_json)


def _report(found: Sequence[Finding], *, what: str, as_json: bool) -> None:
    """Print findings with the verdict; exit 5 when something is refuted."""
    from secfl.audit.verdicts import worst

    verdict = worst([one.verdict for one in found])
    if as_json:
        document: dict[str, Any] = {
            "format_version": _FORMAT_VERSION,
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
                _p_value(one.p_value),
                one.statistic or one.power,
            )
            for one in found
        ]
        _table(("test", "verdict", "p", "statistic"), rows)
        level = sum(one.level for one in found)
        typer.echo(f"{what}: {verdict.value} (false-alarm rate of all tests together below {level:.1e})")
    if any(one.flagged for one in found):
        raise typer.Exit(_FAILED)


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.1g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
