"""What a plan promises against each adversary, before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from secfl.dp.accounting import Accountant
from secfl.dp.effective import z_broken
from secfl.dp.plan import PrivacyPlan, Schedule
from secfl.guarantees import Adversary, Behaviour, View

__all__ = ["ViewRow", "plan_table"]


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
