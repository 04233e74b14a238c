"""The encoder of VGG-19 (Simonyan and Zisserman 2015) with the decoder of a U-Net.

Sixteen convolutions of 3x3 in five stages of 2, 2, 4, 4 and 4, with pooling between the stages. The published
widths are ``model.channels = [64, 128, 256, 512, 512]``; others scale the same encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.basic_unet import UpCat
from torch import nn

from secfl.segmentation.models.layers import ACTIVATION, check_widths, normalization, pyramid_multiple

if TYPE_CHECKING:
    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["Vgg19UNet", "build", "multiple"]

multiple = pyramid_multiple
_CONVOLUTIONS = (2, 2, 4, 4, 4)


def build(spec: ModelSpec) -> nn.Module:
    """VGG-19 as encoder; fewer than five widths take its first stages.

    Raises:
        ConfigError: Widths that cannot be used.
    """
    check_widths(spec, most=len(_CONVOLUTIONS))
    return Vgg19UNet(spec)


class Pooling(nn.Module):
    """The maximum of every 2x2 square or 2x2x2 cube; its gradient is deterministic on every device."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Half the size."""
        batch, channels, *sides = features.shape
        blocks = features.reshape(batch, channels, *(part for side in sides for part in (side // 2, 2)))
        return blocks.amax(dim=tuple(range(3, blocks.ndim, 2)))


class Vgg19UNet(nn.Module):
    """Stages down, stages up with what they saw on the way down."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        before = spec.in_channels
        for width, count in zip(spec.channels, _CONVOLUTIONS, strict=False):
            layers = []
            for _ in range(count):
                layers.append(
                    Convolution(
                        spec.spatial_dims,
                        before,
                        width,
                        kernel_size=3,
                        act=ACTIVATION,
                        norm=normalization(spec, width),
                        bias=False,
                    )
                )
                before = width
            self.stages.append(nn.Sequential(*layers))
        self.pooling = Pooling()
        self.up = nn.ModuleList()
        for width in reversed(spec.channels[:-1]):
            self.up.append(
                UpCat(
                    spec.spatial_dims,
                    before,
                    width,
                    width,
                    ACTIVATION,
                    normalization(spec, width),
                    bias=False,
                    halves=False,
                    is_pad=False,
                )
            )
            before = width
        self.head = Convolution(spec.spatial_dims, before, spec.classes, kernel_size=1, conv_only=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of the image's size."""
        seen: list[torch.Tensor] = []
        for number, stage in enumerate(self.stages):
            image = stage(image if number == 0 else self.pooling(image))
            seen.append(image)
        image = seen.pop()
        for up in self.up:
            image = up(image, seen.pop())
        logits: torch.Tensor = self.head(image)
        return logits
