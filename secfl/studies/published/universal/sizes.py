"""How large each preset is, and the configurations that follow from it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from secfl.errors import ConfigError
from secfl.studies.published.interface import Preset, Request

__all__ = [
    "SIZES",
    "Size",
    "federated_settings",
    "newcomer_settings",
    "server_settings",
    "size_of",
    "tasks_of",
]

_CHANNELS = 4
"""Of every image: those of the modality with the most, the MRI; others are repeated in turn."""
_VOLUMES = "kidney-ct"
_PHANTOMS = (
    "leg-ct",
    "fundus",
    "dermoscopy",
    "ultrasound",
    "brain-mri",
    "kidney-ct",
    "chest-xray",
    "retina-oct",
)
_FEWEST = 4
"""Clients: a federation without one of them still needs three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One preset.

    Attributes:
        tasks: How many of the phantom's tasks.
        image_size: Side of the phantom's images, pixels.
        images: Of a client's phantom, labelled for training and held for the test together.
        labelled: Images that a client has labels for and trains on.
        few: Those of a client that meets the backbone later, with a task that the federation has not seen.
        slices: Of a volume.
        server_images: Of one modality on the server, without labels.
        channels: Feature maps of the U-Net.
        pretrain_epochs: Passes of the server over its images.
        pretrain_rate: Learning rate there.
        rounds: Federated rounds.
        local_epochs: Passes of a client over its images in a round.
        stages: Rounds of training the head alone, then rounds of decoder and head; everything afterwards.
        final_epochs: Passes of each client alone at the end; without a federation it takes them and those of all
            rounds in one go.
        tune_epochs: Passes of fine-tuning on a task that the federation has not seen.
        probe_epochs: Passes of a linear probe.
        probe_rate: Peak learning rate of a linear probe.
        batch_size: Images per step.
        learning_rate: Peak, at the clients.
        server_rate: What the server multiplies the mean update by.
        seconds: Measured on one thread of a slow processor: pre-training, a federation of all, everything alone.
    """

    tasks: int
    image_size: int
    images: int
    labelled: int
    few: int
    slices: int
    server_images: int
    channels: tuple[int, ...]
    pretrain_epochs: int
    pretrain_rate: float
    rounds: int
    local_epochs: int
    stages: tuple[int, ...]
    final_epochs: int
    tune_epochs: int
    probe_epochs: int
    probe_rate: float
    batch_size: int
    learning_rate: float
    server_rate: float
    seconds: tuple[float, float, float]

    @property
    def test_fraction(self) -> float:
        """Share of a client's phantom that is held for the test."""
        return 1.0 - self.labelled / self.images

    @property
    def newcomer_images(self) -> int:
        """Of a client that comes later: it has few labels, and as many images for the test as others."""
        return self.few + self.images - self.labelled

    @property
    def newcomer_test_fraction(self) -> float:
        """Share of them that is held for the test."""
        return 1.0 - self.few / self.newcomer_images


SIZES: Mapping[Preset, Size] = MappingProxyType(
    {
        Preset.SMOKE: Size(
            tasks=4,
            image_size=32,
            images=8,
            labelled=4,
            few=4,
            slices=1,
            server_images=8,
            channels=(4, 8, 8),
            pretrain_epochs=1,
            pretrain_rate=4e-3,
            rounds=1,
            local_epochs=1,
            stages=(),
            final_epochs=1,
            tune_epochs=1,
            probe_epochs=1,
            probe_rate=5e-2,
            batch_size=4,
            learning_rate=6e-3,
            server_rate=1.0,
            seconds=(1.0, 1.5, 2.0),
        ),
        Preset.SMALL: Size(
            tasks=8,
            image_size=48,
            images=44,
            labelled=16,
            few=4,
            slices=4,
            server_images=32,
            channels=(8, 16, 32),
            pretrain_epochs=12,
            pretrain_rate=4e-3,
            rounds=20,
            local_epochs=3,
            stages=(1,),
            final_epochs=60,
            tune_epochs=40,
            probe_epochs=40,
            probe_rate=5e-2,
            batch_size=4,
            learning_rate=6e-3,
            server_rate=2.0,
            seconds=(15.0, 45.0, 110.0),
        ),
        Preset.PAPER: Size(
            tasks=8,
            image_size=256,
            images=640,
            labelled=160,
            few=16,
            slices=16,
            server_images=2000,
            channels=(32, 64, 128, 256, 512),
            pretrain_epochs=200,
            pretrain_rate=1e-3,
            rounds=100,
            local_epochs=2,
            stages=(5, 15),
            final_epochs=100,
            tune_epochs=50,
            probe_epochs=50,
            probe_rate=1e-2,
            batch_size=16,
            learning_rate=2e-3,
            server_rate=1.0,
            seconds=(7200.0, 9000.0, 9000.0),
        ),
    }
)


