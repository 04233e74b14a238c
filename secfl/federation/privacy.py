"""From a configuration to the public numbers of a run: grid, modulus, noise, plan."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from secfl.config import DpMode, DpSchedule, KeyMode, RunConfig, Scheme, Weighting
from secfl.crypto import codec, weights
from secfl.dp.accounting import Relation
from secfl.dp.clipping import GridClip
from secfl.dp.integer import SMALLEST_SHARE
from secfl.dp.noise import NoiseShare
from secfl.dp.plan import PrivacyPlan, Schedule, modulus_bits
from secfl.dp.sampling import batch_tail
from secfl.errors import ConfigError
from secfl.federation.offer import RoundTerms
from secfl.guarantees import Behaviour, UnitOfPrivacy
from secfl.ledger.events import Event, Family, Noise, NonPrivate, Placement, Sampling
from secfl.segmentation.task import PatientTask, Task
from secfl.types import PROTOCOL_VERSION, join_fields

__all__ = ["RunTerms", "run_terms"]

_PRECISION = 2.0**-8
"""Root mean square rounding error of a clipped update relative to the clip norm; far below any useful noise."""

_DEFAULT_CLIP = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTerms:
    """What a run promises and how it encodes.

    Attributes:
        round_terms: The public numbers of every round.
        plan: The privacy plan, or ``None`` without differential privacy.
        rounds: Secure sums in the whole run: rounds of training, or private steps.
        patient_clip: The clip of one patient's gradient under ``--dp patient``, else ``None``.
        noise: What one client adds per release, or ``None``.
        event: What one round releases, for the ledger.
        sentence: The privacy of the run in one line for people.
    """

    round_terms: RoundTerms
    plan: PrivacyPlan | None
    rounds: int
    noise: NoiseShare | None
    event: Event
    sentence: str
    patient_clip: GridClip | None = None

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
    settings = config.secure_agg
    grid = codec.Grid.for_coordinates(
        parameters, coordinate_bound=settings.coordinate_bound, value_bits=settings.value_bits
    )
    digest = hashlib.sha256(join_fields(PROTOCOL_VERSION, b"plan", b"none")).digest()
    return RunTerms(
        round_terms=RoundTerms(
            grid=grid,
            bits=codec.required_bits(grid, clients=len(task.sites)),
            weighting=_weighting(config),
            task_digest=task.digest(),
            plan_digest=digest,
        ),
        plan=None,
        rounds=config.training.rounds,
        noise=None,
        event=NonPrivate(reason="no noise is added (--dp off)"),
        sentence="no differential privacy: no noise is added and ε is null (--dp off)",
    )


def _weighting(config: RunConfig) -> weights.Weighting | None:
    if config.training.weighting is Weighting.EQUAL:
        return None
    return weights.Weighting(largest=config.training.max_weight)


def _client_level(config: RunConfig, task: Task, *, parameters: int, threshold: int) -> RunTerms:
    privacy, clients = config.privacy, len(task.sites)
    clip = _DEFAULT_CLIP if privacy.clip is None else privacy.clip
    multiplier = privacy.noise_multiplier or 1.0
    settings = config.secure_agg
    # Without secure aggregation the aggregator sees each update alone: every client adds the whole noise.
    alone = settings.scheme is Scheme.PLAIN
    plan = PrivacyPlan(
        unit=UnitOfPrivacy.CLIENT,
        relation=Relation.ZERO_OUT,
        clip_norm=clip,
        grid_norm=_grid_norm(parameters, clients, multiplier),
        dimension=parameters,
        noise_multiplier=multiplier,
        releases=config.training.rounds,
        cohort_size=clients,
        threshold=threshold,
        delta=privacy.delta,
        schedule=Schedule.ROUND if alone else Schedule.STEP,
    )
    plan = _settled(plan, config)
    grid = codec.Grid.for_clip(parameters, clip_norm=clip, grid_norm=plan.grid_norm)
    bits = modulus_bits(
        signal_bound=clients * grid.largest_value,
        family=plan.family,
        total_sigma=plan.share_sigma() * math.sqrt(clients),
        coordinates=parameters,
        releases=plan.releases,
    )
    return RunTerms(
        round_terms=RoundTerms(
            grid=grid,
            bits=bits,
            weighting=None,
            task_digest=task.digest(),
            plan_digest=plan.digest(),
        ),
        plan=plan,
        rounds=plan.releases,
        noise=plan.noise_share(),
        event=_event(plan, config),
        sentence=_sentence(plan, config),
    )


def _patient_level(config: RunConfig, task: Task, *, parameters: int, threshold: int) -> RunTerms:
    """DP-SGD on the pooled patients: every step is one secure sum of clipped per-patient gradients."""
    privacy, clients = config.privacy, len(task.sites)
    if not isinstance(task, PatientTask):
        raise ConfigError("--dp patient: this task has no per-patient gradients")
    if privacy.schedule is DpSchedule.ROUND:
        raise ConfigError("privacy.schedule round: only step is available")
    declared = _nominal_patients(config)
    clip = _DEFAULT_CLIP if privacy.clip is None else privacy.clip
    multiplier = privacy.noise_multiplier or 1.0
    plan = PrivacyPlan(
        unit=UnitOfPrivacy.PATIENT,
        relation=Relation.ADD_REMOVE,
        clip_norm=clip,
        grid_norm=_grid_norm(parameters, clients, multiplier),
        dimension=parameters,
        noise_multiplier=multiplier,
        releases=privacy.steps,
        cohort_size=clients,
        threshold=threshold,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        schedule=Schedule.ROUND if config.secure_agg.scheme is Scheme.PLAIN else Schedule.STEP,
    )
    plan = _settled(plan, config)
    patient_clip = GridClip.single(dimension=parameters, clip_norm=clip, grid_norm=plan.grid_norm)
    largest_batch = batch_tail(
        2 * declared, privacy.sampling_rate, log2_probability=-40 - math.log2(plan.releases * clients)
    )
    bits = modulus_bits(
        signal_bound=clients * largest_batch * plan.grid_norm,
        family=plan.family,
        total_sigma=plan.share_sigma() * math.sqrt(clients),
        coordinates=parameters,
        releases=plan.releases,
    )
    return RunTerms(
        round_terms=RoundTerms(
            grid=codec.Grid.for_clip(parameters, clip_norm=clip, grid_norm=plan.grid_norm),
            bits=bits,
            weighting=None,
            task_digest=task.digest(),
            plan_digest=plan.digest(),
            divisor=-privacy.sampling_rate * declared * clients,
        ),
        plan=plan,
        rounds=plan.releases,
        noise=plan.noise_share(),
        event=_event(plan, config),
        sentence=_sentence(plan, config),
        patient_clip=patient_clip,
    )


def _nominal_patients(config: RunConfig) -> int:
    """The declared number of training patients per site; a phantom's size is public."""
    if config.privacy.nominal_patients is not None:
        return config.privacy.nominal_patients
    if config.data.is_phantom:
        return max(1, round(config.data.phantom_images * (1 - config.data.test_fraction)))
    raise ConfigError(
        "privacy.nominal_patients: needed with --dp patient on your own data; expected a public round number of "
        "training patients per site, not the true one"
    )


