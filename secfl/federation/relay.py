"""A coordinator in this process, an engine in another: what lies between them, over loopback.

Some engines run their server's part in a process of their own. That process opens one connection for each site to the
coordinator's `secfl.federation.sockets.Hub`, puts each request to the site through the engine, and gives back what the
site replies: one reply for every request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from secfl.federation.sockets import Hub, connect
from secfl.types import ClientId

__all__ = ["RelayedExchange", "serve_relay"]

_TICK: Final = 0.2


class RelayedExchange:
    """Puts requests to sites behind a relay; an `secfl.federation.exchange.Exchange`.

    Args:
        names: The sites.
        hub: Where the relay connects.
        alive: Whether the engine's process still runs.
    """

    def __init__(self, names: Sequence[ClientId], *, hub: Hub, alive: Callable[[], bool]) -> None:
        self._names = tuple(names)
        self._hub = hub
        self._alive = alive
        self._unanswered: dict[ClientId, int] = dict.fromkeys(self._names, 0)

    def wait_for_relay(self, seconds: float) -> bool:
        """Whether the relay connects for every site in time."""
        end = time.monotonic() + seconds
        while not all(self._hub.connected(name) for name in self._names):
            if time.monotonic() > end or not self._alive():
                return False
            self._hub.poll(_TICK)
        return True

    def gather(self) -> None:
        """Nothing to wait for."""

    def exchange(
        self, requests: Mapping[ClientId, bytes], *, seconds: float
    ) -> Iterator[tuple[ClientId, bytes]]:
        """See `secfl.federation.exchange.Exchange`; nobody is waited for when the engine has ended."""
        waiting = {name for name, request in requests.items() if self._hub.send(name, request)}
        for name in waiting:
            self._unanswered[name] += 1
        end = time.monotonic() + seconds
        while waiting and time.monotonic() < end and self._alive():
            messages, _ = self._hub.poll(min(_TICK, max(0.0, end - time.monotonic())))
            for name, message in messages:
                self._unanswered[name] -= 1
                if self._unanswered[name] <= 0:  # else it answers what an earlier deadline did not wait for
                    waiting.discard(name)
                yield name, message
            waiting = {name for name in waiting if self._hub.connected(name)}


def serve_relay(
    names: Sequence[ClientId],
    ask: Callable[[ClientId, bytes], bytes],
    *,
    port: int,
    token: bytes,
    most_bytes: int,
) -> None:
    """The engine's end: carry requests and replies of every site until the coordinator hangs up.

    Args:
        names: The sites.
        ask: Puts a request to a site and waits for its reply; called from several threads.
        port: The coordinator's, on this host.
        token: Proves that the relay is the coordinator's own.
        most_bytes: The largest message.

    Raises:
        OSError: Nobody listens.
    """
    streams = {name: connect(port, name=name, token=token, most_bytes=most_bytes) for name in names}

    def carry(name: ClientId) -> None:
        stream, sending = streams[name], threading.Lock()

        def answer(request: bytes) -> None:
            reply = ask(name, request)
            with sending:
                stream.send(reply)

        while (request := stream.receive()) is not None:
            # A site that does not answer in time must not keep the next round's question from it.
            threading.Thread(target=answer, args=(request,), daemon=True).start()

    carriers = [threading.Thread(target=carry, args=(name,), daemon=True) for name in names]
    for carrier in carriers:
        carrier.start()
    for carrier in carriers:
        carrier.join()
