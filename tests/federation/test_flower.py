"""Flower's simulation engine carries the run of one process, bit for bit."""

from __future__ import annotations

import sys

import pytest

import secfl.federation
from secfl.config import RunConfig
from secfl.errors import ConfigError
from secfl.federation.observer import Observer
from secfl.federation.simulation import simulate
from secfl.ledger.verify import verify_file

FACTORY = "secfl.testing.tasks:linear_task"


class Silent(Observer):
    """Nothing is shown."""


def run(out, engine, **changes):
    tree = {
        "clients": 4,
        "engine": engine,
        "threads": 1,
        "training": {"rounds": 2},
        "dropout": 0.2,
        "seed": 1,
    }
    config = RunConfig.model_validate(tree | changes)
    return simulate(config, out=out, observer=Silent(), task_factory=FACTORY)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "changes",
    [
        {"secure_agg": {"scheme": "ckks"}},
        {
            "secure_agg": {"scheme": "masking"},
            "dropout": 0.0,
            "privacy": {"mode": "client", "noise_multiplier": 3.0, "insecure_test_noise": 1},
        },
    ],
    ids=["sum-key and drop-outs", "seeded noise"],
)
def test_the_model_and_the_promises_are_those_of_one_process(tmp_path, monkeypatch, changes):
    pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    there = run(tmp_path / "there", "flower", **changes)
    here = run(tmp_path / "here", "inprocess", **changes)
    names = (
        "final_model_sha256",
        "rounds_completed",
        "dropouts",
        "secure_agg",
        "privacy",
        "bytes_per_parameter",
    )
    assert {name: there[name] for name in names} == {name: here[name] for name in names}
    assert verify_file(tmp_path / "there" / "ledger.jsonl").status == "closed"


def test_without_flower_one_line_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.setitem(sys.modules, "flwr.app", None)
    monkeypatch.delitem(sys.modules, "secfl.federation.flower", raising=False)
    monkeypatch.delattr(secfl.federation, "flower", raising=False)
    with pytest.raises(ConfigError, match=r"--engine flower: .*pip install 'secfl\[flower\]'"):
        run(tmp_path / "run", "flower", dropout=0.0)