def _settled(plan: PrivacyPlan, config: RunConfig) -> PrivacyPlan:
    """The plan with its noise, refused when it is weak without consent."""
    privacy, settings = config.privacy, config.secure_agg
    if privacy.epsilon is not None:
        # One CKKS key in every client does not stand against a malicious aggregator at all.
        shared = settings.scheme is Scheme.CKKS and settings.ckks_key is KeyMode.SHARED
        behaviour = Behaviour.CURIOUS if shared else Behaviour.MALICIOUS
        plan = plan.calibrated(privacy.epsilon, behaviour=behaviour)
    plan.refuse_if_weak(accept_weak=privacy.accept_weak)
    return plan


def _event(plan: PrivacyPlan, config: RunConfig) -> Event:
    """What one secure sum releases, for the ledger."""
    if config.privacy.insecure_test_noise is not None:
        return NonPrivate(reason="the noise comes from a seed (--insecure-test-noise)")
    sampled = plan.sampling_rate < 1
    return Noise(
        family=Family(plan.family.value),
        noise_multiplier=plan.noise_multiplier,
        shares=plan.shares,
        placement=Placement.LOCAL if plan.schedule is Schedule.ROUND else Placement.DISTRIBUTED,
        sensitivity=float(plan.sensitivity),
        dimension=plan.dimension,
        sampling=Sampling.POISSON if sampled else Sampling.NONE,
        sampling_rate=plan.sampling_rate,
        sampler_error=plan.noise_share().total_variation,
    )


def _grid_norm(parameters: int, clients: int, multiplier: float) -> int:
    """G: fine enough for the update, and for every share of the noise to be wide enough to be accounted."""
    for_update = math.sqrt(parameters / 12) / _PRECISION
    for_noise = 2 * SMALLEST_SHARE * math.sqrt(clients) / multiplier
    return math.ceil(max(for_update, for_noise))


def _sentence(plan: PrivacyPlan, config: RunConfig) -> str:
    if config.privacy.insecure_test_noise is not None:
        return "NonPrivate: the noise comes from a seed (--insecure-test-noise); ε is null"
    noise = (
        f"clip {plan.clip_norm:g}, noise multiplier {plan.noise_multiplier:.3f} over {plan.shares} "
        f"client{'s' if plan.shares > 1 else ''}, δ = {plan.delta:g}"
    )
    if plan.unit is UnitOfPrivacy.PATIENT:
        return (
            f"differential privacy for patients (relation {plan.relation.value}): {plan.releases} steps, "
            f"sampling rate {plan.sampling_rate:g}, {noise}"
        )
    return (
        f"differential privacy for whole clinics (unit client, relation {plan.relation.value}): {noise}; "
        "with few clinics this protects little at useful noise"
    )
