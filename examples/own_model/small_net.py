"""A model of your own, outside the package.

    PYTHONPATH=examples/own_model secfl simulate --model small_net:build --rounds 2

The factory is called by name with the number of spatial dimensions, image channels and classes, and with whatever
``model.arguments`` of the configuration holds. Two rules: normalise by group or instance, without running
statistics, so that nothing escapes the average and no patient touches another one; and return one logit per class
and pixel for every image whose sides are multiples of ``model.multiple`` (16 unless you say otherwise).
"""

from torch import nn


def build(*, spatial_dims: int, in_channels: int, classes: int, width: int = 12, depth: int = 3) -> nn.Module:
    """A few convolutions that all look at the full resolution."""
    convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    before = in_channels
    for step in range(depth):
        layers += [
            convolution(before, width, kernel_size=3, padding=2**step, dilation=2**step),
            nn.GroupNorm(4, width),
            nn.SiLU(),
        ]
        before = width
    return nn.Sequential(*layers, convolution(before, classes, kernel_size=1))
