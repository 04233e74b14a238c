"""A residual network with attention and several scales.

Attention gates weigh what the encoder saw by what the decoder looks for (Oktay et al. 2018, "Attention U-Net");
the narrowest level looks through four dilations at once (Chen et al. 2018, atrous spatial pyramid pooling, by
MONAI). MONAI's own gate is not used, because it is built on batch normalisation, which mixes patients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks.aspp import SimpleASPP
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.blocks.upsample import UpSample
from torch import nn

from secfl.segmentation.models.layers import ACTIVATION, check_widths, normalization, pyramid_multiple

if TYPE_CHECKING:
    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["AttentionGate", "AttentionNet", "build", "multiple"]

multiple = pyramid_multiple
_DILATIONS = (1, 2, 4, 6)


def build(spec: ModelSpec) -> nn.Module:
    """Residual units, a pyramid of dilations at the bottom, and gates on the way up.

    Raises:
        ConfigError: Widths that cannot be used; the pyramid splits the last one by four.
    """
    check_widths(spec, multiple_of=4)
    return AttentionNet(spec)


def _unit(spec: ModelSpec, before: int, width: int, *, stride: int = 1) -> nn.Module:
    unit: nn.Module = ResidualUnit(
        spec.spatial_dims,
        before,
        width,
        strides=stride,
        act=ACTIVATION,
        norm=normalization(spec, width),
        bias=False,
    )
    return unit


class AttentionGate(nn.Module):
    """Weighs every place of ``features`` by a number between 0 and 1 that ``signal`` asks for."""

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        inner = max(1, width // 2)

        def look() -> nn.Module:
            layer: nn.Module = Convolution(
                spec.spatial_dims,
                width,
                inner,
                kernel_size=1,
                act=None,
                norm=normalization(spec, inner),
                bias=False,
            )
            return layer

        self.wanted, self.seen = look(), look()
        self.weight = Convolution(spec.spatial_dims, inner, 1, kernel_size=1, conv_only=True)

    def forward(self, signal: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """``features``, weighed."""
        asked = nn.functional.leaky_relu(self.wanted(signal) + self.seen(features), 0.01)
        weighed: torch.Tensor = features * torch.sigmoid(self.weight(asked))
        return weighed


class AttentionNet(nn.Module):
    """Residual units down, the pyramid, then gates and residual units up."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        dims = spec.spatial_dims
        self.down = nn.ModuleList()
        before = spec.in_channels
        for level, width in enumerate(spec.channels):
            self.down.append(_unit(spec, before, width, stride=1 if level == 0 else 2))
            before = width
        self.scales = SimpleASPP(
            dims,
            before,
            before // len(_DILATIONS),
            dilations=_DILATIONS,
            norm_type=normalization(spec, before),
            acti_type=ACTIVATION,
        )
        self.enlarge, self.gates, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width in reversed(spec.channels[:-1]):
            self.enlarge.append(UpSample(dims, before, width, scale_factor=2, mode="deconv"))
            self.gates.append(AttentionGate(spec, width))
            self.up.append(_unit(spec, 2 * width, width))
            before = width
        self.head = Convolution(dims, before, spec.classes, kernel_size=1, conv_only=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of the image's size."""
        seen: list[torch.Tensor] = []
        for unit in self.down:
            image = unit(image)
            seen.append(image)
        image = self.scales(seen.pop())
        for enlarge, gate, unit in zip(self.enlarge, self.gates, self.up, strict=True):
            image = enlarge(image)
            image = unit(torch.cat([gate(image, seen.pop()), image], dim=1))
        logits: torch.Tensor = self.head(image)
        return logits
