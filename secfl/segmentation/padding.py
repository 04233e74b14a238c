"""Sizes that a model can take."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["padded_shape"]


def padded_shape(sides: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The smallest size that holds ``sides`` and that a model can take.

    Args:
        sides: Pixels along each spatial axis.
        multiple: Sides of the model's input must be multiples of it; its coarsest level then has one pixel per
            multiple.

    Returns:
        Sides rounded up. If a single pixel were left on the coarsest level, whose deviation no normalisation
        could compute, the last side is doubled.
    """
    shape = [math.ceil(side / multiple) * multiple for side in sides]
    if all(side == multiple for side in shape):
        shape[-1] *= 2
    return tuple(shape)
