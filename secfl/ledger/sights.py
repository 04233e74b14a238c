"""What each adversary gets of each recorded round, and what is left of its noise.

The rules of docs/privacy.md, section "Who sees how much noise", applied to a ledger's entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from secfl.dp.events import (
    DpEvent,
    Gaussian,
    IntegerNoise,
    NoOp,
    PoissonSampled,
    SelfComposed,
    compose,
)
from secfl.dp.events import NonPrivate as DpNonPrivate
from secfl.dp.integer import gaussian_equivalent
from secfl.dp.noise import NoiseFamily
from secfl.guarantees import Adversary, Behaviour, Guarantee, View, Visibility
from secfl.ledger.bounds import colluder_bound
from secfl.ledger.entry import Exposure
from secfl.ledger.events import Event, Family, Noise, NonPrivate, Placement, Sampling, SiteNoise, leaves
from secfl.ledger.state import LedgerState, Terms

__all__ = [
    "Release",
    "Sight",
    "look",
    "releases",
    "sampler_error",
    "seen_event",
    "smallest_multiplier",
    "visibility_of",
    "why_not_private",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Rounds that look the same to every accountant.

    Attributes:
        terms: What was released, under which guarantee.
        survivors: Clients in the sum; the threshold where it is not known.
        opened: Whether the sum counts as opened. Otherwise only single inputs were sent.
        count: How many such rounds.
        total_variation: Sampler error summed over them.
    """

    terms: Terms
    survivors: int
    opened: bool
    count: int
    total_variation: float


def releases(state: LedgerState) -> list[Release]:
    """Everything that counts as released: what is not settled counts as opened with ``t`` survivors."""
    threshold = state.header.threshold
    groups: dict[tuple[int, int, bool], tuple[int, float]] = {}
    errors: dict[tuple[int, int], float] = {}

    def add(terms: int, survivors: int, total_variation: float, *, opened: bool) -> None:
        key = (terms, survivors, opened)
        count, total = groups.get(key, (0, 0.0))
        error = errors.get((terms, survivors))
        if error is None:
            error = errors[terms, survivors] = sampler_error(state.terms[terms].event, shares=survivors)
        groups[key] = (count + 1, total + max(total_variation, error))

    for index, reservation in state.reservations.items():
        commit, exposure = state.commits.get(index), state.aborts.get(index)
        if commit is not None:
            add(reservation.terms, len(commit.survivors), commit.total_variation, opened=True)
        elif exposure is Exposure.INPUTS_SENT:
            add(reservation.terms, threshold, 0.0, opened=False)
        elif exposure is not Exposure.NOTHING_SENT:
            add(reservation.terms, threshold, 0.0, opened=True)
    for terms_index in state.recovered:
        if terms_index is not None:
            add(terms_index, threshold, 0.0, opened=True)
    return [
        Release(
            terms=state.terms[terms],
            survivors=survivors,
            opened=opened,
            count=count,
            total_variation=total,
        )
        for (terms, survivors, opened), (count, total) in sorted(groups.items())
    ]


@dataclass(frozen=True, slots=True)
class Sight:
    """What one adversary gets of one group of rounds: how many noise shares it does not know.

    ``unknown_shares`` is ``None`` when it sees the sum without noise, and 0 when it sees nothing.
    """

    release: Release
    visibility: Visibility
    unknown_shares: int | None


def seen_event(event: Event, unknown_shares: int | None, *, site: str | None) -> DpEvent:
    """The event as an adversary sees it that does not know ``unknown_shares`` of the noise shares.

    Raises:
        UnsupportedEvent: No accounting is known.
    """
    if unknown_shares == 0:
        return NoOp()
    return compose(_seen_leaf(leaf, unknown_shares, site) for leaf in leaves(event))


def _seen_leaf(leaf: Noise | NonPrivate, unknown_shares: int | None, site: str | None) -> DpEvent:
    if isinstance(leaf, NonPrivate):
        return DpNonPrivate(leaf.reason)
    if unknown_shares is None:
        return DpNonPrivate("the noise is added after the sum was seen")
    fraction = _fraction(leaf, unknown_shares)
    mechanism: DpEvent
    if isinstance(leaf, SiteNoise):
        mechanism = _seen_by_site(leaf, unknown_shares, site)
    elif leaf.family is Family.GAUSSIAN:
        mechanism = Gaussian(leaf.noise_multiplier * math.sqrt(fraction))
    else:
        sigma = leaf.noise_multiplier * leaf.sensitivity
        mechanism = IntegerNoise(
            family=NoiseFamily(leaf.family.value),
            sigma=sigma * math.sqrt(fraction),
            sensitivity=math.ceil(leaf.sensitivity),
            dimension=leaf.dimension,
            shares=unknown_shares if leaf.placement is Placement.DISTRIBUTED else 1,
            smallest_share=sigma / math.sqrt(leaf.shares),
            sampler_error=0.0,
        )
    if leaf.sampling is Sampling.POISSON:
        mechanism = PoissonSampled(leaf.rate(site), mechanism)
    return SelfComposed(mechanism, leaf.count) if leaf.count > 1 else mechanism


