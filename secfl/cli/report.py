"""``secfl report`` and ``secfl compare``: pages and tables that people look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secfl.errors import ConfigError, LedgerCorrupted

if TYPE_CHECKING:
    from secfl.report.comparing import ComparedRow
    from secfl.report.facts import RunFacts

__all__ = ["compare", "report"]

_FORMAT_VERSION = 1
_Json = Annotated[bool, typer.Option("--json", help="The same facts as JSON on standard output.")]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the folder of a study.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page. [default: report.html in RUN]")
    ] = None,
    audit: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What `secfl audit … --json` printed; may be repeated."),
    ] = None,
    include_images: Annotated[
        bool, typer.Option("--include-images", help="Show previews of real images too; of phantoms always.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Write one page about a run: what was learned, who could know what, what it cost, how to check it.

    The page holds everything it needs and loads nothing. The ledger is verified while it is made; one that does not
    verify is said so on top, and ends with exit code 5.

    Example: secfl report runs/20261121-120000-ckks --out report.html
    """
    from secfl.report.facts import read_run
    from secfl.report.page import facts_as_json, run_page, write_page
    from secfl.report.study_files import is_study

    if is_study(run):
        _study(run, out=out, as_json=as_json)
        return
    facts = read_run(run, audits=audit or (), include_images=include_images)
    if as_json:
        typer.echo(json.dumps(facts_as_json(facts), indent=2, allow_nan=False))
    if not as_json or out is not None:
        place = out if out is not None else run / "report.html"
        write_page(run_page(facts), place)
        typer.echo(f"wrote {place}", err=as_json)
    if facts.verdict is None:
        raise LedgerCorrupted(None, f"{run}: the ledger does not verify: {facts.broken}")
    for cohort in facts.cohorts:
        if cohort.verdict is None:
            raise LedgerCorrupted(
                None, f"{run}: the ledger of {cohort.name} does not verify: {cohort.broken}"
            )


def _study(folder: Path, *, out: Path | None, as_json: bool) -> None:
    from secfl.report.page import write_page
    from secfl.report.study import study_page
    from secfl.report.study_files import read_study

    facts = read_study(folder)
    if as_json:
        typer.echo(json.dumps(facts.document, indent=2, allow_nan=False))
        return
    place = out if out is not None else folder / "report.html"
    write_page(study_page(facts), place)
    typer.echo(f"wrote {place}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Two or more run directories.")],
    as_json: _Json = False,
) -> None:
    """Put runs side by side: settings that differ, model, Dice, cost, ledger, and ε for each adversary.

    Example: secfl compare runs/masking runs/ckks
    """
    from secfl.report.comparing import compare_runs
    from secfl.report.facts import read_run

    if len(runs) < 2:
        raise ConfigError("compare: expected two run directories or more")
    facts = [read_run(run) for run in runs]
    rows = compare_runs(facts)
    if as_json:
        document: dict[str, Any] = {
            "format_version": _FORMAT_VERSION,
            "runs": [str(run) for run in runs],
            "rows": [
                {"part": row.part, "name": row.name, "values": list(row.values), "differs": row.differs}
                for row in rows
            ],
        }
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    _print(rows, facts)


def _print(rows: tuple[ComparedRow, ...], facts: list[RunFacts]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for run in facts:
        table.add_column(Text(run.name), overflow="fold")
    part = ""
    for row in rows:
        if row.part != part:
            table.add_section()
            part = row.part
        mark = "≠ " if row.differs else "  "
        table.add_row(Text(mark + row.name), *(Text(_cell(value)) for value in row.values))
    Console(highlight=False).print(table)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
