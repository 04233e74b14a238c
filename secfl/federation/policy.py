"""A site's own policy: which runs it takes part in, whatever their coordinator says.

A policy is a TOML file of the site (`examples/policy.toml`, docs/policy.md). Before it trains, a site works out for
itself what the announced run would promise, one ε per adversary, from the numbers that it will execute; it takes
nobody's word for an ε. `Guard` then holds every round to what was announced.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secfl.config import KeyMode, Scheme
from secfl.crypto.identity import Directory
from secfl.dp.plan import WEAK_EPSILON
from secfl.errors import BudgetExhausted, ConfigError, PrivacyError
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import RunTerms
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.federation.schemes import scheme_for
from secfl.guarantees import Adversary, Behaviour, Guarantee, UnitOfPrivacy, View
from secfl.ledger.entry import KeyCustody, RunHeader
from secfl.ledger.state import Terms
from secfl.ledger.statement import Statement
from secfl.ledger.views import planned_statements
from secfl.types import RoundId, RoundSpec, SchemeSpec

__all__ = ["POLICY_FORMAT_VERSION", "Agreement", "Guard", "Policy", "load_policy"]

POLICY_FORMAT_VERSION = 1

_BOTH_BEHAVIOURS = frozenset({View.AGGREGATOR, View.AGGREGATOR_COLLUDERS, View.CLIENT})


class Policy(BaseModel):
    """What a site allows. Whatever is left out has the strict value.

    Attributes:
        format_version: Version of the file's format; a newer one is refused.
        units: Whose presence the run must hide.
        epsilon: Largest ε by view.
        adversary: ``malicious``: the limits hold for aggregators and clients that do not follow the protocol, too.
        colluders: How many clients may be on the aggregator's side for the limit of ``aggregator_colluders``.
        largest_delta: Largest δ.
        least_clients: Fewest clients in the cohort.
        least_threshold: Fewest survivors for which a sum is opened.
        schemes: Schemes of secure aggregation.
        key_modes: Who may hold keys, for schemes that have any.
        accept_weak: Whether ε above 20 in the aggregator's view is allowed.
        accept_non_private: Whether runs are allowed that promise nothing; limits on ε then do not count for them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format_version: int = Field(default=POLICY_FORMAT_VERSION, ge=1)
    units: tuple[UnitOfPrivacy, ...] = Field(default=(UnitOfPrivacy.PATIENT,), min_length=1)
    epsilon: Mapping[View, float] = Field(default_factory=dict)
    adversary: Behaviour = Behaviour.MALICIOUS
    colluders: int = Field(default=1, ge=1)
    largest_delta: float = Field(default=1e-5, gt=0, lt=1)
    least_clients: int = Field(default=3, ge=1)
    least_threshold: int = Field(default=3, ge=1)
    schemes: tuple[Scheme, ...] = Field(default=(Scheme.MASKING, Scheme.CKKS), min_length=1)
    key_modes: tuple[Literal["pairwise", "sum-key", "shared"], ...] = Field(
        default=("pairwise", KeyMode.SUM_KEY.value), min_length=1
    )
    accept_weak: bool = False
    accept_non_private: bool = False


def load_policy(path: Path | str) -> Policy:
    """Read a policy.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is impossible; one line that names the key.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--policy {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--policy {path}: expected a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--policy {path}: not valid TOML: {error}") from None
    try:
        policy = Policy.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"--policy {path}: {_one_line(error)}") from None
    if policy.format_version > POLICY_FORMAT_VERSION:
        raise ConfigError(
            f"--policy {path}: format_version: {policy.format_version} is newer than this secfl reads "
            f"({POLICY_FORMAT_VERSION}); upgrade secfl"
        )
    for view, limit in policy.epsilon.items():
        if limit < 0:
            raise ConfigError(f"--policy {path}: epsilon.{view.value}: {limit:g}, expected 0 or more")
    return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What was announced about a run, as the site holds it: what it evaluates, and what it will execute.

    Attributes:
        directory: The enrolled keys; their names are the cohort of every round.
        threshold: Fewest survivors for which a sum is opened.
        scheme: Scheme and parameters.
        terms: Plan, clip, noise and number of rounds.
    """

    directory: Directory
    threshold: int
    scheme: SchemeSpec
    terms: RunTerms


