"""One ε per adversary, worked out from what the ledger records.

For each view: which of the recorded releases this adversary sees, how many noise shares in each it does not
know, the composition of what is left over all rounds as they happened, and the distance that the sampler and
the cryptography add to δ. Formulas: docs/privacy.md; rows and columns: docs/ledger.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from secfl.dp.accounting import Accountant, Relation, epsilon, epsilon_reference, with_sampler_error
from secfl.dp.events import DpEvent, NoOp, SelfComposed, compose
from secfl.errors import ConfigError, UnsupportedEvent
from secfl.guarantees import Adversary, Assumption, Behaviour, View, Visibility
from secfl.ledger.adaptive import chosen_multipliers, filter_cap
from secfl.ledger.bounds import colluder_bound
from secfl.ledger.budget import Budget, Charge
from secfl.ledger.entry import KeyCustody, RunHeader
from secfl.ledger.events import Noise, SiteNoise, leaves
from secfl.ledger.sights import (
    Release,
    Sight,
    look,
    releases,
    sampler_error,
    seen_event,
    smallest_multiplier,
    visibility_of,
    why_not_private,
)
from secfl.ledger.state import LedgerState, Terms
from secfl.ledger.statement import Statement
from secfl.ledger.words import condition, sight

__all__ = ["adversaries", "planned_charge", "planned_statements", "statements", "statements_about"]

_Figures = tuple[float, float, float]
"""ε proved, ε by the Rényi accountant, ε of the Gaussian reference."""

_PURE = frozenset({View.FINAL_MODEL, View.CRYPTO_BROKEN})  # views that rest on no cryptography
_AGGREGATORS = frozenset({View.AGGREGATOR, View.AGGREGATOR_COLLUDERS})


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


def planned_statements(
    header: RunHeader, planned: Iterable[tuple[Terms, int]], rows: Iterable[Adversary]
) -> list[Statement]:
    """The rows of a run that has not begun: so many rounds on each terms, with only the threshold surviving.

    Args:
        header: Of the run; its δ is used.
        planned: Terms and how many rounds are released on them.
        rows: The adversaries.

    Raises:
        ConfigError: The header has no δ, though there is noise.
    """
    found = [
        Release(
            terms=terms,
            survivors=header.threshold,
            opened=True,
            count=count,
            total_variation=count * sampler_error(terms.event, shares=len(header.cohort)),
        )
        for terms, count in planned
    ]
    joiner = _Joiner(header, found, header.delta)
    return [joiner.row(adversary, site) for adversary in rows for site in _sites(header, found)]


class _Joiner:
    """Joins releases and adversaries; keeps results, because many rows see the same."""

    def __init__(self, header: RunHeader, found: list[Release], delta: float | None) -> None:
        self._header = header
        self._releases = found
        self._delta = delta
        self._known: dict[tuple[DpEvent, float], _Figures] = {}
        self._cap = filter_cap(header, found, planned_charge)

    def row(self, adversary: Adversary, site: str | None) -> Statement:
        header = self._header
        sights = [item for release in self._releases if (item := look(release, adversary))]
        visibility = max(
            (item.visibility for item in sights), key=list(Visibility).index, default=Visibility.NOTHING
        )
        carried = self._carried_by_cryptography(adversary)
        assumptions = _assumptions(carried)
        reason = why_not_private(sights) or self._without_unit() or self._without_filter()
        figures: _Figures | None = None
        if not reason:
            figures = self._figures(sights, carried, site)
            if math.isinf(figures[0]):
                figures, reason = None, "the errors of sampler and cryptography exceed delta"
        tolerated = self._tolerated(adversary)
        simulated = header.custody is KeyCustody.ONE_PROCESS
        proved, renyi, reference = (None, None, None) if figures is None else map(_finite, figures)
        return Statement(
            view=adversary.view,
            adversary=adversary.behaviour,
            colluders=adversary.colluders,
            site=site,
            sees=sight(adversary, visibility, site=site),
            epsilon=proved,
            epsilon_rdp=renyi,
            epsilon_reference=reference,
            delta=self._delta,
            z_effective=smallest_multiplier(sights, site),
            unit=None if header.unit is None else header.unit.value,
            relation=None if header.relation is None else header.relation.value,
            assumptions=assumptions,
            post_quantum=all(assumption.post_quantum for assumption in assumptions),
            dropouts_tolerated=len(header.cohort) - header.threshold,
            colluders_tolerated=tolerated,
            key_mode=header.key_mode,
            broken=any(item.visibility is Visibility.EVERY_UPDATE for item in sights),
            simulated=simulated,
            unprotected=_unprotected(header, self._releases),
            non_private=reason,
            holds_if=self._as_chosen(reason)
            + condition(
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

    def _as_chosen(self, reason: str) -> str:
        if self._cap is None or reason:
            return ""
        return (
            f"whatever noise was chosen as the run went, up to the filter's cap at order {self._cap.order}; "
        )

    def _carried_by_cryptography(self, adversary: Adversary) -> list[Release]:
        """Rounds in which this adversary sees less than every update because of the cryptography."""
        if adversary.view in _PURE:
            return []
        return [
            release
            for release in self._releases
            if visibility_of(release.terms.guarantee, adversary, release.survivors)
            is not Visibility.EVERY_UPDATE
        ]

    def _without_unit(self) -> str:
        """Without a unit of privacy no ε means anything, not even 0."""
        if self._header.unit is not None:
            return ""
        seen = [Sight(release, Visibility.SUM, 1) for release in self._releases]
        return why_not_private(seen) or "no unit of privacy is stated"

    def _without_filter(self) -> str:
        """Figures for mechanisms that were fixed beforehand are none for those that were chosen."""
        if self._cap is None and chosen_multipliers(self._header):
            return "noise was chosen as the run went, and no filter capped it"
        return ""

    def _tolerated(self, adversary: Adversary) -> int | None:
        if adversary.view not in _AGGREGATORS or not self._releases:
            return None
        return min(
            colluder_bound(release.terms.guarantee, adversary.behaviour, survivors=release.survivors)
            for release in self._releases
        )

    def _figures(self, sights: list[Sight], carried: list[Release], site: str | None) -> _Figures:
        event = compose(
            SelfComposed(
                seen_event(item.release.terms.event, item.unknown_shares, site=site), item.release.count
            )
            for item in sights
        )
        error = math.fsum(
            [item.release.total_variation for item in sights]
            + [release.count * 2.0**release.terms.guarantee.advantage_log2 for release in carried]
        )
        key = (event, error)
        if key not in self._known:
            self._known[key] = _three_epsilons(event, error, self._delta, self._header.relation)
        if self._cap is None or self._delta is None:
            return self._known[key]
        capped = self._cap.epsilon(sights, error=error, delta=self._delta, site=site)
        return (capped, capped, self._known[key][2])


def _three_epsilons(event: DpEvent, error: float, delta: float | None, relation: Relation | None) -> _Figures:
    if isinstance(event, NoOp) and (error == 0 or delta is None):
        return (0.0, 0.0, 0.0)
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

    def ideal(remaining: float) -> float:
        return epsilon(event, delta=remaining, relation=relation, accountant=accountant)

    return with_sampler_error(ideal, delta, error)


def _sites(header: RunHeader, found: Iterable[Release]) -> tuple[str | None, ...]:
    differ = any(
        isinstance(leaf, SiteNoise)
        or (
            isinstance(leaf, Noise) and leaf.site_rates is not None and len(set(leaf.site_rates.values())) > 1
        )
        for release in found
        for leaf in leaves(release.terms.event)
    )
    return header.cohort if differ else (None,)


def _assumptions(carried: Iterable[Release]) -> tuple[Assumption, ...]:
    """The union over rounds, in the order in which they first appear."""
    union: dict[str, Assumption] = {}
    for release in carried:
        for assumption in release.terms.guarantee.assumptions:
            union.setdefault(assumption.name, assumption)
    return tuple(union.values())


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


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
    error = sampler_error(terms.event, shares=terms.guarantee.cohort_size)
    release = Release(
        terms=terms, survivors=terms.guarantee.threshold, opened=opened, count=1, total_variation=error
    )
    item = look(release, adversary)
    if item is None:
        return Charge(event=NoOp(), error=0.0)
    if item.visibility is not Visibility.EVERY_UPDATE:
        error += 2.0**terms.guarantee.advantage_log2
    return Charge(event=seen_event(terms.event, item.unknown_shares, site=None), error=error)
