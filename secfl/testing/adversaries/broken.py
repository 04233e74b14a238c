"""Schemes that are broken on purpose: the negative controls of the conformance suite.

Hazard: never use one of these. Each is a real scheme with one thing wrong, as it has been wrong somewhere. The suite
must fail each of them at the checks that are meant for it and at no other; tests/conformance shows that it does, and
that every check of the suite is failed by some control.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secfl.crypto.aggregation import Envelope, Party, PartyState, SecureAggregation
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.plain import Plain
from secfl.crypto.snapshots import record_kind
from secfl.guarantees import Guarantee
from secfl.randomness import Rng
from secfl.types import PrivatizedUpdate, RoundSpec

__all__ = ["BrokenParty", "BrokenScheme"]


class BrokenParty:
    """A party through which everything passes unchanged; controls override one thing."""

    def __init__(self, inner: Party) -> None:
        self.inner: Any = inner  # controls reach into what they break

    @property
    def state(self) -> PartyState:
        """As inside."""
        return self.inner.state

    def start(self) -> list[Envelope]:
        """As inside."""
        return self.inner.start()

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """As inside."""
        return self.inner.receive(envelope)

    def phase_over(self) -> list[Envelope]:
        """As inside."""
        return self.inner.phase_over()

    def snapshot(self) -> bytes:
        """As inside."""
        return self.inner.snapshot()


class BrokenScheme:
    """A scheme whose parties, or other answers, are replaced by broken ones.

    Args:
        inner: The sound scheme.
        wrong_client: Makes a broken client from a sound one.
        wrong_aggregator: Makes a broken aggregator from a sound one.
    """

    def __init__(
        self,
        inner: SecureAggregation | None = None,
        *,
        wrong_client: Callable[[Party], Party] = lambda party: party,
        wrong_aggregator: Callable[[Party], Party] = lambda party: party,
    ) -> None:
        self.inner = Plain(threads=1) if inner is None else inner
        self._wrong_client = wrong_client
        self._wrong_aggregator = wrong_aggregator

    @property
    def name(self) -> str:
        """Of the sound scheme, whose wire format it speaks."""
        return self.inner.name

    def client(
        self, spec: RoundSpec, identity: Identity, *, directory: Directory, update: PrivatizedUpdate, rng: Rng
    ) -> Party:
        """A client."""
        return self._wrong_client(
            self.inner.client(spec, identity, directory=directory, update=update, rng=rng)
        )

    def aggregator(self, spec: RoundSpec, *, directory: Directory) -> Party:
        """An aggregator."""
        return self._wrong_aggregator(self.inner.aggregator(spec, directory=directory))

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """Either."""
        party = self.inner.restore(spec, directory=directory, snapshot=snapshot)
        collects = "aggregator" in record_kind(snapshot)
        return (self._wrong_aggregator if collects else self._wrong_client)(party)

    def guarantee(self, spec: RoundSpec, *, survivors: int) -> Guarantee:
        """As the sound scheme says."""
        return self.inner.guarantee(spec, survivors=survivors)
