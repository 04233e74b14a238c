"""``kill -9`` at random moments of a real process: the ledger verifies and never claims less than was opened."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from secfl.ledger import Account, PrivacyLedger
from secfl.ledger.reader import replay
from secfl.ledger.sights import releases
from secfl.ledger.verify import load, verify_file

SCRIPT = Path(__file__).with_name("numpy_run.py")
_SPEC = importlib.util.spec_from_file_location("ledger_numpy_run", SCRIPT)
numpy_run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(numpy_run)


def start(folder: Path, rounds: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(rounds), "account"], stderr=subprocess.PIPE
    )


def opened(folder: Path) -> Counter:
    path = folder / "opened.log"
    if not path.exists():
        return Counter()
    lines = [line.split() for line in path.read_text().splitlines() if line.count(" ") == 2]
    return Counter((int(line[0]), int(line[1])) for line in lines)


def spent(folder: Path) -> int:
    return sum(release.count for release in releases(load(folder / "ledger.jsonl")) if release.opened)


def crash_and_resume(folder: Path, kills: int, seed: int) -> None:
    """Kill the run again and again, let it finish, and compare the ledger with what was opened."""
    moments = random.Random(seed)
    killed = 0
    while killed < kills:
        process = start(folder, 10**6)
        deadline = time.monotonic() + 60
        size = (folder / "ledger.jsonl").stat().st_size if (folder / "ledger.jsonl").exists() else 0
        # Wait until it writes, so that the moment falls into the run and not into the imports.
        while time.monotonic() < deadline:
            if (folder / "ledger.jsonl").exists() and (folder / "ledger.jsonl").stat().st_size > size:
                break
            time.sleep(0.001)
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        killed += 1
        path = folder / "ledger.jsonl"
        if path.read_bytes().endswith(b"\n"):
            assert spent(folder) >= len(opened(folder))
    done = len(replay((folder / "ledger.jsonl").read_bytes()).state.commits)
    process = start(folder, done + 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    verdict = verify_file(folder / "ledger.jsonl")
    assert verdict.status == "closed"
    seen = opened(folder)
    state = load(folder / "ledger.jsonl")
    # Every opened sum was committed before; each resend is one reservation; nothing opened is missing.
    committed = {
        (state.reservations[index].round_id, state.reservations[index].attempt) for index in state.commits
    }
    assert set(seen) <= committed
    assert len(state.reservations) == len(state.by_attempt)
    assert spent(folder) >= len(seen)
    assert len(committed) - len(seen) <= kills  # committed, killed before opening: spent all the same
    # The account has every reservation, and one more at most for each kill between charge and reservation.
    charges = Account.read(folder / "account").reading().charges
    assert len(state.reservations) <= charges <= len(state.reservations) + kills


def test_three_kills(tmp_path):
    crash_and_resume(tmp_path, 3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path):
    for part in range(10):
        folder = tmp_path / str(part)
        folder.mkdir()
        crash_and_resume(folder, 20, seed=part)


def test_any_cut_of_the_last_write_is_survived(tmp_path):
    """What a power failure leaves: a write that reached the disk in part. The run goes on and closes."""
    whole = tmp_path / "whole"
    whole.mkdir()
    with PrivacyLedger.open(whole / "ledger.jsonl", numpy_run.header()) as ledger:
        for _ in range(2):
            ledger.commit(ledger.reserve(numpy_run.EVENT, numpy_run.GUARANTEE))
        ledger.reserve(numpy_run.EVENT, numpy_run.GUARANTEE)
    data = (whole / "ledger.jsonl").read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data), 251):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(data[:cut])
        reserved = len(replay(data[:cut]).state.reservations)
        numpy_run.main(folder, 3)
        state = load(folder / "ledger.jsonl")
        assert state.closed is not None
        assert len(state.commits) == 3
        assert spent(folder) >= max(3, reserved)


def test_the_control_a_run_that_opens_before_it_commits_is_caught(tmp_path):
    """Without write-ahead the comparison above fails: it can fail."""
    text = SCRIPT.read_text()
    commit = "            ledger.commit(reservation)\n"
    opening = '            note(folder / "opened.log", f"{round_id} {attempt} {int(total.sum())}\\n")\n'
    assert commit + opening in text
    broken = tmp_path / "broken.py"
    broken.write_text(text.replace(commit + opening, opening + "            sys.exit(0)\n"))
    subprocess.run([sys.executable, str(broken), str(tmp_path), "3"], check=True)
    state = load(tmp_path / "ledger.jsonl")
    committed = {
        (state.reservations[index].round_id, state.reservations[index].attempt) for index in state.commits
    }
    assert not set(opened(tmp_path)) <= committed
