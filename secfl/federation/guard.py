"""Holds a run to a site's policy and to its own plan: before it starts, and again before each round.

A site trusts its own code, its own files and its pinned keys, not the coordinator (docs/policy.md).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from secfl.config import KeyMode, Scheme
from secfl.crypto.identity import Directory
from secfl.dp.plan import WEAK_EPSILON
from secfl.errors import BudgetExhausted, PrivacyError
from secfl.federation.attempts import Attempt, Attempts
from secfl.federation.offer import RoundOffer
from secfl.federation.policy import Policy, announced_and_nothing_else
from secfl.federation.privacy import RunTerms
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.federation.schemes import scheme_for
from secfl.guarantees import Adversary, Behaviour, Guarantee, View
from secfl.ledger.budget import Budget, Charge, Meter
from secfl.ledger.entry import KeyCustody, RunHeader
from secfl.ledger.state import Terms
from secfl.ledger.statement import Statement
from secfl.ledger.views import planned_charge, planned_statements
from secfl.types import RoundId, RoundSpec, SchemeSpec

__all__ = ["Agreement", "Guard", "WithoutLimit"]

_BOTH_BEHAVIOURS = frozenset({View.AGGREGATOR, View.AGGREGATOR_COLLUDERS, View.CLIENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What was announced about a run, as the site holds it: what it evaluates, and what it will execute.

    Attributes:
        directory: The enrolled keys; their names are the cohort of every round.
        threshold: Fewest survivors for which a sum is opened.
        scheme: Scheme and parameters.
        terms: Plan, clip, noise and number of rounds.
        budget: What the run may spend at most (`--epsilon`); ``None`` without a target: its planned rounds, then.
    """

    directory: Directory
    threshold: int
    scheme: SchemeSpec
    terms: RunTerms
    budget: Budget | None = None


class WithoutLimit(StrEnum):
    """What a site without a limit of its own on the aggregator's ε holds a run to, beside the number of attempts."""

    PLAN = "plan"
    """The ε of the agreed plan: deployment."""
    NOTHING = "nothing"
    """A simulation: one program is coordinator and sites, and its own ledger stops it."""


