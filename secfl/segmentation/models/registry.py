"""The registry of model families: a name, and a function that is imported when the model is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelSpec", "build_model", "families"]

_FAMILIES: Mapping[str, str] = MappingProxyType({"unet": "secfl.segmentation.models.unet"})
"""Family -> module with a function ``build(spec) -> nn.Module``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a family is asked to build.

    Attributes:
        family: A name of the registry.
        in_channels: Channels of the image.
        classes: Labels including background; the model returns that many logits per pixel.
        spatial_dims: 2 or 3.
        channels: Feature maps per level, from full resolution downwards.
        normalization: ``instance`` or ``group``; neither mixes patients nor keeps running statistics.
    """

    family: str
    in_channels: int
    classes: int
    channels: tuple[int, ...]
    normalization: Literal["instance", "group"]
    spatial_dims: int = 2

    @property
    def multiple(self) -> int:
        """Sides of the model's input must be multiples of this many pixels."""
        return int(2 ** (len(self.channels) - 1))


def families() -> tuple[str, ...]:
    """Names of the model families."""
    return tuple(sorted(_FAMILIES))


def build_model(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a model; the same initial weights for the same seed.

    Raises:
        ConfigError: The family is unknown or cannot be built as asked.
    """
    if spec.family not in _FAMILIES:
        raise ConfigError(f"model.name: {spec.family!r} is unknown; expected one of {', '.join(families())}")
    import torch

    module = import_module(_FAMILIES[spec.family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = module.build(spec)
    buffers = [name for name, _ in model.named_buffers()]
    if buffers:
        raise ConfigError(
            f"model.name: {spec.family} keeps running statistics ({buffers[0]}), which are not averaged"
        )
    return model
