"""What the jobs do: the server's pre-training, what follows a federated run, and the same without a federation."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secfl.config import RunConfig, load_config
from secfl.federation.checkpoint import Checkpoint, load, store
from secfl.federation.rundir import RunDirectory
from secfl.studies.jobs import Job, store_result
from secfl.studies.published.runs import Collect

if TYPE_CHECKING:
    from secfl.segmentation.segmentation_task import Learned, SegmentationTask
    from secfl.segmentation.task import State

__all__ = ["BACKBONE", "Unseen", "after_federation", "alone_job", "pretraining_job", "unseen"]

BACKBONE = "backbone.safetensors"
_WITHOUT_FEDERATION = "without a federation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """How a backbone meets a task that it has not seen: passes of both ways, and the peak rate of the probe."""

    tune_epochs: int
    probe_epochs: int
    probe_rate: float


def pretraining_job(name: str, settings: Mapping[str, Any], *, runs: Path) -> Job:
    """The server learns a backbone from images without labels, in a process that has none."""
    return _job(name, _pretrain, (dict(settings), runs / name / BACKBONE), runs=runs)


def alone_job(
    name: str,
    settings: Mapping[str, Any],
    *,
    newcomers: Mapping[str, Mapping[str, Any]],
    epochs: int,
    meeting: Unseen,
    runs: Path,
) -> Job:
    """Every client alone from the server's backbone: as many steps as with a federation; and as one that comes later.

    ``newcomers`` has the settings of the latter, by task.
    """
    return _job(name, _alone, (dict(settings), dict(newcomers), epochs, meeting), runs=runs)


def after_federation(final: int) -> Collect:
    """Every client goes on alone for ``final`` epochs from the federated backbone and its own head."""
    return partial(_after_federation, final)


def unseen(settings: Mapping[str, Any], *, meeting: Unseen) -> Collect:
    """The client that the run left out gets its backbone: ``settings`` are those of a run of that client alone."""
    return partial(_unseen, dict(settings), meeting)


def _job(name: str, work: Callable[..., Mapping[str, Any]], arguments: tuple[Any, ...], *, runs: Path) -> Job:
    result = runs / f"{name}.json"
    return Job(
        name=name,
        result=result,
        rounds=1,
        work=_timed,
        arguments=(work, arguments, result),
        done_rounds=lambda: 0,
    )


def _timed(work: Callable[..., Mapping[str, Any]], arguments: tuple[Any, ...], result: Path) -> None:
    began, busy = time.perf_counter(), time.process_time()
    facts = work(*arguments)
    times = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - busy}
    store_result(result, {**facts, **{name: round(value, 1) for name, value in times.items()}})


def _pretrain(settings: Mapping[str, Any], backbone: Path) -> Mapping[str, Any]:
    from secfl.segmentation.segmentation_task import build_task

    config = load_config(None, settings)
    task = build_task(config)
    state = task.train_reference(task.sites, rounds=config.training.rounds)
    backbone.parent.mkdir(parents=True, exist_ok=True)
    store(backbone, Checkpoint(state=state, rounds_completed=0, config_digest=config.digest().hex()))
    return {
        "config_sha256": config.digest().hex(),
        "backbone_sha256": hashlib.sha256(backbone.read_bytes()).hexdigest(),
        "images": sum(task.examples(site) for site in task.sites),
        "explained": {site.removeprefix("server-"): task.evaluate(site, state).dice for site in task.sites},
    }


def _task_of(config: RunConfig, site: str) -> SegmentationTask:
    """One client's task, with nobody else's data."""
    from secfl.segmentation.segmentation_task import SegmentationTask, build_task

    own = config.data.model_copy(update={"sites": {site: config.data.sites[site]}})
    task = build_task(config.model_copy(update={"data": own}))
    assert isinstance(task, SegmentationTask)
    return task


def _score(
    task: SegmentationTask,
    site: str,
    state: State,
    *,
    epochs: int,
    learned: Learned,
    learning_rate: float | None = None,
) -> dict[str, Any]:
    """Dice of what a client makes of a backbone, in the mean over its classes and of each."""
    adapted = task.adapt(site, state, epochs=epochs, learned=learned, learning_rate=learning_rate)
    found = task.evaluate(site, adapted)
    return {"dice": round(found.dice, 6), "by_class": dict(found.dice_by_class), "hd95": found.hd95}


def _as_unseen(task: SegmentationTask, site: str, state: State, *, meeting: Unseen) -> dict[str, Any]:
    from secfl.segmentation.segmentation_task import Learned

    return {
        "probe": _score(
            task,
            site,
            state,
            epochs=meeting.probe_epochs,
            learned=Learned.HEAD,
            learning_rate=meeting.probe_rate,
        ),
        "fine-tune": _score(task, site, state, epochs=meeting.tune_epochs, learned=Learned.ALL),
    }


def _alone(
    settings: Mapping[str, Any], newcomers: Mapping[str, Mapping[str, Any]], epochs: int, meeting: Unseen
) -> Mapping[str, Any]:
    from secfl.segmentation.segmentation_task import Learned

    config = load_config(None, settings)
    tasks: dict[str, Any] = {}
    for site in sorted(config.data.sites):
        task, newcomer = _task_of(config, site), _task_of(load_config(None, newcomers[site]), site)
        tasks[site] = {
            "alone": _score(task, site, task.initial_state(), epochs=epochs, learned=Learned.ALL),
            "unseen": _as_unseen(newcomer, site, newcomer.initial_state(), meeting=meeting),
        }
    return {"arm": _WITHOUT_FEDERATION, "tasks": tasks}


def _after_federation(final: int, folder: Path, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    from secfl.segmentation.segmentation_task import Learned

    run = RunDirectory.open(folder)
    config = run.config()
    backbone = load(run.checkpoints / "final.safetensors").state
    tasks: dict[str, Any] = {}
    for site in summary["sites"]:
        task = _task_of(config, site)
        head = run.sites / f"{site}-round-{summary['rounds_completed']:05d}.safetensors"
        task.load_personal_state(site, load(head).state)
        tasks[site] = {"federated": _score(task, site, backbone, epochs=final, learned=Learned.ALL)}
    return {"tasks": tasks}


def _unseen(
    settings: Mapping[str, Any], meeting: Unseen, folder: Path, summary: Mapping[str, Any]
) -> Mapping[str, Any]:
    config = load_config(None, settings)
    (site,) = config.data.sites
    assert site not in summary["sites"]
    backbone = load(RunDirectory.open(folder).checkpoints / "final.safetensors").state
    task = _task_of(config, site)
    return {"tasks": {site: {"unseen": _as_unseen(task, site, backbone, meeting=meeting)}}}