class Guard:
    """Holds a run to a site's policy: once before it starts, and again before each round.

    Args:
        policy: The site's.
        agreement: What was announced.
        name: Where the policy comes from, for messages.

    Raises:
        PrivacyError: The run contradicts itself, or is not allowed; names the key, what was found and what is allowed.
    """

    def __init__(self, policy: Policy, agreement: Agreement, *, name: str = "policy") -> None:
        self._policy = policy
        self._agreement = agreement
        self._name = name
        self._entered: Counter[tuple[int, Announcement]] = Counter()
        self._guarantee = _guarantee(agreement)
        self._check_that_it_agrees_with_itself()
        self._check_settings()
        self._check_epsilons((number, NOTHING_ANNOUNCED) for number in range(agreement.terms.rounds))

    def fresh(self, *, entered: int = 0) -> Guard:
        """The same for another site, or for a resumed run.

        Args:
            entered: Attempts that were entered before.
        """
        other = object.__new__(Guard)
        other._policy, other._agreement, other._name = self._policy, self._agreement, self._name
        other._guarantee = self._guarantee
        last = self._agreement.terms.rounds - 1
        other._entered = Counter((min(number, last), NOTHING_ANNOUNCED) for number in range(entered))
        return other

    def admit(self, offer: RoundOffer) -> None:
        """Whether the site may work for this round. Every attempt counts as a release, whatever becomes of it.

        Call it with rising round numbers only.

        Raises:
            PrivacyError: The round is not one of the announced run.
            BudgetExhausted: With this attempt a limit of the policy would be exceeded.
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
        entered = self._entered.copy()
        # Round numbers rise with every attempt, so there were at most so many that this object does not know of
        # (before the site's program was started again). They count as the dearest that there could have been.
        unknown = offer.round_id - entered.total()
        if unknown > 0:
            entered[self._dearest(offer.round_index)] += unknown
        entered[offer.round_index, offer.announced] += 1
        if not self._was_evaluated(entered):
            try:
                self._check_epsilons(entered.elements())
            except PrivacyError as refusal:
                raise BudgetExhausted(f"{refusal} (after {entered.total()} attempts)") from None
        self._entered = entered

    def _dearest(self, round_index: int) -> tuple[int, Announcement]:
        plan = self._agreement.terms.plan
        if plan is None or not plan.levels:
            rising = plan is not None and plan.noise_decay > 1
            return (0 if rising else round_index), NOTHING_ANNOUNCED
        return round_index, Announcement(noise_multiplier=plan.levels[-1])

    def _was_evaluated(self, entered: Counter[tuple[int, Announcement]]) -> bool:
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

    def _check_epsilons(self, rounds: Iterable[tuple[int, Announcement]]) -> None:
        """Every limit, for these rounds and the threshold's number of survivors in each."""
        terms, policy = self._agreement.terms, self._policy
        if terms.plan is None or terms.non_private:
            return
        counts = Counter(_event_key(terms, index, announced) for index, announced in rounds)
        planned = [
            (
                Terms(index=number, event=terms.event(*key), guarantee=self._guarantee, unprotected=()),
                count,
            )
            for number, (key, count) in enumerate(counts.items())
        ]
        limits = dict(policy.epsilon)
        wanted = [row for view in limits for row in self._adversaries(view)]
        alone = Adversary(view=View.AGGREGATOR)
        rows = planned_statements(self._header(), planned, dict.fromkeys([alone, *wanted]))
        for row in rows:
            if _is(row, alone) and not policy.accept_weak and _above(row, WEAK_EPSILON):
                raise self._refusal(
                    "accept_weak", f"epsilon {_figure(row)}", f"at most {WEAK_EPSILON:g} (false)"
                )
            if any(_is(row, one) for one in wanted) and _above(row, limits[row.view]):
                raise self._refusal(
                    f"epsilon.{row.view.value}",
                    f"{_figure(row)} ({_who(row)})",
                    f"at most {limits[row.view]:g}",
                )

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


def _event_key(terms: RunTerms, index: int, announced: Announcement) -> tuple[int, Announcement]:
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


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {', '.join(sorted(Policy.model_fields))}"
    return f"{key}: {first['msg']} (got {first['input']!r})"
