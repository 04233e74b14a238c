"""Sites in processes of their own: the run of one process, also when processes are killed, stopped or hostile."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from secfl.config import RunConfig
from secfl.errors import ConfigError, RoundAborted
from secfl.federation import multiprocess
from secfl.federation.multiprocess import SiteProcesses
from secfl.federation.observer import Observer
from secfl.federation.simulation import resume, simulate
from secfl.federation.sockets import HOST, Hub, connect
from secfl.ledger.verify import verify_file
from secfl.randomness import SystemRng
from secfl.types import ClientId

FACTORY = "secfl.testing.tasks:linear_task"
NAMES = tuple(ClientId(f"site-{index:02d}") for index in range(4))


class Silent(Observer):
    """Nothing is shown."""


def config(engine="multiprocess", **changes) -> RunConfig:
    tree = {
        "clients": 4,
        "engine": engine,
        "threads": 1,
        "training": {"rounds": 3},
        "secure_agg": {"scheme": "masking"},
        "deadlines": {"training": 20, "phase": 20},
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and key in tree else value
    return RunConfig.model_validate(tree)


def run(out, engine="multiprocess", **changes):
    return simulate(config(engine, **changes), out=out, observer=Silent(), task_factory=FACTORY)


def same(left, right) -> None:
    """The two summaries tell of the same model and the same promises."""
    names = ("final_model_sha256", "rounds_completed", "sites", "dropouts", "secure_agg", "privacy", "codec")
    ours, theirs = ({name: summary[name] for name in names} for summary in (left, right))
    for summary in (ours, theirs):
        summary["codec"] = {**summary["codec"], "relative_error": None}
    assert ours == theirs


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"secure_agg": {"scheme": "plain"}}, marks=pytest.mark.slow),
        {"secure_agg": {"scheme": "masking"}, "dropout": 0.15, "training": {"rounds": 6}},
        {"secure_agg": {"scheme": "ckks"}},
        pytest.param({"training": {"weighting": "size"}}, marks=pytest.mark.slow),
        {"privacy": {"mode": "client", "noise_multiplier": 3.0, "insecure_test_noise": 1}},
    ],
    ids=["plain", "masking and drop-outs", "sum-key", "weights", "seeded noise"],
)
def test_the_model_and_the_promises_are_those_of_one_process(tmp_path, changes):
    there = run(tmp_path / "there", **changes)
    here = run(tmp_path / "here", "inprocess", **changes)
    same(there, here)
    assert verify_file(tmp_path / "there" / "ledger.jsonl").status == "closed"
    assert there["bytes_per_parameter"] == here["bytes_per_parameter"]


class Meddler:
    """Does something to the processes when a driver has asked so many batches."""

    def __init__(self, monkeypatch, act) -> None:
        self.batches = 0
        self.processes: SiteProcesses | None = None
        original = SiteProcesses.exchange

        def exchange(processes, requests, *, seconds):
            self.processes = processes
            self.batches += 1
            act(processes, self.batches)
            yield from original(processes, requests, seconds=seconds)

        monkeypatch.setattr(SiteProcesses, "exchange", exchange)


# A round of masking has five batches: offers, and four deliveries.
@pytest.mark.parametrize("batch", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_killed_site_is_started_again_and_goes_on(tmp_path, monkeypatch, batch):
    expected = run(tmp_path / "here", "inprocess")

    def act(processes, batches):
        if batches == batch:
            os.kill(processes.pid(NAMES[1]), signal.SIGKILL)

    meddler = Meddler(monkeypatch, act)
    same(run(tmp_path / "there"), expected)
    assert meddler.processes.deaths[NAMES[1]] == 1
    assert verify_file(tmp_path / "there" / "ledger.jsonl").status == "closed"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scheme", ["masking", "ckks", "plain"])
def test_wherever_a_site_is_killed_the_model_is_the_same(tmp_path, monkeypatch, scheme):
    expected = run(tmp_path / "here", "inprocess", secure_agg={"scheme": scheme})
    for batch in range(1, 16 if scheme != "plain" else 4):
        with monkeypatch.context() as patch:
            moments = {batch}

            def act(processes, batches, moments=moments):
                if batches in moments:
                    os.kill(processes.pid(NAMES[batches % 4]), signal.SIGKILL)

            Meddler(patch, act)
            same(run(tmp_path / f"there-{batch}", secure_agg={"scheme": scheme}), expected)


def test_a_stopped_site_is_left_behind_and_comes_back(tmp_path, monkeypatch):
    """It is not heard in the second round, whose deadline passes, and takes part in the third.

    Only the deadline for its answer to the second offer is to pass: the clock that decides jumps over it once the
    others have answered. No other deadline passes, however slow the machine is.
    """
    others, heard = set(NAMES) - {NAMES[2]}, set()

    def act(processes, batches):
        if batches == 6:
            os.kill(processes.pid(NAMES[2]), signal.SIGSTOP)
        if batches == 11:
            os.kill(processes.pid(NAMES[2]), signal.SIGCONT)

    meddler = Meddler(monkeypatch, act)
    exchange = SiteProcesses.exchange

    def noting(processes, requests, *, seconds):
        for name, reply in exchange(processes, requests, seconds=seconds):
            if meddler.batches == 6:
                heard.add(name)
            yield name, reply

    monkeypatch.setattr(SiteProcesses, "exchange", noting)
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * (heard == others))
    monkeypatch.setattr(multiprocess, "time", clock)
    summary = run(tmp_path / "run", deadlines={"training": 600, "phase": 600})
    assert heard == others
    rounds = [line.split("survivors ")[1] for line in log(tmp_path / "run") if "survivors" in line]
    assert rounds == ["4", "3", "4"]
    assert summary["rounds_completed"] == 3
    assert verify_file(tmp_path / "run" / "ledger.jsonl").status == "closed"


def test_too_many_dead_sites_abort_and_open_nothing(tmp_path, monkeypatch):
    def act(processes, batches):
        if batches == 2:
            for name in NAMES[:2]:
                processes._restarts[name] = 0
                os.kill(processes.pid(name), signal.SIGKILL)

    Meddler(monkeypatch, act)
    began = time.monotonic()
    with pytest.raises(RoundAborted, match="nothing was opened"):
        run(tmp_path / "run")
    assert time.monotonic() - began < 120
    verdict = verify_file(tmp_path / "run" / "ledger.jsonl")
    assert verdict.rounds["committed"] == 0


def test_a_killed_coordinator_is_resumed(tmp_path):
    """The aggregator's process dies in a round; its sites notice and end; the run goes on."""
    expected = run(tmp_path / "here", "inprocess", training={"rounds": 8})
    script = (
        "import sys, pathlib\n"
        "from secfl.config import load_config\n"
        "from secfl.federation.observer import Observer\n"
        "from secfl.federation.simulation import simulate\n"
        "class Silent(Observer): pass\n"
        "config = load_config(pathlib.Path(sys.argv[1]), {})\n"
        f"simulate(config, out=pathlib.Path(sys.argv[2]), observer=Silent(), task_factory={FACTORY!r})\n"
    )
    file = tmp_path / "config.toml"
    file.write_text(config(training={"rounds": 8}).to_toml(), encoding="utf-8")
    out = tmp_path / "there"
    process = subprocess.Popen([sys.executable, "-c", script, str(file), str(out)])
    wait_for(lambda: len(list((out / "checkpoints").glob("round-*"))) >= 2, 60)
    sites = children(process.pid)
    process.kill()
    process.wait()
    assert len(sites) == 4
    wait_for(lambda: not any(alive(pid) for pid in sites), 20)
    same(resume(out, observer=Silent(), task_factory=FACTORY), expected)
    assert verify_file(out / "ledger.jsonl").status == "closed"


