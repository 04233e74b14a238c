"""How a study's progress is shown: nothing, one line per finished run, or a bar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from secfl.studies.jobs import Job, Listener

__all__ = ["study_listener"]


class _Silent:
    def began(self, rounds: int, runs: int) -> None:
        """Say nothing."""

    def moved(self, rounds: int) -> None:
        """Say nothing."""

    def finished(self, job: Job) -> None:
        """Say nothing."""


class _Lines:
    """One line per finished run, for logs and pipes."""

    def began(self, rounds: int, runs: int) -> None:
        """Say how much there is."""
        typer.echo(f"{runs} runs of {rounds} rounds together", err=True)

    def moved(self, rounds: int) -> None:
        """Nothing: a log needs no bar."""

    def finished(self, job: Job) -> None:
        """Say which."""
        typer.echo(f"finished {job.name}", err=True)


@contextlib.contextmanager
def study_listener(*, quiet: bool) -> Iterator[Listener]:
    """What tells people how a study goes on; standard output stays free for figures."""
    if quiet:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        with _bar() as listener:
            yield listener


@contextlib.contextmanager
def _bar() -> Iterator[Listener]:
    """One bar over the rounds of all runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("rounds"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[runs]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
    )
    with progress:
        yield _Bar(progress)


class _Bar:
    """Moves the bar, and says which runs have finished."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("rounds", total=None, runs="")

    def began(self, rounds: int, runs: int) -> None:
        """Set the bar's length."""
        self._progress.update(self._task, total=rounds, runs=f"{runs} runs")

    def moved(self, rounds: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=rounds)

    def finished(self, job: Job) -> None:
        """Say which, above the bar."""
        self._progress.console.print(f"finished {job.name}")
