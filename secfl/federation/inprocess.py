"""The driver for one process: a queue, and a deadline that passes when nobody has anything to say."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, Running
from secfl.errors import RemoteProtocolError, RoundAborted
from secfl.federation.books import RoundBooks
from secfl.federation.driver import Carriage, Record, Watch
from secfl.types import AGGREGATOR, ClientId

__all__ = ["InProcessDriver"]


class InProcessDriver:
    """Carries envelopes first in, first out.

    Args:
        drops: Client -> how many sends it still makes before it falls silent for the rest of the round
            (0: it never says anything). Fault injection for simulations and tests.
        record: Called with the phase and each envelope that leaves a party.
    """

    def __init__(self, *, drops: Mapping[ClientId, int] | None = None, record: Record | None = None) -> None:
        self._drops = dict(drops or {})
        self._record = record

    def carry(self, aggregator: Party, clients: Mapping[ClientId, Party], *, watch: Watch) -> Carriage:
        """Run one round to its end; see `Driver.carry`."""
        books = RoundBooks(aggregator, watch=watch, drops=self._drops, record=self._record)
        one = _Round(aggregator, clients, books=books)
        one.call(aggregator, aggregator.start)
        for party in clients.values():
            one.call(party, party.start)
        while not isinstance(aggregator.state, Finished | Aborted):
            if one.queue:
                one.deliver(one.queue.popleft())
                continue
            before = aggregator.state
            one.call(aggregator, aggregator.phase_over)
            if not one.queue and aggregator.state == before:
                raise books.stuck(before)
        if isinstance(aggregator.state, Aborted):
            raise aggregator.state.reason
        if aggregator.state.result is None:
            raise RoundAborted("the aggregator finished without a result")
        books.carriage.result = aggregator.state.result
        return books.carriage


class _Round:
    """The queue of one round."""

    def __init__(self, aggregator: Party, clients: Mapping[ClientId, Party], *, books: RoundBooks) -> None:
        self.queue: deque[Envelope] = deque()
        self._aggregator = aggregator
        self._clients = clients
        self._books = books

    def deliver(self, envelope: Envelope) -> None:
        """Hand one envelope to its recipient, unless that one is silent or done."""
        to_aggregator = envelope.recipient == AGGREGATOR
        party = self._aggregator if to_aggregator else self._clients[envelope.recipient]
        if self._books.listens(envelope.recipient) and isinstance(party.state, Running):
            self.call(party, lambda: party.receive(envelope))

    def call(self, party: Party, step: Callable[[], list[Envelope]]) -> None:
        """Let one party take one step; time it, tell the watcher, and queue what it sends."""
        began = time.perf_counter()
        try:
            sent = step()
        except RemoteProtocolError as refusal:
            self._books.carriage.refusals.append(str(refusal))
            sent = []
        self._books.book(time.perf_counter() - began, aggregator=party is self._aggregator)
        self._books.observe()
        if sent and self._books.speaks(sent[0].sender):
            for envelope in sent:
                self._books.note(envelope)
                self.queue.append(envelope)
