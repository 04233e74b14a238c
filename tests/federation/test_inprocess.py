"""The driver: order, drop-outs, deadlines, books."""

import pytest

from secfl.crypto.aggregation import Aborted, Envelope, Finished, RoundResult, Running
from secfl.errors import BelowThreshold, RemoteProtocolError, RoundAborted
from secfl.federation.inprocess import InProcessDriver
from secfl.types import AGGREGATOR, ClientId


class Speaker:
    """Sends its name once, and again when it is spoken to."""

    def __init__(self, name: str) -> None:
        self.name = ClientId(name)
        self.state = Running("input")

    def start(self):
        return [Envelope(self.name, AGGREGATOR, self.name.encode())]

    def receive(self, envelope):
        self.state = Finished()
        return [Envelope(self.name, AGGREGATOR, b"open " + self.name.encode())]

    def phase_over(self):
        return []


class Collector:
    """Waits for all inputs or the deadline, then for one answer of each survivor."""

    def __init__(self, expected: int, least: int) -> None:
        self.expected, self.least = expected, least
        self.state = Running("input")
        self.inputs: list[ClientId] = []
        self.answers: list[ClientId] = []

    def start(self):
        return []

    def receive(self, envelope):
        if envelope.payload == b"evil":
            raise RemoteProtocolError(envelope.sender, "malformed")
        if self.state.phase == "input":
            self.inputs.append(envelope.sender)
            return self.phase_over() if len(self.inputs) == self.expected else []
        self.answers.append(envelope.sender)
        if len(self.answers) == len(self.inputs):
            self.state = Finished(RoundResult(sums={}, survivors=tuple(sorted(self.inputs))))
        return []

    def phase_over(self):
        if self.state.phase == "open":
            return []
        if len(self.inputs) < self.least:
            self.state = Aborted(BelowThreshold("too few"))
            return []
        self.state = Running("open", survivors=tuple(sorted(self.inputs)))
        return [Envelope(AGGREGATOR, name, b"go") for name in self.inputs]


def parties(names="abc", least=2):
    return Collector(len(names), least), {ClientId(name): Speaker(name) for name in names}


def test_a_round_runs_and_is_booked():
    aggregator, clients = parties()
    seen, recorded = [], []
    driver = InProcessDriver(record=lambda phase, envelope: recorded.append((phase, envelope.sender)))
    carriage = driver.carry(aggregator, clients, watch=seen.append)
    assert carriage.result.survivors == ("a", "b", "c")
    assert carriage.bytes_up == {"a": 7, "b": 7, "c": 7}
    assert carriage.bytes_down == {"a": 2, "b": 2, "c": 2}
    assert carriage.opening_seconds > 0
    assert [state.phase for state in seen[:-1]] == ["input", "open"]
    assert recorded[0] == ("input", "a")
    assert recorded[-1] == ("open", "c")


def test_the_watcher_sees_the_survivors_before_anything_is_delivered():
    aggregator, clients = parties()

    def watch(state):
        if isinstance(state, Running) and state.survivors:
            assert not aggregator.answers
            raise OSError("the ledger's disk is full")

    with pytest.raises(OSError, match="full"):
        InProcessDriver().carry(aggregator, clients, watch=watch)
    assert not aggregator.answers, "the sum was opened although the ledger could not be written"


def test_a_silent_client_is_left_out_after_the_deadline():
    aggregator, clients = parties()
    carriage = InProcessDriver(drops={ClientId("b"): 0}).carry(aggregator, clients, watch=lambda _: None)
    assert carriage.result.survivors == ("a", "c")
    assert "b" not in carriage.bytes_up
    assert isinstance(clients[ClientId("b")].state, Running)


def test_too_few_clients_abort_with_the_aggregators_reason():
    aggregator, clients = parties()
    with pytest.raises(BelowThreshold):
        InProcessDriver(drops={ClientId("a"): 0, ClientId("b"): 0}).carry(
            aggregator, clients, watch=lambda _: None
        )


def test_a_round_in_which_nobody_speaks_ends():
    aggregator, clients = parties()
    with pytest.raises(RoundAborted, match="nobody had anything left to say in phase open"):
        InProcessDriver(drops={ClientId("a"): 1}).carry(aggregator, clients, watch=lambda _: None)


def test_refusals_are_kept():
    aggregator, clients = parties()
    clients[ClientId("b")].start = lambda: [Envelope(ClientId("b"), AGGREGATOR, b"evil")]
    carriage = InProcessDriver().carry(aggregator, clients, watch=lambda _: None)
    assert carriage.refusals == ["b: malformed"]
    assert carriage.result.survivors == ("a", "c")
