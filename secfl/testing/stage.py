"""A round carried by hand: every delivery, drop-out, deadline, restart and planted message is one call.

Drivers of engines carry whole rounds. Tests, fuzzers and attackers need to stop between two messages, to hold
one back, to fork a party into two, or to say something that no honest party would say. `Cast` holds who plays;
`Stage` is one performance; `rehearse` keeps every step of an honest one, so that it can be entered anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from secfl.crypto.aggregation import (
    Aborted,
    Envelope,
    Finished,
    Party,
    PartyState,
    RoundResult,
    Running,
    SecureAggregation,
)
from secfl.crypto.attachments import Words
from secfl.crypto.identity import Directory, Identity
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.randomness import InsecureSeededRng, Rng
from secfl.types import AGGREGATOR, ClientId, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, VectorSpec

__all__ = [
    "DEFAULT_VECTORS",
    "Cast",
    "Refusal",
    "Stage",
    "Step",
    "exact_sums",
    "phase_of",
    "rehearse",
    "same_sums",
]

DEFAULT_VECTORS: Final = (VectorSpec(name="update", length=5, modulus_bits=16),)


def exact_sums(vectors: Iterable[VectorSpec], inputs: Iterable[Mapping[str, Words]]) -> dict[str, list[int]]:
    """The sums modulo ``2**modulus_bits`` in Python integers, element by element: slow and plain on purpose."""
    rows = list(inputs)
    return {
        vector.name: [
            sum(int(row[vector.name][position]) for row in rows) % 2**vector.modulus_bits
            for position in range(vector.length)
        ]
        for vector in vectors
    }


def same_sums(result: RoundResult, expected: Mapping[str, Sequence[int]]) -> bool:
    """Whether a result holds exactly these vectors and these integers."""
    return {name: words.tolist() for name, words in result.sums.items()} == dict(expected)


def phase_of(state: PartyState) -> str:
    """Name of the phase of a running party, else ``finished`` or ``aborted``."""
    match state:
        case Running(phase=phase):
            return phase
        case Finished():
            return "finished"
        case Aborted():
            return "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who plays a round: scheme, specification, keys and inputs.

    Attributes:
        scheme: The scheme.
        spec: What all parties agree on.
        identities: Client -> signing key. Whoever holds a cast can sign for everybody.
        directory: The enrolled keys.
        inputs: Client -> vector name -> residues.
    """

    scheme: SecureAggregation
    spec: RoundSpec
    identities: Mapping[ClientId, Identity] = field(repr=False)
    directory: Directory = field(repr=False)
    inputs: Mapping[ClientId, Mapping[str, Words]] = field(repr=False)

    @classmethod
    def make(
        cls,
        scheme: SecureAggregation,
        scheme_spec: SchemeSpec,
        *,
        clients: int = 3,
        threshold: int = 3,
        vectors: tuple[VectorSpec, ...] = DEFAULT_VECTORS,
        seed: int = 0,
        inputs: Mapping[ClientId, Mapping[str, Words]] | None = None,
    ) -> Cast:
        """A cohort ``c0, c1, ...`` with keys from ``seed`` and, unless they are given, random inputs."""
        rng = InsecureSeededRng(seed)
        names = [f"c{index:02d}" for index in range(clients)]
        identities = {ClientId(name): Identity.generate(name, rng) for name in names}
        directory = Directory.enroll(identities.values())
        spec = RoundSpec(
            run_id=rng.bytes(16),
            round_id=RoundId(7),
            cohort=tuple(identities),
            threshold=threshold,
            vectors=vectors,
            scheme=scheme_spec,
            manifest_digest=directory.digest(),
            model_digest=rng.bytes(32),
            task_digest=rng.bytes(32),
            plan_digest=rng.bytes(32),
        )
        if inputs is None:
            inputs = {name: _random_input(vectors, rng.fork(f"input/{name}")) for name in identities}
        return cls(scheme=scheme, spec=spec, identities=identities, directory=directory, inputs=inputs)

    @property
    def cohort(self) -> tuple[ClientId, ...]:
        """The invited clients."""
        return self.spec.cohort

    def with_inputs(self, inputs: Mapping[ClientId, Mapping[str, Words]]) -> Cast:
        """The same cohort with other inputs."""
        return replace(self, inputs=inputs)

    def with_spec(self, **changes: Any) -> Cast:
        """The same cohort in another round: ``changes`` are fields of `RoundSpec`."""
        return replace(self, spec=replace(self.spec, **changes))

    def client(self, name: ClientId, rng: Rng) -> Party:
        """A fresh client."""
        return self.scheme.client(
            self.spec,
            self.identities[name],
            directory=self.directory,
            update=PrivatizedUpdate.without_noise(self.inputs[name]),
            rng=rng,
        )

    def aggregator(self) -> Party:
        """A fresh aggregator."""
        return self.scheme.aggregator(self.spec, directory=self.directory)

    def restore(self, snapshot: bytes) -> Party:
        """A party from its snapshot."""
        return self.scheme.restore(self.spec, directory=self.directory, snapshot=snapshot)

    def expected(self, survivors: Iterable[ClientId]) -> dict[str, list[int]]:
        """What the sums of these clients' inputs must be."""
        return exact_sums(self.spec.vectors, (self.inputs[name] for name in survivors))


