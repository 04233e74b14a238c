"""A whole federation in one process: `simulate`, and `resume` after an interruption.

One process holds every key here, so nothing is hidden from whoever runs it; the ledger says so. Everything else
is real: the protocol, the bytes, the noise, the accounting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from secfl.config import DpMode, DpSchedule, RunConfig, check_cohort
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.federation import evaluation
from secfl.federation.accounts import RunAccounts
from secfl.federation.adaptive_run import AdaptiveRun
from secfl.federation.budgets import admitted_rounds, fitting_terms, open_accounts, reopen_accounts
from secfl.federation.engines import RoundEngine, RunSetting, open_engine
from secfl.federation.guard import WithoutLimit
from secfl.federation.members import Members
from secfl.federation.multimodel import resume_families, simulate_families
from secfl.federation.observer import Observer
from secfl.federation.privacy import RunTerms
from secfl.federation.rundir import RunDirectory
from secfl.federation.running import Simulation
from secfl.federation.schemes import scheme_for, scheme_spec
from secfl.federation.server_optimizer import ServerOptimizer, private_optimizer, server_optimizer
from secfl.federation.site_setup import site_guard
from secfl.federation.state import count_parameters
from secfl.federation.work import make_task
from secfl.ledger.site_accounts import SiteAccounts
from secfl.randomness import SystemRng
from secfl.segmentation.task import SegmentingTask, Task
from secfl.types import client_id

__all__ = ["go_on", "resume", "simulate", "start"]


def simulate(
    config: RunConfig,
    *,
    out: Path,
    observer: Observer,
    task: Task | None = None,
    task_factory: str | None = None,
) -> dict[str, Any]:
    """Run a federation from the start.

    Everything that can be refused is refused before ``out`` is created.

    Args:
        config: The run.
        out: The run directory; must not exist.
        observer: Told what happens.
        task: What is learned; by default built from the configuration (segmentation).
        task_factory: ``module:function`` that makes the task from the configuration in every process of the run;
            engines with more than one process need it for tasks of your own.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        ConfigError: A setting or the data cannot be used.
        PrivacyError: The privacy plan is refused, by itself or by the sites' policy, or the account of a site is spent.
        RoundAborted: Too few clients remained, again and again.
    """
    refuse_existing(out)
    if config.multi_model.families:
        _refuse_own_task(task, task_factory)
        return simulate_families(config, out=out, observer=observer)
    task = task or make_task(config, task_factory)
    identities = tuple(Identity.generate(site, SystemRng()) for site in task.sites)
    return start(
        config,
        out=out,
        observer=observer,
        task=task,
        task_factory=task_factory,
        members=Members.simulated(identities),
    )


def refuse_existing(out: Path) -> None:
    """Refuse to write into a run directory that is there already."""
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; expected a new folder, or --resume {out}")


def start(
    config: RunConfig,
    *,
    out: Path,
    observer: Observer,
    task: Task,
    task_factory: str | None,
    members: Members,
    opener: Callable[[RunSetting], AbstractContextManager[RoundEngine]] = open_engine,
    facts: Mapping[str, Any] | None = None,
    optimizer: ServerOptimizer | None = None,
) -> dict[str, Any]:
    """Run a federation from the start, wherever its sites and their keys are.

    Args:
        config: The run.
        out: The run directory; must not exist.
        observer: Told what happens.
        task: What is learned; evaluates the model on what this process may see.
        task_factory: As in `simulate`.
        members: Who takes part.
        opener: Connects to the sites.
        facts: What else the summary says of how the run was carried.
        optimizer: What the server does with the opened mean; by default what the configuration names.

    Returns:
        The summary. Errors as in `simulate`.
    """
    refuse_existing(out)
    _refuse_in_simulations_only(config, members)
    state = task.initial_state()
    threshold = _threshold(config, task)
    terms = fitting_terms(config, task, parameters=count_parameters(state), threshold=threshold)
    AdaptiveRun(config, terms.round_terms.releases, task)  # what it needs and has not is found now
    # A library that cannot be loaded is found before anything is written.
    scheme_for(scheme_spec(config.secure_agg))
    guard = site_guard(config, terms, members.directory, threshold=threshold, otherwise=WithoutLimit.NOTHING)
    shared, notes = _accounts(config, terms, task, threshold=threshold)
    run = RunDirectory.create(out, config)
    if isinstance(task, SegmentingTask):
        run.write_inputs(task.inputs)
    if members.identities:
        run.keep_identities(members.identities)
    accounts = RunAccounts.create(
        run,
        config,
        terms,
        members=members,
        threshold=threshold,
        shared=shared,
        unprotected=evaluation.shown(config, task, members.custody),
    )
    simulation = Simulation(
        config=config,
        run=run,
        task=task,
        terms=terms,
        threshold=threshold,
        members=members,
        accounts=accounts,
        observer=observer,
        state=state,
        optimizer=optimizer or _optimizer(config),
        task_factory=task_factory,
        guard=guard,
        notes=notes,
        opener=opener,
        facts=dict(facts or {}),
    )
    return simulation.run_to_the_end()


def resume(
    path: Path, *, observer: Observer, task: Task | None = None, task_factory: str | None = None
) -> dict[str, Any]:
    """Go on with an interrupted run from its last checkpoint.

    The model comes out bit for bit as if there had been no interruption (without noise, or with seeded test
    noise); a round that was under way is charged to the ledger and run again with fresh keys and noise.

    Raises:
        ConfigError: Not a run directory, or the run is finished.
        DataError: A checkpoint is damaged.
        LedgerCorrupted: The ledger does not verify.
    """
    run = RunDirectory.open(path)
    config = run.config()
    if run.summary.exists():
        raise ConfigError(f"--resume {path}: the run is finished; its summary is {run.summary}")
    if config.multi_model.families:
        _refuse_own_task(task, task_factory)
        return resume_families(run, observer=observer)
    return go_on(
        run,
        observer=observer,
        task=task or make_task(config, task_factory),
        task_factory=task_factory,
        members=Members.simulated(run.identities()),
    )


def go_on(
    run: RunDirectory,
    *,
    observer: Observer,
    task: Task,
    task_factory: str | None,
    members: Members,
    opener: Callable[[RunSetting], AbstractContextManager[RoundEngine]] = open_engine,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Go on with an interrupted run, wherever its sites and their keys are; see `start` and `resume`."""
    config = run.config()
    state = task.initial_state()
    threshold = _threshold(config, task)
    terms = fitting_terms(config, task, parameters=count_parameters(state), threshold=threshold)
    directory = members.directory
    guard = site_guard(config, terms, directory, threshold=threshold, otherwise=WithoutLimit.NOTHING)
    accounts = RunAccounts.resume(run, terms, members=members, shared=reopen_accounts(config, task.sites))
    if accounts.directory_digest != directory.digest():
        raise ConfigError(f"{run.root}: was begun with other members than take part now")
    simulation = Simulation(
        config=config,
        run=run,
        task=task,
        terms=terms,
        threshold=threshold,
        members=members,
        accounts=accounts,
        observer=observer,
        state=state,
        optimizer=_optimizer(config),
        task_factory=task_factory,
        guard=guard,
        opener=opener,
        facts=dict(facts or {}),
    )
    simulation.go_back_to_checkpoint()
    return simulation.run_to_the_end()


