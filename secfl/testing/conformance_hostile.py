"""Checks of the conformance suite: hostile bytes, and an aggregator that tells different clients different things."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, Running
from secfl.errors import RemoteProtocolError
from secfl.randomness import ExperimentSeed, InsecureSeededRng
from secfl.testing.conformance_base import Dropouts, SuiteBase
from secfl.testing.faults import Fault, damage
from secfl.testing.stage import Cast, Stage, Step, phase_of, same_sums
from secfl.types import AGGREGATOR, ClientId

__all__ = ["HostileChecks"]


@dataclass(frozen=True, slots=True)
class _Fork:
    """Two honest aggregators' requests at one moment: with everybody, and without one client."""

    phase: str
    full: Stage
    absent: ClientId
    requests: dict[ClientId, Envelope]
    others: dict[ClientId, Envelope]

    def differing(self) -> list[ClientId]:
        """Clients that both would ask, with different bytes."""
        common = self.requests.keys() & self.others.keys()
        return sorted(name for name in common if self.requests[name] != self.others[name])


class HostileChecks(SuiteBase):
    """Whatever arrives, a party refuses it with `RemoteProtocolError` and goes on as if it had not come."""

    def test_hostile_bytes_are_refused(self) -> None:
        """Damaged in any way, at any party in any phase: refused, blamed on the sender, and the round goes on."""
        cast, steps = self.rehearsal()

        def check(seed: int) -> None:
            source = ExperimentSeed(seed).generator("damage")
            step = steps[int(source.integers(0, len(steps)))]
            fault = list(Fault)[int(source.integers(0, len(Fault)))]
            other = steps[int(source.integers(0, len(steps)))].envelope.payload
            payload = damage(step.envelope.payload, fault, source=source, other=other)
            if not any(payload == known.envelope.payload for known in steps):
                hostile = Envelope(step.envelope.sender, step.envelope.recipient, payload)
                _refused(cast, step, hostile, f"a message damaged by {fault}")

        self.check_all(self.seeds(), check, times=10)

    def test_foreign_messages_are_refused(self) -> None:
        """Replayed, from another round, from another sender, from a stranger, of an unknown type, or empty."""
        cast, steps = self.rehearsal()
        spec = cast.spec
        others = {
            "the next round": cast.with_spec(round_id=spec.round_id + 1),
            "another run": cast.with_spec(run_id=bytes(16)),
            "another model": cast.with_spec(model_digest=bytes(32)),
            "another task": cast.with_spec(task_digest=bytes(32)),
            "another plan": cast.with_spec(plan_digest=bytes(32)),
            "another threshold": cast.with_spec(threshold=max(self.thresholds(len(cast.cohort)))),
        }
        for what, other in others.items():
            if other.spec == spec:
                continue
            for step, foreign in zip(steps, _deliveries(other), strict=False):
                _refused(cast, step, foreign, f"a message of {what}")
        for step in steps:
            honest = step.envelope
            senders = {AGGREGATOR, *cast.cohort, ClientId("stranger")} - {honest.sender}
            for sender in sorted(senders):
                claimed = Envelope(sender, honest.recipient, honest.payload)
                _refused(cast, step, claimed, f"a message that {sender} did not send")
            party = cast.restore(step.snapshot)
            for place, value in itertools.product(range(min(8, len(honest.payload))), range(1, 256, 5)):
                payload = bytearray(honest.payload)
                payload[place] ^= value
                hostile = Envelope(honest.sender, honest.recipient, bytes(payload))
                _refuses(party, hostile, f"a message whose byte {place} is another")
            party.receive(honest)
            _refuses(party, honest, "a replay")

    def test_the_state_table_is_complete(self) -> None:
        """Every message of a round at every party in every state: due, or refused without a trace."""
        cast, steps = self.rehearsal()
        for place, moment in enumerate(steps):
            party = cast.restore(moment.snapshot)
            for step in steps:
                envelope = step.envelope
                if envelope.recipient != moment.envelope.recipient:
                    continue
                if step.phase == phase_of(party.state) and not _came_before(steps, place, envelope):
                    cast.restore(moment.snapshot).receive(envelope)
                    continue
                _refuses(party, envelope, f"a message of phase {step.phase} in phase {moment.phase}")
            if moment.state in {"finished", "aborted"}:
                party.receive(moment.envelope)
                for step in steps:
                    if step.envelope.recipient == moment.envelope.recipient:
                        _refuses(party, step.envelope, f"a message of phase {step.phase} after the end")

    def test_valid_signatures_do_not_help(self) -> None:
        """Damaged and signed again with the sender's own key: taken or refused, and nothing else happens."""
        cast, steps = self.rehearsal()

        def check(seed: int) -> None:
            source = ExperimentSeed(seed).generator("damage")
            step = steps[int(source.integers(0, len(steps)))]
            tampered, fault = self._tampered(cast, step.envelope, source)
            party = cast.restore(step.snapshot)
            try:
                party.receive(tampered)
            except RemoteProtocolError as error:
                _blames_rightly(cast, tampered, error)
            except Exception as error:
                raise AssertionError(f"a message damaged by {fault} ended in {error!r}") from error
            assert phase_of(cast.restore(party.snapshot()).state) == phase_of(party.state)

        self.check_all(self.seeds(), check, times=10)

    def test_a_round_ends_whatever_one_client_sends(self) -> None:
        """A message that is damaged and signed with its sender's own key does not break the round's later phases."""
        cast, steps = self.rehearsal(clients=min(4, self.capabilities.clients[1]))

        def check(seed: int) -> None:
            source = ExperimentSeed(seed).generator("damage")
            stage = Stage(cast, rng=InsecureSeededRng(seed))
            stage.start()
            place = int(source.integers(0, len(steps)))
            fault = Fault.EMPTY

            def tamper(now: Stage) -> bool:
                nonlocal place, fault
                if now.in_flight and place == 0:
                    now.in_flight[0], fault = self._tampered(cast, now.in_flight[0], source)
                place -= bool(now.in_flight)
                return False

            try:
                stage.carry(until=tamper)
            except Exception as error:
                raise AssertionError(f"a message damaged by {fault} ended in {error!r}") from error
            for refusal in stage.refusals:
                _blames_rightly(cast, refusal.envelope, refusal.error)
            assert isinstance(stage.aggregator.state, Finished | Aborted), "the round did not end"

        self.check_all(self.seeds(), check)

    def _tampered(
        self, cast: Cast, envelope: Envelope, source: np.random.Generator
    ) -> tuple[Envelope, Fault]:
        fault = list(Fault)[int(source.integers(0, len(Fault)))]
        payload = damage(envelope.payload, fault, source=source)
        return self.reseal(cast, Envelope(envelope.sender, envelope.recipient, payload), source), fault

    def test_a_client_answers_once(self) -> None:
        """Two honest aggregators with different views ask one client: it answers the first and refuses the other.

        This is what an aggregator does that asks for both secrets of a client, or for two sets of survivors.
        """
        for fork in self._forks():
            for name in fork.differing():
                requests = [fork.requests[name], fork.others[name]]
                for first, second in (requests, requests[::-1]):
                    party = fork.full.fork(name)
                    answer = party.receive(first)
                    try:
                        again = party.receive(second)
                    except RemoteProtocolError:
                        continue
                    assert again == answer, f"{name} answered two different requests in phase {fork.phase}"

    def test_clients_with_different_views_never_both_go_on(self) -> None:
        """One client is shown another cohort than the others: either it or they must stop.

        Otherwise an aggregator has the others help it to unmask that client.
        """
        for fork in self._forks():
            differing = fork.differing()
            for apart in (differing[:1], differing[-1:], differing[: len(differing) // 2]):
                chosen = [name for name in apart if not self._same_answer(fork, name)]
                if chosen and len(chosen) < len(fork.requests):
                    self._play_apart(fork, chosen, silent=())
                    self._play_apart(fork, chosen, silent=(fork.absent,))

    @staticmethod
    def _play_apart(fork: _Fork, chosen: list[ClientId], *, silent: tuple[ClientId, ...]) -> None:
        """Carry the round on after ``chosen`` were shown the view in which a client is absent."""
        stage = fork.full.copy()
        for name in silent:
            stage.silence(name)
        for place, envelope in enumerate(stage.in_flight):
            if envelope.recipient in chosen:
                stage.in_flight[place] = fork.others[envelope.recipient]
        stage.carry()
        finished = {name for name in fork.requests if isinstance(stage.parties[name].state, Finished)}
        assert not (finished & set(chosen) and finished - set(chosen)), (
            f"{sorted(finished)} all finished a round although {chosen} were shown another cohort "
            f"at the end of phase {fork.phase}"
        )
        result = stage.result
        assert result is None or same_sums(result, stage.cast.expected(result.survivors)), (
            f"different views at the end of phase {fork.phase} gave a wrong sum"
        )

    def _forks(self) -> list[_Fork]:
        if self.capabilities.dropouts is Dropouts.FATAL:
            self.not_applicable("an honest aggregator has only one view where drop-outs are not tolerated")
        clients = self.capabilities.clients[1]
        cast = self.cast(clients=clients)
        said = cast.scheme.guarantee(cast.spec, survivors=clients)
        if said.malicious_colluders < 0:
            self.not_applicable("the scheme claims nothing against a malicious aggregator")
        forks = []
        for phase, base in self.moments(cast):
            full, less = base.copy(), base.copy()
            victim = base.in_flight[-1].sender
            less.in_flight = [envelope for envelope in less.in_flight if envelope.sender != victim]
            for stage in (full, less):
                arriving, stage.in_flight = stage.in_flight, []
                for envelope in arriving:
                    stage.hand_over(envelope)
                if not stage.in_flight and isinstance(stage.aggregator.state, Running):
                    stage.end_phase()
            requests = {envelope.recipient: envelope for envelope in full.in_flight}
            others = {envelope.recipient: envelope for envelope in less.in_flight}
            forks.append(_Fork(phase, full, victim, requests, others))
        if not any(fork.differing() for fork in forks):
            self.not_applicable("the aggregator asks nothing that depends on who answered")
        return forks

    @staticmethod
    def _same_answer(fork: _Fork, name: ClientId) -> bool:
        """Whether a client's answer does not depend on which of the two requests it gets."""
        one, other = fork.full.fork(name), fork.full.fork(name)
        return one.receive(fork.requests[name]) == other.receive(fork.others[name])


def _blames_rightly(cast: Cast, envelope: Envelope, error: RemoteProtocolError) -> None:
    """The sender is blamed, or, for what the aggregator only relays, the client who made it."""
    relayed = envelope.sender == AGGREGATOR and error.peer in cast.cohort
    assert error.peer == envelope.sender or relayed, f"{envelope.sender} sent it, {error.peer} is blamed"


def _refused(cast: Cast, step: Step, hostile: Envelope, what: str) -> None:
    """A party in front of a step refuses a message, and then takes the step as if nothing had come."""
    party = cast.restore(step.snapshot)
    _refuses(party, hostile, what)
    answers = tuple((answer.recipient, len(answer.payload)) for answer in party.receive(step.envelope))
    assert answers == step.answers, f"after {what}, the honest message is answered otherwise"
    assert phase_of(party.state) == step.state, f"after {what}, the honest message leads elsewhere"


def _refuses(party: Party, hostile: Envelope, what: str) -> None:
    before, blamed = phase_of(party.state), None
    try:
        party.receive(hostile)
    except RemoteProtocolError as error:
        blamed = error.peer
    except Exception as error:
        raise AssertionError(f"{what} at {hostile.recipient} in phase {before} ended in {error!r}") from error
    assert blamed is not None, f"{what} was accepted by {hostile.recipient} in phase {before}"
    assert blamed == hostile.sender, f"{what} from {hostile.sender} was blamed on {blamed}"
    assert phase_of(party.state) == before, f"{what} moved {hostile.recipient} on"


def _deliveries(cast: Cast) -> Iterator[Envelope]:
    stage = Stage(cast, rng=InsecureSeededRng(1))
    stage.start()
    while stage.in_flight:
        yield stage.in_flight[0]
        stage.deliver()


def _came_before(steps: list[Step], place: int, envelope: Envelope) -> bool:
    return any(step.envelope is envelope for step in steps[:place])
