"""The canary audit of a whole run: identities, ledger, secure sum and all, with the auditor looking on.

The run directory is an ordinary one (config, ledger, with ``record`` the transcript) and has ``audit.json`` beside.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secfl._version import __version__
from secfl.audit.canaries import CanaryPlan, task_digest
from secfl.audit.canary_book import Book, CanaryAudit
from secfl.audit.canary_world import offer_of, prepare, watched_sites
from secfl.audit.findings import Finding
from secfl.config import RunConfig
from secfl.crypto.identity import Directory, Identity
from secfl.errors import DataError
from secfl.federation.accounts import RunAccounts
from secfl.federation.checkpoint import write_atomically
from secfl.federation.client import SiteClient
from secfl.federation.coordinator import run_round
from secfl.federation.driver import Carriage
from secfl.federation.inprocess import InProcessDriver
from secfl.federation.members import Members
from secfl.federation.offer import UPDATE_VECTOR
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import scheme_for, scheme_spec
from secfl.federation.server_optimizer import Adam
from secfl.guarantees import Adversary
from secfl.ledger.reader import replay
from secfl.randomness import SystemRng
from secfl.segmentation.task import PatientTask

__all__ = ["audit_run", "check_commitment", "read_audit"]

_FORMAT_VERSION = 1


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
        run, config, world.terms, members=Members.simulated(identities), threshold=threshold
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
    optimizer = Adam(learning_rate=config.privacy.step_size)
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
    document = {
        "format_version": _FORMAT_VERSION,
        "software": f"secfl {__version__}",
        "task_digest": world.terms.round_terms.task_digest.hex(),
        "inner_task_digest": task.digest().hex(),
        "shortfall_on_purpose": shortfall,
        **found.to_dict(),
    }
    write_atomically(out / "audit.json", (json.dumps(document, indent=2) + "\n").encode())
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


def read_audit(run: Path) -> dict[str, Any]:
    """``audit.json`` of a run.

    Raises:
        DataError: Missing, damaged or newer than this secfl reads.
    """
    path = run / "audit.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = document["format_version"]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; expected a run made by secfl audit run") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged; expected what secfl audit run writes") from None
    if version != _FORMAT_VERSION:
        raise DataError(f"{path}: format_version {version}; this secfl reads {_FORMAT_VERSION}")
    return document


def check_commitment(run: Path) -> list[Finding]:
    """Repeat from a run directory what the ledger committed to before the run; nobody needs to be trusted.

    The seed that was revealed must give the stated commitment, and the commitment must be the one in the digest of
    the task in the ledger's first entry.

    Raises:
        DataError: No canary audit, or a damaged file.
        LedgerCorrupted: The ledger does not verify.
    """
    from secfl.ledger.verify import verify_file

    document = read_audit(run)
    ledger = run / "ledger.jsonl"
    verify_file(ledger)
    header = replay(ledger.read_bytes()).state.header
    try:
        plan = CanaryPlan(
            seed=bytes.fromhex(document["seed"]), count=document["canaries"], guesses=document["guesses"]
        )
        inner = bytes.fromhex(document["inner_task_digest"])
        stated = document["commitment"]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{run / 'audit.json'}: damaged; expected what secfl audit run writes") from None
    bound = task_digest(inner, plan)
    return [
        Finding(
            name="the revealed seed gives the stated commitment",
            flagged=plan.commitment().hex() != stated,
            statistic=f"{plan.count} canaries, {plan.guesses} guesses",
        ),
        Finding(
            name="the ledger's first entry holds that commitment",
            flagged=header.digests.get("task") != bound,
            statistic="digest of the task",
        ),
    ]
