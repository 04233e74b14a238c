"""NVFlare carries the protocol: the only importer of ``nvflare``.

Each phase is one remote call to every site, through NVFlare's Collab API. A job carries names of classes and plain
settings, never code of secfl: every host runs the secfl that is installed there.

NVFlare says nothing about who a site is that secfl would believe: envelopes are signed with enrolled keys. A client
that calls itself by another site's name only makes that site drop out.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from nvflare.collab import CollabCallError, CollabRecipe, collab
from nvflare.collab.api.exceptions import RunAborted
from nvflare.recipe import SimEnv

from secfl.errors import ConfigError, RoundAborted, SecflError
from secfl.federation.relay import serve_relay
from secfl.federation.requests import Failed, Refused, encode
from secfl.federation.rundir import RunDirectory
from secfl.federation.site_setup import simulated_agent
from secfl.federation.work import make_task
from secfl.types import AGGREGATOR, ClientId, RoundId

__all__ = [
    "CollabExchange",
    "Relay",
    "SecflRecipe",
    "SimulatedSite",
    "simulate_sites",
]

_SERVER: Final = "server"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_COLLAB: Final = (
    "nvflare.collab.runtime.controller.CollabController",
    "nvflare.collab.runtime.executor.CollabExecutor",
)


class Answers(Protocol):
    """What stands behind a site: `SiteAgent` or `SiteHome`."""

    def handle(self, request: bytes) -> bytes:
        """Reply to one request."""
        ...

    def close(self) -> None:
        """Let go of the journal."""
        ...


class CollabExchange:
    """Calls the sites of a Collab job; an `secfl.federation.exchange.Exchange`.

    Use it within the job's main function, from one thread.

    Args:
        sites: Proxies of the clients, by name.
    """

    def __init__(self, sites: Mapping[ClientId, Any]) -> None:
        self._sites = dict(sites)

    @classmethod
    def of_job(cls, names: Sequence[ClientId]) -> CollabExchange:
        """The exchange of the job whose main function calls this.

        Raises:
            RoundAborted: None of the sites takes part in the job.
        """
        proxies = {ClientId(proxy.name): proxy for proxy in collab.clients}
        sites = {name: proxies[name] for name in names if name in proxies}
        if not sites:
            raise RoundAborted(f"NVFlare: none of the sites {', '.join(names)} takes part in the job")
        return cls(sites)

    def gather(self) -> None:
        """Stop when the job was aborted. A client that died does not come back into a running job."""
        if collab.is_aborted:
            raise RoundAborted("NVFlare: the job was aborted")

    def exchange(
        self, requests: Mapping[ClientId, bytes], *, seconds: float
    ) -> Iterator[tuple[ClientId, bytes]]:
        """See `secfl.federation.exchange.Exchange`; a client that fails or is silent has no reply."""
        replies: queue.SimpleQueue[tuple[ClientId, bytes | None]] = queue.SimpleQueue()
        asked = [name for name in requests if name in self._sites]
        for name in asked:
            arguments = (name, requests[name], seconds, replies)
            threading.Thread(target=self._ask, args=arguments, name=f"ask-{name}", daemon=True).start()
        end = time.monotonic() + seconds
        for _ in asked:
            try:
                name, reply = replies.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return
            if reply is not None:
                yield name, reply

    def _ask(
        self,
        name: ClientId,
        request: bytes,
        seconds: float,
        replies: queue.SimpleQueue[tuple[ClientId, bytes | None]],
    ) -> None:
        reply = None
        with contextlib.suppress(CollabCallError, RunAborted):
            found = self._sites[name](timeout=seconds).answer(request)
            reply = found if isinstance(found, bytes) else None
        replies.put((name, reply))


class _Site:
    """The client's side: one agent for the time of the job, one request after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._agent: Answers | None = None

    def _open(self) -> Answers:
        """What stands behind this site."""
        raise ConfigError("a site of no kind")

    @collab.publish
    def answer(self, request: bytes) -> bytes:
        """Reply to one request of the job's server, and to nobody else's."""
        if collab.caller != _SERVER or not isinstance(request, bytes):
            return encode(
                Refused(round_id=RoundId(0), reason=f"expected bytes of the server, as {AGGREGATOR}")
            )
        with self._lock:
            try:
                self._agent = self._agent or self._open()
            except SecflError as error:
                return encode(Failed(round_id=RoundId(0), reason=str(error)))
            return self._agent.handle(request)

    @collab.final
    def close(self) -> None:
        """Let go of the journal when the job ends."""
        with self._lock:
            if self._agent is not None:
                self._agent.close()
                self._agent = None


