"""Flower's simulation engine carries the run of one process, bit for bit."""

from __future__ import annotations

import sys
import types

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


class Answering:
    """A grid of two nodes: the first says what it was told to say, the second what is expected."""

    def __init__(self, odd, expected) -> None:
        self.said = {1: odd, 2: expected}

    def get_node_ids(self):
        return [1, 2]

    def push_messages(self, messages):
        return [str(message.metadata.dst_node_id) for message in messages]

    def pull_messages(self, numbers):
        return [Reply(int(number), self.said[int(number)]) for number in numbers]

    def send_and_receive(self, messages, *, timeout):
        return [Reply(one.metadata.dst_node_id, self.said[one.metadata.dst_node_id]) for one in messages]


class Reply:
    """A node's reply, with the parts that are read."""

    def __init__(self, node, content) -> None:
        self.metadata, self.content = types.SimpleNamespace(src_node_id=node), content

    def has_error(self):
        return False


@pytest.mark.parametrize("odd", ["nothing", "other record", "no field", "number"])
def test_a_node_that_answers_something_else_is_left_out(odd, monkeypatch):
    """Otherwise one site could end everybody's run."""
    flwr = pytest.importorskip("flwr.app")
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for field in ("_task_id", "_run_id", "_node_id"):  # messages can be made inside of a run only
        monkeypatch.setattr(identity, field, 1)
    from secfl.federation.flower import FlowerExchange, find_sites

    def content(**fields):
        return flwr.RecordDict({"secfl": flwr.ConfigRecord(fields)})

    wrong = {
        "nothing": flwr.RecordDict({}),
        "other record": flwr.RecordDict({"secfl": flwr.MetricRecord({"site": 1, "reply": 2})}),
        "no field": content(),
        "number": content(site=1, reply=2),
    }[odd]
    assert find_sites(Answering(wrong, content(site="b")), ["a", "b"], seconds=0.0) == {"b": 2}

    grid = Answering(content(site="a"), content(site="b"))
    exchange = FlowerExchange(grid, ["a", "b"], patience=5.0)
    grid.said = {1: wrong, 2: content(reply=b"yes")}
    assert list(exchange.exchange({"a": b"?", "b": b"?"}, seconds=1.0)) == [("b", b"yes")]
