"""A U-Net of residual Inception blocks (after Szegedy et al. 2017, "Inception-v4, Inception-ResNet").

Every block looks at the same place through a 1x1, a 3x3 and a 5x5 window (two 3x3 in a row), joins what they
see and adds it to its input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.upsample import UpSample
from torch import nn

from secfl.segmentation.models.layers import ACTIVATION, check_widths, normalization, pyramid_multiple

if TYPE_CHECKING:
    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["InceptionResidual", "InceptionResidualUNet", "build", "multiple"]

multiple = pyramid_multiple


def build(spec: ModelSpec) -> nn.Module:
    """A U-Net whose levels are residual Inception blocks.

    Raises:
        ConfigError: Widths that cannot be used; a block splits its width by four.
    """
    check_widths(spec, multiple_of=4)
    return InceptionResidualUNet(spec)


def _convolution(spec: ModelSpec, before: int, width: int, *, size: int = 3, stride: int = 1) -> nn.Module:
    layer: nn.Module = Convolution(
        spec.spatial_dims,
        before,
        width,
        kernel_size=size,
        strides=stride,
        act=ACTIVATION,
        norm=normalization(spec, width),
        bias=False,
    )
    return layer


class InceptionResidual(nn.Module):
    """Three windows side by side, joined, added to the input, normalised once more by the next block."""

    def __init__(self, spec: ModelSpec, before: int, width: int) -> None:
        super().__init__()
        quarter = width // 4
        self.point = _convolution(spec, before, quarter, size=1)
        self.small = _convolution(spec, before, 2 * quarter)
        self.large = nn.Sequential(
            _convolution(spec, before, quarter, size=1),
            _convolution(spec, quarter, quarter),
            _convolution(spec, quarter, quarter),
        )
        self.join = Convolution(spec.spatial_dims, width, width, kernel_size=1, conv_only=True)
        self.shortcut: nn.Module = nn.Identity()
        if before != width:
            self.shortcut = Convolution(spec.spatial_dims, before, width, kernel_size=1, conv_only=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The same size, ``width`` feature maps."""
        windows = torch.cat([self.point(features), self.small(features), self.large(features)], dim=1)
        result: torch.Tensor = nn.functional.leaky_relu(self.join(windows) + self.shortcut(features), 0.01)
        return result


class InceptionResidualUNet(nn.Module):
    """Blocks down with strided convolutions between them, blocks up with transposed ones."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        before = spec.in_channels
        for level, width in enumerate(spec.channels):
            enter = _convolution(spec, before, width, stride=1 if level == 0 else 2)
            self.down.append(nn.Sequential(enter, InceptionResidual(spec, width, width)))
            before = width
        self.enlarge = nn.ModuleList()
        self.up = nn.ModuleList()
        for width in reversed(spec.channels[:-1]):
            self.enlarge.append(UpSample(spec.spatial_dims, before, width, scale_factor=2, mode="deconv"))
            self.up.append(InceptionResidual(spec, 2 * width, width))
            before = width
        self.head = Convolution(spec.spatial_dims, before, spec.classes, kernel_size=1, conv_only=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of the image's size."""
        seen: list[torch.Tensor] = []
        for level in self.down:
            image = level(image)
            seen.append(image)
        image = seen.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            image = block(torch.cat([enlarge(image), seen.pop()], dim=1))
        logits: torch.Tensor = self.head(image)
        return logits
