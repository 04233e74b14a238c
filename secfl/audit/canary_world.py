"""What is fixed before a canary audit's first step: the task with its canaries, the terms, and the sites at work.

The canaries, the coins and the rule for guesses are committed to in the ledger's first entry (by the task's digest)
before anybody trains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.canaries import CanaryPlan, CanaryTask, plan_canaries
from secfl.audit.scores import best_guesses
from secfl.config import DpMode, RunConfig
from secfl.dp.noise import NoiseShare
from secfl.dp.plan import PrivacyPlan, Schedule
from secfl.errors import ConfigError
from secfl.federation.local_work import Contribution, LocalWork, PatientStep
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer
from secfl.federation.privacy import RunTerms, run_terms
from secfl.federation.releases import Releases
from secfl.federation.schemes import scheme_spec
from secfl.federation.state import count_parameters
from secfl.randomness import Rng
from secfl.segmentation.task import PatientTask, State
from secfl.types import ClientId, RoundId, RoundSpec

__all__ = ["CanaryWorld", "WatchedWork", "offer_of", "prepare", "watched_sites"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShortReleases(Releases):
    """For controls: noise that is narrower than the plan says by a factor."""

    shortfall: float = 1.0

    def noise(self, *arguments: Any, **named: Any) -> tuple[NoiseShare, ...]:
        """The plan's shares, each too narrow."""
        # Written out: in a slotted dataclass the short form of super() finds the class before its slots.
        planned = Releases.noise(self, *arguments, **named)
        return tuple(replace(share, sigma=share.sigma / self.shortfall) for share in planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryWorld:
    """Everything that is fixed before the first step."""

    task: CanaryTask
    terms: RunTerms
    plan: PrivacyPlan
    canary_plan: CanaryPlan
    config: RunConfig

    @property
    def rate(self) -> float:
        """Q."""
        return self.plan.sampling_rate


def prepare(
    config: RunConfig,
    task: PatientTask,
    *,
    canaries: int,
    threshold: int,
    rng: Rng,
    guesses: int | None = None,
    shortfall: float = 1.0,
) -> CanaryWorld:
    """Plant canaries and commit to the rule; nothing has run yet.

    Args:
        config: A run with patient-level privacy, schedule ``step``, fixed clip.
        task: The task whose run is audited.
        canaries: m; at most one per parameter.
        threshold: t.
        rng: The canaries' secret seed.
        guesses: r; by default what simulations of an honest run find best.
        shortfall: For controls: the sites' noise is narrower than the plan by this factor.

    Raises:
        ConfigError: Another privacy mode or schedule, or an impossible number of canaries.
    """
    if config.privacy.mode is not DpMode.PATIENT:
        raise ConfigError("canary audit: expected --dp patient")
    terms = run_terms(config, task, parameters=count_parameters(task.initial_state()), threshold=threshold)
    releases, plan = terms.round_terms.releases, terms.plan
    if releases is None or plan is None or plan.schedule is not Schedule.STEP:
        raise ConfigError("canary audit: expected secure aggregation with the schedule step")
    if releases.quantile is not None or plan.levels or plan.noise_decay != 1:
        raise ConfigError("canary audit: expected one clip and one noise multiplier for the whole run")
    if guesses is None:
        guesses = best_guesses(
            rate=plan.sampling_rate,
            steps=plan.releases,
            multiplier=plan.noise_multiplier,
            canaries=canaries,
            delta=plan.delta,
        )
    canary_plan = plan_canaries(canaries, guesses=guesses, rng=rng)
    planted = CanaryTask(task, canary_plan, clip=releases.clip)
    round_terms = replace(terms.round_terms, task_digest=planted.digest())
    if shortfall != 1:
        short = _ShortReleases(
            plan=releases.plan,
            clip=releases.clip,
            local_steps=releases.local_steps,
            seeded=releases.seeded,
            shortfall=shortfall,
        )
        round_terms = replace(round_terms, releases=short)
    return CanaryWorld(
        task=planted,
        terms=replace(terms, round_terms=round_terms),
        plan=plan,
        canary_plan=canary_plan,
        config=config,
    )


class WatchedWork:
    """A site's work, with what it contributed kept for the auditor."""

    def __init__(self, inner: LocalWork) -> None:
        self._inner = inner
        self.vector: NDArray[Any] = np.empty(0, np.uint32)

    def contribute(self, offer: RoundOffer, spec: RoundSpec) -> Contribution:
        """As inside."""
        contribution = self._inner.contribute(offer, spec)
        self.vector = contribution.privatized.vectors[UPDATE_VECTOR]
        return contribution


def watched_sites(world: CanaryWorld, *, secret: Rng) -> dict[ClientId, WatchedWork]:
    """Every site's step as it runs in a simulation, watched."""
    return {
        ClientId(name): WatchedWork(
            PatientStep(
                ClientId(name),
                task=world.task,
                terms=world.terms.round_terms,
                sampling_rate=world.rate,
                secret=secret.fork(f"site/{name}"),
            )
        )
        for name in world.task.sites
    }


def offer_of(
    world: CanaryWorld, state: State, step: int, *, run_id: bytes = bytes(16), round_id: int = 0
) -> RoundOffer:
    """The invitation to one step."""
    return RoundOffer(
        run_id=run_id,
        round_id=RoundId(round_id),
        round_index=step,
        cohort=tuple(ClientId(site) for site in sorted(world.task.sites)),
        threshold=world.plan.threshold,
        scheme=scheme_spec(world.config.secure_agg),
        state=state,
    )
