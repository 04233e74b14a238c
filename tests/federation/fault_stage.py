"""Faults in runs with real processes: what is done, what may come of it, and what must not.

A fault is played on a run of four sites, each a process of its own, and a threshold of three. Whatever is done to
it, the run must end: with every site, without those that were lost, or aborted with nothing opened. `play` checks
that the model is that of an undisturbed run with the same drop-outs in one process, that every attempt that any
site entered is in the ledger, and that the ledger verifies. ``test_faults.py`` tests the list `FAULTS`, and
``docs/draw_faults.py`` makes a table of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from secfl.config import RunConfig
from secfl.crypto.identity import Identity
from secfl.errors import SecflError
from secfl.federation.engines import RemoteEngine
from secfl.federation.members import Members
from secfl.federation.multiprocess import SiteProcesses, python_module
from secfl.federation.observer import SilentObserver
from secfl.federation.rundir import read_summary
from secfl.federation.simulation import resume, start
from secfl.federation.site_agent import largest_message
from secfl.federation.work import make_task
from secfl.ledger.verify import load, verify_file
from secfl.randomness import SystemRng
from secfl.testing.rehearsal import in_one_process
from secfl.types import ClientId

HERE = Path(__file__).parent
FACTORY = "secfl.testing.tasks:linear_task"
NAMES = tuple(ClientId(f"site-{index:02d}") for index in range(4))
ONE = NAMES[1]
ROUNDS = 2
PHASES = ("offer", "shares", "input", "consistency", "unmask")
"""What is asked in the five batches of a round of masking."""


def config(**changes) -> RunConfig:
    tree = {
        "clients": 4,
        "engine": "multiprocess",
        "threads": 1,
        "training": {"rounds": ROUNDS},
        "secure_agg": {"scheme": "masking"},
        "deadlines": {"training": 20, "phase": 20},
    }
    return RunConfig.model_validate(tree | changes)


@dataclass
class Fault:
    """One row of the table.

    Attributes:
        done: What is done, for people.
        expected: What must come of it: ``with all``, ``without it`` or ``aborted``.
        before: Called before each batch of requests with the processes and the batch's number from 1.
        replies: Changes the stream of replies of a batch.
        twice: Whether every request is sent twice.
        prepare: Called with the run directory before the first process starts.
        factory: The sites' task.
        seconds: The deadline of each phase.
        restarts: How often a dead site is started again.
        coordinator: Batch in which the coordinator itself is killed; 0 for never.
        disk: Which part lies on a small disk of its own: ``site``, ``coordinator``, or nothing.
        lost: Rounds in which the one site is allowed to be missing.
    """

    done: str
    expected: str
    before: Callable[[SiteProcesses, int], None] = lambda _processes, _batch: None
    replies: Callable[[int, Iterator[tuple[ClientId, bytes]]], Iterator[tuple[ClientId, bytes]]] = (
        lambda _batch, replies: replies
    )
    twice: bool = False
    factory: str = FACTORY
    seconds: int = 20
    restarts: int = 3
    coordinator: int = 0
    disk: str = ""
    full: tuple[int, int] = (0, 0)


@dataclass
class Observed:
    """What came of a fault."""

    outcome: str
    rounds: str
    seconds: float
    words: str = ""
    findings: list[str] = field(default_factory=list)


class Disturbed(SiteProcesses):
    """Site processes to which a fault is done."""

    def __init__(self, names, *, fault: Fault, disk: SmallDisk | None, **more) -> None:
        super().__init__(names, restarts=fault.restarts, **more)
        self.fault, self.disk, self.batch = fault, disk, 0

    def exchange(self, requests: Mapping[ClientId, bytes], *, seconds: float):
        self.batch += 1
        if self.disk is not None and self.fault.full[0] == self.batch:
            self.disk.fill()
        if self.disk is not None and self.fault.full[1] == self.batch:
            self.disk.clear()
        self.fault.before(self, self.batch)
        yield from self.fault.replies(self.batch, super().exchange(requests, seconds=seconds))

    def _ask(self, name: ClientId, request: bytes) -> None:
        super()._ask(name, request)
        if self.fault.twice:
            super()._ask(name, request)


class SmallDisk:
    """A file system of one mebibyte in memory; needs root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))

    def clear(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextmanager
def small_disk(root: Path, where: str) -> Iterator[SmallDisk | None]:
    if not where:
        yield None
        return
    disk = SmallDisk(root / "disk")
    try:
        yield disk
    finally:
        disk.close()


def opener_of(fault: Fault, disk: SmallDisk | None, root: Path):
    @contextmanager
    def opener(setting):
        most_bytes = largest_message(setting.terms.round_terms.grid.length, len(NAMES))
        sites = setting.run.root / "sites"
        if fault.disk and not sites.exists():
            # The one site's state, or all but the sites' state, is on the small disk.
            (root / "elsewhere").mkdir()
            sites.symlink_to(root / "elsewhere")
            if fault.disk == "site":
                (disk.folder / ONE).mkdir()
                (sites / ONE).symlink_to(disk.folder / ONE)
        with Disturbed(
            NAMES,
            fault=fault,
            disk=disk,
            command=lambda name, port: python_module(
                "secfl.federation.site_process",
                str(setting.run.root.resolve()),
                name,
                "--port",
                str(port),
                "--run-id",
                setting.run_id.hex(),
                "--task",
                fault.factory,
            ),
            most_bytes=most_bytes,
            rng=SystemRng(),
        ) as processes:
            yield RemoteEngine(setting, processes, most_bytes=most_bytes)

    return opener


def begin(fault: Fault, out: Path, disk: SmallDisk | None, root: Path) -> None:
    settings = config(deadlines={"training": fault.seconds, "phase": fault.seconds})
    task = make_task(settings, FACTORY)
    start(
        settings,
        out=out,
        observer=SilentObserver(),
        task=task,
        task_factory=FACTORY,
        members=Members.simulated([Identity.generate(site, SystemRng()) for site in task.sites]),
        opener=opener_of(fault, disk, root),
    )


def play(fault: Fault, root: Path) -> Observed:
    """Play a fault and check what must hold whatever comes of it."""
    began = time.monotonic()
    words = ""
    with small_disk(root, fault.disk) as disk:
        out = (disk.folder if fault.disk == "coordinator" else root) / "run"
        if fault.coordinator:
            words = killed(fault, out)
        else:
            try:
                begin(fault, out, disk, root)
            except SecflError as error:
                words = f"{type(error).__name__}: {error}".replace(str(root), "")
        if words and "below" not in words.lower() and fault.expected != "aborted":
            if disk is not None:
                disk.clear()
            elif not fault.coordinator:
                raise AssertionError(words)
            resume(out, observer=SilentObserver(), task_factory=FACTORY)
        seconds = time.monotonic() - began
        return examine(out, seconds=seconds, words=words)


def killed(fault: Fault, out: Path) -> str:
    """The coordinator is killed in a batch: in a process of its own, because it does it itself."""
    number = FAULTS.index(fault)
    done = subprocess.run([sys.executable, __file__, str(number), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL, "the coordinator was to die"
    return "killed"


def examine(out: Path, *, seconds: float, words: str) -> Observed:
    """What came of it; collects what is wrong in ``findings``."""
    findings: list[str] = []
    verdict = verify_file(out / "ledger.jsonl")
    state = load(out / "ledger.jsonl")
    findings += verdict.findings
    known = {reservation.round_id for reservation in state.reservations.values()}
    entered = {name: attempts(out, name) for name in NAMES}
    for name, numbers in entered.items():
        if not numbers <= known:
            findings.append(f"{name} entered {sorted(numbers - known)}, which the ledger does not know")
    committed, aborted = verdict.rounds["committed"], verdict.rounds["aborted"]
    rounds = f"{committed} committed, {aborted} aborted"
    if not (out / "summary.json").exists():
        if committed:
            findings.append("it was aborted after something was opened")
        return Observed("aborted", rounds, seconds, words, findings)
    summary = read_summary(out)
    dropped = tuple(tuple(names) for names in summary["dropped"])
    if summary["final_model_sha256"] != undisturbed(dropped):
        findings.append("the model is not that of an undisturbed run with the same drop-outs")
    if verdict.status != "closed" or summary["rounds_completed"] != ROUNDS:
        findings.append(f"the ledger is {verdict.status} after {summary['rounds_completed']} rounds")
    return Observed("without it" if any(dropped) else "with all", rounds, seconds, words, findings)


def attempts(out: Path, name: str) -> set[int]:
    """Round ids of the attempts that a site has entered."""
    files = (out / "sites" / name).glob("attempts-*.json")
    return {row[0] for path in files for row in json.loads(path.read_bytes())["entered"]}


@lru_cache
def undisturbed(dropped: tuple[tuple[str, ...], ...]) -> str:
    """SHA-256 of the model of a run in one process in which these sites are missing, round by round."""

    with tempfile.TemporaryDirectory() as folder:
        summary = in_one_process(
            config(engine="inprocess"), Path(folder) / "run", dropped=dropped, task_factory=FACTORY
        )
    return str(summary["final_model_sha256"])


def in_batch(number: int, act: Callable[[SiteProcesses], None]):
    return lambda processes, batch: act(processes) if batch == number else None


def send_signal(name: ClientId, which: signal.Signals) -> Callable[[SiteProcesses], None]:
    def act(processes: SiteProcesses) -> None:
        os.kill(processes.pid(name), which)

    return act


def stopped(first: int, last: int):
    def before(processes: SiteProcesses, batch: int) -> None:
        if batch == first:
            os.kill(processes.pid(ONE), signal.SIGSTOP)
        if batch == last:
            os.kill(processes.pid(ONE), signal.SIGCONT)

    return before


def two_are_lost(processes: SiteProcesses) -> None:
    for name in NAMES[:2]:
        os.kill(processes.pid(name), signal.SIGKILL)


def replies_twice(_batch, replies):
    for name, reply in replies:
        yield name, reply
        yield name, reply


def replies_reversed(_batch, replies):
    yield from reversed(list(replies))


class Delayed:
    """One site's replies come a batch late."""

    def __init__(self) -> None:
        self.late: list[tuple[ClientId, bytes]] = []

    def __call__(self, _batch, replies):
        late, self.late = self.late, []
        yield from late
        for name, reply in replies:
            if name == ONE:
                self.late.append((name, reply))
            else:
                yield name, reply


class OldReplies:
    """Every reply of earlier batches comes again, before the new ones."""

    def __init__(self) -> None:
        self.old: list[tuple[ClientId, bytes]] = []

    def __call__(self, _batch, replies):
        yield from list(self.old)
        for one in replies:
            self.old.append(one)
            yield one


def faults() -> list[Fault]:
    rows = []
    for number, phase in enumerate(PHASES, start=1):
        rows.append(
            Fault(
                f"a site is killed when it is asked for {phase}, and started again",
                "with all",
                before=in_batch(number, send_signal(ONE, signal.SIGKILL)),
            )
        )
    for number, phase in enumerate(PHASES, start=1):
        rows.append(
            Fault(
                f"a site is killed when it is asked for {phase}, for good",
                "without it",
                before=in_batch(number, send_signal(ONE, signal.SIGKILL)),
                restarts=0,
            )
        )
    rows.append(
        Fault(
            "two of four sites are killed when they are asked for input, for good",
            "aborted",
            before=in_batch(3, two_are_lost),
            restarts=0,
            seconds=5,
        )
    )
    for number, phase in enumerate(PHASES, start=1):
        rows.append(
            Fault(
                f"the coordinator is killed before it asks for {phase}, and resumed",
                "with all",
                coordinator=number,
            )
        )
    rows += [
        Fault("every request comes twice", "with all", twice=True),
        Fault("every reply comes twice", "with all", replies=replies_twice),
        Fault("replies come in the opposite order", "with all", replies=replies_reversed),
        Fault("all earlier replies come again in every phase", "with all", replies=OldReplies()),
        Fault("a site's replies come a phase late", "without it", replies=Delayed(), seconds=5),
    ]
    for number in (1, 3, 5):
        rows.append(
            Fault(
                f"a site is stopped when it is asked for {PHASES[number - 1]}, and goes on in the next round",
                "without it" if number < 4 else "with all",
                before=stopped(number, 6),
                seconds=8,
            )
        )
    for number in (1, 3, 5):
        rows.append(
            Fault(
                f"the disk with a site's journal is full when it is asked for {PHASES[number - 1]}",
                "without it" if number < 4 else "with all",
                disk="site",
                full=(number, 6),
            )
        )
    for number in (1, 3, 5):
        rows.append(
            Fault(
                f"the disk with ledger and model is full before {PHASES[number - 1]}; then there is room, and resumed",
                "with all",
                disk="coordinator",
                full=(number, 0),
            )
        )
    rows += [
        Fault("a site announces a message of 1 TiB", "without it", factory="fault_tasks:announcing"),
        Fault(
            "a site sends 1000 messages of 256 KiB for each request",
            "without it",
            factory="fault_tasks:flooding",
        ),
    ]
    return rows


FAULTS = faults()


def main() -> int:
    """The coordinator of a fault, in a process of its own, which kills itself in the fault's batch."""
    number, out = int(sys.argv[1]), Path(sys.argv[2])
    fault = FAULTS[number]
    fault.before = in_batch(fault.coordinator, lambda _processes: os.kill(os.getpid(), signal.SIGKILL))
    begin(fault, out, None, out.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
