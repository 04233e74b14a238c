"""From a configuration to the agent of one site, the same in every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from secfl.config import RunConfig, check_cohort
from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError
from secfl.federation.budgets import fitting_terms, run_budget
from secfl.federation.guard import Agreement, Guard, WithoutLimit
from secfl.federation.personal import KeepingTrainer
from secfl.federation.policy import load_policy
from secfl.federation.privacy import RunTerms
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import scheme_spec
from secfl.federation.site_agent import LocalTraining, Reports, SiteAgent, SiteTerms
from secfl.federation.state import count_parameters
from secfl.federation.work import local_work
from secfl.randomness import SystemRng
from secfl.segmentation.task import PersonalTask, Task
from secfl.types import client_id

__all__ = ["SITES_FOLDER", "make_agent", "simulated_agent", "site_guard"]

SITES_FOLDER = "sites"
"""Where a simulated run keeps what each site would keep on its own host."""


def make_agent(
    identity: Identity,
    *,
    config: RunConfig,
    task: Callable[[], Task],
    directory: Directory,
    run_id: bytes,
    folder: Path,
    reports: Reports,
) -> SiteAgent:
    """The agent of one site, on the terms that follow from its own configuration and its own task.

    Args:
        identity: The site.
        config: The run as the site understands it.
        task: Makes what is learned; called when the first offer comes, because it loads data and libraries.
        directory: The enrolled keys.
        run_id: The run.
        folder: Of this site alone.
        reports: What it tells of its own work.
    """
    settings = config.secure_agg
    threshold = check_cohort(len(directory.keys), settings.scheme, settings.threshold, config.dropout)

    def prepare() -> LocalTraining:
        learned = task()
        layout = learned.initial_state()
        terms = fitting_terms(config, learned, parameters=count_parameters(layout), threshold=threshold)
        trainer = None
        if config.training.local_parameters != "none" and isinstance(learned, PersonalTask):
            trainer = KeepingTrainer(learned, folder / "own", config_digest=config.digest().hex())
        work = local_work(identity.name, config=config, task=learned, terms=terms, trainer=trainer)
        return LocalTraining(
            round_terms=terms.round_terms,
            layout=layout,
            work=work,
            guard=site_guard(
                config,
                terms,
                directory,
                threshold=threshold,
                otherwise=WithoutLimit.NOTHING if reports is Reports.SIMULATION else WithoutLimit.PLAN,
            ),
        )

    return SiteAgent(
        identity,
        folder=folder,
        terms=SiteTerms(
            run_id=run_id,
            directory=directory,
            threshold=threshold,
            scheme=scheme_spec(settings),
        ),
        prepare=prepare,
        rng=SystemRng(),
        reports=reports,
    )


def site_guard(
    config: RunConfig, terms: RunTerms, directory: Directory, *, threshold: int, otherwise: WithoutLimit
) -> Guard:
    """What holds a run to the policy that a site's configuration names; without one, to the run's own plan.

    Args:
        config: The run.
        terms: Its public numbers.
        directory: The enrolled keys.
        threshold: t.
        otherwise: What limits the aggregator's ε where no policy does.

    Raises:
        ConfigError: The policy cannot be read.
        PrivacyError: It does not allow the run.
    """
    path = config.privacy.policy
    agreement = Agreement(
        directory=directory,
        threshold=threshold,
        scheme=scheme_spec(config.secure_agg),
        terms=terms,
        budget=run_budget(config, terms),
    )
    if path is None:
        return Guard(None, agreement, name="the agreed plan", otherwise=otherwise)
    # A site tells its coordinator which limit holds, and not where its files are.
    name = "the site's policy" if otherwise is WithoutLimit.PLAN else f"policy {path}"
    return Guard(load_policy(path), agreement, name=name, otherwise=otherwise)


def simulated_agent(run: RunDirectory, site: str, *, run_id: bytes, task: Callable[[], Task]) -> SiteAgent:
    """The agent of one site of a simulated run.

    Raises:
        ConfigError: The run has no site of that name.
    """
    name = client_id(site)
    identities = {identity.name: identity for identity in run.identities()}
    if name not in identities:
        raise ConfigError(f"{run.root}: has no site {site}")
    return make_agent(
        identities[name],
        config=run.config(),
        task=task,
        directory=Directory.enroll(identities.values()),
        run_id=run_id,
        folder=run.root / SITES_FOLDER / site,
        reports=Reports.SIMULATION,
    )
