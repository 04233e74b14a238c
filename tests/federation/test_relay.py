"""A relay gives one reply for every request, and nobody waits for what cannot come."""

from __future__ import annotations

import threading
import time

import pytest

from secfl.federation.relay import RelayedExchange, serve_relay
from secfl.federation.sockets import Hub
from secfl.types import ClientId

NAMES = tuple(ClientId(f"site-{index}") for index in range(3))
TOKEN = bytes(range(32))


class Bench:
    """A coordinator's end, and an engine's end in a thread."""

    def __init__(self, ask) -> None:
        self.hub = Hub(NAMES, token=TOKEN, most_bytes=1000)
        self.running, self.closed = True, False
        self.exchange = RelayedExchange(NAMES, hub=self.hub, alive=lambda: self.running)
        self.thread = threading.Thread(
            target=serve_relay,
            args=(NAMES, ask),
            kwargs={"port": self.hub.port, "token": TOKEN, "most_bytes": 1000},
            daemon=True,
        )
        self.thread.start()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.hub.close()

    def ask(self, requests, *, seconds=20.0):
        return dict(self.exchange.exchange(requests, seconds=seconds))


@pytest.fixture
def bench():
    benches = []

    def make(ask) -> Bench:
        benches.append(Bench(ask))
        assert benches[-1].exchange.wait_for_relay(20.0)
        return benches[-1]

    yield make
    for one in benches:
        one.close()


def test_every_site_answers_its_own_request(bench):
    one = bench(lambda name, request: name.encode() + request)
    assert one.ask({name: bytes([index]) for index, name in enumerate(NAMES)}) == {
        name: name.encode() + bytes([index]) for index, name in enumerate(NAMES)
    }


def test_who_is_late_is_not_waited_for_and_its_late_reply_is_not_taken_for_the_next(bench):
    wait = threading.Event()

    def ask(name, request):
        if name == NAMES[0] and request == b"first":
            wait.wait(20)
        return request

    one = bench(ask)
    assert set(one.ask(dict.fromkeys(NAMES, b"first"), seconds=0.5)) == set(NAMES[1:])
    second = one.exchange.exchange(dict.fromkeys(NAMES, b"second"), seconds=20.0)
    seen = []
    for reply in second:
        seen.append(reply)
        wait.set()
    assert (NAMES[0], b"first") in seen
    assert (NAMES[0], b"second") in seen


def test_the_relay_ends_when_the_coordinator_hangs_up(bench):
    one = bench(lambda _name, request: request)
    one.close()
    one.thread.join(20)
    assert not one.thread.is_alive()


def test_nobody_waits_when_the_engine_has_ended(bench):
    one = bench(lambda _name, _request: time.sleep(20) or b"")
    one.running = False
    assert one.ask(dict.fromkeys(NAMES, b"?"), seconds=60.0) == {}


def test_a_relay_that_does_not_come_is_given_up():
    hub = Hub(NAMES, token=TOKEN, most_bytes=1000)
    alive = iter([True, False])
    assert not RelayedExchange(NAMES, hub=hub, alive=lambda: next(alive)).wait_for_relay(60.0)
    hub.close()