class SimulatedSite(_Site):
    """A site of a simulated run: its key and its folder are in the run directory, which every process sees.

    Args:
        run: The run directory.
        run_id: The run, hexadecimal.
        task: See `secfl.federation.work.make_task`.
    """

    def __init__(self, run: str, run_id: str, task: str | None = None) -> None:
        super().__init__()
        self.run = run
        self.run_id = run_id
        self.task = task

    def _open(self) -> Answers:
        run = RunDirectory.open(Path(self.run))
        return simulated_agent(
            run,
            collab.site_name,
            run_id=bytes.fromhex(self.run_id),
            task=lambda: make_task(run.config(), self.task),
        )


class Relay:
    """The server's side of a simulated run: puts the requests of a coordinator in another process to the sites.

    Args:
        port: Where the coordinator listens on this host.
        token_file: File with the 32 secret bytes that let the relay in; readable by its owner only.
        most_bytes: The largest message.
        seconds: How long one call may take.
    """

    def __init__(self, port: int, token_file: str, most_bytes: int, seconds: float) -> None:
        self.port = port
        self.token_file = token_file
        self.most_bytes = most_bytes
        self.seconds = seconds

    @collab.main
    def run(self) -> None:
        """Carry messages until the coordinator hangs up."""
        proxies = {ClientId(proxy.name): proxy for proxy in collab.clients}

        def ask(name: ClientId, request: bytes) -> bytes:
            try:
                reply = proxies[name](timeout=self.seconds).answer(request)
            except (CollabCallError, RunAborted) as error:
                return encode(Failed(round_id=RoundId(0), reason=f"NVFlare: {type(error).__name__}"))
            return reply if isinstance(reply, bytes) else b""

        serve_relay(
            tuple(proxies),
            ask,
            port=self.port,
            token=Path(self.token_file).read_bytes(),
            most_bytes=self.most_bytes,
        )


class SecflRecipe(CollabRecipe):
    """A job of this module's classes. It ships no code, so a site admits it by its list of classes.

    Args:
        name: Of the job.
        server: What runs on the server.
        client: What runs at every site.
        min_clients: With fewer living clients NVFlare aborts the job; the run's threshold.
    """

    def __init__(self, name: str, *, server: object, client: object, min_clients: int) -> None:
        super().__init__(job_name=name, server=server, client=client, min_clients=min_clients)
        self._job.set_app_packages(["secfl"])

    @staticmethod
    def _user_source_entries(objs: object) -> list[tuple[str, str | None]]:  # noqa: ARG004 - NVFlare's signature
        """Nothing: sites run the secfl that they have installed, not one that a job brings."""
        return []


def admitted_classes(*classes: type) -> list[str]:
    """What a host's ``class_allow_list`` has to name for jobs of these classes."""
    return [*_COLLAB, *(f"{one.__module__}.{one.__qualname__}" for one in classes)]


def check_names(names: Sequence[ClientId]) -> None:
    """Refuse site names that NVFlare cannot carry.

    Raises:
        ConfigError: A name has a dot, or is the server's.
    """
    for name in names:
        if not _NAME.fullmatch(name) or name == _SERVER:
            raise ConfigError(
                f"site {name}: NVFlare expects letters, digits, _ and - only, and not {_SERVER!r}"
            )


def simulate_sites(
    folder: Path, names: Sequence[ClientId], *, relay: Relay, site: SimulatedSite, threshold: int
) -> None:
    """Run NVFlare's simulator with one process for each site until the relay's coordinator hangs up.

    Args:
        folder: For NVFlare's own files.
        names: The sites.
        relay: The server's side.
        site: The clients' side.
        threshold: Fewest clients.
    """
    check_names(names)
    local = folder / "secfl" / "local"
    local.mkdir(parents=True)
    resources = {"format_version": 2, "class_allow_list": admitted_classes(Relay, SimulatedSite)}
    (local / "resources.json").write_text(json.dumps(resources), encoding="utf-8")
    recipe = SecflRecipe("secfl", server=relay, client=site, min_clients=threshold)
    recipe.execute(SimEnv(clients=list(names), num_threads=len(names), workspace_root=str(folder)))
