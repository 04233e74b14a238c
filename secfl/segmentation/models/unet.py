"""The U-Net of Ronneberger et al. 2015, in the form that nnU-Net gave it (Isensee et al. 2021), by MONAI.

Two convolutions with normalisation and leaky ReLU per level, strided convolutions down, transposed ones up, and
a first level at full resolution, so that structures a pixel wide are not lost before they are seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secfl.errors import ConfigError
from secfl.segmentation.models.layers import pyramid_multiple

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["build", "multiple"]

multiple = pyramid_multiple


def build(spec: ModelSpec) -> nn.Module:
    """A U-Net with ``len(spec.channels)`` levels; 0.50 M parameters for channels 16, 16, 32, 64, 128.

    Raises:
        ConfigError: Fewer than two levels, or channels that the groups do not divide.
    """
    from monai.networks.nets.dynunet import DynUNet

    levels = len(spec.channels)
    if levels < 3 or min(spec.channels) < 1:
        raise ConfigError(
            f"model.channels: {spec.channels}; expected at least 3 positive numbers, one per level"
        )
    model: nn.Module = DynUNet(
        spatial_dims=spec.spatial_dims,
        in_channels=spec.in_channels,
        out_channels=spec.classes,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=list(spec.channels),
        norm_name=_normalization(spec),
    )
    return model


def _normalization(spec: ModelSpec) -> tuple[str, dict[str, object]]:
    if spec.normalization == "instance":
        return "INSTANCE", {"affine": True}
    groups = min(8, *spec.channels)
    if any(channels % groups for channels in spec.channels):
        raise ConfigError(
            f"model.channels: {spec.channels}; expected multiples of {groups} for group normalisation"
        )
    return "GROUP", {"num_groups": groups, "affine": True}
