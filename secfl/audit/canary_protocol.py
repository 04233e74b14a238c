"""The canary audit of a whole run: identities, ledger, secure sum and all, with the auditor looking on.

The run directory is an ordinary one (config, ledger, with ``record`` the transcript) and has ``audit.json`` and
``scores.json`` beside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from secfl.audit.canary_book import Book, CanaryAudit
from secfl.audit.canary_record import write_audit
from secfl.audit.canary_world import offer_of, prepare, watched_sites
from secfl.config import RunConfig
from secfl.crypto.identity import Directory, Identity
from secfl.federation.accounts import RunAccounts
from secfl.federation.client import SiteClient
from secfl.federation.coordinator import run_round
from secfl.federation.driver import Carriage
from secfl.federation.inprocess import InProcessDriver
from secfl.federation.members import Members
from secfl.federation.offer import UPDATE_VECTOR
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import scheme_for, scheme_spec
from secfl.federation.server_optimizer import private_optimizer
from secfl.guarantees import Adversary
from secfl.randomness import SystemRng
from secfl.segmentation.task import PatientTask

__all__ = ["audit_run"]

_RECORD: Final = (
    "canary audit: scores.json and audit.json come from the noise itself; whoever has them and the opened sums learns "
    "sums of the patients' gradients along the canaries' directions nearly without noise"
)


class _Opened:
    """A driver that hands the opened sums to the auditor."""

    def __init__(self, inner: InProcessDriver) -> None:
        self._inner = inner
        self.carriage: Carriage | None = None

    def carry(self, *arguments: Any, **named: Any) -> Carriage:
        """As inside."""
        self.carriage = self._inner.carry(*arguments, **named)
        return self.carriage


def audit_run(
    config: RunConfig,
    task: PatientTask,
    *,
    out: Path,
    canaries: int,
    threshold: int,
    guesses: int | None = None,
    shortfall: float = 1.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> CanaryAudit:
    """Run a federation with canaries among its patients, and judge its ledger by them.

    Noise, sampling and coins come from the operating system. The ledger's first entry commits to the canaries (the
    digest of the task contains `CanaryPlan.commitment`); the seed is revealed in ``audit.json`` after the last step.

    Args:
        config: The run; see `prepare`.
        task: What is trained.
        out: The run directory; must not exist.
        canaries: m.
        threshold: t.
        guesses: r; by default from simulations.
        shortfall: For controls: noise narrower than the ledger says, by this factor.
        progress: Told after every step.

    Raises:
        ConfigError: Before anything is written.
    """
    world = prepare(
        config,
        task,
        canaries=canaries,
        threshold=threshold,
        rng=SystemRng(),
        guesses=guesses,
        shortfall=shortfall,
    )
    spec = scheme_spec(config.secure_agg)
    scheme = scheme_for(spec)
    run = RunDirectory.create(out, config)
    identities = [Identity.generate(site, SystemRng()) for site in task.sites]
    directory = Directory.enroll(identities)
    accounts = RunAccounts.create(
        run,
        config,
        world.terms,
        members=Members.simulated(identities),
        threshold=threshold,
        unprotected=[_RECORD],
    )
    sites = watched_sites(world, secret=SystemRng())
    clients = [
        SiteClient(
            identity,
            work=sites[identity.name],
            scheme=scheme,
            directory=directory,
            terms=world.terms.round_terms,
            rng=SystemRng(),
        )
        for identity in identities
    ]
    book, state = Book(world), world.task.initial_state()
    optimizer = private_optimizer(config.privacy)
    try:
        for step in range(world.terms.rounds):
            round_id = accounts.next_round_id()
            recorder = run.recorder() if config.record else None
            driver = _Opened(
                InProcessDriver(
                    record=None
                    if recorder is None
                    else lambda phase, sent, keep=recorder, number=round_id: keep(number, phase, sent)
                )
            )
            outcome = run_round(
                offer_of(world, state, step, run_id=accounts.run_id, round_id=round_id),
                clients=clients,
                scheme=scheme,
                directory=directory,
                terms=world.terms.round_terms,
                driver=driver,
                optimizer=optimizer,
                account=accounts.round_account(step),
                progress=lambda _name, _done, _total: None,
            )
            assert driver.carriage is not None
            state = outcome.state
            opened = driver.carriage.result.sums[UPDATE_VECTOR]
            book.enter([sites[identity.name].vector for identity in identities], opened)
            progress(step + 1, world.terms.rounds)
        accounts.close("canary audit completed")
        promised = _promises(accounts)
    finally:
        accounts.release()
    found = book.close(lambda view: promised[view])
    write_audit(
        out,
        found,
        task_digest=world.terms.round_terms.task_digest,
        inner_task_digest=task.digest(),
        shortfall=shortfall,
    )
    return found


def _promises(accounts: RunAccounts) -> dict[Adversary, float | None]:
    """ε by adversary, as the ledger has it."""
    from secfl.guarantees import Behaviour, View

    return {
        Adversary(
            view=View(row["view"]), behaviour=Behaviour(row["adversary"]), colluders=int(row["colluders"])
        ): row["epsilon"]
        for row in accounts.statements()
    }
