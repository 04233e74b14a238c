"""What a person sees while a run goes on: a progress bar in a terminal, one line per round elsewhere.

Everything goes to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from secfl.federation.noticeboard import Noticeboard
from secfl.federation.observer import Observer, RoundReport, RunInfo, SilentObserver

__all__ = ["LineObserver", "ProgressObserver", "observe"]


@contextlib.contextmanager
def observe(*, quiet: bool, console: Console | None = None) -> Iterator[Observer]:
    """An observer that fits the terminal and feeds `secfl watch`; on exit the terminal is as it was before."""
    with _printer(quiet=quiet, console=console) as printer, Noticeboard(printer) as observer:
        yield observer


@contextlib.contextmanager
def _printer(*, quiet: bool, console: Console | None) -> Iterator[Observer]:
    if quiet:
        yield SilentObserver()
        return
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield LineObserver(console)
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        console=console,
        transient=False,
    )
    with progress:
        yield ProgressObserver(progress)


class LineObserver:
    """One line per event, for logs and pipes.

    Phases inside a round are not printed, nor rounds in which nothing was evaluated and nobody dropped out: a run
    of private steps has hundreds of them. What comes after the last round (references may take minutes) has a line
    when it begins.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bytes_up = 0
        self._seconds = 0.0
        self._afterwards: set[str] | None = None

    def run_started(self, info: RunInfo) -> None:
        """Print what will run and where it is written."""
        for line in _introduction(info):
            self._print(line)

    def phase(self, name: str, done: int, total: int) -> None:
        """Nothing inside a round, because a log needs no bar; after the last round its name, once."""
        if self._afterwards is not None and name not in self._afterwards and done < total:
            self._afterwards.add(name)
            self._print(f"{name} ({total})")

    def round_finished(self, report: RoundReport) -> None:
        """Print the round's facts, and the seconds since the last line about a round."""
        self._bytes_up += report.bytes_up
        self._seconds += report.seconds.total
        if report.round_index + 1 == report.rounds:
            self._afterwards = set()
        if report.dice is None and not report.dropped and report.round_index > 0:
            return
        facts = _facts(report, self._bytes_up)
        self._print(f"round {report.round_index + 1}/{report.rounds}  {facts}  {self._seconds:.1f} s")
        self._seconds = 0.0

    def message(self, text: str) -> None:
        """Print it."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)


class ProgressObserver:
    """Two bars: the rounds with Dice, MB and ε, and the piece of work at hand."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rounds: TaskID | None = None
        self._work = progress.add_task("starting", total=1, visible=False, facts="")
        self._at_hand = ""
        self._bytes_up = 0

    def run_started(self, info: RunInfo) -> None:
        """Print what will run, and show the bar of rounds."""
        for line in _introduction(info):
            self.message(line)
        self._rounds = self._progress.add_task(
            "rounds", total=info.rounds, completed=info.first_round, facts="Dice -  0.0 MB up  ε -"
        )

    def phase(self, name: str, done: int, total: int) -> None:
        """Move the bar of the work at hand."""
        if name != self._at_hand:
            self._at_hand = name
            self._progress.reset(self._work, description=escape(name))
        self._progress.update(self._work, completed=done, total=max(total, 1), visible=done < total)

    def round_finished(self, report: RoundReport) -> None:
        """Move the bar of rounds."""
        self._bytes_up += report.bytes_up
        facts = _facts(report, self._bytes_up)
        self._progress.update(self._work, visible=False)
        if self._rounds is not None:
            self._progress.update(self._rounds, completed=report.round_index + 1, facts=escape(facts))

    def message(self, text: str) -> None:
        """Print it above the bars."""
        self._progress.console.print(escape(text), soft_wrap=True)


def _introduction(info: RunInfo) -> list[str]:
    key = "" if info.key_mode in ("none", "pairwise") else f" ({info.key_mode})"
    lines = [
        f"{len(info.sites)} sites: {', '.join(info.sites)}",
        f"{info.parameters:,} parameters, added with {info.scheme}{key}, threshold {info.threshold}",
        f"run: {info.run}",
    ]
    if info.first_round:
        lines.append(f"going on after round {info.first_round} of {info.rounds}")
    return lines


def _facts(report: RoundReport, bytes_up: int) -> str:
    dice = "-" if report.dice is None else f"{report.dice:.3f}"
    epsilon = "-" if report.epsilon is None else f"{report.epsilon:.2f}"
    facts = f"Dice {dice}  {bytes_up / 1e6:.1f} MB up  ε {epsilon}"
    if report.dropped:
        facts += f"  without {', '.join(report.dropped)}"
    return facts
