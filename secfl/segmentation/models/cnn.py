"""A plain convolutional network at full resolution, for sites with little memory.

Dilations grow level by level, so that a few thin layers see a wide neighbourhood without ever leaving the
image's resolution (Yu and Koltun 2016, "Multi-scale context aggregation by dilated convolutions").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secfl.segmentation.models.layers import ACTIVATION, check_widths, normalization

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["build", "multiple"]


def build(spec: ModelSpec) -> nn.Module:
    """Two convolutions per level, all as wide as ``channels[1]``; dilations 1, 2, 4 … and 1 again at the end.

    Raises:
        ConfigError: Widths that cannot be used.
    """
    from monai.networks.blocks.convolutions import Convolution
    from torch import nn

    check_widths(spec)
    width = spec.channels[1]
    dilations = [1]
    for level in range(len(spec.channels)):
        dilations += [2**level, 1]
    layers: list[nn.Module] = []
    before = spec.in_channels
    for dilation in dilations:
        layers.append(
            Convolution(
                spec.spatial_dims,
                before,
                width,
                kernel_size=3,
                dilation=dilation,
                act=ACTIVATION,
                norm=normalization(spec, width),
                bias=False,
            )
        )
        before = width
    layers.append(Convolution(spec.spatial_dims, width, spec.classes, kernel_size=1, conv_only=True))
    return nn.Sequential(*layers)


def multiple(spec: ModelSpec) -> int:  # noqa: ARG001 - every family answers the same question
    """Any size will do."""
    return 1
