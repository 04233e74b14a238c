"""The worked examples run, and their ledgers say what they print."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from secfl.guarantees import View
from secfl.ledger.verify import verify_file


def play(project, tmp_path, name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(project / "examples" / name), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numpy_federated_averaging(project, tmp_path):
    output = play(project, tmp_path, "ledger_numpy_fedavg.py")
    reached, started = (float(number) for number in re.findall(r"[0-9]+\.[0-9]+", output.splitlines()[0]))
    assert reached < started / 2
    verdict = verify_file(tmp_path / "ledger.jsonl")
    assert (verdict.status, verdict.rounds["committed"]) == ("closed", 30)
    rows = {(row.view, row.adversary, row.colluders): row for row in verdict.statements}
    assert rows["aggregator", "curious", 0].epsilon == pytest.approx(2.84, abs=0.02)
    assert rows["aggregator", "malicious", 0].broken


@pytest.mark.slow
def test_opacus_loop(project, tmp_path):
    output = play(project, tmp_path, "ledger_opacus_loop.py")
    theirs = float(re.search(r"own figure: +([0-9.]+)", output)[1])
    rows = {row.view: row for row in verify_file(tmp_path / "ledger.jsonl").statements}
    assert rows[View.FINAL_MODEL].epsilon == pytest.approx(theirs, abs=0.05)
    assert rows[View.AGGREGATOR].epsilon is None
