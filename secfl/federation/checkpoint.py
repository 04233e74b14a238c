"""Checkpoints: one safetensors file a round, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from secfl.errors import ConfigError, DataError
from secfl.federation.state import state_digest
from secfl.segmentation.task import State

__all__ = [
    "CHECKPOINT_FORMAT_VERSION",
    "Checkpoint",
    "latest_checkpoint",
    "load",
    "store",
    "write_atomically",
]

CHECKPOINT_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A global model and the rounds behind it."""

    state: State = field(repr=False)
    rounds_completed: int
    config_digest: str


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old or the new content, and a crash leaves one of them.

    Raises:
        ConfigError: The folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def store(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; its metadata carries the digest that `load` checks."""
    metadata = {
        "format_version": CHECKPOINT_FORMAT_VERSION,
        "rounds_completed": checkpoint.rounds_completed,
        "config_sha256": checkpoint.config_digest,
        "model_sha256": state_digest(checkpoint.state).hex(),
        "order": list(checkpoint.state),
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in checkpoint.state.items()}
    write_atomically(path, save(tensors, metadata={"secfl": json.dumps(metadata)}))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DataError: The file is missing, damaged, from a newer version, or its tensors do not match its digest.
    """
    expected = "expected a checkpoint written by secfl"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {})["secfl"])
            version = metadata["format_version"]
            if version > CHECKPOINT_FORMAT_VERSION:
                raise DataError(
                    f"{path}: format_version {version} is newer than this secfl reads; upgrade secfl"
                )
            state = {name: file.get_tensor(name) for name in metadata["order"]}
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: corrupt checkpoint; {expected}; remove it to go on from the one before"
        ) from None
    if state_digest(state).hex() != metadata["model_sha256"]:
        raise DataError(
            f"{path}: corrupt checkpoint, its digest differs; remove it to go on from the one before"
        )
    return Checkpoint(
        state=state,
        rounds_completed=int(metadata["rounds_completed"]),
        config_digest=str(metadata["config_sha256"]),
    )


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last finished round, by name; ``None`` when there is none."""
    return max(folder.glob("round-*.safetensors"), default=None)
