"""A fully convolutional network with fused scores, as FCN-8s of Long, Shelhamer and Darrell 2015.

The last three levels each vote by a 1x1 convolution; transposed convolutions, which start as bilinear
interpolation, bring the votes to full resolution. Convolutions with stride take the place of the paper's pooling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.layers.factories import Conv
from torch import nn

from secfl.segmentation.models.layers import ACTIVATION, check_widths, normalization, pyramid_multiple

if TYPE_CHECKING:
    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["FusedScores", "build", "multiple"]

multiple = pyramid_multiple
_VOTES = 3


def build(spec: ModelSpec) -> nn.Module:
    """An FCN with ``len(spec.channels)`` levels.

    Raises:
        ConfigError: Widths that cannot be used.
    """
    check_widths(spec)
    return FusedScores(spec)


class FusedScores(nn.Module):
    """Levels, their votes, and the way up."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        dims, classes = spec.spatial_dims, spec.classes
        self.levels = nn.ModuleList()
        before = spec.in_channels
        for level, width in enumerate(spec.channels):
            self.levels.append(
                nn.Sequential(
                    _convolution(spec, before, width, stride=1 if level == 0 else 2),
                    _convolution(spec, width, width, stride=1),
                )
            )
            before = width
        self.votes = nn.ModuleList(
            Convolution(dims, width, classes, kernel_size=1, conv_only=True)
            for width in spec.channels[-_VOTES:]
        )
        steps = [2] * (_VOTES - 1) + [2 ** (len(spec.channels) - _VOTES)]
        self.up = nn.ModuleList(_interpolation(dims, classes, step) for step in steps)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of the image's size."""
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        scores = [vote(feature) for vote, feature in zip(self.votes, features[-_VOTES:], strict=True)]
        found: torch.Tensor = scores.pop()
        for up in self.up[:-1]:
            found = up(found) + scores.pop()
        result: torch.Tensor = self.up[-1](found)
        return result


def _convolution(spec: ModelSpec, before: int, width: int, *, stride: int) -> nn.Module:
    layer: nn.Module = Convolution(
        spec.spatial_dims,
        before,
        width,
        kernel_size=3,
        strides=stride,
        act=ACTIVATION,
        norm=normalization(spec, width),
        bias=False,
    )
    return layer


def _interpolation(dims: int, classes: int, step: int) -> nn.Module:
    """A transposed convolution that enlarges by ``step``, every class alone to begin with."""
    if step == 1:
        return nn.Identity()
    layer: nn.Module = Conv[Conv.CONVTRANS, dims](
        classes, classes, kernel_size=2 * step, stride=step, padding=step // 2, bias=False
    )
    centre = step - 0.5
    line = 1 - (torch.arange(2 * step) - centre).abs() / step
    kernel = line
    for _ in range(dims - 1):
        kernel = kernel[..., None] * line
    with torch.no_grad():
        layer.weight.zero_()
        for label in range(classes):
            layer.weight[label, label] = kernel
    return layer
