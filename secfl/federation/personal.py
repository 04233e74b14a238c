"""What stays at the sites, kept by a simulation as a site would: one file a site, outside the global checkpoints."""

from __future__ import annotations

from pathlib import Path

from secfl.errors import DataError
from secfl.federation.checkpoint import Checkpoint, load, store
from secfl.segmentation.task import PersonalTask, Task

__all__ = ["load_personal", "store_personal"]

_KEPT = 2


def store_personal(task: Task, folder: Path, *, rounds: int, config_digest: str) -> None:
    """Write every site's own parameters after ``rounds`` rounds, and forget those of earlier rounds but one."""
    if not isinstance(task, PersonalTask):
        return
    for site in task.sites:
        state = task.personal_state(site)
        if not state:
            continue
        folder.mkdir(exist_ok=True)
        checkpoint = Checkpoint(state=state, rounds_completed=rounds, config_digest=config_digest)
        store(folder / f"{site}-round-{rounds:05d}.safetensors", checkpoint)
        for path in sorted(folder.glob(f"{site}-round-*.safetensors"))[:-_KEPT]:
            path.unlink()


def load_personal(task: Task, folder: Path, *, rounds: int) -> None:
    """Take every site's own parameters back as they were after ``rounds`` rounds.

    Raises:
        DataError: A file is missing or damaged.
    """
    if not isinstance(task, PersonalTask) or not rounds:
        return
    for site in task.sites:
        if not task.personal_state(site):
            continue
        loaded = load(folder / f"{site}-round-{rounds:05d}.safetensors")
        if loaded.rounds_completed != rounds:
            raise DataError(f"{folder}: the parameters of {site} are of another round than the checkpoint")
        task.load_personal_state(site, loaded.state)
