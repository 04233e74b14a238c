"""Caps on what a run may spend: its own budget (`--epsilon`) and the accounts of its sites (`--ledger-dir`).

Both are filters of the ledger: a round is reserved only if it fits, so a run stops before the round that would
exceed its cap, whatever was spent on attempts that failed. The noise is calibrated such that all planned rounds
fit when nothing goes wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from secfl.config import DpMode, KeyMode, RunConfig, Scheme
from secfl.errors import BudgetExhausted, ConfigError, PrivacyError
from secfl.federation.privacy import RunTerms, run_terms
from secfl.federation.schemes import scheme_for, scheme_spec
from secfl.federation.settled import one_of_each
from secfl.guarantees import Behaviour, Guarantee
from secfl.ledger.accounts import ACCOUNT_FILE, Account
from secfl.ledger.budget import Budget, Charge, Meter, suggested_order
from secfl.ledger.site_accounts import SiteAccounts
from secfl.ledger.state import Terms
from secfl.ledger.views import planned_charge
from secfl.randomness import SystemRng
from secfl.segmentation.task import Task
from secfl.types import ClientId, RoundId, RoundSpec, client_id

__all__ = [
    "admitted_rounds",
    "fitting_terms",
    "open_accounts",
    "planned_guarantee",
    "reopen_accounts",
    "run_budget",
]

_TRIES = 30
_LESS = 0.998
"""Each try aims for so much less ε; the filter of an account is a little less tight than the calibration."""


def run_budget(config: RunConfig, terms: RunTerms) -> Budget | None:
    """The cap of a run with `--epsilon`; ``None`` without a target, and where nothing is promised (seeded noise)."""
    privacy, plan = config.privacy, terms.plan
    if privacy.epsilon is None or plan is None or terms.non_private:
        return None
    budget = _budget(config, privacy.epsilon)
    if plan.noise_decay == 1 and not plan.levels:
        return budget
    # Mechanisms that change from round to round are summed at a Rényi order that is fixed now.
    return _budget(config, privacy.epsilon, order=_order(config, terms, privacy.epsilon))


def fitting_terms(config: RunConfig, task: Task, *, parameters: int, threshold: int) -> RunTerms:
    """The terms of a run, with noise such that its planned rounds fit its budget, and new accounts of that size.

    Depends on the configuration alone, so that a resumed run comes to the same terms.

    Raises:
        ConfigError: Numbers that cannot be met, or an account for a run that promises nothing.
        PrivacyError: The plan is weak and ``--accept-weak`` is not given, or the target is beyond any proof.
        CapacityError: The sum does not fit.
    """
    terms = run_terms(config, task, parameters=parameters, threshold=threshold)
    privacy = config.privacy
    if privacy.ledger_dir is not None and (privacy.mode is DpMode.OFF or terms.non_private):
        raise ConfigError(
            "--ledger-dir: an account is charged for differential privacy, which this run does not promise "
            f"({terms.non_private or '--dp off'})"
        )
    target = privacy.epsilon
    budget = run_budget(config, terms)
    if budget is None or target is None or (terms.plan is not None and terms.plan.levels):
        return terms  # noise that is chosen as the run goes is not calibrated: its filter stops it
    error = _cost(config, terms, task.sites, threshold=threshold)(budget).error * terms.rounds
    if math.exp(min(target, 600.0)) * error >= privacy.delta:
        raise PrivacyError(
            f"--epsilon {target:g}: nothing can be proved there, because the errors of sampler and cryptography count "
            f"e^epsilon-fold and exceed delta {privacy.delta:g}; expected a smaller epsilon"
        )
    for _ in range(_TRIES):
        caps = [budget]
        if privacy.ledger_dir is not None and privacy.account_epsilon is None:
            caps.append(_account_budget(config, terms))
        if all(_room(config, terms, task.sites, cap, threshold=threshold) >= terms.rounds for cap in caps):
            break
        target *= _LESS
        less = config.model_copy(update={"privacy": privacy.model_copy(update={"epsilon": target})})
        terms = run_terms(less, task, parameters=parameters, threshold=threshold)
    return terms


def open_accounts(config: RunConfig, terms: RunTerms, sites: Sequence[str]) -> SiteAccounts:
    """The accounts under `--ledger-dir`, one folder for each site; those that are missing are started.

    The cap of a new account is ``--account-epsilon``, by default the run's own ``--epsilon``.

    Raises:
        ConfigError: No cap is given, an account counts another unit, or has another cap than is given.
        LedgerCorrupted: An account does not verify.
    """
    privacy, plan = config.privacy, terms.plan
    if privacy.ledger_dir is None or plan is None:
        raise ConfigError("--ledger-dir: expected a folder, and a run with differential privacy")
    folder = Path(privacy.ledger_dir)
    accounts: dict[ClientId, Account] = {}
    for site in map(client_id, sites):
        place = folder / site
        if not (place / ACCOUNT_FILE).exists():
            budget = _account_budget(config, terms)
            account = Account.open(
                place, budget=budget, unit=plan.unit, relation=plan.relation, rng=SystemRng()
            )
        else:
            account = Account.open(place, unit=plan.unit, relation=plan.relation)
        cap = account.budget.epsilon
        if privacy.account_epsilon is not None and cap != privacy.account_epsilon:
            raise ConfigError(
                f"--account-epsilon {privacy.account_epsilon:g}: the account in {place} has a cap of {cap:g}, "
                "which cannot be changed"
            )
        accounts[site] = account
    return SiteAccounts(accounts)


def reopen_accounts(config: RunConfig, sites: Sequence[str]) -> SiteAccounts | None:
    """The accounts of an interrupted run, which must exist.

    Raises:
        ConfigError: One is missing.
        LedgerCorrupted: One does not verify.
    """
    if config.privacy.ledger_dir is None:
        return None
    folder = Path(config.privacy.ledger_dir)
    return SiteAccounts({client_id(site): Account.read(folder / site) for site in sites})


def admitted_rounds(
    config: RunConfig, terms: RunTerms, sites: Sequence[str], accounts: SiteAccounts, *, threshold: int
) -> tuple[ClientId, int]:
    """The site whose account admits the fewest rounds like the first, and how many of those that are planned.

    Raises:
        BudgetExhausted: It admits none.
    """
    cost = _cost(config, terms, sites, threshold=threshold)
    site, room = accounts.room(cost, terms.rounds)
    if room == 0:
        raise BudgetExhausted(
            f"--ledger-dir {config.privacy.ledger_dir}: the account of {site} is spent; expected room for at least "
            "one round, found none"
        )
    return site, room


def planned_guarantee(
    config: RunConfig, terms: RunTerms, sites: Sequence[str], *, threshold: int
) -> Guarantee:
    """What the scheme promises for a round of this run in which only the threshold survives."""
    spec = RoundSpec(
        run_id=bytes(16),
        round_id=RoundId(0),
        cohort=tuple(sorted(map(client_id, sites))),
        threshold=threshold,
        vectors=terms.round_terms.vectors(len(sites)),
        scheme=scheme_spec(config.secure_agg),
        manifest_digest=bytes(32),
        model_digest=bytes(32),
        task_digest=bytes(32),
        plan_digest=terms.round_terms.plan_digest,
    )
    return scheme_for(spec.scheme).guarantee(spec, survivors=threshold)


def _cost(
    config: RunConfig, terms: RunTerms, sites: Sequence[str], *, threshold: int, round_index: int = 0
) -> Callable[[Budget], Charge]:
    guarantee = planned_guarantee(config, terms, sites, threshold=threshold)
    planned = Terms(index=0, event=terms.event(round_index), guarantee=guarantee, unprotected=())
    return lambda budget: planned_charge(planned, budget)


def _room(config: RunConfig, terms: RunTerms, sites: Sequence[str], budget: Budget, *, threshold: int) -> int:
    """How many of the planned rounds fit an unused budget."""
    meter = Meter(budget, relation=terms.plan.relation) if terms.plan else Meter(budget)
    if terms.plan is None or terms.plan.noise_decay == 1:
        return meter.room(_cost(config, terms, sites, threshold=threshold)(budget), terms.rounds)
    for index in range(terms.rounds):
        charge = _cost(config, terms, sites, threshold=threshold, round_index=index)(budget)
        if meter.room(charge, 1) == 0:
            return index
        meter.add(charge)
    return terms.rounds


def _account_budget(config: RunConfig, terms: RunTerms) -> Budget:
    """The cap of a new account, at the Rényi order that suits this run's rounds."""
    privacy = config.privacy
    cap = privacy.epsilon if privacy.account_epsilon is None else privacy.account_epsilon
    if cap is None:
        raise ConfigError(
            f"--ledger-dir {privacy.ledger_dir}: there is no account yet; give its cap with --account-epsilon"
        )
    return _budget(config, cap, order=_order(config, terms, cap))


def _order(config: RunConfig, terms: RunTerms, cap: float) -> int:
    """The Rényi order at which most runs like this one fit."""
    plan = terms.plan
    planned = None
    if plan is not None:
        planned = one_of_each(plan) if plan.levels else plan.event(plan.z_aggregator())
    return suggested_order(cap, config.privacy.delta, planned=planned)


def _budget(config: RunConfig, epsilon: float, *, order: int | None = None) -> Budget:
    settings = config.secure_agg
    # One CKKS key in every client does not stand against a malicious aggregator at all.
    shared = settings.scheme is Scheme.CKKS and settings.ckks_key is KeyMode.SHARED
    return Budget(
        epsilon=epsilon,
        delta=config.privacy.delta,
        order=order,
        adversary=Behaviour.CURIOUS if shared else Behaviour.MALICIOUS,
    )
