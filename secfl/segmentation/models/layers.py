"""What the families share: normalisation layers, and the checks of their widths."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["ACTIVATION", "Layer", "check_widths", "normalization", "pyramid_multiple"]

Layer: TypeAlias = tuple[str, dict[str, object]]
"""A layer as MONAI's factories take it: its name and its arguments."""

ACTIVATION: Layer = ("LEAKYRELU", {"negative_slope": 0.01, "inplace": True})

_MOST_GROUPS = 8


def normalization(spec: ModelSpec, width: int) -> Layer:
    """The normalisation of a layer with ``width`` feature maps; it mixes no patients and keeps no statistics."""
    if spec.normalization == "instance":
        return "INSTANCE", {"affine": True}
    return "GROUP", {"num_groups": math.gcd(_MOST_GROUPS, width), "affine": True}


def check_widths(spec: ModelSpec, *, least: int = 3, most: int = 16, multiple_of: int = 1) -> None:
    """Refuse widths that the family cannot be built with.

    Raises:
        ConfigError: Too few or too many levels, or a width that is not a positive multiple of ``multiple_of``.
    """
    levels = f"{least}" if least == most else f"at least {least}"
    wanted = "positive numbers" if multiple_of == 1 else f"positive multiples of {multiple_of}"
    bad = any(width < 1 or width % multiple_of for width in spec.channels)
    if bad or not least <= len(spec.channels) <= most:
        raise ConfigError(
            f"model.channels: {spec.channels}; expected {levels} {wanted}, one per level ({spec.family})"
        )


def pyramid_multiple(spec: ModelSpec) -> int:
    """Sides of the input of a network that halves the image at every level after the first."""
    return int(2 ** (len(spec.channels) - 1))
