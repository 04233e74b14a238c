"""`plain` with one thing wrong: negative controls (see `secfl.testing.adversaries.broken`). Never use one of these."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from secfl.crypto.aggregation import Envelope, Finished, Party, PartyState, Running
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.plain import PlainAggregator
from secfl.crypto.snapshots import record_kind
from secfl.crypto.wire import FRAME_BYTES
from secfl.errors import BelowThreshold, LocalProtocolError, RemoteProtocolError
from secfl.guarantees import Guarantee
from secfl.randomness import Rng
from secfl.testing.adversaries.broken import BrokenParty, BrokenScheme
from secfl.types import AGGREGATOR, PrivatizedUpdate, RoundSpec

__all__ = [
    "AnonymousAggregator",
    "BoastfulScheme",
    "BrokenPlain",
    "CarelessScheme",
    "CredulousDirectory",
    "ForgetfulScheme",
    "FragileParty",
    "ImpatientAggregator",
    "InaccurateAggregator",
    "LenientAggregator",
    "NumbAggregator",
    "RestartableClient",
    "TalkativeClient",
    "UncheckingScheme",
]


class InaccurateAggregator(BrokenParty):
    """Is off by one."""

    @property
    def state(self) -> PartyState:
        """With a wrong result."""
        state = self.inner.state
        if not isinstance(state, Finished) or state.result is None:
            return state
        sums = {name: words ^ words.dtype.type(1) for name, words in state.result.sums.items()}
        return Finished(replace(state.result, sums=sums))


class LenientAggregator(PlainAggregator):
    """Opens any sum, however few took part."""

    __slots__ = ()

    def _finish(self) -> None:
        spec = self._spec
        self._spec = replace(spec, threshold=1)
        super()._finish()
        self._spec = spec


class CredulousDirectory(Directory):
    """Believes every signature."""

    def verify(self, *_: object) -> None:
        """Anything goes."""

    @classmethod
    def of(cls, directory: Directory) -> Directory:
        """The same keys, believed in blindly."""
        return cls(directory.keys)


class FragileParty(BrokenParty):
    """Parses before it looks at sizes."""

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Crashes on short messages."""
        if envelope.recipient == AGGREGATOR:
            struct.unpack_from("<Q", envelope.payload, FRAME_BYTES - 8)
        return super().receive(envelope)


class AnonymousAggregator(BrokenParty):
    """Believes the sender that stands in the message, not the one on the envelope."""

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Takes messages from whoever delivers them."""
        cohort = self.inner._spec.cohort  # noqa: SLF001 - of the party that it breaks
        named = envelope.payload[FRAME_BYTES - 2 : FRAME_BYTES]
        index = int.from_bytes(named, "little") - 1
        if len(named) != 2 or not 0 <= index < len(cohort):
            return super().receive(envelope)
        try:
            return super().receive(Envelope(cohort[index], envelope.recipient, envelope.payload))
        except RemoteProtocolError as error:
            raise RemoteProtocolError(envelope.sender, error.reason) from None


class TalkativeClient(BrokenParty):
    """Prints its input when somebody looks at it."""

    def __init__(self, inner: Party) -> None:
        super().__init__(inner)
        inputs = self.inner._inputs or {}  # noqa: SLF001 - of the party that it breaks
        self._shown = {name: words[:2].tolist() for name, words in inputs.items()}

    def __repr__(self) -> str:
        return f"TalkativeClient({self._shown})"


class RestartableClient(BrokenParty):
    """Starts as often as it is told to."""

    def start(self) -> list[Envelope]:
        """Without complaint."""
        try:
            return super().start()
        except LocalProtocolError:
            return []


class NumbAggregator(BrokenParty):
    """Takes whatever comes after the end."""

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Without complaint."""
        if isinstance(self.inner.state, Running) or envelope.recipient != AGGREGATOR:
            return super().receive(envelope)
        return []


class ImpatientAggregator(PlainAggregator):
    """Gives up when anybody is missing at the deadline."""

    __slots__ = ()

    def _finish(self) -> None:
        if len(self._statements) < len(self._spec.cohort):
            self._failure = BelowThreshold("somebody was late")
        else:
            super()._finish()


class ForgetfulScheme(BrokenScheme):
    """Restores clients that have not started with zeros for an input."""

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """Loses the input."""
        party: Any = super().restore(spec, directory=directory, snapshot=snapshot)
        inputs = getattr(party, "_inputs", None)
        if inputs is not None:
            party._inputs = {name: np.zeros_like(words) for name, words in inputs.items()}  # noqa: SLF001 - of the party that it breaks
        return party


class CarelessScheme(BrokenScheme):
    """Begins anew when a snapshot is damaged."""

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """Always succeeds."""
        try:
            return super().restore(spec, directory=directory, snapshot=snapshot)
        except LocalProtocolError:
            return self.aggregator(spec, directory=directory)


class BoastfulScheme(BrokenScheme):
    """Promises more than it can keep."""

    def guarantee(self, spec: RoundSpec, *, survivors: int) -> Guarantee:
        """Any number of colluders."""
        said = super().guarantee(spec, survivors=survivors)
        return replace(said, curious_colluders=survivors)


class UncheckingScheme(BrokenScheme):
    """Takes any input."""

    def client(
        self, spec: RoundSpec, identity: Identity, *, directory: Directory, update: PrivatizedUpdate, rng: Rng
    ) -> Party:
        """Replaces what does not fit by zeros."""
        try:
            return super().client(spec, identity, directory=directory, update=update, rng=rng)
        except LocalProtocolError:
            zeros = {vector.name: np.zeros(vector.length, vector.dtype) for vector in spec.vectors}
            fitting = PrivatizedUpdate.without_noise(zeros)
            return super().client(spec, identity, directory=directory, update=fitting, rng=rng)


class BrokenPlain(BrokenScheme):
    """`plain` with another class of aggregator, or an aggregator that sees another directory.

    Args:
        aggregator_class: Of the aggregator.
        believed: What the aggregator makes of the directory.
    """

    def __init__(
        self,
        *,
        aggregator_class: type[PlainAggregator] = PlainAggregator,
        believed: Callable[[Directory], Directory] = lambda directory: directory,
    ) -> None:
        super().__init__()
        self._aggregator_class = aggregator_class
        self._believed = believed

    def aggregator(self, spec: RoundSpec, *, directory: Directory) -> Party:
        """A broken aggregator."""
        super().aggregator(spec, directory=directory)  # refuses what `plain` refuses
        return self._aggregator_class(spec, directory=self._believed(directory), threads=1)

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """A broken aggregator, or a sound client."""
        if "aggregator" not in record_kind(snapshot):
            return super().restore(spec, directory=directory, snapshot=snapshot)
        believed = self._believed(directory)
        return self._aggregator_class.restore(spec, directory=believed, snapshot=snapshot, threads=1)
