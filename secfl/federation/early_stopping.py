"""Stop when the model no longer gets better on images that belong to nobody, and keep the best one.

Measuring on public images costs no privacy: it is post-processing of the opened model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secfl.config import RunConfig
from secfl.errors import ConfigError
from secfl.federation.checkpoint import Checkpoint, load, store
from secfl.federation.rundir import RunDirectory
from secfl.segmentation.task import PublicTask, State, Task

__all__ = ["best", "is_over", "keep_best", "measure"]

_KEY = "public_dice"
_FILE = "best.safetensors"


def measure(config: RunConfig, task: Task, state: State, *, evaluated: bool) -> dict[str, float]:
    """What goes into a round's line of ``metrics.jsonl``; nothing unless the run may stop early.

    Raises:
        ConfigError: The run may stop early, and the task has no public images.
    """
    if config.training.early_stopping is None or not evaluated:
        return {}
    score = task.public_score(state) if isinstance(task, PublicTask) else None
    if score is None:
        raise ConfigError("training.early_stopping: the task has no public images (data.public)")
    return {_KEY: round(score, 6)}


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Round and Dice of every measurement; a tie goes to the earlier round."""
    return [(int(row["round"]), float(row[_KEY])) for row in rows if _KEY in row]


def _best_round(rows: Sequence[Mapping[str, Any]]) -> int | None:
    scores = _scores(rows)
    return max(scores, key=lambda pair: (pair[1], -pair[0]))[0] if scores else None


def is_over(rows: Sequence[Mapping[str, Any]], *, patience: int) -> bool:
    """Whether the best round lies ``patience`` rounds back."""
    found = _best_round(rows)
    return found is not None and _scores(rows)[-1][0] - found >= patience


def keep_best(
    rows: Sequence[Mapping[str, Any]], run: RunDirectory, state: State, *, config_digest: str
) -> None:
    """Write the model down if its round, the last one, is the best so far."""
    if _KEY in rows[-1] and _best_round(rows) == rows[-1]["round"]:
        rounds = int(rows[-1]["round"]) + 1
        store(
            run.checkpoints / _FILE,
            Checkpoint(state=state, rounds_completed=rounds, config_digest=config_digest),
        )


def best(
    config: RunConfig, rows: Sequence[Mapping[str, Any]], run: RunDirectory, *, otherwise: State
) -> State:
    """The best model by public images, where the run looks at them; else the last one."""
    if config.training.early_stopping is None or _best_round(rows) is None:
        return otherwise
    return load(run.checkpoints / _FILE).state
