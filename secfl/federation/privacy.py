"""From a configuration to the public numbers of a run: grid, modulus, noise, plan."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from secfl.config import DpMode, DpSchedule, RunConfig, Scheme, Weighting
from secfl.crypto import codec, weights
from secfl.dp.accounting import Relation
from secfl.dp.baselines import PercentileLaplace
from secfl.dp.calibration import modulus_bits
from secfl.dp.integer import SMALLEST_SHARE
from secfl.dp.plan import PrivacyPlan, Schedule
from secfl.dp.sampling import batch_tail
from secfl.errors import ConfigError
from secfl.federation.drift import DriftMeter
from secfl.federation.offer import RoundTerms
from secfl.federation.releases import NOTHING_ANNOUNCED, SEEDED, Announcement, Releases
from secfl.federation.settled import settled, settled_by_site
from secfl.federation.unit_clips import Layout
from secfl.guarantees import UnitOfPrivacy
from secfl.ledger.events import Event, NonPrivate
from secfl.segmentation.task import PatientTask, Task
from secfl.types import PROTOCOL_VERSION, client_id, join_fields

__all__ = ["RunTerms", "expected_batch", "nominal_patients", "percentile_laplace", "run_terms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTerms:
    """What a run promises and how it encodes.

    Attributes:
        round_terms: The public numbers of every round, and what it releases.
        plan: The privacy plan, or ``None`` without differential privacy.
        rounds: Secure sums in the whole run: rounds of training, or private steps.
        sentence: The privacy of the run in one line for people.
        non_private: Why nothing is promised; empty where something is.
    """

    round_terms: RoundTerms
    plan: PrivacyPlan | None
    rounds: int
    sentence: str
    non_private: str = ""

    def event(self, round_index: int, announced: Announcement = NOTHING_ANNOUNCED) -> Event:
        """What one round releases, for the ledger."""
        releases = self.round_terms.releases
        if releases is None:
            return NonPrivate(reason=self.non_private)
        return releases.event(round_index, announced)

    @property
    def relation(self) -> str | None:
        """The neighbouring relation, or ``None`` without a plan."""
        return None if self.plan is None else self.plan.relation.value

    @property
    def noise_multiplier(self) -> float | None:
        """Noise multiplier z of all planned shares, or ``None`` without a plan."""
        return None if self.plan is None else self.plan.noise_multiplier


def run_terms(config: RunConfig, task: Task, *, parameters: int, threshold: int) -> RunTerms:
    """The terms of a run.

    Args:
        config: The run.
        task: Names the sites; its digest is bound into every round.
        parameters: d.
        threshold: t.

    Raises:
        ConfigError: Numbers that cannot be met, or a task without per-patient gradients.
        PrivacyError: The plan is weak and ``--accept-weak`` is not given.
        CapacityError: The sum does not fit.
    """
    match config.privacy.mode:
        case DpMode.OFF:
            return _without_privacy(config, task, parameters=parameters)
        case DpMode.CLIENT:
            return _client_level(config, task, parameters=parameters, threshold=threshold)
        case DpMode.PATIENT:
            return _patient_level(config, task, parameters=parameters, threshold=threshold)


def _without_privacy(config: RunConfig, task: Task, *, parameters: int) -> RunTerms:
    grid = _coordinate_grid(config, parameters)
    baseline = percentile_laplace(config)
    digest = hashlib.sha256(join_fields(PROTOCOL_VERSION, b"plan", b"none")).digest()
    return RunTerms(
        round_terms=RoundTerms(
            grid=grid,
            bits=codec.required_bits(grid, clients=len(task.sites)),
            weighting=_weighting(config),
            task_digest=task.digest(),
            plan_digest=digest,
            drift=DriftMeter(grid=grid) if config.training.drift == "measured" else None,
        ),
        plan=None,
        rounds=config.training.rounds,
        non_private="no noise is added (--dp off)" if baseline is None else baseline.event.reason,
        sentence=(
            "no differential privacy: no noise is added and ε is null (--dp off)"
            if baseline is None
            else f"NonPrivate: a baseline without a guarantee, ε is null ({baseline.event.reason})"
        ),
    )


def percentile_laplace(config: RunConfig) -> PercentileLaplace | None:
    """The baseline that a configuration asks for."""
    asked = config.privacy.percentile_laplace
    if asked is None:
        return None
    return PercentileLaplace(
        keep_fraction=asked.keep_fraction, percentile=asked.percentile, stated_epsilon=asked.stated_epsilon
    )


def _coordinate_grid(config: RunConfig, parameters: int) -> codec.Grid:
    """The grid of a vector of which only single coordinates are bounded."""
    settings = config.secure_agg
    return codec.Grid.for_coordinates(
        parameters, coordinate_bound=settings.coordinate_bound, value_bits=settings.value_bits
    )


def _weighting(config: RunConfig) -> weights.Weighting | None:
    if config.training.weighting is Weighting.EQUAL:
        return None
    return weights.Weighting(largest=config.training.max_weight)


def _client_level(config: RunConfig, task: Task, *, parameters: int, threshold: int) -> RunTerms:
    privacy, clients = config.privacy, len(task.sites)
    # Without secure aggregation the aggregator sees each update alone: every client adds the whole noise.
    alone = config.secure_agg.scheme is Scheme.PLAIN
    layout = Layout.of(config, task, parameters=parameters)
    plan = PrivacyPlan(
        unit=UnitOfPrivacy.CLIENT,
        relation=Relation.ZERO_OUT,
        clip_norm=layout.clip_norm,
        grid_norm=_grid_norm(config, layout, clients=clients, releases=config.training.rounds),
        dimension=layout.dimension,
        noise_multiplier=_multipliers(config)[0],
        releases=config.training.rounds,
        cohort_size=clients,
        threshold=threshold,
        delta=privacy.delta,
        schedule=Schedule.ROUND if alone else Schedule.STEP,
        noise_decay=privacy.noise_decay,
        levels=_multipliers(config)[1:],
    )
    plan = settled(plan, config)
    releases = Releases(
        plan=plan,
        clip=layout.unit_clip(plan, expected_units=clients),
        quantile=layout.quantile_clip(plan, expected_units=clients),
        seeded=_seeded(config),
    )
    return RunTerms(
        round_terms=RoundTerms(
            grid=releases.grid(),
            bits=_noisy_bits(plan, signal_bound=clients * plan.grid_norm),
            weighting=None,
            task_digest=task.digest(),
            plan_digest=plan.digest(),
            releases=releases,
        ),
        plan=plan,
        rounds=plan.releases,
        non_private=releases.seeded,
        sentence=_sentence(plan, config),
    )


def _patient_level(config: RunConfig, task: Task, *, parameters: int, threshold: int) -> RunTerms:
    """DP-SGD on patients: on the pooled ones step by step, or at each site alone in rounds of several steps."""
    privacy, clients = config.privacy, len(task.sites)
    if not isinstance(task, PatientTask):
        raise ConfigError("--dp patient: this task has no per-patient gradients")
    declared = nominal_patients(config)
    rounds = privacy.schedule is DpSchedule.ROUND
    local_steps = privacy.local_steps if rounds else 1
    if privacy.steps % local_steps:
        raise ConfigError(
            f"privacy.steps: {privacy.steps}, expected a multiple of privacy.local_steps ({local_steps}) under "
            "--dp-schedule round"
        )
    alone = rounds or config.secure_agg.scheme is Scheme.PLAIN
    layout = Layout.of(config, task, parameters=parameters)
    plan = PrivacyPlan(
        unit=UnitOfPrivacy.PATIENT,
        relation=Relation.ADD_REMOVE,
        clip_norm=layout.clip_norm,
        grid_norm=_grid_norm(config, layout, clients=clients, releases=privacy.steps),
        dimension=layout.dimension,
        noise_multiplier=_multipliers(config)[0],
        releases=privacy.steps,
        cohort_size=clients,
        threshold=threshold,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        schedule=Schedule.ROUND if alone else Schedule.STEP,
        noise_decay=privacy.noise_decay,
        levels=_multipliers(config)[1:],
    )
    units, by_site = expected_batch(config) * clients, None
    if privacy.site_weights is None:
        plan = settled(plan, config)
    else:
        sites = tuple(client_id(name) for name in task.sites)
        plan, noise = settled_by_site(plan, config, sites=sites, weights=privacy.site_weights)
        by_site = sites, noise
        units *= math.fsum(noise.weights) / (max(noise.weights) * clients)
    releases = Releases(
        plan=plan,
        clip=layout.unit_clip(plan, expected_units=units),
        quantile=layout.quantile_clip(plan, expected_units=units),
        site_noise=by_site,
        local_steps=local_steps,
        seeded=_seeded(config),
    )
    if rounds:
        round_terms = _summed_rounds(config, task, releases)
    else:
        largest_batch = batch_tail(
            2 * declared, privacy.sampling_rate, log2_probability=-40 - math.log2(plan.releases * clients)
        )
        round_terms = RoundTerms(
            grid=releases.grid(),
            bits=_noisy_bits(plan, signal_bound=clients * largest_batch * plan.grid_norm),
            weighting=None,
            task_digest=task.digest(),
            plan_digest=plan.digest(),
            divisor=-units,
            releases=releases,
        )
    return RunTerms(
        round_terms=round_terms,
        plan=plan,
        rounds=plan.releases // local_steps,
        non_private=releases.seeded,
        sentence=_sentence(plan, config),
    )


def _summed_rounds(config: RunConfig, task: Task, releases: Releases) -> RoundTerms:
    """Terms of a sum of models' differences, which are private already."""
    privacy = config.privacy
    grid = _coordinate_grid(config, releases.plan.dimension)
    local = f"{privacy.local_steps} {privacy.local_optimizer.value} {privacy.step_size.hex()}"
    return RoundTerms(
        grid=grid,
        bits=codec.required_bits(grid, clients=len(task.sites)),
        weighting=None,
        # What a site does between two sums is part of the task that everybody must agree on.
        task_digest=hashlib.sha256(
            join_fields(PROTOCOL_VERSION, b"local-steps", task.digest(), local.encode())
        ).digest(),
        plan_digest=releases.plan.digest(),
        releases=releases,
    )


