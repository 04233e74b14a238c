"""A site of a run over several hosts: its home, and what it answers.

A home is a folder that the site alone can read: ``config.toml`` (the run, the same text at every site, but for where
the images are), ``manifest.json`` (everybody's public keys, signed by everybody), ``NAME.key``, optionally
``policy.toml``, and ``state/``, which secfl writes. A home joins one run: another run needs another ``state``.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from secfl.config import RunConfig, load_config
from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.federation.checkpoint import write_atomically
from secfl.federation.failures import Reports, reply_to
from secfl.federation.journal import Journal
from secfl.federation.keyfiles import passphrase_of_service, read_identity
from secfl.federation.manifest import read_usable_manifest
from secfl.federation.request_codec import decode_request, encode
from secfl.federation.requests import Opened, OpenRun
from secfl.federation.signed_requests import open_request
from secfl.federation.site_agent import SiteAgent, leave_run
from secfl.federation.site_setup import make_agent
from secfl.federation.snapshot_vault import SnapshotVault
from secfl.federation.work import make_task
from secfl.ledger.storage import make_folder
from secfl.segmentation.task import Task
from secfl.types import AGGREGATOR, ClientId, RoundId

__all__ = ["MOST_OPENING", "SiteHome", "leave_home"]

MOST_OPENING: Final = 4096
"""Bytes of the largest request that opens a run."""
_PIN: Final = "run.json"


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
        coordinator: Name and key of the only one whose requests it answers; ``None`` for whoever is on the link.
    """

    identity: Identity
    directory: Directory
    config: RunConfig
    task: Callable[[], Task]
    state: Path
    reports: Reports = Reports.NOTHING
    coordinator: tuple[ClientId, bytes] | None = None
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

        Args:
            home: The folder.
            name: The site.
            today: The day on which keys must be good.
            task_factory: See `secfl.federation.work.make_task`.
            passphrase: Of the key; ``None`` for that which the service was given, if any.

        Raises:
            ConfigError: A file is missing or damaged, the key is not the enrolled one, or somebody has not signed.
        """
        manifest = read_usable_manifest(home / "manifest.json", today)
        directory, coordinator = manifest.directory, manifest.coordinator
        identity = read_identity(
            home / f"{name}.key",
            name,
            passphrase=passphrase_of_service() if passphrase is None else passphrase,
        )
        if directory.keys.get(identity.name) != identity.public_key():
            raise ConfigError(f"{home / f'{name}.key'}: is not the key of {name} in the manifest")
        config = load_config(home / "config.toml", {})
        return cls(
            coordinator=None if coordinator is None else (coordinator.name, coordinator.public_key),
            identity=identity,
            directory=directory,
            config=config,
            task=lambda: make_task(config, task_factory),
            state=home / "state",
        )

    def handle(self, request: bytes) -> bytes:
        """Reply to one request; never raises."""
        try:
            request = self._authentic(request)
            if len(request) <= MOST_OPENING:
                message = decode_request(request, peer=AGGREGATOR, most_bytes=MOST_OPENING)
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

    def _authentic(self, request: bytes) -> bytes:
        """The request, where nobody or the coordinator itself has to have signed it.

        The signature covers all of it and is checked before anything is parsed; hashing costs less than receiving.
        """
        if self.coordinator is None:
            return request
        run_id, asked = open_request(request, coordinator=self.coordinator, site=self.identity.name)
        known = self._run_id()
        if known is not None and known != run_id:
            raise RemoteProtocolError(AGGREGATOR, "asks about another run than this site has joined")
        return asked

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
    identity = read_identity(
        home / f"{name}.key", name, passphrase=passphrase_of_service() if passphrase is None else passphrase
    )
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
