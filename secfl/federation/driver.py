"""What carries envelopes between parties.

A driver knows who talks to whom and when a deadline has passed, and nothing about cryptography. Every engine
is one driver; `secfl.federation.inprocess` is the shortest and shows what each must do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from secfl.crypto.aggregation import Envelope, Party, PartyState, RoundResult
from secfl.types import ClientId

__all__ = ["Carriage", "Driver", "Record", "Watch"]

Watch: TypeAlias = Callable[[PartyState], None]
"""Called with each new state of the aggregator, before anything that it sent in that state is delivered."""

Record: TypeAlias = Callable[[str, Envelope], None]
"""Called with the aggregator's phase and every envelope that leaves a party."""


@dataclass(slots=True, kw_only=True)
class Carriage:
    """What a driver reports of one round.

    Attributes:
        result: The aggregator's result.
        client_seconds: Time inside the clients' parties until the sum may be opened, all clients together.
        aggregator_seconds: Time inside the aggregator's party until the sum may be opened.
        opening_seconds: Time inside all parties after that.
        bytes_up: Payload bytes from clients to the aggregator, by client.
        bytes_down: Payload bytes from the aggregator to clients, by client.
        refusals: What parties refused, one sentence each.
    """

    result: RoundResult
    client_seconds: float = 0.0
    aggregator_seconds: float = 0.0
    opening_seconds: float = 0.0
    bytes_up: dict[ClientId, int] = field(default_factory=dict)
    bytes_down: dict[ClientId, int] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)


class Driver(Protocol):
    """Carries one round from start to end."""

    def carry(self, aggregator: Party, clients: Mapping[ClientId, Party], *, watch: Watch) -> Carriage:
        """Run the round.

        Raises:
            RoundAborted: The aggregator gave up, or nobody had anything left to say.
        """
        ...