def nominal_patients(config: RunConfig) -> int:
    """The declared number of training patients per site; a phantom's size is public.

    Raises:
        ConfigError: The data are not a phantom, and no number is declared.
    """
    if config.privacy.nominal_patients is not None:
        return config.privacy.nominal_patients
    if config.data.is_phantom:
        return max(1, round(config.data.phantom_images * (1 - config.data.test_fraction)))
    raise ConfigError(
        "privacy.nominal_patients: needed with --dp patient on your own data; expected a public round number of "
        "training patients per site, not the true one"
    )


def expected_batch(config: RunConfig) -> float:
    """Patients of one site that a step is expected to sample: q times the declared number."""
    return config.privacy.sampling_rate * nominal_patients(config)


def _multipliers(config: RunConfig) -> tuple[float, ...]:
    """The first noise multiplier, and those to which the run may move on."""
    plateau = config.privacy.plateau
    return (config.privacy.noise_multiplier or 1.0,) if plateau is None else plateau.multipliers


def _seeded(config: RunConfig) -> str:
    return "" if config.privacy.insecure_test_noise is None else SEEDED


def _noisy_bits(plan: PrivacyPlan, *, signal_bound: int) -> int:
    """Modulus width of a sum that carries the clients' noise."""
    return modulus_bits(
        signal_bound=signal_bound,
        family=plan.family,
        total_sigma=plan.largest_share_sigma() * math.sqrt(plan.cohort_size),
        coordinates=plan.dimension,
        releases=plan.releases,
    )


