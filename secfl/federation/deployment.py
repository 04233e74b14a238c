"""A run over several hosts: a site's home, and the coordinator that holds nobody's key.

A home is a folder that the site alone can read: ``config.toml`` (the run, the same text at every site, but for where
the images are), ``manifest.json`` (everybody's public keys, signed by everybody), ``NAME.key``, optionally
``policy.toml``, and ``state/``, which secfl writes. A home joins one run: another run needs another ``state``.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from secfl.config import RunConfig, load_config
from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.federation.checkpoint import write_atomically
from secfl.federation.engines import RoundEngine, RunSetting
from secfl.federation.exchange import Exchange
from secfl.federation.failures import reply_to
from secfl.federation.journal import Journal
from secfl.federation.keyfiles import read_identity, read_manifest
from secfl.federation.members import Members
from secfl.federation.observer import Observer
from secfl.federation.request_codec import decode_reply, decode_request, encode
from secfl.federation.requests import (
    Declined,
    Failed,
    Opened,
    OpenRun,
    Refused,
)
from secfl.federation.rundir import RunDirectory
from secfl.federation.simulation import go_on, start
from secfl.federation.site_agent import Reports, SiteAgent, leave_run
from secfl.federation.site_setup import make_agent
from secfl.federation.snapshot_vault import SnapshotVault
from secfl.federation.work import make_task
from secfl.ledger.storage import make_folder
from secfl.segmentation.task import Task
from secfl.types import AGGREGATOR, ClientId, RoundId

__all__ = ["Beginning", "SiteHome", "announce_run", "coordinate", "leave_home", "read_members"]

_MOST_OPENING: Final = 4096
_PIN: Final = "run.json"


class Beginning(StrEnum):
    """How a coordinator begins."""

    NEW = "new"
    """A new run directory."""
    RESUMED = "resumed"
    """From the last checkpoint of an interrupted run."""


def read_members(manifest: Path, today: dt.date) -> Directory:
    """The directory of a manifest that everybody has signed.

    Raises:
        ConfigError: It cannot be read, somebody has not signed, or a key has expired.
    """
    try:
        return read_manifest(manifest).check(today)
    except ConfigError as error:
        raise ConfigError(f"{manifest}: {str(error).removeprefix(f'{manifest}: ')}") from None


@dataclass(slots=True, kw_only=True)
class SiteHome:
    """A site between requests. Build it with `open`.

    Attributes:
        identity: The site's name and key.
        directory: Everybody's keys.
        config: The run as this site understands it.
        task: Makes what it trains, on its own data; called when the first offer comes.
        state: Folder of the journal, the snapshots and the last checkpoint.
        reports: What it tells of its own work.
    """

    identity: Identity
    directory: Directory
    config: RunConfig
    task: Callable[[], Task]
    state: Path
    reports: Reports = Reports.NOTHING
    _agent: SiteAgent | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        home: Path,
        name: str,
        *,
        today: dt.date,
        task_factory: str | None = None,
        passphrase: bytes | None = None,
    ) -> SiteHome:
        """Read a home.

        Raises:
            ConfigError: A file is missing or damaged, the key is not the enrolled one, or somebody has not signed.
        """
        directory = read_members(home / "manifest.json", today)
        identity = read_identity(home / f"{name}.key", name, passphrase=passphrase)
        if directory.keys.get(identity.name) != identity.public_key():
            raise ConfigError(f"{home / f'{name}.key'}: is not the key of {name} in the manifest")
        config = load_config(home / "config.toml", {})
        return cls(
            identity=identity,
            directory=directory,
            config=config,
            task=lambda: make_task(config, task_factory),
            state=home / "state",
        )

    def handle(self, request: bytes) -> bytes:
        """Reply to one request; never raises."""
        try:
            if len(request) <= _MOST_OPENING:
                message = decode_request(request, peer=AGGREGATOR, most_bytes=_MOST_OPENING)
                if isinstance(message, OpenRun):
                    self._open(message)
                    return encode(Opened(run_id=message.run_id))
            agent = self._joined()
        except Exception as error:  # noqa: BLE001 - an engine may tell its server whatever is raised here
            return encode(reply_to(error, round_id=RoundId(0), reports=self.reports))
        return agent.handle(request)

    def close(self) -> None:
        """Let go of the journal; another process may go on."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _open(self, message: OpenRun) -> None:
        """Join a run, once in the life of this state folder."""
        if message.config_digest != self.config.digest():
            raise RemoteProtocolError(AGGREGATOR, "opens a run with another configuration than this site has")
        if (known := self._run_id()) is None:
            make_folder(self.state, mode=0o700)
            document = {"format_version": 1, "run_id": message.run_id.hex()}
            write_atomically(self._pin, json.dumps(document).encode())
        elif known != message.run_id:
            raise RemoteProtocolError(AGGREGATOR, "opens another run than this site has joined")

    def _joined(self) -> SiteAgent:
        if self._agent is None:
            run_id = self._run_id()
            if run_id is None:
                raise RemoteProtocolError(AGGREGATOR, "asks before it has opened a run")
            self._agent = make_agent(
                self.identity,
                config=self.config,
                task=self.task,
                directory=self.directory,
                run_id=run_id,
                folder=self.state,
                reports=self.reports,
            )
        return self._agent

    @property
    def _pin(self) -> Path:
        return self.state / _PIN

    def _run_id(self) -> bytes | None:
        return _joined_run(self._pin)


def leave_home(home: Path, name: str, *, passphrase: bytes | None = None) -> bool:
    """Give a site's run up for good: it answers no more, and its sealed snapshots are destroyed.

    Needs the key alone: a run that is given up may be one whose members' keys have expired.

    Returns:
        Whether there was a run to leave.

    Raises:
        ConfigError: The key or the state folder cannot be read.
        LocalProtocolError: Another process serves this home.
    """
    identity = read_identity(home / f"{name}.key", name, passphrase=passphrase)
    state = home / "state"
    run_id = _joined_run(state / _PIN)
    if run_id is None:
        return False
    with Journal(state / "journal", client=identity.name) as journal:
        leave_run(run_id, journal=journal, vault=SnapshotVault.of_site(identity, state, run_id))
    return True


def _joined_run(pin: Path) -> bytes | None:
    try:
        run_id = bytes.fromhex(json.loads(pin.read_text(encoding="utf-8"))["run_id"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{pin}: damaged; expected the run that this site has joined") from None
    if len(run_id) != 16:
        raise ConfigError(f"{pin}: damaged; expected a run id of 16 bytes")
    return run_id


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
            reply = decode_reply(data, peer=name, most_bytes=2 * _MOST_OPENING)
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
