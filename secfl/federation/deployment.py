"""The coordinator of a run over several hosts: it holds nobody's key, and what it adds it cannot read.

The sites' side is `secfl.federation.site_home`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from secfl.config import RunConfig, load_config
from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.federation.engines import RemoteEngine, RoundEngine, RunSetting
from secfl.federation.exchange import Exchange
from secfl.federation.keyfiles import passphrase_of_service, read_identity
from secfl.federation.manifest import read_usable_manifest
from secfl.federation.members import Members
from secfl.federation.observer import Observer, SilentObserver
from secfl.federation.request_codec import decode_reply, encode
from secfl.federation.requests import Declined, Failed, Opened, OpenRun, Refused
from secfl.federation.rundir import RunDirectory
from secfl.federation.signed_requests import SigningExchange
from secfl.federation.simulation import go_on, start
from secfl.federation.site_agent import largest_message
from secfl.federation.site_home import MOST_OPENING
from secfl.federation.work import make_task
from secfl.types import ClientId

__all__ = ["Beginning", "CoordinatorHome", "announce_run", "coordinate", "engine_over"]


class Beginning(StrEnum):
    """How a coordinator begins."""

    NEW = "new"
    """A new run directory."""
    RESUMED = "resumed"
    """From the last checkpoint of an interrupted run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorHome:
    """The folder of a coordinator: ``config.toml``, ``manifest.json``, and ``NAME.key`` where the manifest names it.

    Attributes:
        config: The run.
        directory: The enrolled keys.
        identity: Signs the requests; ``None`` where the manifest names no coordinator.
    """

    config: RunConfig
    directory: Directory
    identity: Identity | None

    @classmethod
    def open(cls, home: Path, *, today: dt.date) -> CoordinatorHome:
        """Read it.

        Raises:
            ConfigError: A file is missing or damaged, the key is not the manifest's, or somebody has not signed.
        """
        manifest = read_usable_manifest(home / "manifest.json", today)
        identity, entry = None, manifest.coordinator
        if entry is not None:
            path = home / f"{entry.name}.key"
            identity = read_identity(path, entry.name, passphrase=passphrase_of_service())
            if identity.public_key() != entry.public_key:
                raise ConfigError(f"{path}: is not the key of the coordinator in the manifest")
        return cls(
            config=load_config(home / "config.toml", {}), directory=manifest.directory, identity=identity
        )

    def run(
        self,
        out: Path,
        *,
        connect: Callable[[RunSetting], Exchange],
        facts: dict[str, Any],
        task_factory: str | None = None,
        beginning: Beginning = Beginning.NEW,
    ) -> dict[str, Any]:
        """Run the federation, or go on with it; returns the summary. Arguments and errors as in `coordinate`.

        Args:
            out: The run directory.
            connect: Reaches the sites, through whatever engine carries the run.
            facts: What the summary says of how the run was carried; without ``processes`` a process for each party.
            task_factory: See `secfl.federation.work.make_task`.
            beginning: Whether the run is new.
        """
        return coordinate(
            self.config,
            directory=self.directory,
            out=out,
            opener=lambda setting: engine_over(connect(setting), setting, coordinator=self.identity),
            observer=SilentObserver(),
            task_factory=task_factory,
            facts={"processes": len(self.directory.keys) + 1, **facts},
            beginning=beginning,
        )


@contextmanager
def engine_over(
    exchange: Exchange, setting: RunSetting, *, coordinator: Identity | None = None
) -> Iterator[RoundEngine]:
    """The engine of a run whose sites have homes, over any exchange; tells them which run begins.

    Args:
        exchange: Reaches the sites.
        setting: The run.
        coordinator: Signs every request, where the manifest names a coordinator.
    """
    names, config = setting.members.names, setting.config
    if coordinator is not None:
        exchange = SigningExchange(exchange, coordinator, run_id=setting.run_id)
    absent = announce_run(
        exchange,
        names,
        run_id=setting.run_id,
        config_digest=config.digest(),
        seconds=config.deadlines.training,
    )
    for site, reason in absent.items():
        setting.run.log(f"{site} is not in the run: {reason}")
    most_bytes = largest_message(setting.terms.round_terms.grid.length, len(names))
    yield RemoteEngine(setting, exchange, most_bytes=most_bytes)


def announce_run(
    exchange: Exchange, names: Sequence[ClientId], *, run_id: bytes, config_digest: bytes, seconds: float
) -> dict[ClientId, str]:
    """Tell the sites which run begins.

    Returns:
        Why a site is not in the run, by site; empty when all are.
    """
    request = encode(OpenRun(run_id=run_id, config_digest=config_digest))
    absent = dict.fromkeys(names, "did not answer")
    for name, data in exchange.exchange(dict.fromkeys(names, request), seconds=seconds):
        try:
            reply = decode_reply(data, peer=name, most_bytes=2 * MOST_OPENING)
        except RemoteProtocolError as error:
            absent[name] = error.reason
            continue
        if isinstance(reply, Opened) and reply.run_id == run_id:
            absent.pop(name, None)
        elif isinstance(reply, Refused | Failed | Declined):
            absent[name] = reply.reason
    return absent


def coordinate(
    config: RunConfig,
    *,
    directory: Directory,
    out: Path,
    opener: Callable[[RunSetting], AbstractContextManager[RoundEngine]],
    observer: Observer,
    task_factory: str | None = None,
    facts: dict[str, Any] | None = None,
    beginning: Beginning = Beginning.NEW,
) -> dict[str, Any]:
    """Run a federation whose keys are elsewhere, or go on after the coordinator died.

    A round that was under way is charged to the ledger and run again with fresh keys and noise; the sites know the run
    and do not enter a round twice.

    Args:
        config: The run; its digest must be the sites'.
        directory: The enrolled keys.
        out: The run directory; must not exist, or must be that of the interrupted run.
        opener: Connects to the sites, and tells them which run begins.
        observer: Told what happens.
        task_factory: See `secfl.federation.work.make_task`.
        facts: What else the summary says of how the run was carried.
        beginning: Whether the run is new.

    Returns:
        The summary.

    Raises:
        ConfigError: The cohort of the configuration is not that of the manifest, the interrupted run was begun with
            another configuration or other members, or as in `simulate` and `resume`.
    """
    task = make_task(config, task_factory)
    if tuple(sorted(directory.keys)) != tuple(sorted(task.sites)):
        raise ConfigError(
            f"the manifest has the members {', '.join(sorted(directory.keys))}, the task the sites "
            f"{', '.join(task.sites)}"
        )
    members = Members(directory=directory)
    if beginning is Beginning.RESUMED:
        run = RunDirectory.open(out)
        if run.summary.exists():
            raise ConfigError(f"{out}: the run is finished; its summary is {run.summary}")
        if run.config().digest() != config.digest():
            raise ConfigError(f"{out}: was begun with another configuration")
        return go_on(
            run,
            observer=observer,
            task=task,
            task_factory=task_factory,
            members=members,
            opener=opener,
            facts=facts,
        )
    return start(
        config,
        out=out,
        observer=observer,
        task=task,
        task_factory=task_factory,
        members=members,
        opener=opener,
        facts=facts,
    )
