"""ε where noise was chosen as the run went: the cap of its Rényi filter, carried over to every adversary.

Tight accountants assume mechanisms that were fixed beforehand, so what they say about such a run is a reading and no
guarantee. The budget's filter is one: whatever was chosen, the divergences of all releases at its order α, as its own
adversary sees them, sum to at most B (Feldman and Zrnic 2021, "Individual Privacy Accounting via a Rényi Filter"). If
another adversary faces at most ρ times that divergence under every noise that might have been chosen, its sum is at
most ρ·B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from secfl.dp.events import DpEvent, NoOp
from secfl.dp.plan import PrivacyPlan
from secfl.dp.rdp import rdp_curve, rdp_to_epsilon
from secfl.errors import ConfigError
from secfl.ledger.budget import ASIDE, Budget, Charge
from secfl.ledger.entry import RunHeader
from secfl.ledger.events import Composed, Event, Noise, leaves
from secfl.ledger.sights import Release, Sight, seen_event
from secfl.ledger.state import Terms

__all__ = ["FilterCap", "chosen_multipliers", "filter_cap"]

_LARGEST: Final = 600.0


class ChargeOf(Protocol):
    """`secfl.ledger.views.planned_charge`, which stands above this module."""

    def __call__(self, terms: Terms, budget: Budget, *, opened: bool) -> Charge:
        """What the budget is charged for a round."""
        ...


def chosen_multipliers(header: RunHeader) -> tuple[float, ...]:
    """The noise multipliers among which the run chose; empty where they were fixed beforehand."""
    if header.plan is None:
        return ()
    try:
        plan = PrivacyPlan.from_dict(dict(header.plan))
    except ConfigError:
        return ()
    return (plan.noise_multiplier, *plan.levels) if plan.levels else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterCap:
    """What the filter of a run guarantees. Build it with `filter_cap`.

    Attributes:
        order: α.
        divergence: B; what was charged, if somebody wrote down more than the budget allows.
        exceeded: Whether somebody did.
        multipliers: Every noise multiplier that might have been chosen.
        charge: What the filter is charged for a round under given terms, opened or not.
    """

    order: int
    divergence: float
    exceeded: bool
    multipliers: tuple[float, ...]
    charge: Callable[..., Charge]

    def epsilon(self, sights: Iterable[Sight], *, error: float, delta: float, site: str | None) -> float:
        """ε of an adversary over the whole run.

        Args:
            sights: What it gets of each round.
            error: Distance of what it sees from what the events say, in total variation.
            delta: Of the statement.
            site: Whose units, where sites differ.
        """
        charged: list[Sight] = []
        free: list[Sight] = []
        for sight in sights:
            is_free = isinstance(self.charge(sight.release.terms, opened=sight.release.opened).event, NoOp)
            (free if is_free else charged).append(sight)
        ratio = max((self._ratio(sight, site) for sight in charged), default=0.0)
        # An attempt that ended after inputs were sent costs the filter's adversary nothing, but not everybody.
        bound = ratio * self.divergence + math.fsum(
            sight.release.count * self._most(sight, site) for sight in free
        )
        if not math.isfinite(bound):
            return math.inf
        found = rdp_to_epsilon({self.order: bound}, delta * (1 - ASIDE)) if bound else 0.0
        # The split of δ is fixed: one that followed what was spent would be another adaptive choice.
        fits = found < _LARGEST and (1 + math.exp(found)) * error <= ASIDE * delta
        return found if fits else math.inf

    def _ratio(self, sight: Sight, site: str | None) -> float:
        """ρ: the largest ratio of divergences in this round over all noise that might have been chosen."""
        worst, terms = 0.0, sight.release.terms
        for multiplier in self.multipliers:
            event = _with_multiplier(terms.event, multiplier)
            faced = _divergence(seen_event(event, sight.unknown_shares, site=site), self.order)
            counted = _divergence(self.charge(replace(terms, event=event), opened=True).event, self.order)
            worst = max(worst, faced / counted if counted else math.inf)
        return worst

    def _most(self, sight: Sight, site: str | None) -> float:
        """The largest divergence of one such round over all noise that might have been chosen."""
        return max(
            _divergence(
                seen_event(
                    _with_multiplier(sight.release.terms.event, multiplier), sight.unknown_shares, site=site
                ),
                self.order,
            )
            for multiplier in self.multipliers
        )


def filter_cap(header: RunHeader, found: Sequence[Release], charge: ChargeOf) -> FilterCap | None:
    """The cap of a run that chose its noise as it went; ``None`` for one that has no filter.

    Args:
        header: Names the budget and the plan.
        found: Everything that counts as released.
        charge: What a budget is charged for a round, opened or not.
    """
    multipliers, budget = chosen_multipliers(header), header.budget
    if not multipliers or budget is None or budget.order is None:
        return None
    order = budget.order
    charges = [(charge(release.terms, budget, opened=release.opened), release.count) for release in found]
    spent = math.fsum(count * _divergence(one.event, order) for one, count in charges)
    conversion = rdp_to_epsilon({order: budget.epsilon}, budget.delta * (1 - ASIDE)) - budget.epsilon
    cap = max(0.0, budget.epsilon - conversion)
    recorded = {
        leaf.noise_multiplier
        for release in found
        for leaf in leaves(release.terms.event)
        if isinstance(leaf, Noise)
    }
    return FilterCap(
        order=order,
        divergence=max(cap, spent),
        exceeded=spent > cap * (1 + 1e-9),
        multipliers=tuple(sorted({*multipliers, *recorded})),
        charge=partial(_charged, charge, budget),
    )


def _charged(charge: ChargeOf, budget: Budget, terms: Terms, *, opened: bool) -> Charge:
    return charge(terms, budget, opened=opened)


def _with_multiplier(event: Event, multiplier: float) -> Event:
    """The same round with other noise; what is not private stays so."""
    match event:
        case Composed(events=events):
            return Composed(events=tuple(_with_multiplier(part, multiplier) for part in events))
        case Noise():
            return replace(event, noise_multiplier=multiplier)
        case _:
            return event


def _divergence(event: DpEvent, order: int) -> float:
    return 0.0 if isinstance(event, NoOp) else rdp_curve(event, (order,))[order]