class Guard:
    """Holds a run to a site's policy and to its own plan: once before it starts, and again before each round.

    Args:
        policy: The site's; without one the run is held to what was announced, and to nothing else.
        agreement: What was announced.
        name: Where the policy comes from, for messages.
        otherwise: What holds where there is no policy, or it has no limit on the aggregator's ε.

    Raises:
        PrivacyError: The run contradicts itself, or is not allowed; names the key, what was found and what is allowed.
    """

    def __init__(
        self,
        policy: Policy | None,
        agreement: Agreement,
        *,
        name: str = "policy",
        otherwise: WithoutLimit = WithoutLimit.PLAN,
    ) -> None:
        self._otherwise = otherwise
        self._agreement = agreement
        self._name = name
        self._guarantee = _guarantee(agreement)
        self._behaviour = _behaviour(agreement.scheme)
        self._policy = policy or announced_and_nothing_else(self._behaviour)
        self._attempts = Attempts()
        self._unsent: Collection[int] = ()
        self._complete = False
        self._check_that_it_agrees_with_itself()
        if policy is not None:
            self._check_settings()
            self._check_epsilons(
                ((number, NOTHING_ANNOUNCED) for number in range(agreement.terms.rounds)),
                limits=policy.epsilon,
            )

    @property
    def attempts(self) -> Attempts:
        """What was admitted so far."""
        return self._attempts

    def fresh(self, *, entered: int = 0) -> Guard:
        """The same for another site, or for a resumed run.

        Args:
            entered: Attempts that were entered before.
        """
        last = self._agreement.terms.rounds - 1
        other = copy.copy(self)
        known = ((number, (min(number, last), NOTHING_ANNOUNCED)) for number in range(entered))
        other.remember(Attempts(entries=tuple(known)))
        return other

    def remember(self, attempts: Attempts, *, unsent: Collection[int] = ()) -> None:
        """Go on from these attempts, and take it that there were no others.

        Args:
            attempts: That were entered.
            unsent: Round ids of those that ended before the site's input left, which therefore cost no ε.
        """
        self._attempts, self._unsent, self._complete = attempts, unsent, True

    def admit(self, offer: RoundOffer) -> None:
        """Whether the site may work for this round. Every attempt counts as a release, whatever becomes of it.

        The last one, offered again, is the same attempt; but what others cost since may leave no room for it.

        Raises:
            RemoteProtocolError: Its number does not rise.
            PrivacyError: The round is not one of the announced run.
            BudgetExhausted: With this attempt a limit of the policy or of the plan would be exceeded.
        """
        agreed = self._agreement
        for key, found, allowed in (
            ("cohort", ", ".join(offer.cohort), ", ".join(sorted(agreed.directory.keys))),
            ("threshold", offer.threshold, agreed.threshold),
            ("scheme", _words(offer.scheme), _words(agreed.scheme)),
        ):
            if found != allowed:
                raise self._refusal(f"the offer's {key}", found, f"{allowed}, as announced")
        if not 0 <= offer.round_index < agreed.terms.rounds:
            raise self._refusal(
                "the offer's round", offer.round_index + 1, f"{agreed.terms.rounds}, as announced"
            )
        attempts = self._attempts.entering(offer)
        tried = attempts.of_round(offer.round_index)
        if tried > self._policy.attempts:
            raise BudgetExhausted(
                f"{self._name}: attempts: found {tried} for round {offer.round_index + 1}, allowed "
                f"{self._policy.attempts}"
            )
        # An attempt that was counted but not begun (a full disk) leaves the one before it open, which may be sent yet.
        spent = attempts.spent(unsent=set(self._unsent) - {int(offer.round_id)})
        # Round numbers rise with every attempt, so there were at most so many that this object does not know of
        # (before the site's program was started again). They count as the dearest that there could have been.
        unknown = 0 if self._complete else offer.round_id + 1 - len(attempts.entries)
        if unknown > 0:
            spent[self._dearest(offer.round_index)] += unknown
        if not self._was_evaluated(spent):
            try:
                self._check_epsilons(spent.elements(), limits=self._policy.epsilon)
                self._check_plan(spent, newest=(offer.round_index, offer.announced))
            except BudgetExhausted:
                raise
            except PrivacyError as refusal:
                raise BudgetExhausted(f"{refusal} (after {spent.total()} attempts)") from None
        self._attempts = attempts

    def _check_plan(self, spent: Counter[Attempt], *, newest: Attempt) -> None:
        """Hold what was spent to the run's own target, or without one to the ε of its planned rounds."""
        agreed = self._agreement
        if agreed.terms.plan is None or agreed.terms.non_private:
            return
        if self._otherwise is WithoutLimit.NOTHING or View.AGGREGATOR in self._policy.epsilon:
            return
        if agreed.budget is not None:
            meter = Meter(agreed.budget, relation=agreed.terms.plan.relation)
            charges = Counter(_event_key(agreed.terms, *one) for one in spent.elements())
            newest = _event_key(agreed.terms, *newest)
            charges[newest] -= 1
            for key, count in charges.items():
                if count:
                    meter.add(self._charge(key, agreed.budget), count)
            try:
                meter.require(self._charge(newest, agreed.budget))
            except BudgetExhausted as refusal:
                raise BudgetExhausted(
                    f"the agreed plan: {refusal} (after {spent.total()} attempts)"
                ) from None
        else:
            try:
                self._check_epsilons(
                    spent.elements(), limits={View.AGGREGATOR: self._planned_epsilon() * (1 + 1e-9)}
                )
            except PrivacyError as refusal:
                text = str(refusal).removeprefix(f"{self._name}: ")
                raise BudgetExhausted(f"the agreed plan: {text} (after {spent.total()} attempts)") from None

    def _charge(self, key: Attempt, budget: Budget) -> Charge:
        terms = Terms(
            index=0, event=self._agreement.terms.event(*key), guarantee=self._guarantee, unprotected=()
        )
        return planned_charge(terms, budget)

    def _planned_epsilon(self) -> float:
        """The largest ε of the planned rounds against the aggregator alone."""
        rounds = ((number, NOTHING_ANNOUNCED) for number in range(self._agreement.terms.rounds))
        found = [row.epsilon for row in self._rows(rounds, self._adversaries(View.AGGREGATOR))]
        return max((math.inf if one is None else one for one in found), default=math.inf)

    def _dearest(self, round_index: int) -> Attempt:
        plan = self._agreement.terms.plan
        if plan is None or not plan.levels:
            rising = plan is not None and plan.noise_decay > 1
            return (0 if rising else round_index), NOTHING_ANNOUNCED
        return round_index, Announcement(noise_multiplier=plan.levels[-1])

    def _was_evaluated(self, entered: Counter[Attempt]) -> bool:
        """Whether these rounds are some of those that were evaluated before the run."""
        plan = self._agreement.terms.plan
        if plan is None:
            return True
        if plan.levels:
            return False
        once = Counter(index for index, _ in entered.elements()).most_common(1)[0][1] == 1
        return once or (plan.noise_decay == 1 and entered.total() <= self._agreement.terms.rounds)

    def _check_that_it_agrees_with_itself(self) -> None:
        """One plan may be shown and another executed; what is executed must be what was shown."""
        agreed = self._agreement
        terms, plan = agreed.terms, agreed.terms.plan
        releases = terms.round_terms.releases
        if plan is None:
            if releases is not None:
                raise self._refusal("plan", "none, but clip and noise", "what is executed")
            return
        if releases is None:
            raise self._refusal("plan", "a plan, but neither clip nor noise", "what is executed")
        for key, found, allowed in (
            ("plan", "another than is announced", "the announced one")
            if releases.plan != plan
            else ("", "", ""),
            ("plan_digest", terms.round_terms.plan_digest.hex()[:16], plan.digest().hex()[:16]),
            ("cohort_size", plan.cohort_size, len(agreed.directory.keys)),
            ("threshold", plan.threshold, agreed.threshold),
            ("rounds", terms.rounds * releases.local_steps, plan.releases),
        ):
            if found != allowed:
                raise self._refusal(key, found, f"{allowed}, as announced")

    def _check_settings(self) -> None:
        policy, agreed = self._policy, self._agreement
        plan, guarantee = agreed.terms.plan, self._guarantee
        promised = plan is not None and not agreed.terms.non_private
        self._require("schemes", agreed.scheme.name, [scheme.value for scheme in policy.schemes])
        if agreed.scheme.name != Scheme.PLAIN:
            self._require("key_modes", guarantee.key_mode, list(policy.key_modes))
        clients = len(agreed.directory.keys)
        if clients < policy.least_clients:
            raise self._refusal("least_clients", clients, f"{policy.least_clients} or more")
        if agreed.threshold < policy.least_threshold:
            raise self._refusal("least_threshold", agreed.threshold, f"{policy.least_threshold} or more")
        if not promised:
            if not policy.accept_non_private:
                raise self._refusal(
                    "accept_non_private", f"a run without a guarantee ({agreed.terms.non_private})", "false"
                )
            return
        assert plan is not None
        self._require("units", plan.unit.value, [unit.value for unit in policy.units])
        if plan.delta > policy.largest_delta:
            raise self._refusal("largest_delta", f"{plan.delta:g}", f"at most {policy.largest_delta:g}")

    def _require(self, key: str, found: str, allowed: list[Any]) -> None:
        if found not in allowed:
            raise self._refusal(key, found, " or ".join(allowed))

    def _check_epsilons(self, rounds: Iterable[Attempt], *, limits: Mapping[View, float]) -> None:
        """Every limit, for these rounds and the threshold's number of survivors in each."""
        terms, policy = self._agreement.terms, self._policy
        weak = not policy.accept_weak
        if terms.plan is None or terms.non_private or not (limits or weak):
            return
        wanted = [row for view in limits for row in self._adversaries(view)]
        alone = Adversary(view=View.AGGREGATOR)
        for row in self._rows(rounds, [alone, *wanted] if weak else wanted):
            if _is(row, alone) and weak and _above(row, WEAK_EPSILON):
                raise self._refusal(
                    "accept_weak", f"epsilon {_figure(row)}", f"at most {WEAK_EPSILON:g} (false)"
                )
            if any(_is(row, one) for one in wanted) and _above(row, limits[row.view]):
                raise self._refusal(
                    f"epsilon.{row.view.value}",
                    f"{_figure(row)} ({_who(row)})",
                    f"at most {limits[row.view]:g}",
                )

    def _rows(self, rounds: Iterable[Attempt], adversaries: Iterable[Adversary]) -> list[Statement]:
        terms = self._agreement.terms
        counts = Counter(_event_key(terms, index, announced) for index, announced in rounds)
        planned = [
            (
                Terms(index=number, event=terms.event(*key), guarantee=self._guarantee, unprotected=()),
                count,
            )
            for number, (key, count) in enumerate(counts.items())
        ]
        return planned_statements(self._header(), planned, dict.fromkeys(adversaries))

    def _adversaries(self, view: View) -> list[Adversary]:
        both = view in _BOTH_BEHAVIOURS and self._policy.adversary is Behaviour.MALICIOUS
        colluders = self._policy.colluders if view is View.AGGREGATOR_COLLUDERS else 0
        behaviours = [Behaviour.CURIOUS, Behaviour.MALICIOUS] if both else [Behaviour.CURIOUS]
        return [Adversary(view=view, behaviour=behaviour, colluders=colluders) for behaviour in behaviours]

    def _header(self) -> RunHeader:
        agreed, plan = self._agreement, self._agreement.terms.plan
        assert plan is not None
        return RunHeader(
            run_id=bytes(16),
            directory=agreed.directory,
            threshold=agreed.threshold,
            scheme=agreed.scheme.name,
            key_mode=self._guarantee.key_mode,
            custody=KeyCustody.SEPARATE,
            unit=plan.unit,
            relation=plan.relation,
            delta=plan.delta,
        )

    def _refusal(self, key: str, found: object, allowed: object) -> PrivacyError:
        return PrivacyError(f"{self._name}: {key}: found {found}, allowed {allowed}")