def _random_input(vectors: Iterable[VectorSpec], rng: Rng) -> dict[str, Words]:
    inputs: dict[str, Words] = {}
    for vector in vectors:
        words = np.frombuffer(rng.bytes(8 * vector.length), np.dtype("<u8"))
        inputs[vector.name] = (words >> np.uint64(64 - vector.modulus_bits)).astype(vector.dtype)
    return inputs


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that its recipient refused, and how."""

    envelope: Envelope
    error: RemoteProtocolError


class Stage:
    """One performance of a round.

    Args:
        cast: Who plays.
        rng: Each client draws from ``rng.fork(its name)``.
        parties: Parties that take the place of the cast's own, by name: attackers, or restored parties.
        leaves: Client -> name of the aggregator's phase in which it falls silent, before it said anything in it.

    Attributes:
        parties: Name -> party; the aggregator is ``AGGREGATOR``.
        in_flight: Envelopes that were sent and not yet delivered, oldest first.
        sent: Every envelope that any party sent, in order.
        refusals: What was refused.
    """

    def __init__(
        self,
        cast: Cast,
        *,
        rng: Rng,
        parties: Mapping[ClientId, Party] | None = None,
        leaves: Mapping[ClientId, str] | None = None,
    ) -> None:
        given = dict(parties or {})
        self.cast = cast
        self.parties: dict[ClientId, Party] = {}
        for name in (AGGREGATOR, *cast.cohort):
            if name in given:
                self.parties[name] = given[name]
            elif name == AGGREGATOR:
                self.parties[name] = cast.aggregator()
            else:
                self.parties[name] = cast.client(name, rng.fork(name))
        self.in_flight: list[Envelope] = []
        self.sent: list[Envelope] = []
        self.refusals: list[Refusal] = []
        self._leaves = dict(leaves or {})
        self._silent: set[ClientId] = set()
        self._let_leave()

    @property
    def aggregator(self) -> Party:
        """The aggregator's party."""
        return self.parties[AGGREGATOR]

    @property
    def result(self) -> RoundResult | None:
        """The aggregator's result once there is one."""
        state = self.aggregator.state
        return state.result if isinstance(state, Finished) else None

    def silence(self, name: ClientId) -> None:
        """A client drops out: what it sent is still delivered; it says and hears nothing more."""
        self._silent.add(name)

    def is_silent(self, name: ClientId) -> bool:
        """Whether the client dropped out."""
        return name in self._silent

    def start(self) -> None:
        """Start every party."""
        for name in self.parties:
            if not self.is_silent(name):
                self._send(self.parties[name].start())

    def deliver(self, position: int = 0) -> None:
        """Hand over the envelope at a place of the queue."""
        self.hand_over(self.in_flight.pop(position))

    def hand_over(self, envelope: Envelope) -> RemoteProtocolError | None:
        """Give an envelope to its recipient at once; what it causes joins the queue. Returns its refusal."""
        party = self.parties[envelope.recipient]
        if self.is_silent(envelope.recipient) or not isinstance(party.state, Running):
            return None
        try:
            answer = party.receive(envelope)
        except RemoteProtocolError as error:
            self.refusals.append(Refusal(envelope, error))
            return error
        self._send(answer)
        return None

    def end_phase(self) -> None:
        """Tell the aggregator that its deadline passed."""
        self._send(self.aggregator.phase_over())

    def restart(self, name: ClientId) -> None:
        """Put a party down and pick it up again from its snapshot."""
        self.parties[name] = self.cast.restore(self.parties[name].snapshot())

    def fork(self, name: ClientId) -> Party:
        """A second party that continues from where this one stands."""
        return self.cast.restore(self.parties[name].snapshot())

    def copy(self) -> Stage:
        """A second stage that continues from where this one stands, all parties forked."""
        other = Stage.__new__(Stage)
        other.cast = self.cast
        other.parties = {name: self.fork(name) for name in self.parties}
        other.in_flight = list(self.in_flight)
        other.sent = list(self.sent)
        other.refusals = list(self.refusals)
        other._leaves = dict(self._leaves)  # noqa: SLF001 - our own copy
        other._silent = set(self._silent)  # noqa: SLF001 - our own copy
        return other

    def carry(
        self,
        *,
        order: Callable[[int], int] = lambda _: 0,
        until: Callable[[Stage], bool] = lambda _: False,
        after: Callable[[ClientId], None] = lambda _: None,
    ) -> None:
        """Deliver until nobody has anything to say, ending phases when the queue is empty.

        Args:
            order: Number of envelopes in flight -> position of the next to deliver.
            until: Stop as soon as this holds; asked before every delivery and deadline.
            after: Told the recipient after every delivery.
        """
        while not until(self):
            if self.in_flight:
                envelope = self.in_flight.pop(order(len(self.in_flight)))
                self.hand_over(envelope)
                after(envelope.recipient)
                continue
            before = self.aggregator.state
            if not isinstance(before, Running):
                return
            self.end_phase()
            if not self.in_flight and self.aggregator.state == before:
                return

    def play(self, *, order: Callable[[int], int] = lambda _: 0) -> RoundResult | None:
        """Start, carry to the end, and return the result, if there is one."""
        self.start()
        self.carry(order=order)
        return self.result

    def _send(self, envelopes: list[Envelope]) -> None:
        self.sent.extend(envelopes)
        self.in_flight.extend(envelopes)
        self._let_leave()

    def _let_leave(self) -> None:
        phase = phase_of(self.aggregator.state)
        self._silent.update(name for name, last in self._leaves.items() if last == phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One delivery of an honest round, with everything needed to enter the round there.

    Attributes:
        phase: The recipient's phase.
        envelope: What was delivered.
        snapshot: Of the recipient, just before.
        answers: Size of each envelope that the recipient sent in answer, by recipient.
        state: The recipient's phase afterwards.
    """

    phase: str
    envelope: Envelope
    snapshot: bytes = field(repr=False)
    answers: tuple[tuple[ClientId, int], ...]
    state: str


def rehearse(cast: Cast, *, rng: Rng, leaves: Mapping[ClientId, str] | None = None) -> list[Step]:
    """Play an honest round, perhaps with drop-outs (see `Stage`), and keep every step.

    Raises:
        LocalProtocolError: The round had no result, so it is no use as a model of one.
    """
    stage = Stage(cast, rng=rng, leaves=leaves)
    steps: list[Step] = []
    stage.start()
    while isinstance(stage.aggregator.state, Running):
        if stage.in_flight:
            steps += _note(stage)
            continue
        before = stage.aggregator.state
        stage.end_phase()
        if not stage.in_flight and stage.aggregator.state == before:
            break
    if stage.result is None:
        raise LocalProtocolError("the rehearsal ended without a result")
    return steps


def _note(stage: Stage) -> list[Step]:
    """Deliver the oldest envelope and describe what happened, if its recipient takes any."""
    envelope = stage.in_flight.pop(0)
    party = stage.parties[envelope.recipient]
    if stage.is_silent(envelope.recipient) or not isinstance(party.state, Running):
        return []
    phase, snapshot, already = phase_of(party.state), party.snapshot(), len(stage.sent)
    stage.hand_over(envelope)
    answers = tuple((answer.recipient, len(answer.payload)) for answer in stage.sent[already:])
    state = phase_of(party.state)
    return [Step(phase=phase, envelope=envelope, snapshot=snapshot, answers=answers, state=state)]
