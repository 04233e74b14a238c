"""The conformance suite's state machine: anything that can happen to a round, in any order."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Running
from secfl.errors import RoundAborted
from secfl.randomness import ExperimentSeed, InsecureSeededRng
from secfl.testing.conformance_base import Dropouts, Inputs, SuiteBase
from secfl.testing.faults import Fault, damage
from secfl.testing.stage import Stage, phase_of, same_sums
from secfl.types import AGGREGATOR

__all__ = ["MachineChecks", "RoundMachine"]

_STEPS = 30
_PLACES = st.integers(0, 200)


class RoundMachine(RuleBasedStateMachine):
    """One round, pushed around by deliver, drop, end phase, restore and inject. Subclasses name the suite."""

    suite: ClassVar[SuiteBase]

    def __init__(self) -> None:
        super().__init__()
        self.stage: Stage | None = None
        self.ended = ""

    @property
    def tolerant(self) -> bool:
        """Whether drop-outs may be played."""
        return self.suite.capabilities.dropouts is Dropouts.TOLERATED

    @property
    def playing(self) -> Stage:
        """The round, once it began."""
        assert self.stage is not None
        return self.stage

    @initialize(data=st.data(), seed=st.integers(0, 2**32 - 1))
    def begin(self, data: st.DataObject, seed: int) -> None:
        """Start everybody."""
        clients = data.draw(st.integers(*self.suite.capabilities.clients))
        threshold = data.draw(st.sampled_from(list(self.suite.thresholds(clients))))
        cast = self.suite.cast(clients=clients, threshold=threshold, seed=seed)
        self.source = ExperimentSeed(seed).generator("damage")
        self.stage = Stage(cast, rng=InsecureSeededRng(seed))
        self.stage.start()

    @rule(place=_PLACES)
    def deliver(self, place: int) -> None:
        """Any envelope in flight arrives."""
        stage = self.playing
        if stage.in_flight:
            stage.deliver(place % len(stage.in_flight))

    @rule(share=st.integers(1, 4))
    def deliver_many(self, share: int) -> None:
        """A part of what is in flight arrives, or all of it."""
        stage = self.playing
        for _ in range(-(-len(stage.in_flight) * share // 4)):
            stage.deliver()

    @precondition(lambda self: self.tolerant)
    @rule(place=_PLACES)
    def drop(self, place: int) -> None:
        """A client falls silent."""
        cohort = self.playing.cast.cohort
        self.playing.silence(cohort[place % len(cohort)])

    @precondition(lambda self: self.tolerant)
    @rule()
    def end_phase(self) -> None:
        """A deadline passes."""
        self.playing.end_phase()

    @rule(place=_PLACES)
    def restore(self, place: int) -> None:
        """A party is put down and picked up."""
        names = list(self.playing.parties)
        self.playing.restart(names[place % len(names)])

    @rule(place=_PLACES, fault=st.sampled_from(Fault))
    def inject(self, place: int, fault: Fault) -> None:
        """A damaged copy of something that was sent arrives, and is refused."""
        stage = self.playing
        original = stage.sent[place % len(stage.sent)]
        payload = damage(original.payload, fault, source=self.source, other=stage.sent[0].payload)
        party = stage.parties[original.recipient]
        known = any(payload == envelope.payload for envelope in stage.sent)
        if known or not isinstance(party.state, Running) or stage.is_silent(original.recipient):
            return
        before = phase_of(party.state)
        hostile = Envelope(original.sender, original.recipient, payload)
        assert stage.hand_over(hostile) is not None, "a damaged message was accepted"
        assert phase_of(party.state) == before, "a refused message moved a party on"

    @invariant()
    def a_result_is_right(self) -> None:
        """The aggregator's result is exact and has enough survivors; an end is an end."""
        if self.stage is None:
            return
        state, cast = self.stage.aggregator.state, self.stage.cast
        assert not self.ended or phase_of(state) == self.ended, "the round went on after its end"
        match state:
            case Finished(result=result):
                assert result is not None, "the aggregator finished without a result"
                assert len(result.survivors) >= cast.spec.threshold, "a sum of too few was opened"
                assert same_sums(result, cast.expected(result.survivors)), "a wrong sum"
            case Aborted(reason=reason):
                assert isinstance(reason, RoundAborted)
                assert self.stage.aggregator.phase_over() == [], "an aborted aggregator still sends"
            case Running(survivors=survivors):
                hidden = self.suite.capabilities.inputs is Inputs.HIDDEN
                assert not survivors or (hidden and len(survivors) >= cast.spec.threshold)
                return
        self.ended = phase_of(state)

    def teardown(self) -> None:
        """Every round comes to an end once all is delivered and deadlines pass."""
        if self.stage is None:
            return
        for _ in range(1 + len(self.suite.capabilities.phases)):
            self.stage.carry()
            self.stage.end_phase()
        assert not isinstance(self.stage.aggregator.state, Running), "the round has no end"
        self.a_result_is_right()
        for refusal in self.stage.refusals:
            assert refusal.error.peer in {refusal.envelope.sender, AGGREGATOR}


class MachineChecks(SuiteBase):
    """A hypothesis state machine over deliver, drop, end phase, restore and inject."""

    def test_any_order_of_events(self) -> None:
        """Whatever happens, a result is the exact sum of its survivors, and there are enough of them."""
        machine = type("Machine", (RoundMachine,), {"suite": self})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=_STEPS,
                deadline=None,
                phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
                if self.shrink
                else [Phase.generate],
                database=settings.default.database if self.shrink and settings.default else None,
                verbosity=Verbosity.normal if self.shrink else Verbosity.quiet,
                report_multiple_bugs=False,
                derandomize=not self.shrink,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
