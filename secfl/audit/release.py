"""One release of our own, clip + round + noise + aggregate, audited for each view.

The code under audit is the code that runs: `PatientAccumulator`, `privatize`, addition modulo 2^b. Many draws are
had by repeating a small vector, so that one call of `privatize` noises all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfl._version import __version__
from secfl.audit.mechanism import Assumed, MechanismAudit, audit_samples
from secfl.audit.verdicts import REFUTED_LEVEL, SUSPECT_LEVEL, worst
from secfl.crypto.codec import centre
from secfl.dp.accounting import Relation, epsilon
from secfl.dp.calibration import modulus_bits
from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.effective import colluder_limit, z_broken
from secfl.dp.events import PoissonSampled
from secfl.dp.noise import NoiseShare, PatientSum, privatize
from secfl.dp.plan import PrivacyPlan, Rounding, Schedule
from secfl.errors import ConfigError, DataError
from secfl.guarantees import Adversary, Behaviour, UnitOfPrivacy, View
from secfl.ledger.reader import replay
from secfl.ledger.verify import verify_file
from secfl.randomness import Rng

__all__ = [
    "ReleaseAudit",
    "audit_release",
    "describe",
    "plan_of_run",
    "release_samples",
    "release_views",
    "releases_document",
    "shares_in_view",
    "usual_plan",
]

_FORMAT_VERSION: Final = 1
_PATIENTS: Final = 2  # of each site, beside the one that is in or out
_DIMENSION: Final = 4  # many draws of short vectors; the patient's gradient has one direction anyway


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAudit:
    """One view of one release."""

    adversary: Adversary
    audit: MechanismAudit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "view": self.adversary.view.value,
            "adversary": self.adversary.behaviour.value,
            "colluders": self.adversary.colluders,
            "name": self.name,
            **self.audit.to_dict(),
        }

    @property
    def name(self) -> str:
        """For tables: view, behaviour and colluders."""
        return describe(self.adversary)


def describe(adversary: Adversary) -> str:
    """One adversary in words."""
    if adversary.view is View.CRYPTO_BROKEN:
        return "crypto_broken"
    words = f"{adversary.view.value}, {adversary.behaviour.value}"
    return words + (f", {adversary.colluders} colluding" if adversary.colluders else "")


def usual_plan(*, clients: int, noise_multiplier: float) -> PrivacyPlan:
    """One release of a cohort in which at most one client in five drops out, of four coordinates.

    Raises:
        ConfigError: A multiplier out of range.
    """
    return PrivacyPlan(
        unit=UnitOfPrivacy.PATIENT,
        clip_norm=1.0,
        grid_norm=1000,
        dimension=_DIMENSION,
        noise_multiplier=noise_multiplier,
        releases=1,
        cohort_size=clients,
        threshold=max(3, clients - clients // 5),
        delta=1e-5,
    )


def plan_of_run(run: Path) -> PrivacyPlan:
    """One release of a run, without its sampling: the plan in its ledger, for a short vector.

    Clip, grid, noise share, cohort and threshold are the run's. Noise that an announced schedule changes is that of
    the first release.

    Raises:
        DataError: No ledger.
        LedgerCorrupted: The ledger does not verify.
        ConfigError: A run without differential privacy, or neighbours or rounding that this audit does not draw.
    """
    ledger = run / "ledger.jsonl"
    if not ledger.is_file():
        raise DataError(f"{ledger}: missing; expected a run directory")
    verify_file(ledger)
    header = replay(ledger.read_bytes()).state.header
    if header.plan is None:
        raise ConfigError(f"release audit: {run} has no differential privacy to audit")
    plan = PrivacyPlan.from_dict(dict(header.plan))
    if plan.rounding is not Rounding.EACH_UNIT or plan.relation is Relation.REPLACE_ONE:
        raise ConfigError("release audit: expected units that are rounded each on its own, in or out")
    return replace(plan, dimension=_DIMENSION, releases=1, sampling_rate=1.0, noise_decay=1.0, levels=())


def releases_document(plan: PrivacyPlan, found: Sequence[ReleaseAudit]) -> dict[str, Any]:
    """All views as plain values for JSON."""
    return {
        "format_version": _FORMAT_VERSION,
        "software": f"secfl {__version__}",
        "noise_multiplier": plan.noise_multiplier,
        "cohort_size": plan.cohort_size,
        "threshold": plan.threshold,
        "noise": plan.family.value,
        "verdict": worst([one.audit.verdict for one in found]).value,
        "views": [one.to_dict() for one in found],
    }


def release_views(plan: PrivacyPlan) -> list[Adversary]:
    """The views that face different noise: each aggregator with every tolerated number of colluders, and no crypto."""
    found = []
    for behaviour in Behaviour:
        survivors = plan.threshold if behaviour is Behaviour.MALICIOUS else plan.cohort_size
        limit = colluder_limit(
            survivors=survivors,
            threshold=plan.threshold,
            cohort_size=plan.cohort_size,
            behaviour=behaviour,
        )
        for colluders in range(max(0, limit) + 1):
            view = View.AGGREGATOR_COLLUDERS if colluders else View.AGGREGATOR
            found.append(Adversary(view=view, behaviour=behaviour, colluders=colluders))
    return [*found, Adversary(view=View.CRYPTO_BROKEN)]


def shares_in_view(plan: PrivacyPlan, adversary: Adversary) -> int:
    """How many clients' vectors the adversary sees added up and cannot take apart."""
    if adversary.view is View.CRYPTO_BROKEN:
        return 1
    survivors = plan.threshold if adversary.behaviour is Behaviour.MALICIOUS else plan.cohort_size
    return survivors - adversary.colluders


