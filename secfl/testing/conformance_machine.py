"""The conformance suite's state machine: anything that can happen to a round, in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
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

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MachineChecks"]

_STEPS = 30


class MachineChecks(SuiteBase):
    """A hypothesis state machine over deliver, drop, end phase, restore and inject."""

    def test_any_order_of_events(self) -> None:
        """Whatever happens, a result is the exact sum of its survivors, and there are enough of them."""
        run_state_machine_as_test(
            self._machine(),
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=_STEPS,
                deadline=None,
                phases=settings.default.phases if self.shrink and settings.default else [Phase.generate],
                database=settings.default.database if self.shrink and settings.default else None,
                verbosity=Verbosity.normal if self.shrink else Verbosity.quiet,
                report_multiple_bugs=False,
                derandomize=not self.shrink,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )

    def _machine(self) -> Callable[[], RuleBasedStateMachine]:
        suite = self
        hidden = self.capabilities.inputs is Inputs.HIDDEN
        dropouts = self.capabilities.dropouts is Dropouts.TOLERATED

        class Machine(RuleBasedStateMachine):
            """One round, pushed around."""

            stage: Stage

            @initialize(clients=st.integers(*suite.capabilities.clients), seed=suite.seeds(), data=st.data())
            def begin(self, clients: int, seed: int, data: st.DataObject) -> None:
                """Start everybody."""
                threshold = data.draw(st.sampled_from(list(suite.thresholds(clients))))
                cast = suite.cast(clients=clients, threshold=threshold, seed=seed)
                self.source = ExperimentSeed(seed).generator("damage")
                self.stage = Stage(cast, rng=InsecureSeededRng(seed))
                self.ended: Finished | Aborted | None = None
                self.stage.start()

            @rule(place=st.integers(0, 200))
            def deliver(self, place: int) -> None:
                """Any envelope in flight arrives."""
                if self.stage.in_flight:
                    self.stage.deliver(place % len(self.stage.in_flight))

            @rule(share=st.integers(1, 4))
            def deliver_many(self, share: int) -> None:
                """A part of what is in flight arrives, or all of it."""
                for _ in range(-(-len(self.stage.in_flight) * share // 4)):
                    self.stage.deliver()

            @precondition(lambda _: dropouts)
            @rule(place=st.integers(0, 200))
            def drop(self, place: int) -> None:
                """A client falls silent."""
                cohort = self.stage.cast.cohort
                self.stage.silence(cohort[place % len(cohort)])

            @precondition(lambda _: dropouts)
            @rule()
            def end_phase(self) -> None:
                """A deadline passes."""
                self.stage.end_phase()

            @rule(place=st.integers(0, 200))
            def restore(self, place: int) -> None:
                """A party is put down and picked up."""
                names = list(self.stage.parties)
                self.stage.restart(names[place % len(names)])

            @rule(place=st.integers(0, 200), fault=st.sampled_from(list(Fault)))
            def inject(self, place: int, fault: Fault) -> None:
                """A damaged copy of something that was sent arrives, and is refused."""
                sent = self.stage.sent
                original = sent[place % len(sent)]
                payload = damage(original.payload, fault, source=self.source, other=sent[0].payload)
                if any(payload == known.payload for known in sent):
                    return
                party = self.stage.parties[original.recipient]
                if isinstance(party.state, Running) and not self.stage.is_silent(original.recipient):
                    before = phase_of(party.state)
                    hostile = Envelope(original.sender, original.recipient, payload)
                    assert self.stage.hand_over(hostile) is not None, "a damaged message was accepted"
                    assert phase_of(party.state) == before, "a refused message moved a party on"

            @invariant()
            def a_result_is_right(self) -> None:
                """The aggregator's result is exact, has enough survivors, and never changes."""
                stage = getattr(self, "stage", None)
                if stage is None:
                    return
                state = stage.aggregator.state
                match state:
                    case Finished(result=result):
                        assert result is not None, "the aggregator finished without a result"
                        assert len(result.survivors) >= stage.cast.spec.threshold, (
                            "a sum of too few was opened"
                        )
                        assert same_sums(result, stage.cast.expected(result.survivors)), "a wrong sum"
                    case Aborted(reason=reason):
                        assert isinstance(reason, RoundAborted)
                        assert stage.aggregator.phase_over() == [], "an aborted aggregator still sends"
                    case Running(survivors=survivors):
                        assert not survivors or len(survivors) >= stage.cast.spec.threshold
                        assert not (survivors and not hidden)
                if self.ended is not None:
                    assert phase_of(state) == phase_of(self.ended), "the round went on after its end"
                if not isinstance(state, Running):
                    self.ended = state

            def teardown(self) -> None:
                """Every round comes to an end once all is delivered and deadlines pass."""
                stage = getattr(self, "stage", None)
                if stage is None:
                    return
                stage.carry()
                for _ in suite.capabilities.phases:
                    stage.end_phase()
                    stage.carry()
                assert phase_of(stage.aggregator.state) in {"finished", "aborted"}, "the round has no end"
                self.a_result_is_right()
                for refusal in stage.refusals:
                    assert refusal.error.peer in {refusal.envelope.sender, AGGREGATOR}

        return Machine
