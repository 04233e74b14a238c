"""Flower carries the protocol: the only importer of ``flwr``.

Each phase is one message to every node. A node may run each of them in a new process: the site's agent goes on
from its own folder, guarded by its journal (docs/protocol.md, section 2), so that nothing rests on Flower's context
being stored before a reply leaves.

Flower says nothing about who a site is that secfl would believe: envelopes are signed with enrolled keys. A node that
calls itself by another site's name only makes that site drop out.
"""

from __future__ import annotations

import datetime as dt
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from secfl.errors import ConfigError, RoundAborted
from secfl.federation.deployment import Beginning, CoordinatorHome
from secfl.federation.failures import Reports, reply_to
from secfl.federation.request_codec import encode
from secfl.federation.rundir import RunDirectory
from secfl.federation.site_agent import SiteAgent
from secfl.federation.site_home import SiteHome
from secfl.federation.site_setup import simulated_agent
from secfl.federation.work import make_task
from secfl.segmentation.task import Task
from secfl.types import ClientId, RoundId

__all__ = [
    "FlowerExchange",
    "client_app",
    "coordinator_app",
    "find_sites",
    "flower_simulation",
    "simulated_sites",
    "site_app",
]

_RECORD: Final = "secfl"
_ASK: Final = "query.secfl"
_WHO: Final = "query.secfl_site"
_START_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.3
_AGAIN_SECONDS: Final = 30.0
"""A node that has not said who it is, is asked again after this time: its process may have died with the question."""
_AWAY_SECONDS: Final = 3.0
"""The same after the link has said that a node is away; one that comes back keeps its number."""

OpenAgent = Callable[[Context], AbstractContextManager[SiteAgent | SiteHome]]
SiteName = Callable[[Context], str]


def client_app(open_agent: OpenAgent, *, name: SiteName) -> ClientApp:
    """A Flower ``ClientApp`` that answers secfl's requests, and nothing else.

    Args:
        open_agent: Opens the site's agent for one request; it is closed afterwards, so that the next request may
            come to another process.
        name: The site's name on this node.
    """
    app = ClientApp()

    @app.query("secfl")
    def answer(message: Message, context: Context) -> Message:
        request = message.content[_RECORD]["request"]
        if not isinstance(request, bytes):
            raise TypeError("request: expected bytes")
        try:
            with open_agent(context) as agent:
                reply = agent.handle(request)
        except Exception as error:  # noqa: BLE001 - Flower sends an exception's text, with paths in it, to the server
            reply = encode(reply_to(error, round_id=RoundId(0), reports=Reports.NOTHING))
        return Message(RecordDict({_RECORD: ConfigRecord({"reply": reply})}), reply_to=message)

    @app.query("secfl_site")
    def who(message: Message, context: Context) -> Message:
        return Message(RecordDict({_RECORD: ConfigRecord({"site": name(context)})}), reply_to=message)

    return app


def find_sites(grid: Grid, names: Sequence[ClientId], *, seconds: float) -> dict[ClientId, int]:
    """Which node is which site.

    A node that dies while it is waited for, and one that the link still takes for present although it is dead, is
    asked again: started again, it has the same number. Its first word counts, however often it was asked, so that one
    node cannot claim the names of several sites.

    Args:
        grid: Of the server app.
        names: The enrolled sites.
        seconds: How long nodes are waited for.

    Returns:
        Node ids by site; without sites that did not answer, and without those claimed by two nodes.
    """
    end = time.monotonic() + seconds
    questions: dict[str, int] = {}
    due: dict[int, float] = {}
    heard: set[int] = set()
    claims: dict[ClientId, set[int]] = {}
    while True:
        now = time.monotonic()
        nodes = [node for node in grid.get_node_ids() if node not in heard and due.get(node, now) <= now]
        due.update(dict.fromkeys(nodes, now + _AGAIN_SECONDS))
        messages = [
            Message(
                RecordDict({_RECORD: ConfigRecord({})}),
                dst_node_id=node,
                message_type=_WHO,
                ttl=4 * _AGAIN_SECONDS,  # a node that is busy finds few of them when it has time
            )
            for node in nodes
        ]
        numbers = grid.push_messages(messages) if messages else ()
        questions.update((number, node) for number, node in zip(numbers, nodes, strict=True) if number)
        for reply in grid.pull_messages(list(questions)) if questions else ():
            # A node writes its reply's metadata itself, so that the number may be any.
            node = questions.pop(reply.metadata.reply_to_message_id, None)
            if node is None or node in heard:
                continue
            if reply.has_error():
                due[node] = min(due[node], time.monotonic() + _AWAY_SECONDS)
                continue
            heard.add(node)
            site = _said(reply, "site")
            if isinstance(site, str):
                claims.setdefault(ClientId(site), set()).add(node)
        found = {name: min(claims[name]) for name in names if len(claims.get(name, ())) == 1}
        if len(found) == len(names) or time.monotonic() > end:
            return found
        time.sleep(_POLL_SECONDS)