def _grid_norm(config: RunConfig, layout: Layout, *, clients: int, releases: int) -> int:
    """G: fine enough for the update, and for every share of the noise to be wide enough to be accounted."""
    decay = config.privacy.noise_decay ** (releases - 1)
    least = _multipliers(config)[-1] * min(1.0, decay)
    if not (least > 1e-4 and decay < 1e4):
        raise ConfigError(
            f"privacy.noise_decay: {config.privacy.noise_decay:g} changes the noise {decay:.1e}-fold over "
            f"{releases} releases; expected a factor from 1e-4 to 1e4, closer to 1 for so many releases"
        )
    return math.ceil(max(layout.least_grid_norm, 2 * SMALLEST_SHARE * math.sqrt(clients) / least))


def _sentence(plan: PrivacyPlan, config: RunConfig) -> str:
    if config.privacy.insecure_test_noise is not None:
        return "NonPrivate: the noise comes from a seed (--insecure-test-noise); ε is null"
    z = f"{plan.noise_multiplier:.3f}"
    if plan.levels:
        z += f" to {plan.levels[-1]:.3f} as validation tells, within ε = {config.privacy.epsilon:g}"
    noise = (
        f"clip {plan.clip_norm:g}, noise multiplier {z} "
        + ("at each client alone" if plan.schedule is Schedule.ROUND else f"over {plan.shares} clients")
        + f", δ = {plan.delta:g}"
    )
    if plan.unit is UnitOfPrivacy.PATIENT:
        local = config.privacy.schedule is DpSchedule.ROUND
        steps = (
            f"{plan.releases} steps, {config.privacy.local_steps} of them between two sums"
            if local
            else (f"{plan.releases} steps")
        )
        return (
            f"differential privacy for patients (relation {plan.relation.value}): {steps}, "
            f"sampling rate {plan.sampling_rate:g}, {noise}"
        )
    return (
        f"differential privacy for whole clinics (unit client, relation {plan.relation.value}): {noise}; "
        "with few clinics this protects little at useful noise"
    )
