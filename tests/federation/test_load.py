"""Many sites in processes of their own, and many rounds: exact, accounted for, and memory that does not grow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from secfl.config import RunConfig
from secfl.federation.checkpoint import load
from secfl.federation.multiprocess import SiteProcesses
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.ledger.verify import verify_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def run(out, factory, **changes):
    tree = {"engine": "multiprocess", "threads": 1, "deadlines": {"training": 300, "phase": 120}}
    config = RunConfig.model_validate(tree | changes)
    return simulate(config, out=out, observer=SilentObserver(), task_factory=f"secfl.testing.tasks:{factory}")


@pytest.mark.parametrize(
    ("engine", "scheme"), [("multiprocess", "masking"), ("multiprocess", "ckks"), ("flower", "masking")]
)
def test_thirty_two_clients_of_a_million_parameters(tmp_path, monkeypatch, engine, scheme):
    if engine == "flower":
        pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")
        monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    settings = {
        "clients": 32,
        "training": {"rounds": 2},
        "secure_agg": {"scheme": scheme},
        "deadlines": {"training": 900, "phase": 900},
    }
    summary = run(tmp_path / "there", "drift_task_1m", **settings, engine=engine)
    here = run(tmp_path / "here", "drift_task_1m", **settings, engine="inprocess")
    assert summary["final_model_sha256"] == here["final_model_sha256"]
    assert summary["dropouts"]["total"] == 0
    assert verify_file(tmp_path / "there" / "ledger.jsonl").status == "closed"
    print(f"\n{engine} {scheme}: {summary['time_s']}")  # noqa: T201 - the figures are the point


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_two_hundred_rounds_with_drop_outs(tmp_path, monkeypatch):
    memory: list[dict[str, int]] = []
    original = SiteProcesses.gather

    def gather(processes):
        sites = {name: resident(processes.pid(name)) for name in processes._names}
        memory.append({"coordinator": resident(os.getpid()), **sites})
        original(processes)

    monkeypatch.setattr(SiteProcesses, "gather", gather)
    summary = run(
        tmp_path / "run",
        "drift_task_10k",
        clients=6,
        dropout=0.1,
        evaluate_every=20,
        training={"rounds": 200},
        secure_agg={"scheme": "masking", "threshold": 4},
    )
    assert summary["rounds_completed"] == 200
    assert summary["dropouts"]["total"] > 60  # of 1200 chances of a tenth: fewer has a probability below 1e-9
    verdict = verify_file(tmp_path / "run" / "ledger.jsonl")
    assert verdict.status == "closed"
    assert verdict.rounds["committed"] == 200
    assert verdict.rounds["committed"] + verdict.rounds["aborted"] == len(memory)
    final = load(tmp_path / "run" / "checkpoints" / "final.safetensors").state["point"]
    assert np.isfinite(final).all()
    # A leak of one model a round would be 8 MB from the 50th round to the 200th, in every process.
    for name, after in memory[-1].items():
        before = memory[50][name]
        assert after - before < 8e6, f"{name} grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB"
    print(f"\n{memory[50]} -> {memory[-1]}; {summary['time_s']}")  # noqa: T201 - the figures are the point
