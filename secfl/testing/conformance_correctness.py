"""Checks of the conformance suite: the right sum, or none; parties that can be stopped anywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Running
from secfl.crypto.identity import Directory, Identity
from secfl.errors import BelowThreshold, CapacityError, ConfigError, LocalProtocolError, RoundAborted
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.randomness import ExperimentSeed, InsecureSeededRng
from secfl.testing.conformance_base import (
    Dropouts,
    Inputs,
    Quorum,
    Scenario,
    SuiteBase,
    Transcripts,
)
from secfl.testing.faults import Fault, damage
from secfl.testing.stage import Cast, Stage, phase_of, same_sums
from secfl.types import AGGREGATOR, ClientId, PrivatizedUpdate, VectorSpec

__all__ = ["CorrectnessChecks"]

_WIDEST = 62
"""The widest modulus that a `VectorSpec` can name."""


class CorrectnessChecks(SuiteBase):
    """Sums, drop-outs, thresholds, snapshots, misuse, and the statement of the guarantee."""

    def test_the_sum_is_exact(self) -> None:
        """Any cohort, any vectors, any order of arrival: the integers, bit for bit."""

        def check(scenario: Scenario) -> None:
            stage = scenario.stage()
            stage.play(order=scenario.order())
            _right(scenario.cast, stage, survivors=scenario.cast.cohort)

        self.check_all(self.scenarios(), check)

    def test_survivors_alone_are_summed(self) -> None:
        """Drop-outs at every phase: the sum is that of the clients whose inputs arrived."""
        if self.capabilities.dropouts is Dropouts.FATAL:
            self.not_applicable("the scheme does not tolerate drop-outs")

        def check(scenario: Scenario) -> None:
            stage = scenario.stage()
            stage.play(order=scenario.order())
            survivors = scenario.alive(self.capabilities, self.capabilities.input_phase)
            _right(scenario.cast, stage, survivors=tuple(survivors))

        self.check_all(self.scenarios(dropouts=Dropouts.TOLERATED), check)

    def test_one_dropout_too_many_opens_nothing(self) -> None:
        """At every phase: one client fewer than the quorum gives `BelowThreshold` and no output."""
        low, high = self.capabilities.clients

        def check(seed: int) -> None:
            source = ExperimentSeed(seed).generator("drop-outs")
            clients = int(source.integers(low, high + 1))
            threshold = int(source.choice(list(self.thresholds(clients))))
            cast = self.cast(clients=clients, threshold=threshold, seed=seed)
            place = int(source.integers(0, len(self.capabilities.phases)))
            rule = self.capabilities.phases[place]
            left = 0 if rule.quorum is Quorum.ONE else threshold - 1
            gone = [ClientId(str(name)) for name in source.permutation(cast.cohort)[left:]]
            leaves = dict.fromkeys(gone, rule.name)
            if rule.quorum is Quorum.THRESHOLD:
                for name in gone[1:]:  # the others may have gone before
                    earlier = int(source.integers(0, place + 1))
                    leaves[name] = self.capabilities.phases[earlier].name
            stage = Scenario(cast=cast, seed=seed, leaves=leaves).stage()
            stage.play()
            state = stage.aggregator.state
            assert isinstance(state, Aborted), f"{left} clients in phase {rule.name}: the state is {state!r}"
            expected = RoundAborted if rule.quorum is Quorum.ONE else BelowThreshold
            assert isinstance(state.reason, expected), f"aborted for another reason: {state.reason!r}"
            assert stage.aggregator.phase_over() == [], "an aborted aggregator still sends"

        self.check_all(self.seeds(), check)

    def test_survivors_are_named_before_anything_is_opened(self) -> None:
        """A ledger can commit to the survivors and to their inputs' digest before the sum exists."""
        if self.capabilities.inputs is Inputs.VISIBLE:
            self.not_applicable("nothing is opened where inputs are visible")
        digests = set()
        for seed in (1, 2):
            stage = Stage(self.cast(clients=4, seed=seed), rng=InsecureSeededRng(seed))
            last = Running("")

            def watch(now: Stage) -> bool:
                nonlocal last
                if isinstance(now.aggregator.state, Running):
                    last = now.aggregator.state
                return False

            stage.start()
            stage.carry(until=watch)
            result = stage.result
            assert result is not None
            assert last.survivors == result.survivors, (
                "the survivors were not named before the sum was opened"
            )
            assert len(last.inputs_digest) == 32, "no digest of the inputs before the sum was opened"
            digests.add(last.inputs_digest)
        assert len(digests) == 2, "two rounds with different inputs have one digest"

    def test_what_contradicts_the_round_is_refused(self) -> None:
        """Inputs, identities and directories that do not match end in `LocalProtocolError` at once."""
        cast = self.cast()
        name, other = cast.cohort[:2]
        right = cast.inputs[name]["update"]
        rng = InsecureSeededRng(5)
        wrong = {
            "another name": {"other": right},
            "a missing vector": {},
            "an additional vector": {"update": right, "other": right},
            "a shorter vector": {"update": right[:-1]},
            "another shape": {"update": right.reshape(1, -1)},
            "another word": {"update": right.astype(np.int64)},
            "an element outside the modulus": {"update": right | right.dtype.type(1 << 31)},
        }
        for what, vectors in wrong.items():
            changed = cast.with_inputs({name: vectors})
            self.refuses(what, lambda changed=changed: changed.client(name, rng), LocalProtocolError)
        imposter = Identity.generate(name, InsecureSeededRng(6))
        stranger = Identity.generate("stranger", InsecureSeededRng(7))
        foreign = Directory.enroll([*cast.identities.values(), stranger])
        update = PrivatizedUpdate.without_noise(cast.inputs[name])
        trials = {
            "a key that is not enrolled": (imposter, cast.directory),
            "a client outside the cohort": (stranger, cast.directory),
            "another directory": (cast.identities[other], foreign),
        }
        for what, (identity, directory) in trials.items():
            self.refuses(
                what,
                lambda identity=identity, directory=directory: cast.scheme.client(
                    cast.spec, identity, directory=directory, update=update, rng=rng
                ),
                LocalProtocolError,
            )
        self.refuses(
            "another directory at the aggregator",
            lambda: cast.scheme.aggregator(cast.spec, directory=foreign),
            LocalProtocolError,
        )
        misnamed = cast.with_spec(scheme=replace(cast.spec.scheme, name="another-scheme"))
        self.refuses("a round of another scheme", misnamed.aggregator, ConfigError)

    def test_what_does_not_fit_is_refused_beforehand(self) -> None:
        """A width that the scheme does not carry exactly is `CapacityError` before anything is sent."""
        high = self.capabilities.modulus_bits[1]
        if high == _WIDEST:
            self.not_applicable("the scheme carries every width")
        wide = (VectorSpec(name="update", length=3, modulus_bits=_WIDEST),)
        cast = self.cast(vectors=wide)
        client = cast.cohort[0]
        self.refuses(
            f"a width of {_WIDEST} bits, where {high} are claimed",
            lambda: cast.client(client, InsecureSeededRng(1)),
            CapacityError,
        )

    def test_misuse_is_the_callers_fault(self) -> None:
        """Starting twice, or a letter for somebody else, is `LocalProtocolError`; a client ignores deadlines."""
        cast = self.cast()
        stage = Stage(cast, rng=InsecureSeededRng(1))
        stage.start()
        first, second = cast.cohort[:2]
        client = stage.parties[first]
        self.refuses("a second start", client.start, LocalProtocolError)
        for recipient, party in ((second, client), (first, stage.aggregator)):
            letter = Envelope(AGGREGATOR, recipient, b"for somebody else")
            self.refuses("a letter for somebody else", lambda: party.receive(letter), LocalProtocolError)  # noqa: B023 - called at once
        before = client.state
        assert client.phase_over() == [], "a client answers a deadline"
        assert client.state == before
        stage.carry()
        _right(cast, stage, survivors=cast.cohort)

    def test_parties_continue_from_their_snapshots(self) -> None:
        """Every party put down and picked up after every message: the same sum."""

        def check(scenario: Scenario) -> None:
            stage, order = scenario.stage(), scenario.order()
            for name in list(stage.parties):
                stage.restart(name)
            stage.start()

            def put_down(name: ClientId) -> None:
                phase = phase_of(stage.parties[name].state)
                stage.restart(name)
                assert phase_of(stage.parties[name].state) == phase, f"{name} came back in another phase"

            stage.carry(order=order, after=put_down)
            for name in stage.parties:
                put_down(name)
            survivors = scenario.alive(self.capabilities, self.capabilities.input_phase)
            _right(scenario.cast, stage, survivors=tuple(survivors))
            for name in scenario.cast.cohort:
                if name not in scenario.leaves:
                    assert isinstance(stage.parties[name].state, Finished), f"{name} did not finish"

        self.check_all(self.scenarios(dropouts=self.capabilities.dropouts), check)

    def test_damaged_snapshots_are_refused(self) -> None:
        """A snapshot that was damaged, or that belongs to another round, is `LocalProtocolError`."""
        cast, steps = self.rehearsal()
        other = cast.with_spec(round_id=cast.spec.round_id + 1)

        def check(seed: int) -> None:
            source = ExperimentSeed(seed).generator("damage")
            snapshot = steps[int(source.integers(0, len(steps)))].snapshot
            fault = list(Fault)[int(source.integers(0, len(Fault)))]
            damaged = damage(snapshot, fault, source=source, other=steps[0].snapshot)
            if damaged not in {step.snapshot for step in steps}:
                self.refuses(f"a snapshot with {fault}", lambda: cast.restore(damaged), LocalProtocolError)
            self.refuses("a snapshot of another round", lambda: other.restore(snapshot), LocalProtocolError)

        self.check_all(self.seeds(), check, times=10)

    def test_bytes_follow_from_randomness(self) -> None:
        """Reproducible transcripts repeat under one seed; who hides inputs never sends the same bytes twice."""
        cast = self.cast()

        def transcript(seed: int) -> list[Envelope]:
            stage = Stage(cast, rng=InsecureSeededRng(seed))
            stage.play()
            return [envelope for envelope in stage.sent if envelope.sender != AGGREGATOR]

        first = transcript(1)
        if self.capabilities.transcripts is Transcripts.REPRODUCIBLE:
            assert transcript(1) == first, "one seed gave two transcripts"
        if self.capabilities.inputs is Inputs.HIDDEN:
            shared = set(transcript(2)) & set(first)
            assert not shared, "two rounds with different randomness share a client's message"

    def test_the_guarantee_says_what_is_tested(self) -> None:
        """The statement names the round, is monotone in the colluders, and claims what the suite checks."""
        cast = self.cast(clients=self.capabilities.clients[1])
        clients, threshold = len(cast.cohort), cast.spec.threshold
        for survivors in range(threshold, clients + 1):
            said = cast.scheme.guarantee(cast.spec, survivors=survivors)
            facts = (said.scheme, said.cohort_size, said.survivors, said.threshold)
            assert facts == (cast.scheme.name, clients, survivors, threshold), f"it speaks of {facts}"
            assert said.malicious_colluders <= said.curious_colluders <= survivors - 2
            alone = said.visibility(Adversary(view=View.AGGREGATOR))
            hidden = self.capabilities.inputs is Inputs.HIDDEN
            assert alone is (Visibility.SUM if hidden else Visibility.EVERY_UPDATE)
            for behaviour in Behaviour:
                seen = [
                    said.visibility(
                        Adversary(view=View.AGGREGATOR_COLLUDERS, behaviour=behaviour, colluders=colluders)
                    )
                    is Visibility.EVERY_UPDATE
                    for colluders in range(clients)
                ]
                assert seen == sorted(seen), "more colluders see less"
            assert bool(said.assumptions) is hidden, "protection without assumptions, or the reverse"
        for survivors in (0, clients + 1):
            self.refuses(
                f"a guarantee for {survivors} survivors",
                lambda survivors=survivors: cast.scheme.guarantee(cast.spec, survivors=survivors),
                LocalProtocolError,
            )


def _right(cast: Cast, stage: Stage, *, survivors: tuple[ClientId, ...]) -> None:
    """The round ended with the exact sums of these clients, and nothing honest was refused."""
    result = stage.result
    refused = [f"{refusal.envelope!r}: {refusal.error}" for refusal in stage.refusals]
    assert result is not None, f"no result but {stage.aggregator.state!r}; refused: {refused}"
    assert result.survivors == survivors, f"survivors {result.survivors}, expected {survivors}"
    for vector in cast.spec.vectors:
        assert result.sums[vector.name].dtype == vector.dtype
    assert same_sums(result, cast.expected(survivors)), "the sums are not the integers"
    assert not refused, f"honest messages were refused: {refused}"
