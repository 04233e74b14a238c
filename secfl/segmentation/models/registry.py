"""The registry of model families: a name, and a module that is imported when the model is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from secfl.config import ModelConfig
from secfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelSpec", "build_model", "check_family", "families", "family_code", "model_spec"]

_ROOM = "secfl.segmentation.models"

_FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        name: f"{_ROOM}.{name}"
        for name in (
            "cnn",
            "sequential",
            "semantic",
            "unet",
            "vgg19",
            "modified_unet",
            "modified_net",
        )
    }
)
"""Family -> module with the functions ``build(spec) -> nn.Module`` and ``multiple(spec) -> int``."""

_MONAI = "monai:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a family is asked to build.

    Attributes:
        family: A name of the registry, ``monai:<Network>``, or ``package.module:factory``.
        in_channels: Channels of the image.
        classes: Labels including background; the model returns that many logits per pixel.
        spatial_dims: 2 or 3.
        channels: Feature maps per level, from full resolution downwards.
        normalization: ``instance`` or ``group``; neither mixes patients nor keeps running statistics.
        arguments: Further arguments of a network from outside.
        stated_multiple: What `multiple` is, where the family cannot know it.
    """

    family: str
    in_channels: int
    classes: int
    channels: tuple[int, ...]
    normalization: Literal["instance", "group"]
    spatial_dims: int = 2
    arguments: Mapping[str, Any] = field(default_factory=dict)
    stated_multiple: int | None = None

    @property
    def multiple(self) -> int:
        """Sides of the model's input must be multiples of this many pixels."""
        if self.stated_multiple is not None:
            return self.stated_multiple
        return int(import_module(_module_of(self.family)).multiple(self))


def model_spec(
    model: ModelConfig, *, in_channels: int, classes: int, spatial_dims: int = 2, family: str | None = None
) -> ModelSpec:
    """The specification that a configuration and its data give; ``family`` takes the place of ``model.name``."""
    return ModelSpec(
        family=family or model.name,
        in_channels=in_channels,
        classes=classes,
        channels=model.channels,
        normalization=model.normalization,
        spatial_dims=spatial_dims,
        arguments=model.arguments if family in (None, model.name) else {},
        stated_multiple=model.multiple if family in (None, model.name) else None,
    )


def families() -> tuple[str, ...]:
    """Names of the built-in model families, from the plainest to the most elaborate."""
    return tuple(_FAMILIES)


def check_family(name: str) -> None:
    """Refuse a name that no family answers to, before anything heavy is loaded.

    Raises:
        ConfigError: It is unknown.
    """
    _module_of(name)


def family_code(name: str) -> bytes:
    """Digest of a family's code that is not part of this package; empty for the others."""
    if _module_of(name) != f"{_ROOM}.own_model":
        return b""
    digest: bytes = import_module(_module_of(name)).code_digest(name)
    return digest


def _module_of(family: str) -> str:
    if family in _FAMILIES:
        return _FAMILIES[family]
    if family.startswith(_MONAI):
        return f"{_ROOM}.monai_network"
    if ":" in family:
        return f"{_ROOM}.own_model"
    raise ConfigError(
        f"model.name: {family!r} is unknown; expected one of {', '.join(families())}, monai:<Network> or "
        "package.module:factory"
    )


def build_model(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a model; the same initial weights for the same seed.

    Raises:
        ConfigError: The family is unknown or cannot be built as asked, or keeps running statistics.
    """
    module = import_module(_module_of(spec.family))
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = module.build(spec)
    # Tables of indices are the same everywhere; anything else outside the parameters would escape the average.
    buffers = [name for name, value in model.named_buffers() if value.is_floating_point()]
    if buffers:
        raise ConfigError(
            f"model.name: {spec.family} keeps running statistics ({buffers[0]}), which are not averaged; expected "
            "group or instance normalisation without them"
        )
    return model