def _refuse_in_simulations_only(config: RunConfig, members: Members) -> None:
    """What keeps state at sites that no engine outside of one process can carry yet."""
    if members.identities:
        return
    if config.multi_model.families or config.training.local_parameters != "none":
        key = "multi_model.families" if config.multi_model.families else "training.local_parameters"
        raise ConfigError(f"{key}: works in a simulation in one process only; expected it left out")


def _refuse_own_task(task: Task | None, task_factory: str | None) -> None:
    if task is not None or task_factory is not None:
        raise ConfigError("multi_model.families: several families are built in; expected no task of your own")


def _accounts(
    config: RunConfig, terms: RunTerms, task: Task, *, threshold: int
) -> tuple[SiteAccounts | None, list[str]]:
    """The sites' shared accounts, and what to say about them."""
    if config.privacy.ledger_dir is None:
        return None, []
    accounts = open_accounts(config, terms, task.sites)
    site, room = admitted_rounds(config, terms, task.sites, accounts, threshold=threshold)
    if room == terms.rounds:
        return accounts, []
    return accounts, [
        f"the account of {site} admits {room} of {terms.rounds} rounds; the run will stop there"
    ]


def _optimizer(config: RunConfig) -> ServerOptimizer:
    privacy = config.privacy
    if privacy.mode is DpMode.PATIENT and privacy.schedule is DpSchedule.STEP:
        return private_optimizer(privacy)
    training = config.training
    return server_optimizer(training.server, learning_rate=training.server_learning_rate)


def _threshold(config: RunConfig, task: Task) -> int:
    sites = len(task.sites)
    if config.clients is not None and config.clients != sites:
        raise ConfigError(f"--clients {config.clients}: {config.data.source} has {sites} sites")
    for site in task.sites:
        client_id(site)
    try:
        return check_cohort(sites, config.secure_agg.scheme, config.secure_agg.threshold, config.dropout)
    except ValueError as error:
        raise ConfigError(str(error)) from None