def _behaviour(scheme: SchemeSpec) -> Behaviour:
    """One CKKS key in every client does not stand against a malicious aggregator at all."""
    shared = ("key_mode", KeyMode.SHARED.value) in scheme.parameters
    return Behaviour.CURIOUS if shared else Behaviour.MALICIOUS


def _event_key(terms: RunTerms, index: int, announced: Announcement) -> Attempt:
    """Rounds with equal keys release the same; a clip norm is no privacy parameter."""
    assert terms.plan is not None
    spending = Announcement(noise_multiplier=announced.noise_multiplier)
    return (index if terms.plan.noise_decay != 1 else 0, spending)


def _guarantee(agreement: Agreement) -> Guarantee:
    """What the scheme promises, asked of the site's own code."""
    cohort = tuple(sorted(agreement.directory.keys))
    spec = RoundSpec(
        run_id=bytes(16),
        round_id=RoundId(0),
        cohort=cohort,
        threshold=agreement.threshold,
        vectors=agreement.terms.round_terms.vectors(len(cohort)),
        scheme=agreement.scheme,
        manifest_digest=agreement.directory.digest(),
        model_digest=bytes(32),
        task_digest=bytes(32),
        plan_digest=agreement.terms.round_terms.plan_digest,
    )
    return scheme_for(spec.scheme).guarantee(spec, survivors=agreement.threshold)


def _is(row: Statement, adversary: Adversary) -> bool:
    return (row.view, row.adversary, row.colluders) == (
        adversary.view,
        adversary.behaviour,
        adversary.colluders,
    )


def _above(row: Statement, limit: float) -> bool:
    return row.epsilon is None or math.isnan(row.epsilon) or row.epsilon > limit


def _figure(row: Statement) -> str:
    return f"none ({row.non_private})" if row.epsilon is None else f"{row.epsilon:.3f}"


def _who(row: Statement) -> str:
    colluders = f", {row.colluders} colluding" if row.colluders else ""
    site = f", patients of {row.site}" if row.site else ""
    return f"{row.adversary.value}{colluders}{site}"


def _words(scheme: SchemeSpec) -> str:
    return " ".join([scheme.name, *(f"{name}={value}" for name, value in scheme.parameters)])
