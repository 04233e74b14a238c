"""What every driver writes down of a round: times, bytes, refusals, and who has fallen silent."""

from __future__ import annotations

from collections.abc import Mapping

from secfl.crypto.aggregation import Envelope, Finished, Party, PartyState, RoundResult, Running
from secfl.errors import RoundAborted
from secfl.federation.driver import Carriage, Record, Watch
from secfl.types import AGGREGATOR, ClientId

__all__ = ["RoundBooks"]


class RoundBooks:
    """The books of one round.

    Args:
        aggregator: Whose state says how far the round is.
        watch: Told each new state of the aggregator, once.
        drops: Client -> how many sends it still makes before it is taken for silent.
        record: Told the phase and each envelope that leaves a party.
    """

    def __init__(
        self, aggregator: Party, *, watch: Watch, drops: Mapping[ClientId, int], record: Record | None
    ) -> None:
        self.carriage = Carriage(result=RoundResult(sums={}, survivors=()))
        self._aggregator = aggregator
        self._watch = watch
        self._record = record
        self._sends_left = dict(drops)
        self._seen: PartyState | None = None

    def observe(self) -> PartyState:
        """The aggregator's state; the watcher hears of a new one before anything that was sent is delivered."""
        state = self._aggregator.state
        if state != self._seen:
            self._seen = state
            self._watch(state)
        return state

    def book(self, seconds: float, *, aggregator: bool) -> None:
        """Time inside a party: of the aggregator, of a client, or of anybody once the sum may be opened."""
        if _opening(self._aggregator.state):
            self.carriage.opening_seconds += seconds
        elif aggregator:
            self.carriage.aggregator_seconds += seconds
        else:
            self.carriage.client_seconds += seconds

    def listens(self, client: ClientId) -> bool:
        """Whether a client has not fallen silent."""
        return self._sends_left.get(client, 1) > 0

    def speaks(self, client: ClientId) -> bool:
        """Whether this send of a client is heard; counts it."""
        left = self._sends_left.get(client)
        if left is None:
            return True
        self._sends_left[client] = max(0, left - 1)
        return left > 0

    def note(self, envelope: Envelope) -> None:
        """One envelope leaves a party."""
        up = envelope.recipient == AGGREGATOR
        book = self.carriage.bytes_up if up else self.carriage.bytes_down
        client = envelope.sender if up else envelope.recipient
        book[client] = book.get(client, 0) + len(envelope.payload)
        if self._record is not None:
            self._record(_phase(self._aggregator.state), envelope)

    def stuck(self, state: PartyState) -> RoundAborted:
        """Why nothing goes on."""
        refused = f"; refused: {self.carriage.refusals[0]}" if self.carriage.refusals else ""
        return RoundAborted(f"nobody had anything left to say in phase {_phase(state)}{refused}")


def _phase(state: PartyState) -> str:
    return state.phase if isinstance(state, Running) else "end"


def _opening(state: PartyState) -> bool:
    return isinstance(state, Finished) or (isinstance(state, Running) and bool(state.survivors))
