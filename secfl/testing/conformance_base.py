"""What a scheme declares to the conformance suite, and how the suite draws rounds for it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

import numpy as np

from secfl.crypto.aggregation import Envelope, SecureAggregation
from secfl.crypto.attachments import Words
from secfl.errors import SecflError
from secfl.randomness import ExperimentSeed, InsecureSeededRng
from secfl.testing.stage import Cast, Stage, Step, phase_of, rehearse
from secfl.types import AGGREGATOR, ClientId, SchemeSpec, VectorSpec

try:
    import pytest
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import strategies as st
except ImportError as error:  # they are no run-time dependencies of secfl
    raise ImportError(
        "the conformance suite runs under pytest and draws rounds with hypothesis: pip install pytest hypothesis"
    ) from error

__all__ = [
    "Capabilities",
    "Dropouts",
    "Inputs",
    "PhaseRule",
    "Quorum",
    "Scenario",
    "SuiteBase",
    "Transcripts",
]

_T = TypeVar("_T")


class Quorum(StrEnum):
    """How many clients a phase needs."""

    THRESHOLD = "threshold"
    ONE = "one"


class Inputs(StrEnum):
    """Whether the aggregator sees single inputs."""

    HIDDEN = "hidden"
    VISIBLE = "visible"


class Transcripts(StrEnum):
    """Whether all bytes of a round follow from the parties' `Rng`."""

    REPRODUCIBLE = "reproducible"
    RANDOMISED = "randomised"


class Dropouts(StrEnum):
    """Whether a round survives clients that fall silent."""

    TOLERATED = "tolerated"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRule:
    """One phase of the aggregator: its name, as `Running.phase` gives it, and how many clients it needs."""

    name: str
    quorum: Quorum = Quorum.THRESHOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a scheme claims. The suite tests every claim, and leaves out what is not claimed.

    Attributes:
        phases: The aggregator's phases in order.
        input_phase: The one that collects the inputs: who answers it is summed.
        inputs: Whether single inputs are hidden from the aggregator.
        transcripts: Whether transcripts follow from the seeds.
        dropouts: Whether drop-outs are tolerated.
        clients: Smallest and largest cohort to draw.
        modulus_bits: Smallest and largest width that it carries exactly, in every cohort that is drawn.
        length: Longest vector to draw.
    """

    phases: tuple[PhaseRule, ...]
    input_phase: str
    inputs: Inputs = Inputs.HIDDEN
    transcripts: Transcripts = Transcripts.RANDOMISED
    dropouts: Dropouts = Dropouts.TOLERATED
    clients: tuple[int, int] = (3, 5)
    modulus_bits: tuple[int, int] = (2, 62)
    length: int = 24

    def position(self, phase: str) -> int:
        """Place of a phase in the order."""
        return [rule.name for rule in self.phases].index(phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A drawn round.

    Attributes:
        cast: Who plays.
        seed: Of the parties' randomness and of the order of arrival.
        leaves: Client -> phase in which it falls silent.
    """

    cast: Cast
    seed: int
    leaves: Mapping[ClientId, str]

    def stage(self) -> Stage:
        """A fresh performance."""
        return Stage(self.cast, rng=InsecureSeededRng(self.seed), leaves=self.leaves)

    def order(self) -> Callable[[int], int]:
        """An order of arrival: number of envelopes in flight -> the next one's place."""
        source = ExperimentSeed(self.seed).generator("order of arrival")
        return lambda count: int(source.integers(0, count))

    def alive(self, capabilities: Capabilities, phase: str) -> list[ClientId]:
        """Who still speaks in a phase."""
        place = capabilities.position(phase)
        return [
            name
            for name in self.cast.cohort
            if name not in self.leaves or capabilities.position(self.leaves[name]) > place
        ]


