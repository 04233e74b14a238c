"""A run under way, as its directory shows it at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secfl.federation.noticeboard import Notice, read_notice
from secfl.federation.rundir import RunDirectory
from secfl.guarantees import Behaviour
from secfl.ledger.reader import replay
from secfl.ledger.views import adversaries, statements_about
from secfl.ledger.words import in_short

__all__ = ["LiveRun", "epsilons_so_far", "look"]

_QUIET_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """One glance at a run.

    Attributes:
        name: Of its directory.
        state: ``finished``, ``running``, or ``silent`` when nothing was written for a minute.
        rounds_done: Rounds on record.
        rounds_planned: Rounds of the run.
        phase: What is being done, in words; empty when nobody says.
        dice: Site -> Dice at the last evaluation.
        dice_before: The same at the one before, for the trend.
        dice_round: Round of the last evaluation, from 1; 0 for none.
        megabytes: Sent by and to the sites so far.
        seconds: Seconds of the rounds so far, and of the last one.
        dropped: Site -> rounds that it dropped out of.
        survivors: Sites that stayed in the last round.
    """

    name: str
    state: str
    rounds_done: int
    rounds_planned: int
    phase: str
    dice: Mapping[str, float]
    dice_before: Mapping[str, float]
    dice_round: int
    megabytes: tuple[float, float]
    seconds: tuple[float, float]
    dropped: Mapping[str, int]
    survivors: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "format_version": 1,
            "name": self.name,
            "state": self.state,
            "rounds": {"done": self.rounds_done, "planned": self.rounds_planned},
            "phase": self.phase,
            "dice": dict(self.dice),
            "dice_round": self.dice_round,
            "megabytes": {"up": self.megabytes[0], "down": self.megabytes[1]},
            "seconds": {"all": self.seconds[0], "last": self.seconds[1]},
            "dropped": dict(self.dropped),
            "survivors": list(self.survivors),
        }


def look(run: Path, *, now: datetime) -> LiveRun:
    """Read what a run has written so far; quick enough for every second.

    Args:
        run: Its directory.
        now: The time, with its zone.

    Raises:
        ConfigError: Not a run directory.
    """
    directory = RunDirectory.open(run)
    rows = directory.read_metrics()
    notice = read_notice(directory.root)
    finished = (directory.root / "summary.json").exists()
    evaluated = [row for row in rows if row.get("evaluation_only")]
    dropped: dict[str, int] = {}
    for row in rows:
        for site in row["dropped"]:
            dropped[site] = dropped.get(site, 0) + 1
    return LiveRun(
        name=directory.root.resolve().name,
        state=_state(directory, notice, finished=finished, now=now),
        rounds_done=len(rows),
        rounds_planned=len(rows) if finished else _planned(directory, notice),
        phase="" if finished or notice is None else notice.words,
        dice=_per_site(evaluated, 1),
        dice_before=_per_site(evaluated, 2),
        dice_round=evaluated[-1]["round"] + 1 if evaluated else 0,
        megabytes=(_megabytes(rows, "bytes_up"), _megabytes(rows, "bytes_down")),
        seconds=(
            round(sum(row["seconds"]["total"] for row in rows), 3),
            rows[-1]["seconds"]["total"] if rows else 0.0,
        ),
        dropped=dropped,
        survivors=tuple(rows[-1]["survivors"]) if rows else (),
    )


def epsilons_so_far(run: Path) -> dict[str, float | None]:
    """ε of every curious adversary by the ledger as it is now; takes up to seconds for a long one.

    Raises:
        LedgerCorrupted: What is written does not verify.
        ConfigError: There is no ledger.
    """
    ledger = RunDirectory.open(run).root / "ledger.jsonl"
    if not ledger.is_file():
        return {}
    state = replay(ledger.read_bytes()).state
    if not state.size:
        return {}
    rows = [row for row in adversaries(len(state.header.cohort)) if row.behaviour is Behaviour.CURIOUS]
    found: dict[str, float | None] = {}
    for row in statements_about(state, rows):
        name = in_short(row.view, row.colluders)
        found[name if row.site is None else f"{name} ({row.site})"] = row.epsilon
    return found


def _state(directory: RunDirectory, notice: Notice | None, *, finished: bool, now: datetime) -> str:
    if finished:
        return "finished"
    files = [directory.metrics, directory.root / "log.txt", directory.root / "ledger.jsonl"]
    times = [path.stat().st_mtime for path in files if path.exists()]
    last = max(
        [datetime.fromtimestamp(time, UTC) for time in times] + ([] if notice is None else [notice.at])
    )
    return "silent" if (now - last).total_seconds() > _QUIET_SECONDS else "running"


def _planned(directory: RunDirectory, notice: Notice | None) -> int:
    if notice is not None:
        return notice.rounds
    config = directory.config()
    steps = config.privacy.steps
    stepwise = config.privacy.mode.value == "patient" and config.privacy.schedule.value == "step"
    return steps if stepwise and steps is not None else config.training.rounds


def _per_site(evaluated: list[dict[str, Any]], back: int) -> dict[str, float]:
    if len(evaluated) < back:
        return {}
    found: dict[str, float] = evaluated[-back]["evaluation_only"]["dice"]["per_site"]
    return found


def _megabytes(rows: list[dict[str, Any]], way: str) -> float:
    return round(sum(sum(row[way].values()) for row in rows) / 1e6, 3)
