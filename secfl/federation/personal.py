"""What stays at the sites: one file a site, outside the global checkpoints.

In one process the run keeps it after every round, as the sites would; a site in a process of its own keeps it itself.
"""

from __future__ import annotations

from pathlib import Path

from secfl.errors import DataError
from secfl.federation.checkpoint import Checkpoint, load, store
from secfl.segmentation.task import LocalResult, PersonalTask, State, Task

__all__ = ["KeepingTrainer", "load_kept", "load_personal", "store_personal"]

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


class KeepingTrainer:
    """A `Trainer` in a site's own process: the site's own parameters outlive the process.

    A round starts from what the last earlier round left, however often it is tried, and whatever came after.

    Args:
        task: What trains.
        folder: Of this site alone.
        config_digest: Of the run, hexadecimal.
    """

    def __init__(self, task: PersonalTask, folder: Path, *, config_digest: str) -> None:
        self._task = task
        self._folder = folder
        self._digest = config_digest

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """Train, and keep what stays here before anything is answered.

        Raises:
            DataError: What was kept is damaged, or of another run.
        """
        kept = _rounds_kept(self._folder)
        earlier = [number for number in kept if number <= round_index]
        if earlier:
            self._task.load_personal_state(site, self._read(kept[earlier[-1]]))
        result = self._task.train(site, state, round_index=round_index)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        own = Checkpoint(
            state=self._task.personal_state(site),
            rounds_completed=round_index + 1,
            config_digest=self._digest,
        )
        store(self._folder / f"round-{round_index + 1:05d}.safetensors", own)
        for number in [number for number in kept if number <= round_index][:-1]:
            kept[number].unlink()
        return result

    def _read(self, path: Path) -> State:
        loaded = load(path)
        if loaded.config_digest != self._digest:
            raise DataError(f"{path}: belongs to another run")
        return loaded.state


def load_kept(folder: Path) -> State:
    """What a site in a process of its own kept after its last round.

    Raises:
        DataError: There is nothing, or it is damaged.
    """
    kept = _rounds_kept(folder)
    if not kept:
        raise DataError(f"{folder}: the site has kept nothing; expected a finished round")
    return load(kept[max(kept)]).state


def _rounds_kept(folder: Path) -> dict[int, Path]:
    """Rounds behind each file, increasing."""
    return {
        int(path.stem.removeprefix("round-")): path for path in sorted(folder.glob("round-*.safetensors"))
    }
