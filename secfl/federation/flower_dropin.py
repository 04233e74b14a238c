"""secfl under an existing Flower app: its training code and its strategy stay, and updates are summed unseen.

The site's ``ClientApp`` is wrapped by `protect`, the server's strategy by `SecureStrategy`. The wrapped app answers
secfl's requests alone: nobody can ask it for a plain update or for metrics any more. The strategy is given one reply
each round, with the mean of the survivors' models, and does with it what it always does.

Example::

    app = protect(app, initial=lambda context: ArrayRecord(Net().state_dict()))

    result = SecureStrategy(FedAvg(), context).start(grid=grid, initial_arrays=arrays, num_rounds=3)
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from secfl.config import RunConfig
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError, DataError
from secfl.federation.deployment import CoordinatorHome, engine_over
from secfl.federation.flower import FlowerExchange, client_app
from secfl.federation.homes import homes_of
from secfl.federation.members import Members
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import start
from secfl.federation.site_home import SiteHome
from secfl.randomness import SystemRng
from secfl.segmentation.task import LocalResult, Preview, SiteMetrics, State
from secfl.types import join_fields

__all__ = ["SecureStrategy", "protect"]

_NODE: Final = 1
_SETTLE_SECONDS: Final = 1.0

TrainConfig = Mapping[str, int | float | str | bool]


def protect(
    app: ClientApp, *, initial: Callable[[Context], ArrayRecord], train_config: TrainConfig | None = None
) -> ClientApp:
    """The same app behind secfl: it trains with its own ``@app.train()`` and gives nothing away but masked sums.

    Args:
        app: The app as it was.
        initial: Makes a model of the right names and shapes; called in every process that trains.
        train_config: What ``train`` finds under ``config`` beside ``server-round``. The site says it itself: what a
            server sends does not reach the training. It must be what the server's `SecureStrategy.start` is given.

    Returns:
        The app for ``[tool.flwr.app.components]``. In deployment the node's configuration names ``site`` and ``home``
        (`secfl.federation.site_home`); under Flower's simulation keys are made on the spot.
    """
    settings = dict(train_config or {})

    @contextmanager
    def home(context: Context) -> Iterator[SiteHome]:
        folder, name = _home_of(context)
        with closing(SiteHome.open(folder, name, today=dt.datetime.now(dt.UTC).date())) as one:
            one.task = lambda: _WrappedTask(
                tuple(sorted(one.directory.keys)),
                initial(context),
                settings,
                train=lambda message: app(message, context),
            )
            yield one

    return client_app(home, name=lambda context: _home_of(context)[1])


class SecureStrategy:
    """A strategy whose clients' updates are added without being seen.

    Args:
        strategy: The strategy as it was. Its sampling of clients is not used: a round is of all sites.
        context: Of the server app. ``run_config`` may name ``secfl-home`` (a coordinator's home, for deployment) and
            ``secfl-out`` (the new run directory).
        settings: Changes to `RunConfig`, under Flower's simulation; it has as many sites as there are nodes.
    """

    def __init__(
        self, strategy: Strategy, context: Context, *, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._strategy = strategy
        self._context = context
        self._settings = dict(settings or {})
        given = context.run_config
        self.out = Path(str(given.get("secfl-out", "") or f"runs/flower-{context.run_id}"))

    def start(  # noqa: PLR0917 - the strategy's own signature
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,  # noqa: ARG002 - as above
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """As ``Strategy.start``. Clients evaluate nothing: figures of single sites do not leave them.

        Raises:
            DataError: The strategy's last model is not the one that the run recorded.
            ConfigError: The home does not fit the run.
            RoundAborted: Too few sites remained, again and again; nothing was opened.
        """
        config, members, coordinator = self._members(grid, num_rounds, timeout)
        step = _StrategyStep(self._strategy, initial_arrays, grid=grid, evaluate_fn=evaluate_fn)
        settings = {
            name: value
            for name, value in (train_config or {}).items()
            if isinstance(value, int | float | str)
        }
        task = _WrappedTask(members.names, initial_arrays, settings, train=_nobody_trains_here)

        try:
            summary = start(
                config,
                out=self.out,
                observer=SilentObserver(),
                task=task,
                task_factory=None,
                members=members,
                opener=lambda setting: engine_over(
                    FlowerExchange(grid, setting.members.names, patience=timeout),
                    setting,
                    coordinator=coordinator,
                ),
                optimizer=step,
                facts={"engine": "flower", "processes": len(members.names) + 1},
            )
        finally:
            if members.identities:
                shutil.rmtree(_simulated_homes(self._context.run_id), ignore_errors=True)
        if summary["final_model_sha256"] != step.digest():
            raise DataError(f"{self.out}: the strategy's model is not the run's")
        return step.result

    def _members(self, grid: Grid, rounds: int, timeout: float) -> tuple[RunConfig, Members, Identity | None]:
        given, today = self._context.run_config.get("secfl-home", ""), dt.datetime.now(dt.UTC).date()
        if given:
            home = CoordinatorHome.open(Path(str(given)), today=today)
            if home.config.training.rounds != rounds:
                raise ConfigError(
                    f"{Path(str(given)) / 'config.toml'}: training.rounds: {home.config.training.rounds}, "
                    f"the strategy has {rounds}"
                )
            return home.config, Members(directory=home.directory), home.identity
        nodes = _settled_nodes(grid, timeout)
        tree = {"clients": nodes, "training": {"rounds": rounds}} | self._settings
        config = RunConfig.model_validate(tree)
        names = [_simulated_name(number) for number in range(nodes)]
        identities = homes_of(
            _simulated_homes(self._context.run_id),
            {"config.toml": config.to_toml()},
            sites=names,
            today=today,
            rng=SystemRng(),
        )
        return config, Members.simulated(identities), None


class _WrappedTask:
    """Another app's training as a `secfl.segmentation.task.Task`. Nothing is measured: Flower's users do that."""

    is_phantom = False

    def __init__(
        self,
        sites: Sequence[str],
        initial: ArrayRecord,
        config: TrainConfig,
        *,
        train: Callable[[Message], Message],
    ) -> None:
        self.sites = tuple(sites)
        self._initial = {name: array.numpy() for name, array in initial.items()}
        self._config = dict(config)
        self._train = train

    def digest(self) -> bytes:
        """Of names, shapes and what the training is told; the training code is the sites' own."""
        shapes = {name: [str(array.dtype), *array.shape] for name, array in self._initial.items()}
        told = json.dumps([shapes, self._config], sort_keys=True)
        return hashlib.sha256(join_fields(b"flower-drop-in/1", told.encode())).digest()

    def examples(self, site: str) -> int:  # noqa: ARG002 - all sites count the same
        return 1

    def initial_state(self) -> State:
        return {
            name: array.astype(np.float32)
            for name, array in self._initial.items()
            if np.issubdtype(array.dtype, np.floating)
        }

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """Hand the model to the app as a server would, and take its reply."""
        arrays = {name: _like(state.get(name, array), array) for name, array in self._initial.items()}
        config = {"server-round": round_index + 1, **self._config}
        content = RecordDict({"arrays": _record(arrays), "config": ConfigRecord(config)})
        reply = self._train(_message(content))
        if reply.has_error():
            raise DataError(f"{site}: the app's training failed: {reply.error.reason}")
        (trained,) = reply.content.array_records.values()
        try:
            after = {name: trained[name].numpy().astype(np.float32) for name in state}
        except KeyError as missing:
            raise DataError(f"{site}: the app's reply has no array {missing}") from None
        return LocalResult(state=after, examples=1, loss=0.0)

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:
        raise ConfigError(
            f"no reference of {', '.join(sites)} over {rounds} rounds: the sites' data is theirs"
        )

    def evaluate(self, site: str, state: State) -> SiteMetrics:  # noqa: ARG002 - nothing is measured
        nothing = cast("float", None)  # `summary.json` has null there
        return SiteMetrics.of_score(nothing, cases=0)

    def previews(self, site: str, state: State) -> Sequence[Preview]:  # noqa: ARG002 - nothing to look at
        return ()


class _StrategyStep:
    """The step that a Flower strategy takes, as a `secfl.federation.server_optimizer.ServerOptimizer`."""

    def __init__(
        self,
        strategy: Strategy,
        initial: ArrayRecord,
        *,
        grid: Grid,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    ) -> None:
        self._strategy = strategy
        self._grid = grid
        self._evaluate = evaluate_fn
        self._arrays = {name: array.numpy() for name, array in initial.items()}
        self._shared = [
            name for name, array in self._arrays.items() if np.issubdtype(array.dtype, np.floating)
        ]
        self._round = 0
        self.result = Result()
        self.result.arrays = initial
        self._measure()

    def step(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """One round of the strategy on a single reply: the mean of the survivors' models."""
        self._round += 1
        before = _record(self._arrays)
        list(self._strategy.configure_train(self._round, before, ConfigRecord(), self._grid))
        model, start = dict(self._arrays), 0
        for name in self._shared:
            size = self._arrays[name].size
            part = mean[start : start + size].reshape(self._arrays[name].shape)
            model[name] = _like(self._arrays[name].astype(np.float64) + part, self._arrays[name])
            start += size
        key = getattr(self._strategy, "weighted_by_key", "num-examples")
        content = RecordDict({"arrays": _record(model), "metrics": MetricRecord({key: 1})})
        reply = _message(content)
        arrays, metrics = self._strategy.aggregate_train(self._round, [reply])
        after = self._arrays if arrays is None else {name: arrays[name].numpy() for name in self._arrays}
        if metrics is not None:
            self.result.train_metrics_clientapp[self._round] = metrics
        moved = [
            (after[name].astype(np.float64) - self._arrays[name].astype(np.float64)).ravel()
            for name in self._shared
        ]
        self._arrays = after
        self.result.arrays = _record(after)
        self._measure()
        return np.concatenate(moved)

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """None: a strategy does not say what it keeps between rounds."""
        return {}

    def load(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        raise ConfigError(f"a Flower strategy cannot be resumed (found {sorted(arrays)})")

    def digest(self) -> str:
        """SHA-256 of the model, as in ``summary.json``."""
        from secfl.federation.state import state_digest

        return state_digest({name: self._arrays[name].astype(np.float32) for name in self._shared}).hex()

    def _measure(self) -> None:
        if self._evaluate is not None:
            found = self._evaluate(self._round, _record(self._arrays))
            if found is not None:
                self.result.evaluate_metrics_serverapp[self._round] = found


def _message(content: RecordDict) -> Message:
    """A message that travels no further than this process."""
    return Message(
        content,
        metadata=Metadata(
            run_id=0,
            message_id="",
            src_node_id=_NODE,
            dst_node_id=_NODE,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=DEFAULT_TTL,
            message_type="train",
        ),
    )


def _nobody_trains_here(_message: Message) -> Message:
    raise ConfigError("a server trains nothing")


def _like(values: NDArray[Any], model: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype=model.dtype).reshape(model.shape)


def _record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})


def _settled_nodes(grid: Grid, seconds: float) -> int:
    """How many nodes there are, once no more of them come."""
    end, before = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        now = len(list(grid.get_node_ids()))
        if now and now == before:
            return now
        before = now
        time.sleep(_SETTLE_SECONDS)
    raise ConfigError("Flower: no nodes are connected")


def _simulated_homes(run_id: int) -> Path:
    return Path(tempfile.gettempdir()) / f"secfl-flower-{run_id}"


def _simulated_name(number: int) -> str:
    return f"site-{number:02d}"


def _home_of(context: Context) -> tuple[Path, str]:
    """Where a node's home is, and its name."""
    node = context.node_config
    if "home" in node and "site" in node:
        return Path(str(node["home"])), str(node["site"])
    if "partition-id" not in node:
        raise ConfigError('--node-config: expected site="NAME" and home="FOLDER"')
    name = _simulated_name(int(node["partition-id"]))
    return _simulated_homes(context.run_id) / name, name