class SuiteBase(abc.ABC):
    """What a subclass provides, and tools for the checks.

    Attributes:
        capabilities: What the scheme claims.
        examples: How many rounds each property draws.
        repetitions: Rounds in each of the two worlds that the distinguishers compare.
        collision_rounds: Rounds in which repeated key material is searched.
        shrink: Whether a failure is made as small as possible before it is reported.
    """

    capabilities: Capabilities
    examples: int = 20
    repetitions: int = 24
    collision_rounds: int = 64
    shrink: bool = True

    @abc.abstractmethod
    def scheme(self) -> SecureAggregation:
        """The scheme under test."""

    def scheme_spec(self) -> SchemeSpec:
        """Name and parameters as they stand in a round; by default the name alone."""
        return SchemeSpec(name=self.scheme().name)

    def thresholds(self, clients: int) -> range:
        """The thresholds that the scheme accepts for a cohort; by default those of masking."""
        return range(max(3, clients // 2 + 1), clients + 1)

    def reseal(self, cast: Cast, envelope: Envelope, source: np.random.Generator) -> Envelope:
        """A tampered message, signed again with the keys of its signers so that it reaches the parsers.

        Override it for an own wire format; ``source`` may choose how much is made good. By default the message
        stays as it is.
        """
        del cast, source
        return envelope

    def cast(
        self,
        *,
        clients: int = 3,
        threshold: int | None = None,
        vectors: tuple[VectorSpec, ...] | None = None,
        seed: int = 0,
        inputs: Mapping[ClientId, Mapping[str, Words]] | None = None,
    ) -> Cast:
        """A cohort for the scheme under test, with the smallest threshold unless another is given."""
        low, high = self.capabilities.modulus_bits
        default = (VectorSpec(name="update", length=5, modulus_bits=min(high, max(low, 16))),)
        return Cast.make(
            self.scheme(),
            self.scheme_spec(),
            clients=clients,
            threshold=min(self.thresholds(clients)) if threshold is None else threshold,
            vectors=default if vectors is None else vectors,
            seed=seed,
            inputs=inputs,
        )

    def rehearsal(self, *, clients: int = 3, seed: int = 1) -> tuple[Cast, list[Step]]:
        """An honest round without drop-outs, step by step."""
        cast = self.cast(clients=clients)
        return cast, rehearse(cast, rng=InsecureSeededRng(seed))

    def check_all(
        self, strategy: st.SearchStrategy[_T], check: Callable[[_T], None], *, times: int = 1
    ) -> None:
        """Run a check on ``times * examples`` drawn values."""
        phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.target]
        rules = settings(
            max_examples=times * self.examples,
            deadline=None,
            phases=[*phases, Phase.shrink, Phase.explain] if self.shrink else [Phase.generate],
            database=settings.default.database if self.shrink and settings.default else None,
            verbosity=Verbosity.normal if self.shrink else Verbosity.quiet,
            report_multiple_bugs=False,
            derandomize=not self.shrink,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        rules(given(strategy)(check))()

    def seeds(self) -> st.SearchStrategy[int]:
        """Seeds from which a check derives everything else."""
        return st.integers(0, 2**32 - 1)

    def scenarios(self, *, dropouts: Dropouts = Dropouts.FATAL) -> st.SearchStrategy[Scenario]:
        """Rounds that must have a result; with drop-outs at any phase when they are ``TOLERATED``."""
        return _scenarios(self, dropouts)

    def moments(self, cast: Cast, *, seed: int = 1) -> Iterator[tuple[str, Stage]]:
        """For each phase, the honest round at the moment when all clients' messages are about to arrive."""
        for rule in self.capabilities.phases:
            stage = Stage(cast, rng=InsecureSeededRng(seed))
            stage.start()
            stage.carry(until=lambda now, name=rule.name: _collects(now, name))
            if _collects(stage, rule.name):
                yield rule.name, stage

    def not_applicable(self, why: str) -> NoReturn:
        """Leave out a check that the scheme makes no claim for."""
        pytest.skip(why)

    def refuses(self, what: str, call: Callable[[], object], *errors: type[SecflError]) -> SecflError:
        """The error of a call that must fail with one of these errors and no other."""
        try:
            call()
        except errors as error:
            return error
        except Exception as error:
            raise AssertionError(f"{what} ended in {type(error).__name__}: {error}") from error
        raise AssertionError(f"{what} was accepted")


def _collects(stage: Stage, phase: str) -> bool:
    return (
        phase_of(stage.aggregator.state) == phase
        and bool(stage.in_flight)
        and all(envelope.recipient == AGGREGATOR for envelope in stage.in_flight)
    )


@st.composite
def _scenarios(draw: Any, suite: SuiteBase, dropouts: Dropouts) -> Scenario:
    capabilities = suite.capabilities
    clients = draw(st.integers(*capabilities.clients))
    threshold = draw(st.sampled_from(list(suite.thresholds(clients))))
    vectors = draw(_vectors(capabilities))
    seed = draw(st.integers(0, 2**32 - 1))
    cast = suite.cast(clients=clients, threshold=threshold, vectors=vectors, seed=seed)
    if draw(st.booleans()):
        cast = cast.with_inputs({name: _extreme_input(draw, vectors) for name in cast.cohort})
    leaves: dict[ClientId, str] = {}
    if dropouts is Dropouts.TOLERATED:
        names = draw(st.permutations(cast.cohort))
        phases = [rule.name for rule in capabilities.phases]
        for name in names[: draw(st.integers(0, clients - threshold))]:
            leaves[name] = draw(st.sampled_from(phases))
    return Scenario(cast=cast, seed=seed, leaves=leaves)


@st.composite
def _vectors(draw: Any, capabilities: Capabilities) -> tuple[VectorSpec, ...]:
    names = draw(
        st.lists(st.sampled_from(["update", "weight", "x.y-z_1"]), min_size=1, max_size=3, unique=True)
    )
    return tuple(
        VectorSpec(
            name=name,
            length=draw(st.integers(1, capabilities.length)),
            modulus_bits=draw(st.integers(*capabilities.modulus_bits)),
        )
        for name in names
    )


def _extreme_input(draw: Any, vectors: tuple[VectorSpec, ...]) -> dict[str, Words]:
    return {
        vector.name: np.full(
            vector.length, draw(st.sampled_from([0, 1, 2**vector.modulus_bits - 1])), vector.dtype
        )
        for vector in vectors
    }
