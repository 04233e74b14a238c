"""Training scripts written for NVFlare's Client API, as a secfl task: the script stays as it is.

The script calls ``flare.receive()`` and ``flare.send()`` as under NVFlare's own FedAvg. What it sends goes to the
site's agent in the same process, which clips, protects and signs it; the model itself leaves the site only inside a
sum. Metrics that the script sends or logs stay at the site.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.executors.task_script_runner import TaskScriptRunner
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.client.api_spec import CLIENT_API_KEY
from nvflare.client.config import ConfigKey
from nvflare.client.in_process.api import (
    TOPIC_ABORT,
    TOPIC_GLOBAL_RESULT,
    TOPIC_LOCAL_RESULT,
    InProcessClientAPI,
)
from nvflare.fuel.data_event.data_bus import DataBus

from secfl.errors import ConfigError
from secfl.segmentation.task import LocalResult, Preview, SiteMetrics, State
from secfl.types import client_id, join_fields

__all__ = ["ScriptTask"]

_CHECK_SECONDS: Final = 0.05
_LOOK_SECONDS: Final = 0.5


class ScriptTask:
    """A task whose training is a script of NVFlare's Client API; an `secfl.segmentation.task.Task`.

    One process trains for one site: a script is one for each process, so use an engine with a process for each site.

    Args:
        sites: The sites' names.
        script: The script. Its folder's Python files, all of them, are what the sites agree to run.
        model: The first model: tensors by name, or anything with ``state_dict()``.
        score: How good a model is, 0 to 1, on data that the coordinator has; sites never call it.
        arguments: Of the script.
        exchange: What the script takes its parameters for.
        rounds: How many rounds the script is told of.
    """

    def __init__(
        self,
        *,
        sites: Sequence[str],
        script: Path,
        model: Any,
        score: Callable[[State], float],
        arguments: str = "",
        exchange: Literal["pytorch", "numpy"] = "pytorch",
        rounds: int | None = None,
    ) -> None:
        if not script.is_file():
            raise ConfigError(f"script {script}: not found")
        self._sites = tuple(sorted(client_id(site) for site in sites))
        self._script = script.resolve()
        self._first = _arrays(model)
        self._score = score
        self._arguments = arguments
        self._exchange = exchange
        self._rounds = rounds
        self._running: tuple[str, _Script] | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, sorted."""
        return self._sites

    @property
    def is_phantom(self) -> bool:
        """False: nobody but the site knows what the script reads."""
        return False

    def digest(self) -> bytes:
        """SHA-256 of the script, of the Python files beside it, of its arguments and of the model's form."""
        folder = self._script.parent
        files = sorted(path for path in folder.rglob("*.py") if path.is_file())
        code = [
            part
            for path in files
            for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes())
        ]
        form = [f"{name} {array.shape} {array.dtype.str}".encode() for name, array in self._first.items()]
        settings = [self._script.name.encode(), self._arguments.encode(), self._exchange.encode()]
        return hashlib.sha256(
            join_fields(b"script-task/1", join_fields(*settings), join_fields(*code), join_fields(*form))
        ).digest()

    def examples(self, site: str) -> int:  # noqa: ARG002 - the same everywhere
        """One: how many a site has, only its script knows."""
        return 1

    def initial_state(self) -> State:
        """The first model as float32."""
        return {name: array.astype(np.float32) for name, array in self._first.items()}

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """One turn of the script: what it receives is ``state``, and the result is what it sends.

        Its ``NUM_STEPS_CURRENT_ROUND`` is taken for the number of examples.

        Raises:
            ConfigError: The script ended or failed, sent something else than a model, or belongs to another site.
        """
        sent = self._of(site).turn(
            {name: _as_type(state[name], array.dtype) for name, array in self._first.items()},
            round_index=round_index,
            rounds=self._rounds,
        )
        trained = {}
        for name, array in self._first.items():
            if name not in (sent.params or {}):
                raise ConfigError(f"{self._script.name}: sent no {name}")
            values = np.asarray(sent.params[name], dtype=np.float32)
            if values.size != array.size:
                raise ConfigError(
                    f"{self._script.name}: sent {name} of {values.size} elements, expected {array.size}"
                )
            values = values.reshape(array.shape)
            trained[name] = values + state[name] if sent.params_type is ParamsType.DIFF else values
        steps = (sent.meta or {}).get("NUM_STEPS_CURRENT_ROUND", 1)
        return LocalResult(state=trained, examples=max(1, int(steps)), loss=0.0)

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:  # noqa: ARG002 - see `Task`
        """Nowhere: no host has everybody's data.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "references: a training script cannot be run on pooled data; expected references = false"
        )

    def evaluate(self, site: str, state: State) -> SiteMetrics:  # noqa: ARG002 - the coordinator's data are nobody's
        """The score stands for every figure, so that a summary has them."""
        good = float(self._score(state))
        return SiteMetrics.of_score(good, cases=1, foreground_fraction=0.5)

    def previews(self, site: str, state: State) -> Sequence[Preview]:  # noqa: ARG002 - nothing to look at
        """None."""
        return ()

    def _of(self, site: str) -> _Script:
        if self._running is None:
            self._running = site, _Script(self._script, self._arguments, site=site, exchange=self._exchange)
        started_for, script = self._running
        if started_for != site:
            raise ConfigError(
                f"{self._script.name}: runs for {started_for} in this process and cannot train for {site}; "
                "expected an engine with a process for each site"
            )
        return script


class _ClientApi(InProcessClientAPI):
    """NVFlare's Client API that tells when a call of ``send`` is over.

    ``send`` forgets the received model after it has handed over the sent one: one that came in between would be lost.
    """

    def __init__(self, task: dict[str, Any], *, sent: Callable[[], None]) -> None:
        super().__init__(task_metadata=task, result_check_interval=_CHECK_SECONDS)
        self._tell = sent

    def send(self, model: FLModel, clear_cache: bool = True) -> None:  # noqa: FBT001, FBT002 - NVFlare's signature
        """See NVFlare's `flare.send`."""
        super().send(model, clear_cache)
        self._tell()


