"""What sites must have in common to meet in a round: settings and code, as digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from secfl.config import RunConfig
from secfl.types import join_fields

if TYPE_CHECKING:
    from pydantic.main import IncEx

__all__ = ["code_digest", "settings_bytes"]


def settings_bytes(config: RunConfig, more: Mapping[str, Any]) -> bytes:
    """Canonical JSON of the settings of data preparation, model and training, and the seed.

    Left out, because sites may differ in them: where files are, and the device with its threads. What a pre-trained
    model holds is in the digest of the first global model.
    """
    places: IncEx = {"source": True, "cache": True, "sites": {"__all__": {"source"}}}
    settings = {
        "seed": config.seed,
        "data": config.data.model_dump(mode="json", exclude=places),
        "model": config.model.model_dump(mode="json", exclude={"pretrained"}),
        "training": config.training.model_dump(mode="json", exclude={"device"}),
        **more,
    }
    return json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()


def code_digest() -> bytes:
    """SHA-256 over the names and contents of the Python files of ``secfl.segmentation``."""
    return _of_folder(resources.files("secfl.segmentation"))


def _of_folder(folder: Traversable, prefix: str = "") -> bytes:
    parts: list[bytes] = []
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = f"{prefix}/{item.name}"
        if item.is_dir() and item.name != "__pycache__":
            parts += [name.encode(), _of_folder(item, name)]
        elif item.name.endswith(".py"):
            parts += [name.encode(), item.read_bytes()]
    return hashlib.sha256(join_fields(*parts)).digest()
