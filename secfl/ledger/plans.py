"""Does what was recorded follow the plan that the first entry states?

A difference is a finding and not damage: ε is worked out from what was recorded, whatever was planned.
"""

from __future__ import annotations

import math

from secfl.dp.plan import PrivacyPlan
from secfl.errors import ConfigError
from secfl.ledger.adaptive import filter_cap
from secfl.ledger.events import Event, Noise, NonPrivate, event_from_plan, leaves
from secfl.ledger.sights import releases
from secfl.ledger.state import LedgerState
from secfl.ledger.views import planned_charge

__all__ = ["plan_findings"]

_COMPARED = ("family", "placement", "shares", "sensitivity", "dimension", "sampling_rate")


def plan_findings(state: LedgerState) -> tuple[str, ...]:
    """Each difference in one sentence; empty when there is none, or no plan."""
    header = state.header
    if header.plan is None:
        return ()
    try:
        plan = PrivacyPlan.from_dict(dict(header.plan))
        planned_event = event_from_plan(plan)
    except ConfigError as error:
        return (f"the plan is not one that this program can carry out ({error})",)
    found = [
        f"the plan states {name} {planned}, the header {stated}"
        for name, planned, stated in (
            ("unit", plan.unit, header.unit),
            ("relation", plan.relation, header.relation),
            ("delta", plan.delta, header.delta),
            ("cohort_size", plan.cohort_size, len(header.cohort)),
            ("threshold", plan.threshold, header.threshold),
        )
        if planned != stated
    ]
    for index, terms in state.terms.items():
        for leaf in leaves(terms.event):
            if isinstance(leaf, NonPrivate):
                found.append(f"entry {index} records a release without privacy: {leaf.reason}")
            else:
                found += [
                    f"entry {index} {difference}" for difference in _differences(plan, planned_event, leaf)
                ]
    if plan.levels:
        cap = filter_cap(header, releases(state), planned_charge)
        if cap is None:
            found.append(
                "the plan chooses noise as the run goes, but the header has no budget with a Rényi order"
            )
        elif cap.exceeded:
            found.append("more was charged than the header's budget allows")
    count = sum(release.count * _count(release.terms.event) for release in releases(state))
    if count > plan.releases:
        found.append(f"{count} releases count as spent, the plan has {plan.releases}")
    return tuple(found)


def _differences(plan: PrivacyPlan, planned: Noise, leaf: Noise) -> list[str]:
    wrong = [
        f"records {name} {getattr(leaf, name)}, the plan has {getattr(planned, name)}"
        for name in _COMPARED
        if getattr(leaf, name) != getattr(planned, name)
    ]
    # Announced decay makes the multiplier z·κ^i; it must lie within the plan's range.
    ends = (plan.noise_multiplier, plan.noise_multiplier * plan.noise_decay ** (plan.releases - 1))
    low, high = min(ends), max(ends)
    if not (
        low <= leaf.noise_multiplier <= high
        or math.isclose(leaf.noise_multiplier, plan.noise_multiplier)
        or leaf.noise_multiplier in plan.levels
    ):
        wrong.append(
            f"records noise_multiplier {leaf.noise_multiplier}, the plan has {plan.noise_multiplier}"
        )
    return wrong


def _count(event: Event) -> int:
    return sum(leaf.count for leaf in leaves(event) if isinstance(leaf, Noise))
