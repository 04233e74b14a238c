"""The interface of secure aggregation: parties that do no I/O, and envelopes between them.

A scheme makes one `Party` per client and one for the aggregator. A driver carries their envelopes and says
when a deadline has passed. Parties have no clock, no sockets and no randomness that they were not given, so
that every engine runs the same protocol and tests can stop it anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.identity import Directory, Identity
from secfl.errors import RoundAborted
from secfl.guarantees import Guarantee
from secfl.randomness import Rng
from secfl.types import ClientId, PrivatizedUpdate, RoundSpec

__all__ = [
    "Aborted",
    "Envelope",
    "Finished",
    "Party",
    "PartyState",
    "RoundResult",
    "Running",
    "SecureAggregation",
]


@dataclass(frozen=True, slots=True)
class Envelope:
    """Bytes from one party to another. Drivers see nothing else."""

    sender: ClientId
    recipient: ClientId
    payload: bytes = field(repr=False)

    def __repr__(self) -> str:
        return f"Envelope({self.sender} -> {self.recipient}, {len(self.payload)} bytes)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundResult:
    """What the aggregator holds at the end.

    Attributes:
        sums: Vector name -> sum of the survivors' vectors modulo ``2**modulus_bits``, uint32 or uint64,
            shape ``(length,)``. The same integers for every scheme.
        survivors: The clients whose inputs are in the sums, sorted.
    """

    sums: Mapping[str, NDArray[np.uint32] | NDArray[np.uint64]] = field(repr=False)
    survivors: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """The party waits for messages of this phase.

    Attributes:
        phase: Name of the phase.
        survivors: The clients whose inputs will be summed, sorted; set by the aggregator once that set is fixed
            and before the sum is opened, so that a ledger can commit first. Empty until then.
        inputs_digest: SHA-256 over the survivors' signed inputs (their headers), set with ``survivors``: it
            determines the sum before anybody has opened it.
    """

    phase: str
    survivors: tuple[ClientId, ...] = ()
    inputs_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Finished:
    """The party is done. ``result`` is set for the aggregator and ``None`` for clients."""

    result: RoundResult | None = None


@dataclass(frozen=True, slots=True)
class Aborted:
    """The party will neither send nor open anything any more."""

    reason: RoundAborted


PartyState: TypeAlias = Running | Finished | Aborted


@runtime_checkable
class Party(Protocol):
    """One role in one round.

    `receive` raises `RemoteProtocolError` for anything hostile (the party stays usable, as if the message had
    not come) and `LocalProtocolError` when the caller misuses the party. Nothing else escapes.
    """

    @property
    def state(self) -> PartyState:
        """Where the party stands."""
        ...

    def start(self) -> list[Envelope]:
        """The first envelopes; call once. The aggregator may have none."""
        ...

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Take one envelope that is addressed to this party and return the envelopes it causes."""
        ...

    def phase_over(self) -> list[Envelope]:
        """The driver's deadline passed: go on with those who answered, or abort.

        Ignored (empty list) by a party that does not collect, so a driver may call it on any party.
        """
        ...

    def snapshot(self) -> bytes:
        """Everything needed to continue in another process. Secret: never sent, never logged."""
        ...


class SecureAggregation(Protocol):
    """A scheme: the factory of parties for a round, and the statement of what it guarantees."""

    @property
    def name(self) -> str:
        """The name used in `SchemeSpec` and on the command line."""
        ...

    def client(
        self,
        spec: RoundSpec,
        identity: Identity,
        *,
        directory: Directory,
        update: PrivatizedUpdate,
        rng: Rng,
    ) -> Party:
        """The client's party. Holds the client's own secrets only.

        Raises:
            CapacityError: The sum could exceed what the scheme carries exactly.
            LocalProtocolError: The update does not match the round.
        """
        ...

    def aggregator(self, spec: RoundSpec, *, directory: Directory) -> Party:
        """The aggregator's party. There is no slot for a secret key."""
        ...

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """Continue a party from its `Party.snapshot`.

        Raises:
            LocalProtocolError: The snapshot is damaged, or belongs to another round.
        """
        ...

    def guarantee(self, spec: RoundSpec, *, survivors: int) -> Guarantee:
        """What each adversary sees when ``survivors`` inputs are summed."""
        ...