def release_samples(
    plan: PrivacyPlan,
    *,
    shares: int,
    draws: int,
    rng: Rng,
    noise: NoiseShare | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What an adversary sees of one release with and without one patient, many times.

    The patient's gradient is ten times the clip norm long. The score is what an adversary who knows everything
    else would use: the sum less the known sum, along the patient's gradient, over the sensitivity.

    Args:
        plan: Grid, clip and noise; small dimensions give many draws cheaply. Sampling is left out (rate 1).
        shares: Clients whose vectors are added.
        draws: Of each neighbour.
        rng: The noise of all clients, one fork each.
        noise: Another noise share than the plan's, for controls.

    Returns:
        Scores with the patient and without, float64, shape ``(draws,)``; about 1 and 0 in the mean.
    """
    grid = GridClip.single(dimension=plan.dimension, clip_norm=plan.clip_norm, grid_norm=plan.grid_norm)
    share = plan.noise_share() if noise is None else noise
    bits = modulus_bits(
        signal_bound=plan.cohort_size * (_PATIENTS + 1) * plan.grid_norm,
        family=plan.family,
        total_sigma=plan.share_sigma() * plan.cohort_size**0.5,
        coordinates=plan.dimension,
        releases=2 * draws,
    )
    direction = np.linspace(1.0, 2.0, plan.dimension)
    direction /= np.linalg.norm(direction)
    target = 10 * plan.clip_norm * direction
    others = [
        [plan.clip_norm * np.roll(direction, 1 + site + patient) for patient in range(_PATIENTS)]
        for site in range(shares)
    ]
    scores = []
    for world, extra in (("present", [target]), ("absent", [])):
        total = np.zeros(draws * plan.dimension, dtype=np.uint64)
        known = np.zeros(plan.dimension, dtype=np.int64)
        for site, gradients in enumerate(others):
            summed = _patient_sum(grid, [*gradients, *(extra if site == 0 else [])])
            known += _patient_sum(grid, gradients).values
            repeated = PatientSum(values=np.tile(summed.values, draws), sensitivity=summed.sensitivity)
            source = rng.fork(f"{world}/{site}")
            sent = privatize(repeated, noise=share, bits=bits, rng=source).vectors["update"]
            total += sent
        total &= np.uint64((1 << bits) - 1)
        word = np.uint32 if bits <= 32 else np.uint64
        seen = centre(total.astype(word), bits=bits).reshape(draws, plan.dimension) - known
        scores.append(seen @ direction / plan.sensitivity)
    return scores[0], scores[1]


def audit_release(
    plan: PrivacyPlan, *, draws: int, rng: Rng, level: float = REFUTED_LEVEL
) -> list[ReleaseAudit]:
    """Audit one release in every view; the level is split over the views (Bonferroni).

    Args:
        plan: Its ε for one release in each view is the claim.
        draws: Of each neighbour and view, up to about a million.
        rng: The noise. A seeded one makes the audit repeatable; the mechanism is the same.
        level: False-alarm rate of REFUTED over all views together.

    Raises:
        ConfigError: The plan is of the schedule ``round``, whose noise is each client's own.
    """
    if plan.schedule is not Schedule.STEP:
        raise ConfigError("release audit: expected a plan of the schedule step")
    views = release_views(plan)
    found = []
    for adversary in views:
        shares = shares_in_view(plan, adversary)
        present, absent = release_samples(plan, shares=shares, draws=draws, rng=rng.fork(describe(adversary)))
        audit = audit_samples(
            present,
            absent,
            claimed=(_claim(plan, adversary), plan.delta),
            score=_first_column,
            assume=Assumed.GAUSSIAN,
            level=level / len(views),
            suspect_level=max(level, SUSPECT_LEVEL) / len(views),
        )
        found.append(ReleaseAudit(adversary=adversary, audit=audit))
    return found


def _claim(plan: PrivacyPlan, adversary: Adversary) -> float:
    """ε of one release without sampling, as the accountant has it for this view."""
    z = (
        z_broken(plan.noise_multiplier, plan.shares)
        if adversary.view is View.CRYPTO_BROKEN
        else plan.z_aggregator(adversary.behaviour, colluders=adversary.colluders)
    )
    event = plan.event_of_release(z)
    if isinstance(event, PoissonSampled):
        event = event.event
    return epsilon(event, delta=plan.delta, relation=plan.relation)


def _patient_sum(grid: GridClip, gradients: Sequence[NDArray[np.float64]]) -> PatientSum:
    accumulator = PatientAccumulator(grid)
    accumulator.add_all(gradients)
    return accumulator.total()


def _first_column(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows[:, 0]
