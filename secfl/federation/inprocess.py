"""The driver for one process: a queue, and a deadline that passes when nobody has anything to say."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, PartyState, RoundResult, Running
from secfl.errors import RemoteProtocolError, RoundAborted
from secfl.federation.driver import Carriage, Record, Watch
from secfl.types import AGGREGATOR, ClientId

__all__ = ["InProcessDriver"]

_NOTHING = RoundResult(sums={}, survivors=())


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
        one = _Round(aggregator, clients, watch=watch, drops=self._drops, record=self._record)
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
                raise RoundAborted(_stuck(before, one.carriage.refusals))
        if isinstance(aggregator.state, Aborted):
            raise aggregator.state.reason
        if aggregator.state.result is None:
            raise RoundAborted("the aggregator finished without a result")
        one.carriage.result = aggregator.state.result
        return one.carriage


class _Round:
    """The queue and the books of one round."""

    def __init__(
        self,
        aggregator: Party,
        clients: Mapping[ClientId, Party],
        *,
        watch: Watch,
        drops: Mapping[ClientId, int],
        record: Record | None,
    ) -> None:
        self.queue: deque[Envelope] = deque()
        self.carriage = Carriage(result=_NOTHING)
        self._aggregator = aggregator
        self._clients = clients
        self._watch = watch
        self._record = record
        self._sends_left = dict(drops)
        self._seen: PartyState | None = None

    def deliver(self, envelope: Envelope) -> None:
        """Hand one envelope to its recipient, unless that one is silent or done."""
        to_aggregator = envelope.recipient == AGGREGATOR
        party = self._aggregator if to_aggregator else self._clients[envelope.recipient]
        if self._sends_left.get(envelope.recipient, 1) > 0 and isinstance(party.state, Running):
            self.call(party, lambda: party.receive(envelope))

    def call(self, party: Party, step: Callable[[], list[Envelope]]) -> None:
        """Let one party take one step; time it, tell the watcher, and queue what it sends."""
        began = time.perf_counter()
        try:
            sent = step()
        except RemoteProtocolError as refusal:
            self.carriage.refusals.append(str(refusal))
            sent = []
        self._book(party, time.perf_counter() - began)
        state = self._aggregator.state
        if state != self._seen:
            self._seen = state
            self._watch(state)
        if sent and self._speaks(sent[0].sender):
            for envelope in sent:
                self._send(envelope, state)

    def _book(self, party: Party, seconds: float) -> None:
        if _opening(self._aggregator.state):
            self.carriage.opening_seconds += seconds
        elif party is self._aggregator:
            self.carriage.aggregator_seconds += seconds
        else:
            self.carriage.client_seconds += seconds

    def _speaks(self, sender: ClientId) -> bool:
        left = self._sends_left.get(sender)
        if left is None:
            return True
        self._sends_left[sender] = max(0, left - 1)
        return left > 0

    def _send(self, envelope: Envelope, state: PartyState) -> None:
        up = envelope.recipient == AGGREGATOR
        book = self.carriage.bytes_up if up else self.carriage.bytes_down
        client = envelope.sender if up else envelope.recipient
        book[client] = book.get(client, 0) + len(envelope.payload)
        if self._record is not None:
            self._record(state.phase if isinstance(state, Running) else "end", envelope)
        self.queue.append(envelope)


def _opening(state: PartyState) -> bool:
    return isinstance(state, Finished) or (isinstance(state, Running) and bool(state.survivors))


def _stuck(state: PartyState, refusals: list[str]) -> str:
    phase = state.phase if isinstance(state, Running) else "end"
    return f"nobody had anything left to say in phase {phase}" + (
        f"; refused: {refusals[0]}" if refusals else ""
    )
