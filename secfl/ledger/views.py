"""One ε per adversary, worked out from what the ledger records.

For each view: which of the recorded releases this adversary sees, how many noise shares in each it does not
know, the composition of what is left over all rounds as they happened, and the distance that the sampler and
the cryptography add to δ. Formulas: docs/privacy.md; rows and columns: docs/ledger.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from secfl.dp.accounting import Accountant, Relation, epsilon, epsilon_reference
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
from secfl.dp.noise import NoiseFamily
from secfl.errors import ConfigError, UnsupportedEvent
from secfl.guarantees import Adversary, Assumption, Behaviour, Guarantee, View, Visibility
from secfl.ledger.bounds import colluder_bound
from secfl.ledger.budget import Budget, Charge
from secfl.ledger.entry import Exposure, KeyCustody, RunHeader
from secfl.ledger.events import Event, Family, Noise, NonPrivate, Placement, Sampling, leaves
from secfl.ledger.state import LedgerState, Terms
from secfl.ledger.words import condition, sight

__all__ = [
    "Release",
    "Statement",
    "adversaries",
    "planned_charge",
    "releases",
    "seen_event",
    "statements",
    "statements_about",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One row: what one adversary learns about one unit of privacy.

    Attributes:
        view: Who is looking.
        adversary: Whether it follows the protocol.
        colluders: Clients that share everything with it.
        site: The clinic whose patients the row is about, where clinics differ; else ``None`` for all.
        sees: What it sees, in words.
        epsilon: Proved for the mechanism that ran; ``None`` when there is no finite guarantee.
        epsilon_rdp: The same by the second accountant (Rényi); never a claim, always at least as large
            up to numerical error.
        epsilon_reference: With continuous Gaussian noise of the same width, for comparison.
        delta: δ of ``epsilon``, everything included.
        z_effective: Smallest noise multiplier that this adversary faced in a round; ``None`` without noise.
        unit: Whose presence is hidden, or ``None``.
        relation: Which data sets are neighbours, or ``None``.
        assumptions: What carries the row, beyond mathematics.
        post_quantum: Whether all of them are believed to hold against a quantum computer.
        dropouts_tolerated: Clients that may drop out without stopping a round.
        colluders_tolerated: Most colluders for which this behaviour still sees sums only; -1 for none.
        key_mode: Key mode of the scheme.
        broken: Whether the row (or a round of it) is that of broken cryptography.
        simulated: Whether one process held all keys.
        unprotected: What was used or shown without protection.
        non_private: Why there is no ε; empty when there is one.
        holds_if: One sentence.
    """

    view: View
    adversary: Behaviour
    colluders: int
    site: str | None
    sees: str
    epsilon: float | None
    epsilon_rdp: float | None
    epsilon_reference: float | None
    delta: float | None
    z_effective: float | None
    unit: str | None
    relation: str | None
    assumptions: tuple[Assumption, ...]
    post_quantum: bool
    dropouts_tolerated: int
    colluders_tolerated: int
    key_mode: str
    broken: bool
    simulated: bool
    unprotected: tuple[str, ...]
    non_private: str
    holds_if: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for files and for ``--json``."""
        return {
            "view": self.view.value,
            "adversary": self.adversary.value,
            "colluders": self.colluders,
            "site": self.site,
            "sees": self.sees,
            "epsilon": self.epsilon,
            "epsilon_rdp": self.epsilon_rdp,
            "epsilon_reference": self.epsilon_reference,
            "delta": self.delta,
            "z_effective": self.z_effective,
            "unit": self.unit,
            "relation": self.relation,
            "assumptions": [assumption.name for assumption in self.assumptions],
            "post_quantum": self.post_quantum,
            "dropouts_tolerated": self.dropouts_tolerated,
            "colluders_tolerated": self.colluders_tolerated,
            "key_mode": self.key_mode,
            "broken": self.broken,
            "simulated": self.simulated,
            "unprotected": list(self.unprotected),
            "non_private": self.non_private,
            "holds_if": self.holds_if,
        }


def adversaries(cohort_size: int) -> Iterator[Adversary]:
    """The rows, in order.

    A malicious ``client`` is one that also taps the network. The other views have no malicious form of
    their own: an active network is what links between identities exclude, or else the aggregator's row.
    """
    yield Adversary(view=View.NETWORK)
    for behaviour in Behaviour:
        yield Adversary(view=View.AGGREGATOR, behaviour=behaviour)
    for behaviour in Behaviour:
        for colluders in range(1, cohort_size):
            yield Adversary(view=View.AGGREGATOR_COLLUDERS, behaviour=behaviour, colluders=colluders)
    for behaviour in Behaviour:
        yield Adversary(view=View.CLIENT, behaviour=behaviour)
    yield Adversary(view=View.FINAL_MODEL)
    yield Adversary(view=View.CRYPTO_BROKEN)


def releases(state: LedgerState) -> list[Release]:
    """Everything that counts as released: what is not settled counts as opened with ``t`` survivors."""
    threshold = state.header.threshold
    groups: dict[tuple[int, int, bool], tuple[int, float]] = {}

    def add(terms: int, survivors: int, total_variation: float, *, opened: bool) -> None:
        key = (terms, survivors, opened)
        count, total = groups.get(key, (0, 0.0))
        groups[key] = (count + 1, total + max(total_variation, errors[terms]))

    errors = {index: _sampler_error(terms.event) for index, terms in state.terms.items()}
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


def statements(state: LedgerState, delta: float | None = None) -> list[Statement]:
    """One row per adversary, and per site where the sites' sampling rates differ.

    Args:
        state: A ledger's content, finished or not.
        delta: δ of every row, the header's by default.

    Raises:
        ConfigError: No δ is given and the header has none, though there is noise.
    """
    return statements_about(state, adversaries(len(state.header.cohort)), delta)


def statements_about(
    state: LedgerState, rows: Iterable[Adversary], delta: float | None = None
) -> list[Statement]:
    """The rows of these adversaries alone, which is quicker than all of them; see `statements`."""
    found = releases(state)
    delta = state.header.delta if delta is None else delta
    joiner = _Joiner(state.header, found, delta)
    return [joiner.row(adversary, site) for adversary in rows for site in _sites(state.header, found)]


@dataclass(frozen=True, slots=True)
class _Sight:
    """What one adversary gets of one group of rounds: how many noise shares it does not know.

    ``unknown_shares`` is ``None`` when it sees the sum without noise, and 0 when it sees nothing.
    """

    release: Release
    visibility: Visibility
    unknown_shares: int | None


class _Joiner:
    """Joins releases and adversaries; keeps results, because many rows see the same."""

    def __init__(self, header: RunHeader, found: list[Release], delta: float | None) -> None:
        self._header = header
        self._releases = found
        self._delta = delta
        self._known: dict[Any, tuple[float, float, float]] = {}

    def row(self, adversary: Adversary, site: str | None) -> Statement:
        header = self._header
        sights = [item for release in self._releases if (item := _look(release, adversary))]
        broken = any(item.visibility is Visibility.EVERY_UPDATE for item in sights)
        visibility = max(
            (item.visibility for item in sights), key=list(Visibility).index, default=Visibility.NOTHING
        )
        rests_on_cryptography = adversary.view not in {View.FINAL_MODEL, View.CRYPTO_BROKEN} and not (
            sights and all(item.visibility is Visibility.EVERY_UPDATE for item in sights)
        )
        reason = _why_not_private(sights)
        figures: tuple[float, float, float] | None = None
        if not reason:
            figures = self._figures(sights, site, rests_on_cryptography=rests_on_cryptography)
            if math.isinf(figures[0]):
                figures, reason = None, "the errors of sampler and cryptography exceed delta"
        guarantee = self._releases[-1].terms.guarantee if self._releases else None
        tolerated = -1
        if guarantee is not None:
            tolerated = min(
                colluder_bound(release.terms.guarantee, adversary.behaviour, survivors=release.survivors)
                for release in self._releases
            )
        assumptions = _assumptions(sights) if rests_on_cryptography else ()
        simulated = header.custody is KeyCustody.ONE_PROCESS
        return Statement(
            view=adversary.view,
            adversary=adversary.behaviour,
            colluders=adversary.colluders,
            site=site,
            sees=sight(adversary, visibility, site=site),
            epsilon=None if figures is None else figures[0],
            epsilon_rdp=None if figures is None or math.isinf(figures[1]) else figures[1],
            epsilon_reference=None if figures is None or math.isinf(figures[2]) else figures[2],
            delta=self._delta,
            z_effective=_smallest_multiplier(sights),
            unit=None if header.unit is None else header.unit.value,
            relation=None if header.relation is None else header.relation.value,
            assumptions=assumptions,
            post_quantum=all(assumption.post_quantum for assumption in assumptions),
            dropouts_tolerated=len(header.cohort) - header.threshold,
            colluders_tolerated=tolerated,
            key_mode=header.key_mode,
            broken=broken,
            simulated=simulated,
            unprotected=_unprotected(header, self._releases),
            non_private=reason,
            holds_if=condition(
                adversary,
                visibility,
                assumptions=assumptions,
                tolerated=tolerated,
                threshold=header.threshold,
                cohort_size=len(header.cohort),
                reason=reason,
                simulated=simulated,
            ),
        )

    def _figures(
        self, sights: list[_Sight], site: str | None, *, rests_on_cryptography: bool
    ) -> tuple[float, float, float]:
        """ε proved, ε by RDP, ε of the Gaussian reference."""
        events = tuple(
            SelfComposed(
                seen_event(item.release.terms.event, item.unknown_shares, site=site), item.release.count
            )
            for item in sights
        )
        event = compose(events)
        if isinstance(event, NoOp):
            return (0.0, 0.0, 0.0)
        error = math.fsum(item.release.total_variation for item in sights)
        if rests_on_cryptography:
            error += math.fsum(
                item.release.count * 2.0**item.release.terms.guarantee.advantage_log2
                for item in sights
                if item.visibility is not Visibility.EVERY_UPDATE
            )
        key = (event, error)
        if key not in self._known:
            self._known[key] = _three_epsilons(event, error, self._delta, self._header.relation)
        return self._known[key]


def _three_epsilons(
    event: DpEvent, error: float, delta: float | None, relation: Relation | None
) -> tuple[float, float, float]:
    if delta is None:
        raise ConfigError("delta: the ledger states none, so give one")
    relation = Relation.ADD_REMOVE if relation is None else relation
    proved = _with_error(event, error, delta, relation, Accountant.AUTO)
    renyi = _with_error(event, error, delta, relation, Accountant.RDP)
    try:
        reference = epsilon_reference(event, delta=delta)
    except UnsupportedEvent:
        reference = math.inf
    return (proved, renyi, reference)


def _with_error(
    event: DpEvent, error: float, delta: float, relation: Relation, accountant: Accountant
) -> float:
    """An ε with δ_ideal(ε) + (1 + e^ε)·error <= δ, or infinity when none is found.

    ``error`` bounds how far what the adversary sees is from what the event says, in total variation and in
    distinguishing advantage, summed over rounds.
    """
    found = epsilon(event, delta=delta, relation=relation, accountant=accountant)
    if error == 0:
        return found
    for _ in range(8):
        trial = found + 1e-6
        if trial > 600:
            return math.inf
        rest = delta - (1 + math.exp(trial)) * error
        if rest <= 0:
            return math.inf
        found = epsilon(event, delta=rest, relation=relation, accountant=accountant)
        if found <= trial:
            return found
    return math.inf


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
    if leaf.family is Family.GAUSSIAN:
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


def _fraction(leaf: Noise, unknown_shares: int) -> float:
    """Share of the planned variance that stays unknown."""
    return unknown_shares / leaf.shares if leaf.placement is Placement.DISTRIBUTED else 1.0


def _look(release: Release, adversary: Adversary) -> _Sight | None:
    """What this adversary gets of these rounds; ``None`` when they cost it nothing."""
    visibility = _visibility(release.terms.guarantee, adversary, release.survivors)
    if visibility is Visibility.NOTHING or (not release.opened and visibility is Visibility.SUM):
        return None
    central = any(
        isinstance(leaf, Noise) and leaf.placement is Placement.CENTRAL
        for leaf in leaves(release.terms.event)
    )
    outside = adversary.view in {View.FINAL_MODEL, View.CLIENT} and visibility is Visibility.SUM
    if central and not outside:
        return _Sight(release, visibility, None)
    if visibility is Visibility.EVERY_UPDATE:
        return _Sight(release, visibility, 1)
    present = release.survivors
    aggregates = adversary.view in {View.AGGREGATOR, View.AGGREGATOR_COLLUDERS}
    if aggregates and adversary.behaviour is Behaviour.MALICIOUS:
        # It can always declare n - t clients dropped, whoever really was there.
        present = release.terms.guarantee.threshold
    known = 1 if adversary.view is View.CLIENT else adversary.colluders
    return _Sight(release, visibility, max(1, present - known))


def _visibility(guarantee: Guarantee, adversary: Adversary, survivors: int) -> Visibility:
    match adversary.view:
        case View.CLIENT if adversary.behaviour is Behaviour.MALICIOUS:
            tapped = guarantee.client_with_network
            return Visibility.SUM if tapped is Visibility.NOTHING else tapped
        case View.AGGREGATOR | View.AGGREGATOR_COLLUDERS:
            bound = colluder_bound(guarantee, adversary.behaviour, survivors=survivors)
            return Visibility.SUM if adversary.colluders <= bound else Visibility.EVERY_UPDATE
        case _:
            return guarantee.visibility(adversary)


def _why_not_private(sights: Iterable[_Sight]) -> str:
    """Why there is no finite ε for what was seen; empty when there is one."""
    for item in sights:
        for leaf in leaves(item.release.terms.event):
            if isinstance(leaf, NonPrivate):
                return leaf.reason
        if item.unknown_shares is None:
            return "the noise is added after this adversary has seen the sum"
    return ""


def _smallest_multiplier(sights: Iterable[_Sight]) -> float | None:
    smallest = math.inf
    for item in sights:
        for leaf in leaves(item.release.terms.event):
            if isinstance(leaf, NonPrivate) or item.unknown_shares is None:
                return None
            smallest = min(smallest, leaf.noise_multiplier * math.sqrt(_fraction(leaf, item.unknown_shares)))
    return None if math.isinf(smallest) else smallest


def _sampler_error(event: Event) -> float:
    return math.fsum(
        leaf.count * leaf.dimension * leaf.shares * leaf.sampler_error
        for leaf in leaves(event)
        if isinstance(leaf, Noise)
    )


def _sites(header: RunHeader, found: Iterable[Release]) -> tuple[str | None, ...]:
    differ = any(
        isinstance(leaf, Noise) and leaf.site_rates is not None and len(set(leaf.site_rates.values())) > 1
        for release in found
        for leaf in leaves(release.terms.event)
    )
    return header.cohort if differ else (None,)


def _assumptions(sights: Iterable[_Sight]) -> tuple[Assumption, ...]:
    """The union over rounds, in the order in which they first appear."""
    union: dict[str, Assumption] = {}
    for item in sights:
        if item.visibility is not Visibility.EVERY_UPDATE:
            for assumption in item.release.terms.guarantee.assumptions:
                union.setdefault(assumption.name, assumption)
    return tuple(union.values())


def _unprotected(header: RunHeader, found: Iterable[Release]) -> tuple[str, ...]:
    listed = dict.fromkeys(header.unprotected)
    for release in found:
        listed.update(dict.fromkeys(release.terms.unprotected))
    return tuple(listed)


def planned_charge(terms: Terms, budget: Budget, *, opened: bool = True) -> Charge:
    """What a budget is charged for one round, at the threshold's number of survivors.

    Whoever drops out is up to the aggregator, so a plan that counts on more survivors can be broken by it.

    Args:
        terms: Of the round.
        budget: Whose adversary is charged.
        opened: False for an attempt that ended after single inputs were sent.
    """
    view = View.AGGREGATOR_COLLUDERS if budget.colluders else View.AGGREGATOR
    adversary = Adversary(view=view, behaviour=budget.adversary, colluders=budget.colluders)
    error = _sampler_error(terms.event)
    release = Release(
        terms=terms, survivors=terms.guarantee.threshold, opened=opened, count=1, total_variation=error
    )
    item = _look(release, adversary)
    if item is None:
        return Charge(event=NoOp(), error=0.0)
    if item.visibility is not Visibility.EVERY_UPDATE:
        error += 2.0**terms.guarantee.advantage_log2
    return Charge(event=seen_event(terms.event, item.unknown_shares, site=None), error=error)
