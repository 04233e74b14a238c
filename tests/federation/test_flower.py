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
        return [
            str(message.metadata.dst_node_id) for message in messages
        ]  # a question's number is its node's

    def pull_messages(self, numbers):
        return [Reply(int(number), self.said[int(number)]) for number in numbers]

    def send_and_receive(self, messages, *, timeout):
        return [Reply(one.metadata.dst_node_id, self.said[one.metadata.dst_node_id]) for one in messages]


class Reply:
    """A node's reply, with the parts that are read."""

    def __init__(self, node, content) -> None:
        self.metadata = types.SimpleNamespace(src_node_id=node, reply_to_message_id=str(node))
        self.content = content

    def has_error(self):
        return self.content is None


class Returning(Answering):
    """A grid whose first node dies with the first question: the link says so, or finds nothing out."""

    def __init__(self, *names, says_so) -> None:
        super().__init__(*names)
        self.says_so, self.asked = says_so, []

    def push_messages(self, messages):
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages]
        return super().push_messages(messages)

    def pull_messages(self, numbers):
        for reply in super().pull_messages(numbers):
            if reply.metadata.src_node_id != 1 or self.asked.count(1) > 1:
                yield reply
            elif self.says_so:
                yield Reply(1, None)


@pytest.fixture
def grid_content(monkeypatch):
    """Makes the content of a node's reply, with messages allowed as inside of a run."""
    flwr = pytest.importorskip("flwr.app", reason="needs the extra flower: make test-flower")
    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for field in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(identity, field, 1)
    return lambda **fields: flwr.RecordDict({"secfl": flwr.ConfigRecord(fields)})


@pytest.mark.parametrize("says_so", [True, False], ids=["said to be away", "silent"])
def test_a_node_that_dies_while_it_is_waited_for_is_asked_again(monkeypatch, grid_content, says_so):
    """Started again it has the same number; asked once, it would be missing from the round."""
    from secfl.federation import flower

    for name in ("_AGAIN_SECONDS", "_AWAY_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(flower, name, 0.01, raising=False)
    grid = Returning(grid_content(site="a"), grid_content(site="b"), says_so=says_so)
    assert flower.find_sites(grid, ["a", "b"], seconds=30.0) == {"a": 1, "b": 2}
    assert grid.asked.count(2) == 1  # who has answered is not asked again


def test_a_node_that_is_away_is_not_asked_all_the_time(monkeypatch, grid_content):
    from secfl.federation import flower

    monkeypatch.setattr(flower, "_POLL_SECONDS", 0.01)
    grid = Returning(None, grid_content(site="b"), says_so=True)
    assert flower.find_sites(grid, ["a", "b"], seconds=0.3) == {"b": 2}
    assert grid.asked.count(1) == 1


class Hoarding(Answering):
    """A grid whose first node keeps the questions, and answers each with another name."""

    def __init__(self, *names) -> None:
        self.names, self.questions, self.asked = names, [], 0

    def push_messages(self, messages):
        numbers = []
        for message in messages:
            self.asked += 1
            numbers.append(f"{message.metadata.dst_node_id}.{self.asked}")
        self.questions += [number for number in numbers if number.startswith("1.")]
        return numbers

    def pull_messages(self, numbers):
        for number in numbers:
            if number.startswith("2."):
                yield self.reply(2, number, self.names[1])
        if len(self.questions) == len(self.names):
            for number, name in zip(self.questions, self.names, strict=True):
                yield self.reply(1, number, name)
            self.questions = []

    def reply(self, node, number, content):
        one = Reply(node, content)
        one.metadata.reply_to_message_id = number
        return one


def test_a_node_that_was_asked_again_claims_one_name(monkeypatch, grid_content):
    """Otherwise one node could make every other site drop out, by one late answer for each."""
    from secfl.federation import flower

    for name in ("_AGAIN_SECONDS", "_AWAY_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(flower, name, 0.01)
    grid = Hoarding(grid_content(site="a"), grid_content(site="b"))
    assert flower.find_sites(grid, ["a", "b"], seconds=30.0) == {"a": 1, "b": 2}


def test_an_answer_to_no_question_is_passed_over(monkeypatch, grid_content):
    """Otherwise one site could end everybody's run: the link does not check what a reply says of itself."""
    from secfl.federation import flower

    class Lying(Answering):
        def pull_messages(self, numbers):
            replies = super().pull_messages(numbers)
            for reply in replies:
                if reply.metadata.src_node_id == 1:
                    reply.metadata.reply_to_message_id = "another"
            return replies

    monkeypatch.setattr(flower, "_POLL_SECONDS", 0.01)
    grid = Lying(grid_content(site="a"), grid_content(site="b"))
    assert flower.find_sites(grid, ["a", "b"], seconds=0.1) == {"b": 2}


@pytest.mark.parametrize("odd", ["nothing", "other record", "no field", "number"])
def test_a_node_that_answers_something_else_is_left_out(odd, grid_content):
    """Otherwise one site could end everybody's run."""
    import flwr.app as flwr

    from secfl.federation.flower import FlowerExchange, find_sites

    content = grid_content
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
