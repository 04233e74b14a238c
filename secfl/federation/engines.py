"""The engines of a simulated run: who holds the sites, and which driver carries their envelopes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from secfl.config import Engine, RunConfig, check_cohort
from secfl.errors import ConfigError
from secfl.federation.client import RoundClient, SiteClient
from secfl.federation.driver import Driver, Record
from secfl.federation.exchange import Deadlines, Exchange, ExchangeDriver, RemoteSite
from secfl.federation.guard import Guard
from secfl.federation.inprocess import InProcessDriver
from secfl.federation.members import Members
from secfl.federation.multiprocess import SiteProcesses, python_module
from secfl.federation.privacy import RunTerms
from secfl.federation.remote_panel import RemotePanel
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import scheme_for, scheme_spec
from secfl.federation.site_agent import largest_message
from secfl.federation.work import local_work
from secfl.ledger.checkpoints import EachInTurn, Panel
from secfl.randomness import SystemRng
from secfl.segmentation.task import Task
from secfl.types import ClientId

__all__ = ["RemoteEngine", "RoundEngine", "RunSetting", "open_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetting:
    """What an engine needs to know of a run.

    Attributes:
        config: The run's configuration.
        run: Its directory.
        run_id: Its 16 random bytes.
        task: What is learned.
        task_factory: ``module:function`` that makes the same task in another process; ``None`` for segmentation.
        terms: The public numbers.
        members: The sites.
        guard: The sites' policy, or ``None``; sites in other processes make their own.
        entered: Attempts at rounds before the run was interrupted.
    """

    config: RunConfig
    run: RunDirectory
    run_id: bytes
    task: Task
    task_factory: str | None
    terms: RunTerms
    members: Members
    guard: Guard | None = None
    entered: int = 0


class RoundEngine(Protocol):
    """Sites that can be invited to rounds, and a driver for each round."""

    @property
    def clients(self) -> Sequence[RoundClient]:
        """The sites, by name."""
        ...

    @property
    def panel(self) -> Panel:
        """The sites' side of the ledger's checkpoints, where this process does not hold their keys."""
        ...

    def driver(self, *, drops: Mapping[ClientId, int], record: Record | None) -> Driver:
        """What carries the next round."""
        ...


@contextmanager
def open_engine(setting: RunSetting) -> Iterator[RoundEngine]:
    """The engine that the configuration names; its processes end with the block."""
    match setting.config.engine:
        case Engine.INPROCESS:
            yield _InProcess(setting)
        case Engine.MULTIPROCESS:
            names = setting.members.names
            most_bytes = largest_message(setting.terms.round_terms.grid.length, len(names))
            with SiteProcesses(
                names,
                command=lambda name, port: _command(setting, name, port),
                most_bytes=most_bytes,
                rng=SystemRng(),
            ) as processes:
                yield RemoteEngine(setting, processes, most_bytes=most_bytes)
        case Engine.FLOWER:
            with _flower(setting) as exchange:
                names = setting.members.names
                most_bytes = largest_message(setting.terms.round_terms.grid.length, len(names))
                yield RemoteEngine(setting, exchange, most_bytes=most_bytes)
        case Engine.NVFLARE:
            names = setting.members.names
            most_bytes = largest_message(setting.terms.round_terms.grid.length, len(names))
            with _nvflare(setting, most_bytes=most_bytes) as exchange:
                yield RemoteEngine(setting, exchange, most_bytes=most_bytes)


def _nvflare(setting: RunSetting, *, most_bytes: int) -> AbstractContextManager[Exchange]:
    names, deadlines = setting.members.names, setting.config.deadlines
    try:
        from secfl.federation.nvflare import check_names
    except ImportError as error:
        raise ConfigError(f"--engine nvflare: {error}; install it by: pip install 'secfl[nvflare]'") from None
    from secfl.federation.nvflare_process import nvflare_simulation

    check_names(names)
    threshold = check_cohort(
        len(names),
        setting.config.secure_agg.scheme,
        setting.config.secure_agg.threshold,
        setting.config.dropout,
    )
    return nvflare_simulation(
        setting.run.root.resolve(),
        names,
        run_id=setting.run_id,
        task_factory=setting.task_factory,
        most_bytes=most_bytes,
        seconds=max(deadlines.training, deadlines.phase),
        threshold=threshold,
        rng=SystemRng(),
    )


def _flower(setting: RunSetting) -> AbstractContextManager[Exchange]:
    try:
        from secfl.federation import flower
    except ImportError as error:
        raise ConfigError(f"--engine flower: {error}; install it by: pip install 'secfl[flower]'") from None
    app = flower.simulated_sites(
        setting.run.root.resolve(),
        setting.members.names,
        run_id=setting.run_id,
        task_factory=setting.task_factory,
    )
    names = setting.members.names
    return flower.flower_simulation(app, names, cores=os.cpu_count() or 1)


class _InProcess:
    """Every site is an object of this process."""

    def __init__(self, setting: RunSetting) -> None:
        scheme = scheme_spec(setting.config.secure_agg)
        self._clients = [
            SiteClient(
                identity,
                work=local_work(identity.name, config=setting.config, task=setting.task, terms=setting.terms),
                scheme=scheme_for(scheme),
                directory=setting.members.directory,
                terms=setting.terms.round_terms,
                rng=SystemRng(),
                guard=None if setting.guard is None else setting.guard.fresh(entered=setting.entered),
            )
            for identity in setting.members.identities
        ]

    @property
    def clients(self) -> Sequence[RoundClient]:
        return self._clients

    @property
    def panel(self) -> Panel:
        return EachInTurn(())

    def driver(self, *, drops: Mapping[ClientId, int], record: Record | None) -> Driver:
        return InProcessDriver(drops=drops, record=record)


class RemoteEngine:
    """Every site is asked through an exchange."""

    def __init__(self, setting: RunSetting, exchange: Exchange, *, most_bytes: int) -> None:
        self._exchange = exchange
        self._deadlines = Deadlines(
            training=setting.config.deadlines.training, phase=setting.config.deadlines.phase
        )
        self._clients = [RemoteSite(name, most_bytes=most_bytes) for name in setting.members.names]
        self._panel = RemotePanel(
            setting.members.names,
            exchange=exchange,
            run_id=setting.run_id,
            most_bytes=most_bytes,
            seconds=self._deadlines.phase,
        )

    @property
    def clients(self) -> Sequence[RoundClient]:
        """The sites, by name."""
        return self._clients

    @property
    def panel(self) -> Panel:
        """The same sites, for the ledger."""
        return self._panel

    def driver(self, *, drops: Mapping[ClientId, int], record: Record | None) -> Driver:
        """See `RoundEngine.driver`; waits for sites that are away."""
        self._exchange.gather()
        return ExchangeDriver(self._exchange, deadlines=self._deadlines, drops=drops, record=record)


def _command(setting: RunSetting, name: ClientId, port: int) -> list[str]:
    more = [] if setting.task_factory is None else ["--task", setting.task_factory]
    return python_module(
        "secfl.federation.site_process",
        str(setting.run.root.resolve()),
        name,
        "--port",
        str(port),
        "--run-id",
        setting.run_id.hex(),
        *more,
    )