def _seen_by_site(leaf: SiteNoise, unknown_shares: int, site: str | None) -> IntegerNoise:
    """What is left for a unit of one site; where none is named, what costs at least as much as at any site."""
    family = NoiseFamily(leaf.family.value)
    if site is None and family is NoiseFamily.SKELLAM:
        # At an equal multiplier a smaller sensitivity costs more: the least of both costs the most.
        weakest = leaf.least_protected(unknown_shares)
        sensitivity = min(map(leaf.unit_sensitivity, leaf.weights))
        sigma = leaf.unknown_sigma(weakest, unknown_shares) / leaf.unit_sensitivity(weakest) * sensitivity
        return IntegerNoise(
            family=family,
            sigma=sigma,
            sensitivity=sensitivity,
            dimension=leaf.dimension,
            shares=1,
            smallest_share=sigma,
            sampler_error=0.0,
        )
    if site is None:
        every = [_seen_by_site(leaf, unknown_shares, name) for name in sorted(leaf.weights)]
        return min(every, key=lambda seen: gaussian_equivalent(seen).noise_multiplier)
    return IntegerNoise(
        family=family,
        sigma=leaf.unknown_sigma(site, unknown_shares),
        sensitivity=leaf.unit_sensitivity(site),
        dimension=leaf.dimension,
        shares=unknown_shares,
        smallest_share=min(map(leaf.share_sigma, leaf.weights)),
        sampler_error=0.0,
    )


def _fraction(leaf: Noise, unknown_shares: int) -> float:
    """Share of the planned variance that stays unknown."""
    return unknown_shares / leaf.shares if leaf.placement is Placement.DISTRIBUTED else 1.0


def look(release: Release, adversary: Adversary) -> Sight | None:
    """What this adversary gets of these rounds; ``None`` when they cost it nothing."""
    visibility = visibility_of(release.terms.guarantee, adversary, release.survivors)
    if visibility is Visibility.NOTHING or (not release.opened and visibility is Visibility.SUM):
        return None
    central = any(
        isinstance(leaf, Noise) and leaf.placement is Placement.CENTRAL
        for leaf in leaves(release.terms.event)
    )
    outside = adversary.view in {View.FINAL_MODEL, View.CLIENT} and visibility is Visibility.SUM
    if adversary.view is View.CLIENT and adversary.behaviour is Behaviour.MALICIOUS:
        # It taps the network: what goes to the aggregator there has no central noise yet.
        outside = outside and release.terms.guarantee.network_sees is Visibility.NOTHING
    if central and not outside:
        return Sight(release, visibility, None)
    if visibility is Visibility.EVERY_UPDATE:
        return Sight(release, visibility, 1)
    present = release.survivors
    aggregates = adversary.view in {View.AGGREGATOR, View.AGGREGATOR_COLLUDERS}
    if aggregates and adversary.behaviour is Behaviour.MALICIOUS:
        # It can always declare n - t clients dropped, whoever really was there.
        present = release.terms.guarantee.threshold
    known = 1 if adversary.view is View.CLIENT else adversary.colluders
    return Sight(release, visibility, max(1, present - known))


def visibility_of(guarantee: Guarantee, adversary: Adversary, survivors: int) -> Visibility:
    """What this adversary sees of a round with this many survivors.

    Nobody sees less than a weaker adversary: a client that taps the network sees what a client and what the
    network sees, and all traffic passes through the aggregator.
    """
    match adversary.view:
        case View.CLIENT if adversary.behaviour is Behaviour.MALICIOUS:
            client = guarantee.visibility(Adversary(view=View.CLIENT))
            return _most(client, guarantee.client_with_network, guarantee.network_sees)
        case View.AGGREGATOR | View.AGGREGATOR_COLLUDERS:
            bound = colluder_bound(guarantee, adversary.behaviour, survivors=survivors)
            seen = Visibility.SUM if adversary.colluders <= bound else Visibility.EVERY_UPDATE
            return _most(seen, guarantee.network_sees)
        case _:
            return guarantee.visibility(adversary)


_RISING = list(Visibility)


def _most(*seen: Visibility) -> Visibility:
    return max(seen, key=_RISING.index)


def why_not_private(sights: Iterable[Sight]) -> str:
    """Why there is no finite ε for what was seen; empty when there is one."""
    for item in sights:
        for leaf in leaves(item.release.terms.event):
            if isinstance(leaf, NonPrivate):
                return leaf.reason
        if item.unknown_shares is None:
            return "the noise is added after this adversary has seen the sum"
    return ""


def smallest_multiplier(sights: Iterable[Sight], site: str | None = None) -> float | None:
    """The least noise multiplier that a unit of a site faced in any round; ``None`` where noise is missing."""
    smallest = math.inf
    for item in sights:
        for leaf in leaves(item.release.terms.event):
            if isinstance(leaf, NonPrivate) or item.unknown_shares is None:
                return None
            if isinstance(leaf, SiteNoise):
                smallest = min(smallest, _seen_by_site(leaf, item.unknown_shares, site).noise_multiplier)
                continue
            smallest = min(smallest, leaf.noise_multiplier * math.sqrt(_fraction(leaf, item.unknown_shares)))
    return None if math.isinf(smallest) else smallest


def sampler_error(event: Event, *, shares: int) -> float:
    """Total variation distance of all noise that one round draws from the ideal noise.

    Args:
        event: What the round releases.
        shares: Clients whose shares of distributed noise may be in the sum; more than the planned m count too.
    """
    return math.fsum(
        leaf.count
        * leaf.dimension
        * leaf.sampler_error
        * (max(shares, leaf.shares) if leaf.placement is Placement.DISTRIBUTED else 1)
        for leaf in leaves(event)
        if isinstance(leaf, Noise)
    )
