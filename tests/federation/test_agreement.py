"""One run through every engine: the same integers, the same model, the same ledger statements."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from secfl.config import RunConfig
from secfl.federation import coordinator
from secfl.federation.observer import SilentObserver
from secfl.federation.offer import UPDATE_VECTOR
from secfl.federation.simulation import simulate
from secfl.ledger.verify import load, verify_file

FACTORY = "secfl.testing.tasks:linear_task"
RUNS = {
    "dp off": {"privacy": {"mode": "off"}},
    "seeded noise": {"privacy": {"mode": "client", "noise_multiplier": 3.0, "insecure_test_noise": 1}},
}


def config(engine: str, run: str) -> RunConfig:
    tree = {
        "clients": 4,
        "engine": engine,
        "threads": 1,
        "training": {"rounds": 2},
        "secure_agg": {"scheme": "masking"},
        "deadlines": {"training": 120, "phase": 120, "gathering": 60},
    }
    return RunConfig.model_validate(tree | RUNS[run])


def but_for_custody(found):
    """Statements without the words on who held the keys, in which a simulation must differ."""
    return json.loads(json.dumps(found).replace(" (simulated: one process held all keys)", ""))


def promises(out: Path) -> list[dict]:
    """The ledger's statements, recomputed from it, but for who held the keys."""
    assert verify_file(out / "ledger.jsonl").status == "closed"
    rows = [row.to_json() for row in verify_file(out / "ledger.jsonl").statements]
    return but_for_custody(
        [{name: value for name, value in row.items() if name != "simulated"} for row in rows]
    )


def but_for_shown(statements: list[dict]) -> list[dict]:
    """Statements without what is shown besides the sums: only a simulation shows figures of single sites."""
    return [
        {name: value for name, value in one.items() if name not in ("unprotected", "simulated")}
        for one in statements
    ]


def played(monkeypatch, out: Path, engine: str, run: str):
    """Integers of every opened sum, model, statements and rounds of a simulated run."""
    integers, original = [], coordinator.mean_update

    def opened(result, **more):
        integers.append(hashlib.sha256(result.sums[UPDATE_VECTOR].tobytes()).hexdigest())
        return original(result, **more)

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "mean_update", opened)
        summary = simulate(config(engine, run), out=out, observer=SilentObserver(), task_factory=FACTORY)
    return integers, summary["final_model_sha256"], promises(out), summary["privacy"]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "engine",
    [
        "multiprocess",
        pytest.param("flower", marks=pytest.mark.slow),
        pytest.param("nvflare", marks=pytest.mark.slow),
    ],
)
def test_a_simulated_run_is_that_of_one_process(tmp_path, monkeypatch, engine, run):
    if engine in ("flower", "nvflare"):
        name = {"flower": "flwr", "nvflare": "nvflare"}[engine]
        pytest.importorskip(name, reason=f"needs the extra {engine}")
        monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    there = played(monkeypatch, tmp_path / "there", engine, run)
    here = played(monkeypatch, tmp_path / "here", "inprocess", run)
    assert len(here[0]) == 2
    assert there == here


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", RUNS)
def test_a_deployed_run_is_that_of_one_process(tmp_path, monkeypatch, run):
    pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")
    spec = importlib.util.spec_from_file_location("flower_stage", Path(__file__).with_name("flower_stage.py"))
    stage = sys.modules["flower_stage"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    with stage.deployment(tmp_path, config("inprocess", run).to_toml()) as one:
        one.submit()
        there = one.wait_for_the_end()
        assert there["dropouts"]["total"] == 0, "this host is too slow for the deadlines"
        integers, model, statements, privacy = played(monkeypatch, tmp_path / "here", "inprocess", run)
        assert (tmp_path / "sums").read_text(encoding="utf-8").split() == integers
        assert there["final_model_sha256"] == model
        assert there["privacy"] != privacy, "a simulation says that one process held all keys"
        assert there["privacy"] == but_for_custody(privacy)
        assert but_for_shown(promises(one.out)) == but_for_shown(statements)
        facts = {name: there[name] for name in ("simulated", "engine", "tls", "node_auth", "processes")}
    assert facts == {
        "simulated": False,
        "engine": "flower-deployment",
        "tls": True,
        "node_auth": True,
        "processes": 5,
    }
    # What the rounds released is the same, event by event.
    events = [
        [str(state.terms[one.terms].event) for one in state.reservations.values()]
        for state in (load(tmp_path / "run" / "ledger.jsonl"), load(tmp_path / "here" / "ledger.jsonl"))
    ]
    assert events[0] == events[1]