def size_of(request: Request) -> Size:
    """The preset's size."""
    return SIZES[request.preset]


def tasks_of(request: Request) -> dict[str, dict[str, Any]]:
    """Every client's own ``[data.sites.<name>]``, by its name.

    Images of one's own are in ``DATA/clients/<task>/images`` and ``masks``, those of the server in
    ``DATA/server/<name>/images``; an optional ``DATA/tasks.toml`` has a table for each task, with labels and windows.

    Raises:
        ConfigError: Fewer than four tasks, or a folder that is not like that.
    """
    size = size_of(request)
    if request.data == "phantom":
        return {name: _phantom(size, name, images=size.images) for name in _PHANTOMS[: size.tasks]}
    root = Path(request.data)
    clients = root / "clients"
    names = sorted(path.name for path in clients.iterdir() if path.is_dir()) if clients.is_dir() else []
    if len(names) < _FEWEST:
        raise ConfigError(
            f"--data {root}: {len(names)} tasks; expected at least {_FEWEST} folders {clients}/<task> with images and "
            "masks, because a federation without one of them needs three clients"
        )
    own = _own_keys(root / "tasks.toml", names)
    return {
        name: {"source": str(clients / name), "slices": size.slices, **own.get(name, {})} for name in names
    }


def _phantom(size: Size, name: str, *, images: int) -> dict[str, Any]:
    volumes = {"phantom_images": max(8, images // size.slices)} if name == _VOLUMES else {}
    return {"phantom_task": name, **volumes}


def _own_keys(path: Path, names: Sequence[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}; expected a table for each task") from None
    for name, table in tables.items():
        if name not in names or not isinstance(table, dict) or "source" in table:
            raise ConfigError(
                f"{path}: {name}: expected tables of tasks ({', '.join(names)}), without a source"
            )
    return tables


def federated_settings(
    request: Request, tasks: Mapping[str, Mapping[str, Any]], *, seed: int, pretrained: Path
) -> dict[str, Any]:
    """The run of these clients, as a tree."""
    size = size_of(request)
    return {
        "seed": seed,
        "threads": 1,
        "evaluate_every": size.rounds,
        "data": {
            "sites": {name: dict(own) for name, own in tasks.items()},
            "channels": _CHANNELS,
            "image_size": size.image_size,
            "phantom_images": size.images,
            "slices": size.slices,
            "test_fraction": size.test_fraction,
        },
        "model": {"channels": list(size.channels), "pretrained": str(pretrained)},
        "training": {
            "rounds": size.rounds,
            "local_epochs": size.local_epochs,
            "batch_size": size.batch_size,
            "learning_rate": size.learning_rate,
            "server_learning_rate": size.server_rate,
            "stages": list(size.stages),
            "local_parameters": "head",
        },
        "secure_agg": {"scheme": request.scheme.value},
    }


def newcomer_settings(
    request: Request, name: str, own: Mapping[str, Any], *, seed: int, pretrained: Path
) -> dict[str, Any]:
    """A client alone that comes later, with few labels, as a tree."""
    size = size_of(request)
    site = _phantom(size, name, images=size.newcomer_images) if request.data == "phantom" else own
    tree = federated_settings(request, {name: site}, seed=seed, pretrained=pretrained)
    data = {"phantom_images": size.newcomer_images, "test_fraction": size.newcomer_test_fraction}
    return {**tree, "data": {**tree["data"], **data}}


def server_settings(request: Request, tasks: Mapping[str, Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """The server's pre-training, as a tree: other clinics' images of the same kinds, no labels."""
    size = size_of(request)
    if request.data == "phantom":
        sites = {f"server-{name}": _phantom(size, name, images=size.server_images) for name in tasks}
    else:
        server = Path(request.data) / "server"
        sites = {f"server-{name}": {**own, "source": str(server / name)} for name, own in tasks.items()}
    return {
        "seed": seed,
        "threads": 1,
        "data": {
            "sites": sites,
            "channels": _CHANNELS,
            "image_size": size.image_size,
            "phantom_images": size.server_images,
            "slices": size.slices,
            "test_fraction": 0.125,
        },
        "model": {"channels": list(size.channels)},
        "training": {
            "objective": "masked-images",
            "rounds": 1,
            "local_epochs": size.pretrain_epochs,
            "batch_size": 2 * size.batch_size,
            "learning_rate": size.pretrain_rate,
            "mask_share": 0.6,
        },
    }
