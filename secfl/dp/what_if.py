"""What a plan promises against each adversary, before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from secfl.dp.accounting import Accountant, Relation
from secfl.dp.effective import z_broken
from secfl.dp.integer import SMALLEST_SHARE
from secfl.dp.noise import NoiseFamily
from secfl.dp.plan import PrivacyPlan, Schedule
from secfl.guarantees import Adversary, Behaviour, UnitOfPrivacy, View

__all__ = ["ViewRow", "plan_table", "what_if_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRow:
    """One adversary.

    Attributes:
        adversary: View, behaviour and number of colluding clients.
        z_effective: Noise multiplier that it faces.
        epsilon_reference: ε with continuous Gaussian noise: for comparison.
        epsilon: ε proved for the integer mechanism, at least the reference; infinite where nothing is proved.
    """

    adversary: Adversary
    z_effective: float
    epsilon_reference: float
    epsilon: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite ε becomes ``None``."""
        return {
            "view": str(self.adversary.view),
            "colluders": self.adversary.colluders,
            "adversary": str(self.adversary.behaviour),
            "z_effective": self.z_effective,
            "epsilon_reference": _finite(self.epsilon_reference),
            "epsilon": _finite(self.epsilon),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def what_if_plan(
    *,
    clients: int,
    steps: int,
    noise_multiplier: float,
    delta: float,
    sampling_rate: float = 1.0,
    unit: UnitOfPrivacy = UnitOfPrivacy.PATIENT,
    threshold: int | None = None,
    family: NoiseFamily = NoiseFamily.DISCRETE_GAUSSIAN,
    parameters: int = 1_000_000,
    schedule: Schedule = Schedule.STEP,
) -> PrivacyPlan:
    """A plan for a question: what is not asked about gets the values that a run would choose.

    Args:
        clients: n.
        steps: T, sums with noise over the run.
        noise_multiplier: z.
        delta: δ of the run.
        sampling_rate: q; 1 for client level.
        unit: Patient or client.
        threshold: t; default ``max(3, floor(2n/3) + 1)``, at most n.
        family: Noise family.
        parameters: d; it matters little.
        schedule: What is summed; under ``round`` T counts local steps, and z is each client's own noise.

    Raises:
        ConfigError: Numbers out of range or combinations that cannot be carried out.
    """
    usual = min(clients, max(3, 2 * clients // 3 + 1))
    # Rounding errors stay far below the noise, and shares are wide enough to be accounted.
    grid_norm = max(4096, math.ceil(2 * math.sqrt(parameters)))
    if noise_multiplier > 0:
        grid_norm = max(
            grid_norm, math.ceil(2 * SMALLEST_SHARE * math.sqrt(max(1, clients)) / noise_multiplier)
        )
    return PrivacyPlan(
        unit=unit,
        relation=Relation.ZERO_OUT if unit is UnitOfPrivacy.CLIENT else Relation.ADD_REMOVE,
        clip_norm=1.0,
        grid_norm=grid_norm,
        dimension=parameters,
        noise_multiplier=noise_multiplier,
        releases=steps,
        cohort_size=clients,
        threshold=usual if threshold is None else threshold,
        delta=delta,
        sampling_rate=sampling_rate,
        family=family,
        schedule=schedule,
    )


def plan_table(plan: PrivacyPlan, *, accountant: Accountant = Accountant.AUTO) -> list[ViewRow]:
    """ε per adversary for a run in which nobody drops out, under a scheme that reveals only sums.

    The network is taken to see what the aggregator sees (links are not assumed to be encrypted), another client
    knows its own noise and data, and no less is claimed for the final model than for the aggregator. A malicious
    aggregator can always declare n - t drop-outs, so its rows count t shares.

    Returns:
        Rows in the fixed order of views; collusion with 1 to n - 1 clients, curious and malicious.
    """
    curious, malicious = Behaviour.CURIOUS, Behaviour.MALICIOUS
    adversaries = [Adversary(view=View.NETWORK)]
    adversaries += [
        Adversary(view=View.AGGREGATOR, behaviour=behaviour) for behaviour in (curious, malicious)
    ]
    adversaries += [
        Adversary(view=View.AGGREGATOR_COLLUDERS, behaviour=behaviour, colluders=colluders)
        for behaviour in (curious, malicious)
        for colluders in range(1, plan.cohort_size)
    ]
    adversaries += [
        Adversary(view=View.CLIENT, colluders=1),
        Adversary(view=View.FINAL_MODEL),
        Adversary(view=View.CRYPTO_BROKEN),
    ]
    return [_row(plan, adversary, accountant) for adversary in adversaries]


def _row(plan: PrivacyPlan, adversary: Adversary, accountant: Accountant) -> ViewRow:
    if adversary.view is View.CRYPTO_BROKEN:
        broken = plan.schedule is Schedule.STEP
        z = z_broken(plan.noise_multiplier, plan.shares) if broken else plan.noise_multiplier
    else:
        z = plan.z_aggregator(adversary.behaviour, colluders=adversary.colluders)
    reference = plan.epsilon_reference(z)
    return ViewRow(
        adversary=adversary,
        z_effective=z,
        epsilon_reference=reference,
        epsilon=max(reference, plan.epsilon(z, accountant=accountant)),
    )
