"""An encoder and a decoder in sequence, without connections between them, by MONAI's ``AutoEncoder``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from secfl.segmentation.models.layers import ACTIVATION, check_widths, normalization, pyramid_multiple

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["build", "multiple"]

multiple = pyramid_multiple


def build(spec: ModelSpec) -> nn.Module:
    """Strided convolutions down, transposed ones up; every detail must pass through the narrowest level.

    Raises:
        ConfigError: Widths that cannot be used.
    """
    from monai.networks.nets.autoencoder import AutoEncoder

    check_widths(spec)
    model: nn.Module = AutoEncoder(
        spatial_dims=spec.spatial_dims,
        in_channels=spec.in_channels,
        out_channels=spec.classes,
        channels=spec.channels,
        strides=(1, *(2,) * (len(spec.channels) - 1)),
        act=ACTIVATION,
        norm=normalization(spec, math.gcd(*spec.channels)),  # one number of groups must fit every layer
        bias=False,
    )
    return model
