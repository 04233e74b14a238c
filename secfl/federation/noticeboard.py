"""What a run is doing right now, in a small file of its directory, for `secfl watch`.

The file is a convenience: nothing reads it but people's displays, and a torn or missing one means nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from secfl.federation.observer import Observer, RoundReport, RunInfo

__all__ = ["NOTICE_FILE", "Notice", "Noticeboard", "read_notice"]

NOTICE_FILE = "now.json"
_FORMAT_VERSION = 1
_LEAST_SECONDS = 0.5
_LARGEST = 4096  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What was last put up.

    Attributes:
        rounds: Planned rounds.
        phase: Name of the work.
        done: Its finished steps.
        total: All its steps.
        at: When.
    """

    rounds: int
    phase: str
    done: int
    total: int
    at: datetime

    @property
    def words(self) -> str:
        """The phase for people."""
        return self.phase if self.total <= 1 else f"{self.phase} {self.done} of {self.total}"


def read_notice(run: Path) -> Notice | None:
    """The notice of a run; ``None`` where there is none that can be read."""
    try:
        with (run / NOTICE_FILE).open("rb") as file:
            row = json.loads(file.read(_LARGEST))
        return Notice(
            rounds=int(row["rounds"]),
            phase=str(row["phase"]),
            done=int(row["done"]),
            total=int(row["total"]),
            at=datetime.fromisoformat(row["at"]).astimezone(UTC),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Noticeboard:
    """An observer that puts up a notice twice a second at most, and passes everything on.

    Used in a ``with`` block: the notice is taken down at its end.

    Args:
        inner: Also told everything.
        clock: The time, with its zone.
    """

    def __init__(self, inner: Observer, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._inner = inner
        self._clock = clock
        self._run: Path | None = None
        self._rounds = 0
        self._last: datetime | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._run is not None:
            with contextlib.suppress(OSError):
                (self._run / NOTICE_FILE).unlink(missing_ok=True)

    def run_started(self, info: RunInfo) -> None:
        """Remember where the run lies."""
        self._run, self._rounds = info.run, info.rounds
        self._put("starting", 0, 1)
        self._inner.run_started(info)

    def phase(self, name: str, done: int, total: int) -> None:
        """Put it up."""
        self._put(name, done, total)
        self._inner.phase(name, done, total)

    def round_finished(self, report: RoundReport) -> None:
        """Pass it on."""
        self._inner.round_finished(report)

    def message(self, text: str) -> None:
        """Pass it on."""
        self._inner.message(text)

    def _put(self, phase: str, done: int, total: int) -> None:
        now = self._clock()
        if self._run is None or (self._last and (now - self._last).total_seconds() < _LEAST_SECONDS):
            return
        self._last = now
        row = {
            "format_version": _FORMAT_VERSION,
            "rounds": self._rounds,
            "phase": phase,
            "done": done,
            "total": total,
            "at": now.isoformat(),
        }
        new = self._run / f".{NOTICE_FILE}.new"
        # A display that cannot be fed must not stop a run.
        with contextlib.suppress(OSError):
            new.write_text(json.dumps(row), encoding="utf-8")
            os.replace(new, self._run / NOTICE_FILE)  # noqa: PTH105 - atomic over an existing file by definition
