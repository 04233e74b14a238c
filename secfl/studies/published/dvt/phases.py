"""The three phases, and every setting of their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from secfl.config import Scheme
from secfl.errors import ConfigError
from secfl.studies.published.interface import Preset, Request

__all__ = ["PHASES", "PROXY", "SIZES", "Phase", "Size", "phases_of", "settings"]

PROXY = "proxy"
"""The site of a data folder whose images belong to nobody; its masks are never read for training."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A published phase: its number, images of all clients together, and one architecture a client."""

    number: int
    images: int
    families: tuple[str, ...]

    @property
    def clients(self) -> int:
        """One for each architecture."""
        return len(self.families)


_ORDER = ("cnn", "sequential", "semantic", "unet", "vgg19", "modified_unet", "modified_net")

PHASES = (Phase(1, 1000, _ORDER[:3]), Phase(2, 2000, _ORDER[:5]), Phase(3, 3000, _ORDER))


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a preset makes of the phases.

    Attributes:
        share: Of the published images; they keep the proportion 1 : 2 : 3.
        test_fraction: Share of each client's patients kept for the test.
        proxy_sites: Public sites of the phantom, each with as many images as a client.
        image_size: Side of the phantom's images, pixels.
        training: ``[training]``.
        multi_model: ``[multi_model]``, besides the families.
        channels: ``model.channels`` of all families.
        compared: Phases that are run under the second scheme too, with the first seed.
        seconds: What one run of each phase took, with local and pooled models, on one core of the machine of the
            committed figures; for the estimate.
        compared_share: Of that time, what the run under the second scheme took.
    """

    share: float
    test_fraction: float = 0.25
    proxy_sites: int
    image_size: int
    training: Mapping[str, Any]
    multi_model: Mapping[str, Any]
    channels: tuple[int, ...]
    compared: tuple[int, ...] = (1, 2, 3)
    seconds: tuple[float, float, float]
    compared_share: float = 1.0

    def images_per_site(self, phase: Phase) -> int:
        """Training and test images of one client; every client has as many."""
        return max(8, round(self.share * phase.images / phase.clients))


_BY_SKILL: Mapping[str, Any] = MappingProxyType({"weights": "skill", "weight_ratio": 8.0})

SIZES: Mapping[Preset, Size] = MappingProxyType(
    {
        Preset.SMOKE: Size(
            share=0.01,
            proxy_sites=1,
            image_size=32,
            training={"rounds": 2, "local_epochs": 1},
            multi_model={"distill_epochs": 1, "student_epochs": 1, **_BY_SKILL},
            channels=(4, 8, 8),
            compared=(1,),
            seconds=(2.0, 3.0, 5.0),
        ),
        Preset.SMALL: Size(
            share=0.072,
            test_fraction=0.375,
            proxy_sites=8,
            image_size=64,
            training={"rounds": 2, "local_epochs": 20, "batch_size": 2, "learning_rate": 4e-3},
            multi_model={"distill_epochs": 2, "student_epochs": 8, "sharpen": 4.0, **_BY_SKILL},
            channels=(8, 16, 32),
            seconds=(95.0, 185.0, 330.0),
            compared_share=0.55,
        ),
        Preset.PAPER: Size(
            share=1.0,
            proxy_sites=1,
            image_size=256,
            training={"rounds": 40, "local_epochs": 2, "batch_size": 16, "learning_rate": 3e-3},
            multi_model={"distill_epochs": 1, "student_epochs": 4, "sharpen": 4.0, **_BY_SKILL},
            channels=(64, 128, 256, 512, 512),
            seconds=(7200.0, 21600.0, 43200.0),
        ),
    }
)


def phases_of(request: Request) -> tuple[Phase, ...]:
    """The phases that the data have images for.

    A data folder holds ``phase-1`` to ``phase-3``, or some of them, each a folder of sites: one for each client, and
    the site ``proxy``.

    Raises:
        ConfigError: It holds none, or one with another number of clients.
    """
    if request.data == "phantom":
        return PHASES
    found = tuple(phase for phase in PHASES if _folder(request, phase).is_dir())
    if not found:
        raise ConfigError(
            f"--data {request.data}: expected folders of sites named phase-1, phase-2 or phase-3"
        )
    for phase in found:
        folder = _folder(request, phase)
        sites = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
        if PROXY not in sites or len(sites) != phase.clients + 1:
            raise ConfigError(
                f"{folder}: {len(sites)} sites; expected {phase.clients} clients and one more, {PROXY}, whose images "
                "belong to nobody"
            )
    return found


def _folder(request: Request, phase: Phase) -> Path:
    return Path(request.data) / f"phase-{phase.number}"


def settings(
    request: Request, phase: Phase, *, seed: int, scheme: Scheme, references: bool
) -> dict[str, Any]:
    """One run's configuration as a tree.

    Args:
        request: What is asked for.
        phase: Which of the three.
        seed: Experiment seed.
        scheme: How maps are added.
        references: Whether every client is also trained alone, and the student's architecture on pooled data.
    """
    size = SIZES[request.preset]
    if request.data == "phantom":
        data: dict[str, Any] = {
            "phantom_images": size.images_per_site(phase),
            "image_size": size.image_size,
            "test_fraction": size.test_fraction,
            "public": [f"{PROXY}-{number + 1}" for number in range(size.proxy_sites)],
        }
    else:
        data = {"source": str(_folder(request, phase)), "public": [PROXY]}
    return {
        "clients": phase.clients,
        "seed": seed,
        "threads": 1,
        "evaluate_every": size.training["rounds"],
        "references": references,
        "data": data,
        "model": {"channels": list(size.channels)},
        "training": dict(size.training),
        "secure_agg": {"scheme": scheme.value},
        "multi_model": {"families": list(phase.families), **size.multi_model},
    }