class TestHub:
    """What a stranger, or a site gone mad, can do to the coordinator's socket."""

    @pytest.fixture
    def hub(self):
        one = Hub(NAMES, token=bytes(32), most_bytes=1000)
        yield one
        one.close()

    def poll(self, hub, seconds=1.0, until=lambda messages, arrived: messages or arrived):
        end = time.monotonic() + seconds
        messages, arrived = [], []
        while time.monotonic() < end and not until(messages, arrived):
            more, came = hub.poll(0.05)
            messages += more
            arrived += came
        return messages, arrived

    def connect(self, hub, name=NAMES[0], token=bytes(32)):
        made = []
        thread = threading.Thread(
            target=lambda: made.append(connect(hub.port, name=name, token=token, most_bytes=1000))
        )
        thread.start()
        _, arrived = self.poll(hub)
        thread.join()
        return made[0], arrived

    def test_a_site_with_the_token_is_let_in_and_heard(self, hub):
        stream, arrived = self.connect(hub)
        assert arrived == [NAMES[0]]
        stream.send(b"hello")
        assert self.poll(hub)[0] == [(NAMES[0], b"hello")]
        assert hub.send(NAMES[0], b"answer")
        hub.poll(0.1)
        assert stream.receive() == b"answer"
        stream.close()

    def test_another_token_is_not_let_in(self, hub):
        stream, arrived = self.connect(hub, token=bytes(31) + b"\1")
        assert arrived == []
        assert not hub.connected(NAMES[0])
        assert stream.receive() is None

    def test_another_name_is_not_let_in(self, hub):
        assert self.connect(hub, name="mallory")[1] == []

    def test_a_large_message_cuts_the_site_off(self, hub):
        stream, _ = self.connect(hub)
        stream._socket.sendall(struct.pack("<Q", 1001))
        self.poll(hub, 0.5)
        assert not hub.connected(NAMES[0])
        assert "1001 bytes, expected at most 1000" in hub.cut_off[NAMES[0]]

    def test_strangers_that_say_nothing_do_not_pile_up(self, hub):
        crowd = []
        for _ in range(80):
            crowd.append(socket.create_connection((HOST, hub.port)))
            hub.poll(0)
        assert len(hub._strangers) <= 64
        for one in crowd:
            one.close()

    def test_a_stranger_that_talks_without_end_is_cut_off(self, hub):
        loud = socket.create_connection((HOST, hub.port))
        with contextlib.suppress(OSError):
            for _ in range(40):
                loud.sendall(bytes(1 << 17))
                hub.poll(0)
        assert hub._strangers == []