class FlowerExchange:
    """Puts requests to Flower's nodes; an `secfl.federation.exchange.Exchange`.

    Args:
        grid: Of the server app.
        names: The enrolled sites.
        patience: Seconds for which all sites are waited for before a round.
    """

    def __init__(self, grid: Grid, names: Sequence[ClientId], *, patience: float) -> None:
        self._grid = grid
        self._names = tuple(names)
        self._patience = patience
        self._nodes = find_sites(grid, names, seconds=patience)
        if not self._nodes:
            raise RoundAborted(f"Flower: none of the sites {', '.join(names)} is connected")

    def gather(self) -> None:
        """Wait for sites that are away, before a round; one that was restarted may have another number."""
        if found := find_sites(self._grid, self._names, seconds=self._patience):
            self._nodes = found

    def exchange(
        self, requests: Mapping[ClientId, bytes], *, seconds: float
    ) -> Iterator[tuple[ClientId, bytes]]:
        """See `secfl.federation.exchange.Exchange`; a node that fails or is silent has no reply."""
        sites = {self._nodes[name]: name for name in requests if name in self._nodes}
        messages = [
            Message(
                RecordDict({_RECORD: ConfigRecord({"request": requests[name]})}),
                dst_node_id=node,
                message_type=_ASK,
                ttl=max(seconds, 1.0),
            )
            for node, name in sites.items()
        ]
        if not messages:
            return
        for reply in self._grid.send_and_receive(messages, timeout=seconds):
            content = _said(reply, "reply")
            name = sites.get(reply.metadata.src_node_id)
            if name is not None and isinstance(content, bytes):
                yield name, content


def _said(reply: Message, field: str) -> object:
    """What a node says in a field; ``None`` for an error and for anything else, since a node may run any program."""
    if reply.has_error():
        return None
    record = reply.content.get(_RECORD)
    return record.get(field) if isinstance(record, ConfigRecord) else None


def simulated_sites(
    run: Path, names: Sequence[ClientId], *, run_id: bytes, task_factory: str | None
) -> ClientApp:
    """The app of a simulated run's sites: node ``partition-id`` is the site of that position in ``names``.

    Args:
        run: The run directory, on a disk that every node sees.
        names: The sites.
        run_id: The run.
        task_factory: See `secfl.federation.work.make_task`.
    """

    def name(context: Context) -> str:
        return str(names[int(context.node_config["partition-id"])])

    @contextmanager
    def agent(context: Context) -> Iterator[SiteAgent]:
        agent = simulated_agent(
            RunDirectory.open(run), name(context), run_id=run_id, task=lambda: _task_of(run, task_factory)
        )
        with closing(agent) as one:
            yield one

    return client_app(agent, name=name)


@lru_cache(maxsize=4)
def _task_of(run: Path, factory: str | None) -> Task:
    """The task of a run, made once in each process: a node's messages come one at a time."""
    return make_task(RunDirectory.open(run).config(), factory)


def site_app(task_factory: str | None = None) -> ClientApp:
    """The app of a site in deployment, for ``[tool.flwr.app.components]``.

    The node's configuration names its home (see `secfl.federation.site_home`)::

        flower-supernode --node-config 'site="north" home="/var/lib/secfl/north"' ...
    """

    def name(context: Context) -> str:
        return str(context.node_config["site"])

    @contextmanager
    def home(context: Context) -> Iterator[SiteHome]:
        folder, today = Path(str(context.node_config["home"])), dt.datetime.now(dt.UTC).date()
        with closing(SiteHome.open(folder, name(context), today=today, task_factory=task_factory)) as one:
            yield one

    return client_app(home, name=name)


def coordinator_app(task_factory: str | None = None) -> ServerApp:
    """The app of a coordinator that holds nobody's key, for ``[tool.flwr.app.components]``.

    The run's configuration names ``home`` (with ``config.toml`` and ``manifest.json``) and ``out``, the new run
    directory, or with ``resume=true`` that of a run whose coordinator died. ``tls`` and ``node-auth`` are what whoever
    started the link says of it, as is ``processes`` (by default one for each site, and the coordinator).
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = context.run_config
        home = CoordinatorHome.open(Path(str(given["home"])), today=dt.datetime.now(dt.UTC).date())
        processes = int(given.get("processes", 0))
        home.run(
            Path(str(given["out"])),
            connect=lambda setting: FlowerExchange(
                grid, setting.members.names, patience=home.config.deadlines.gathering
            ),
            task_factory=task_factory,
            beginning=Beginning.RESUMED if given.get("resume", False) else Beginning.NEW,
            facts={
                "engine": "flower-deployment",
                "tls": bool(given.get("tls", False)),
                "node_auth": bool(given.get("node-auth", False)),
                **({"processes": processes} if processes else {}),
            },
        )

    return app


@contextmanager
def flower_simulation(app: ClientApp, names: Sequence[ClientId], *, cores: int) -> Iterator[FlowerExchange]:
    """Flower's simulation engine with one virtual node for each site, for as long as the block runs.

    Raises:
        ConfigError: The engine does not start.
    """
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    grids: queue.Queue[Grid | BaseException] = queue.Queue()
    finished = threading.Event()
    server = ServerApp()

    @server.main()
    def hand_over(grid: Grid, _context: Context) -> None:
        grids.put(grid)
        finished.wait()

    def work() -> None:
        try:
            run_simulation(
                server_app=server,
                client_app=app,
                num_supernodes=len(names),
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                    "init_args": {"num_cpus": cores, "logging_level": "ERROR", "log_to_driver": False},
                },
            )
        except BaseException as error:  # noqa: BLE001 - whatever ends the engine is reported by the caller
            grids.put(error)

    thread = threading.Thread(target=work, name="flower", daemon=True)
    thread.start()
    try:
        started = grids.get(timeout=_START_SECONDS)
        if isinstance(started, BaseException):
            raise ConfigError(f"--engine flower: Flower's simulation does not start ({started})")
        yield FlowerExchange(started, names, patience=_START_SECONDS)
    except queue.Empty:
        raise ConfigError("--engine flower: Flower's simulation does not start in time") from None
    finally:
        finished.set()
        thread.join(timeout=30)
