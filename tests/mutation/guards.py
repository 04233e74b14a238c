"""Switch every guard off in turn, and see whether a test notices.

    python tests/mutation/guards.py masking ckks [--json FILE] [--counts FILE] [--only TEXT ...] [--tests TEST ...]

All tests of the parts run once with every guard on, and it is noted in which tests each guard acted. Then each
guard is switched off, alone, and those tests run again, the fastest first: one of them must fail. A guard that
acted in no test, or without which all of them pass, is unguarded itself and is printed.

Parts, their modules and their tests stand in guards.toml, and so do the guards that are known to be equivalent:
without them another guard refuses the same thing in the same way, for the reason given there. It is an error if
such an entry names no guard, or one that a test needs.

Exit code: 0 every guard has its test, 1 some have not, 2 the tests fail with every guard on.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from switches import Guard, Switches, SwitchingFinder

PARTS = Path(__file__).with_name("guards.toml")
PROGRESS = os.fdopen(os.dup(sys.stderr.fileno()), "w")
"""Goes on to the terminal from children, whose own streams lead nowhere."""
PATIENCE = 60
"""Seconds for tests without a guard, beside ten times what they took with it: they may wait for ever."""
EFFORT = 15.0
"""Processor seconds for a test without a guard, beside five times what it took with it: it may loop for ever."""


class Verdict(StrEnum):
    """What was found out about one guard."""

    NEEDED = "a test fails without it"
    UNNEEDED = "every test passes without it"
    SILENT = "acts in no test"
    EQUIVALENT = "equivalent"


@dataclass(frozen=True)
class Equivalent:
    """A guard without which another one refuses the same."""

    module: str
    function: str
    text: str
    reason: str

    def means(self, guard: Guard) -> bool:
        """Lines move, texts stay."""
        return (self.module, self.function, self.text) == (guard.module, guard.function, guard.text)


@dataclass(frozen=True)
class Part:
    """Modules (patterns below ``root``) and the tests that should need their guards."""

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]

    def has(self, module: str) -> bool:
        """Whether a module belongs to this part."""
        return any(fnmatch.fnmatchcase(module, pattern) for pattern in self.modules)


@dataclass
class Played:
    """What a child saw: tests that failed, seconds and processor seconds of each, and where each guard acted."""

    failed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    effort: dict[str, float] = field(default_factory=dict)
    guards: list[Guard] = field(default_factory=list)
    acted: dict[Guard, set[str]] = field(default_factory=dict)


class Examiner:
    """A pytest plugin that forks one child for each guard, after everything was collected once."""

    def __init__(
        self, switches: Switches, *, wanted: Callable[[Guard], bool], effort: float = EFFORT
    ) -> None:
        self.verdicts: dict[Guard, Verdict] = {}
        self.broken: list[str] = []
        self._switches = switches
        self._wanted = wanted
        self._effort = effort
        self._played = Played()

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        """The same examples each time, and no search for a smaller one: any failure will do."""
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("guards", settings(), derandomize=True, database=None, phases=phases)
        settings.load_profile("guards")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps failures; a crash of set-up or of tear-down is one."""
        if report.failed:
            self._played.failed.append(f"{report.nodeid} ({report.when}): {report.longreprtext[-400:]}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of pytest's own loop."""
        if session.testsfailed:
            self.broken = ["the tests cannot be collected"]
            return True
        whole = _in_child(self._play, session, session.items, None, limit=None)
        if whole is None or whole.failed:
            self.broken = whole.failed if whole else ["the process ended"]
            return True
        self._played.effort = whole.effort
        items = {item.nodeid: item for item in session.items}
        guards = sorted(filter(self._wanted, set(whole.guards)))
        for place, guard in enumerate(guards, start=1):
            tests = sorted(whole.acted.get(guard, ()), key=whole.seconds.__getitem__)
            self.verdicts[guard] = self._try_without(guard, session, [items[test] for test in tests], whole)
            _say(f"{place}/{len(guards)} {guard}: {self.verdicts[guard]}")
        return True

    def _try_without(
        self, guard: Guard, session: pytest.Session, items: Sequence[pytest.Item], whole: Played
    ) -> Verdict:
        if not items:
            return Verdict.SILENT
        limit = PATIENCE + 10 * sum(whole.seconds[item.nodeid] for item in items)
        played = _in_child(self._play, session, items, guard, limit=limit)
        return Verdict.UNNEEDED if played is not None and not played.failed else Verdict.NEEDED

    def _play(self, session: pytest.Session, items: Sequence[pytest.Item], off: Guard | None) -> Played:
        """In a child: runs tests, up to the first failure when a guard is off."""
        self._switches.off = off
        for place, item in enumerate(items, start=1):
            self._switches.test = item.nodeid
            if off is not None:  # the signal ends this child, as a hang does
                signal.setitimer(signal.ITIMER_PROF, self._effort + 5 * self._played.effort[item.nodeid])
            start, busy = time.perf_counter(), time.process_time()
            following = items[place] if place < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self._played.seconds[item.nodeid] = time.perf_counter() - start
            self._played.effort[item.nodeid] = time.process_time() - busy
            if off is None and place % 100 == 0:
                _say(f"{place}/{len(items)} tests with every guard on")
            elif off is not None and self._played.failed:
                break
        session.config.hook.pytest_sessionfinish(session=session, exitstatus=0)  # what is left is torn down
        self._played.guards, self._played.acted = self._switches.guards, self._switches.acted
        return self._played


def _in_child(work: Callable[..., Played], *arguments: Any, limit: float | None) -> Played | None:
    """Forked, a child starts with everything loaded and leaves nothing behind; None if it ended early or hung."""
    receive, send = multiprocessing.Pipe(duplex=False)

    def run(answer: Connection) -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        answer.send(work(*arguments))

    child = multiprocessing.get_context("fork").Process(target=run, args=(send,))
    child.start()
    send.close()
    try:
        return receive.recv() if receive.poll(limit) else None
    except EOFError:
        return None
    finally:
        child.kill()
        child.join()


def examine(
    parts: Sequence[Part], *, root: Path, wanted: Callable[[Guard], bool], effort: float = EFFORT
) -> tuple[dict[Guard, Verdict], list[str]]:
    """The verdict on every guard of some parts; or none, and the tests that fail with every guard on."""
    switches = Switches()
    examiner = Examiner(switches, wanted=wanted, effort=effort)
    SwitchingFinder(root, lambda module: any(part.has(module) for part in parts), switches).install()
    sys.path.insert(0, str(root))
    os.chdir(root)
    tests = list(dict.fromkeys(test for part in parts for test in part.tests))
    with tempfile.TemporaryDirectory() as scratch:
        options = ["-qq", "-s", "--no-header", "--no-summary", "-m", "not slow"]
        options += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={scratch}/pytest"]
        code = pytest.main([*options, *tests], plugins=[examiner])
    if not examiner.verdicts and not examiner.broken:
        examiner.broken = [f"pytest ended with {code!s}"]
    return examiner.verdicts, examiner.broken


def excuse(verdicts: dict[Guard, Verdict], known: Sequence[Equivalent]) -> list[str]:
    """Marks the guards that are known to be equivalent; returns what is wrong with the list."""
    wrong = []
    for entry in known:
        meant = [guard for guard in verdicts if entry.means(guard)]
        name = f"{entry.module}: {entry.function}: {entry.text}"
        if not meant:
            wrong.append(f"{name}: listed as equivalent, but there is no such guard")
        for guard in meant:
            if verdicts[guard] is Verdict.NEEDED:
                wrong.append(f"{name}: listed as equivalent, but a test needs it")
            verdicts[guard] = Verdict.EQUIVALENT
    return wrong


def count(verdicts: dict[Guard, Verdict], part: Part) -> dict[str, int]:
    """How many guards a part has, and what became of them."""
    own = [verdict for guard, verdict in verdicts.items() if part.has(guard.module)]
    needed, equivalent = own.count(Verdict.NEEDED), own.count(Verdict.EQUIVALENT)
    return {"guards": len(own), "needed": needed, "equivalent": equivalent}


def main() -> int:
    """Examine the parts that were asked for and print what is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", help="as in guards.toml; without any, all of them")
    parser.add_argument("--json", type=Path, help="write every verdict to this file")
    parser.add_argument("--counts", type=Path, help="write how many of each part a test needs into this file")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help="only guards whose 'module:line: function: text' has one of these",
    )
    parser.add_argument("--tests", nargs="+", help="run these tests alone; quicker, while one is written")
    parser.add_argument("--effort", type=float, default=EFFORT, help="processor seconds before a test hangs")
    parser.add_argument("--parts", type=Path, default=PARTS, help="another guards.toml")
    chosen = parser.parse_args()
    table = tomllib.loads(chosen.parts.read_text(encoding="utf-8"))
    every = {
        name: Part(name, tuple(part["modules"]), tuple(chosen.tests or part["tests"]))
        for name, part in table["parts"].items()
    }
    if unknown := set(chosen.part) - set(every):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    parts = [part for name, part in every.items() if not chosen.part or name in chosen.part]
    root = (chosen.parts.parent / table["root"]).resolve()
    verdicts, broken = examine(
        parts,
        root=root,
        wanted=lambda guard: any(text in str(guard) for text in chosen.only),
        effort=chosen.effort,
    )
    if broken:
        _say("with every guard on, this fails:", *broken)
        return 2
    known = [Equivalent(**entry) for entry in table.get("equivalent", [])]
    known = [
        entry for entry in known if any(part.has(entry.module) for part in parts) and not any(chosen.only)
    ]
    wrong = excuse(verdicts, known)
    left = [guard for guard in verdicts if verdicts[guard] in (Verdict.UNNEEDED, Verdict.SILENT)]
    for guard in left:
        _print(f"{guard}: {verdicts[guard]}")
    for line in wrong:
        _print(line)
    counts = {part.name: count(verdicts, part) for part in parts}
    for name, of in counts.items():
        _print(
            f"{name}: {of['guards']} guards, {of['needed']} needed by a test, {of['equivalent']} equivalent"
        )
    if chosen.counts is not None:
        known_counts = json.loads(chosen.counts.read_text()) if chosen.counts.exists() else {}
        chosen.counts.write_text(json.dumps(known_counts | counts, indent=2) + "\n")
    if chosen.json is not None:
        chosen.json.write_text(
            json.dumps({str(guard): verdict for guard, verdict in verdicts.items()}, indent=2)
        )
    return 1 if left or wrong else 0


def _say(*lines: str) -> None:
    PROGRESS.write("\n".join(lines) + "\n")
    PROGRESS.flush()


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
