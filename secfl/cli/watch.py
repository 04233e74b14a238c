"""``secfl watch``: a run under way, in the terminal."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secfl.errors import LedgerCorrupted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from secfl.report.watching import LiveRun

__all__ = ["watch"]

_INTERRUPTED = 130


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run, finished or not.")],
    once: Annotated[bool, typer.Option("--once", help="One look instead of a view that goes on.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0.2, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One look, as JSON.")] = False,
) -> None:
    """Follow a run: rounds, phase, Dice of each site, ε of each adversary, MB, drop-outs. Ctrl-C leaves it running.

    Ends when the run does. Example: secfl watch runs/20261121-120000-ckks
    """
    from secfl.report.watching import look

    if once or as_json:
        seen = look(run, now=datetime.now(UTC))
        epsilons = _epsilons(run)
        if as_json:
            typer.echo(json.dumps(seen.to_json() | {"epsilon": epsilons}, indent=2, allow_nan=False))
        else:
            from rich.console import Console

            Console(highlight=False).print(_view(seen, epsilons))
        return
    try:
        _follow(run, interval)
    except KeyboardInterrupt:
        typer.echo("left; the run goes on by itself", err=True)
        raise typer.Exit(_INTERRUPTED) from None


def _follow(run: Path, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from secfl.report.watching import look

    seen, epsilons, spent = look(run, now=datetime.now(UTC)), _epsilons(run), 0.0
    with Live(_view(seen, epsilons), console=Console(highlight=False), auto_refresh=False) as live:
        while seen.state != "finished":
            time.sleep(interval)
            rounds = seen.rounds_done
            seen = look(run, now=datetime.now(UTC))
            # The ledger is read again when a round was added, and then at most for a tenth of the time.
            spent += interval
            if seen.state == "finished" or (seen.rounds_done != rounds and spent > 0):
                begun = time.monotonic()
                epsilons = _epsilons(run)
                spent = -10 * (time.monotonic() - begun)
            live.update(_view(seen, epsilons), refresh=True)


def _epsilons(run: Path) -> dict[str, float | None]:
    """A line that is being written at this moment is no reason to stop looking."""
    from secfl.report.watching import epsilons_so_far

    try:
        return epsilons_so_far(run)
    except LedgerCorrupted as error:
        return {f"the ledger does not verify: {error}": None}


def _view(seen: LiveRun, epsilons: dict[str, float | None]) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(seen.rounds_planned, 1), completed=seen.rounds_done, width=30)
    head.add_row("rounds", bar, f"{seen.rounds_done} of {seen.rounds_planned}")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("now", Text(seen.phase or seen.state))
    facts.add_row("seconds", f"{seen.seconds[0]:.1f}, last round {seen.seconds[1]:.2f}")
    facts.add_row("MB", f"{seen.megabytes[0]:.2f} up, {seen.megabytes[1]:.2f} down")
    lost = ", ".join(f"{site} {count}" for site, count in sorted(seen.dropped.items())) or "none"
    facts.add_row("drop-outs", Text(lost))
    scores = Table(box=None, pad_edge=False)
    scores.add_column("Dice by site" if not seen.dice_round else f"Dice after round {seen.dice_round}")
    scores.add_column("", justify="right")
    scores.add_column("")
    for site, dice in seen.dice.items():
        before = seen.dice_before.get(site)
        trend = "" if before is None else f"{dice - before:+.3f}"
        scores.add_row(Text(site), f"{dice:.3f}", trend)
    privacy = Table(box=None, pad_edge=False)
    privacy.add_column("ε so far")
    privacy.add_column("", justify="right")
    for name, epsilon in epsilons.items():
        privacy.add_row(Text(name), "none" if epsilon is None else f"{epsilon:.2f}")
    below = Table.grid(padding=(0, 4))
    below.add_row(scores, privacy)
    return Panel(
        Group(head, facts, Text(""), below), title=Text(f"{seen.name}: {seen.state}"), title_align="left"
    )