class _Script:
    """The script in a thread of this process, and NVFlare's Client API between it and the site."""

    def __init__(self, path: Path, arguments: str, *, site: str, exchange: str) -> None:
        self._name = path.name
        self._replies: queue.SimpleQueue[FLModel | str] = queue.SimpleQueue()
        self._last: FLModel | str = "sent nothing"
        self._bus = DataBus()
        self._bus.subscribe([TOPIC_LOCAL_RESULT], self._sent)
        self._bus.subscribe([TOPIC_ABORT], self._failed)
        task = {
            FLMetaKey.SITE_NAME: site,
            FLMetaKey.JOB_ID: "secfl",
            ConfigKey.TASK_NAME: "train",
            ConfigKey.TASK_EXCHANGE: {
                ConfigKey.TRAIN_WITH_EVAL: True,
                ConfigKey.EXCHANGE_FORMAT: exchange,
                ConfigKey.SERVER_EXPECTED_FORMAT: "numpy",
                ConfigKey.TRANSFER_TYPE: "FULL",
                ConfigKey.TRAIN_TASK_NAME: "train",
                ConfigKey.EVAL_TASK_NAME: "validate",
                ConfigKey.SUBMIT_MODEL_TASK_NAME: "submit_model",
            },
        }
        api = _ClientApi(task, sent=self._over)
        api.init()
        self._bus.put_data(CLIENT_API_KEY, api)  # where the script's flare.init() looks
        runner = TaskScriptRunner(custom_dir=str(path.parent), script_path=str(path), script_args=arguments)
        self._thread = threading.Thread(target=self._run, args=(runner,), name=self._name, daemon=True)
        self._thread.start()

    def turn(self, params: Mapping[str, NDArray[Any]], *, round_index: int, rounds: int | None) -> FLModel:
        """Give the script a model and wait for what it sends."""
        model = FLModel(
            params=dict(params), params_type=ParamsType.FULL, current_round=round_index, total_rounds=rounds
        )
        self._bus.publish([TOPIC_GLOBAL_RESULT], FLModelUtils.to_shareable(model))
        while True:
            try:
                reply = self._replies.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if self._thread.is_alive():
                    continue
                raise ConfigError(f"{self._name}: ended before it sent a model") from None
            if isinstance(reply, str):
                raise ConfigError(f"{self._name}: {reply}")
            return reply

    def _run(self, runner: TaskScriptRunner) -> None:
        try:
            runner.run()
        except Exception as error:  # noqa: BLE001 - a script may fail in any way; the site says so and drops out
            self._replies.put(f"failed ({type(error).__name__})")

    def _sent(self, topic: str, data: object, bus: DataBus) -> None:  # noqa: ARG002 - NVFlare's signature
        try:
            self._last = FLModelUtils.from_shareable(data)
        except (ValueError, TypeError) as error:
            self._last = f"sent something else than a model ({type(error).__name__})"

    def _over(self) -> None:
        self._replies.put(self._last)

    def _failed(self, topic: str, data: object, bus: DataBus) -> None:  # noqa: ARG002 - NVFlare's signature
        self._replies.put("failed")


def _arrays(model: Any) -> dict[str, NDArray[Any]]:
    """Tensors by name of a model, or of its ``state_dict()``."""
    tensors = model.state_dict() if hasattr(model, "state_dict") else model
    arrays = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)
        if array.dtype.kind not in "fiu":
            raise ConfigError(f"model: {name} is of type {array.dtype}, expected numbers")
        arrays[str(name)] = array.copy()
    return arrays


def _as_type(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """What a script gets: the model's own types; counters that were averaged are rounded."""
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)