def test_a_flooding_site_is_left_out(tmp_path, monkeypatch):
    """A site that sends more than any message can be is cut off; the others finish the round."""
    monkeypatch.setenv("TEST_FLOOD", "site-03")
    summary = simulate(
        config(training={"rounds": 2}),
        out=tmp_path / "run",
        observer=Silent(),
        task_factory="tests_flooding_task:make",
    )
    rounds = [line.split("survivors ")[1] for line in log(tmp_path / "run") if "survivors" in line]
    assert rounds == ["3", "3"]
    assert summary["rounds_completed"] == 2


@pytest.fixture(autouse=True)
def _flooding_module(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "tests_flooding_task.py").write_text(FLOODING, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(folder))


FLOODING = """
import os, struct, sys
from secfl.federation import sockets
from secfl.testing.tasks import linear_task


def make(config):
    if os.environ.get("TEST_FLOOD") in sys.argv:
        def send(self, message):
            self._socket.sendall(struct.pack("<Q", 2**40))
            for _ in range(64):
                self._socket.sendall(bytes(1 << 20))
        sockets._Stream.send = send
    return linear_task(config)
"""


def test_a_factory_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no_such_module"):
        simulate(config(), out=tmp_path / "run", observer=Silent(), task_factory="no_such_module:make")
    assert not (tmp_path / "run").exists()


def test_sites_end_with_the_run(tmp_path):
    with SiteProcesses(
        NAMES[:1],
        command=lambda _name, _port: [sys.executable, "-c", "import time; time.sleep(600)"],
        most_bytes=1000,
        rng=SystemRng(),
    ) as processes:
        pid = processes.pid(NAMES[0])
        assert alive(pid)
    assert not alive(pid)


def log(root):
    return (root / "log.txt").read_text(encoding="utf-8").splitlines()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
