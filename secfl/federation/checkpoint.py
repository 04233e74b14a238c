"""Checkpoints: one safetensors file a round, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from secfl.errors import ConfigError, DataError
from secfl.federation.state import state_digest
from secfl.ledger.storage import sync_folder
from secfl.segmentation.task import State
from secfl.types import join_fields

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
    """A global model, the rounds behind it, and the server optimizer's arrays."""

    state: State = field(repr=False)
    rounds_completed: int
    config_digest: str
    optimizer: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)


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
            sync_folder(path.parent)
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
        "optimizer": sorted(checkpoint.optimizer),
        "optimizer_sha256": _digest(checkpoint.optimizer),
    }
    tensors: dict[str, NDArray[Any]] = {
        f"model/{name}": np.ascontiguousarray(tensor) for name, tensor in checkpoint.state.items()
    }
    tensors |= {f"optimizer/{name}": array for name, array in checkpoint.optimizer.items()}
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
            state = {name: file.get_tensor(f"model/{name}") for name in metadata["order"]}
            arrays = {name: file.get_tensor(f"optimizer/{name}") for name in metadata["optimizer"]}
    except FileNotFoundError:
        raise DataError(f"{path}: no such checkpoint") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: corrupt checkpoint; {expected}; remove it to go on from the one before"
        ) from None
    sound = state_digest(state).hex() == metadata["model_sha256"]
    if not sound or _digest(arrays) != metadata["optimizer_sha256"]:
        raise DataError(
            f"{path}: corrupt checkpoint, its digest differs; remove it to go on from the one before"
        )
    return Checkpoint(
        state=state,
        rounds_completed=int(metadata["rounds_completed"]),
        config_digest=str(metadata["config_sha256"]),
        optimizer=arrays,
    )


def _digest(arrays: Mapping[str, NDArray[np.float64]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(join_fields(name.encode(), np.ascontiguousarray(arrays[name], dtype="<f8").tobytes()))
    return digest.hexdigest()


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last finished round, by name; ``None`` when there is none."""
    return max(folder.glob("round-*.safetensors"), default=None)
