"""NVFlare carries the protocol; with `nvflare_simulator` and `nvflare_script` the only importer of ``nvflare``.

Each phase is one remote call to every site, through NVFlare's Collab API. A job carries names of classes and plain
settings, never code of secfl: every host runs the secfl that is installed there.

NVFlare says nothing about who a site is that secfl would believe: envelopes are signed with enrolled keys. A client
that calls itself by another site's name only makes that site drop out.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from nvflare.apis.fl_constant import FLContextKey
from nvflare.collab import CollabCallError, CollabRecipe, collab
from nvflare.collab.api.exceptions import RunAborted
from nvflare.recipe import SimEnv
from nvflare.recipe.spec import ExecEnv

from secfl.errors import ConfigError, RoundAborted
from secfl.federation.deployment import Beginning, CoordinatorHome
from secfl.federation.failures import Reports, reply_to
from secfl.federation.homes import make_homes
from secfl.federation.request_codec import encode
from secfl.federation.requests import Refused
from secfl.federation.site_home import SiteHome
from secfl.randomness import SystemRng
from secfl.types import AGGREGATOR, ClientId, RoundId

__all__ = [
    "AnsweringSite",
    "CollabExchange",
    "Coordinator",
    "SecflRecipe",
    "Site",
    "admit",
    "check_names",
]

_SERVER: Final = "server"
_SYNC_SECONDS: Final = 300
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
        """Stop when the job was aborted. A client that died does not come back into a running job.

        Raises:
            RoundAborted: The job was aborted.
        """
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


class AnsweringSite:
    """The client's side: one agent for the time of the job, one request after the other."""

    _reports = Reports.NOTHING

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
                return self._agent.handle(request)
            except Exception as error:  # noqa: BLE001 - what is raised here, NVFlare may tell the server
                return encode(reply_to(error, round_id=RoundId(0), reports=self._reports))

    @collab.final
    def close(self) -> None:
        """Let go of the journal when the job ends."""
        with self._lock:
            if self._agent is not None:
                self._agent.close()
                self._agent = None


class Site(AnsweringSite):
    """A site in deployment. Its home is ``local/secfl/NAME`` of the NVFlare client's own workspace.

    The home is as `secfl.federation.site_home` says. A file ``task`` with one line ``module:function`` names a task of
    the site's own, whose modules may lie in the home's folder ``code``. Nothing of this comes from a job.
    """

    def _open(self) -> Answers:
        name = collab.site_name
        home = home_folder(name)
        today = dt.datetime.now(dt.UTC).date()
        return SiteHome.open(home, name, today=today, task_factory=task_of_home(home))


class Coordinator:
    """The server's side in deployment: a run whose keys are elsewhere.

    Its home is ``local/secfl/server`` of the NVFlare server's workspace, with ``config.toml`` and ``manifest.json``.
    The run directory is ``runs/JOB`` in it; a copy without the rounds' checkpoints goes into the job's result.

    Args:
        resume: The job whose run this one goes on with, from its last checkpoint.
    """

    def __init__(self, resume: str | None = None) -> None:
        if resume is not None and not _NAME.fullmatch(resume):
            raise ConfigError(f"resume {resume!r}: expected the name of an earlier job")
        self.resume = resume

    @collab.main
    def run(self) -> str:
        """Run the federation; returns the run directory."""
        context = collab.fl_ctx
        home, job = home_folder(_SERVER), str(context.get_job_id())
        secure = bool(context.get_prop(FLContextKey.SECURE_MODE, default=False))
        out = home / "runs" / (job if self.resume is None else self.resume)
        out.parent.mkdir(mode=0o700, exist_ok=True)

        CoordinatorHome.open(home, today=dt.datetime.now(dt.UTC).date()).run(
            out,
            connect=lambda setting: CollabExchange.of_job(setting.members.names),
            task_factory=task_of_home(home),
            beginning=Beginning.NEW if self.resume is None else Beginning.RESUMED,
            facts={"engine": "nvflare", "tls": secure, "node_auth": secure},
        )
        result = Path(collab.workspace.get_result_root(job)) / "secfl"
        shutil.copytree(out, result, ignore=shutil.ignore_patterns("round-*.safetensors"))
        return str(out)


def home_folder(name: str) -> Path:
    """The home of a site, or of the coordinator, on the host that asks."""
    return Path(collab.workspace.get_site_config_dir()) / "secfl" / name


def task_of_home(home: Path) -> str | None:
    """The ``module:function`` that a home names, with its folder ``code`` ready to be imported from.

    Raises:
        ConfigError: The file cannot be read.
    """
    code = home / "code"
    if code.is_dir() and str(code) not in sys.path:
        sys.path.insert(0, str(code))
    try:
        return (home / "task").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{home / 'task'}: {error}; expected one line package.module:function") from None


class SecflRecipe(CollabRecipe):
    """A job of this module's classes. It ships no code, so a site admits it by its list of classes.

    Args:
        name: Of the job.
        min_clients: With fewer living clients NVFlare aborts the job; the run's threshold.
        resume: The job whose run this one goes on with.
        home: Folder with ``config.toml``, and with ``task`` and ``code`` where the task is one of your own. In a
            simulation every host gets a home made of it; elsewhere the hosts have their own, and it is not read.
        server: What runs on the server.
        client: What runs at every site.
    """

    def __init__(
        self,
        name: str,
        *,
        min_clients: int,
        resume: str | None = None,
        home: Path | None = None,
        server: object | None = None,
        client: object | None = None,
    ) -> None:
        self._home = home
        super().__init__(
            job_name=name,
            server=server or Coordinator(resume),
            client=client or Site(),
            min_clients=min_clients,
            sync_task_timeout=_SYNC_SECONDS,
        )
        self._job.set_app_packages(["secfl"])

    def process_env(self, env: ExecEnv) -> None:
        """Give every host of a simulation its home, and let it admit this job; called by NVFlare.

        Raises:
            ConfigError: There is no template of a home.
        """
        if not isinstance(env, SimEnv):
            return
        local = Path(env.workspace_root) / self.name / "local"
        local.mkdir(parents=True, exist_ok=True)
        admit(local, type(self.server), type(self.client))
        if self._home is not None:
            names = env.clients or [f"site-{number}" for number in range(1, env.num_clients + 1)]
            shutil.rmtree(local / "secfl", ignore_errors=True)
            make_homes(
                self._home,
                local / "secfl",
                sites=names,
                coordinator=_SERVER,
                today=dt.datetime.now(dt.UTC).date(),
                rng=SystemRng(),
            )

    @staticmethod
    def _user_source_entries(objs: object) -> list[tuple[str, str | None]]:  # noqa: ARG004 - NVFlare's signature
        """Nothing: sites run the secfl that they have installed, not one that a job brings."""
        return []


def _admitted(*classes: type) -> list[str]:
    """What a host's ``class_allow_list`` has to name for jobs of these classes."""
    return [*_COLLAB, *(f"{one.__module__}.{one.__qualname__}" for one in classes)]


def admit(local: Path, *classes: type) -> None:
    """Let a host of NVFlare run jobs of these classes and no others, and keep what it logs.

    Args:
        local: The folder ``local`` of its workspace.
        classes: `Coordinator` for a server, `Site` for a client.
    """
    given, default = local / "resources.json", local / "resources.json.default"
    known = given if given.exists() else default
    resources = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {"format_version": 2}
    resources |= {"class_allow_list": _admitted(*classes), "allow_log_streaming": False}
    given.write_text(json.dumps(resources, indent=2), encoding="utf-8")


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
