"""How much an image looks like those that a site has: for how much its opinion about the image should count.

A model is sure of itself even on images of a kind that it has never seen. Whether it has seen the kind is asked of
the images alone, never of labels: an image is described by the quantiles of its intensities and of its edges, and
is typical if its nearest neighbour among the site's images is as near as theirs are to each other. Knowledge of
that sort decides in selective federated distillation whose predictions take part (Shao et al. 2024, "Selective
knowledge sharing"); here it only weighs them, between bounds, because leaving clients out would open the maps of
those that are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["describe_image", "typicality"]

_QUANTILES = np.linspace(0.02, 0.98, 25)
_TINY = 1e-6


def describe_image(image: NDArray[np.float32], valid: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Quantiles of intensity and of the gradient's magnitude, for every channel.

    Args:
        image: float32, shape ``(channels, *spatial)``, normalised.
        valid: Where it counts, shape ``(*spatial)``; ``None`` for everywhere.
    """
    inside = np.ones(image.shape[1:], dtype=bool) if valid is None or not valid.any() else valid
    parts = []
    for channel in image.astype(np.float64):
        slopes = np.gradient(channel, axis=[axis for axis, side in enumerate(channel.shape) if side > 1])
        steepness = np.sqrt(sum(np.square(slope) for slope in slopes))
        parts += [np.quantile(values[inside], _QUANTILES) for values in (channel, steepness)]
    return np.concatenate(parts)


def typicality(
    images: Sequence[NDArray[np.float64]], own: Sequence[NDArray[np.float64]], *, ratio: float
) -> NDArray[np.float64]:
    """Weights of images for a site, from ``1 / ratio`` to 1.

    Args:
        images: Descriptions of the images in question.
        own: Descriptions of the site's training images.
        ratio: Largest weight over smallest.

    Returns:
        ``(usual / nearest)²`` within the bounds, where ``nearest`` is the distance to the nearest own image, and
        ``usual`` the median of that between own images. A site with a single image weighs everything alike.
    """
    if len(own) < 2:
        return np.ones(len(images))
    mine = np.stack(own)
    between = _distances(mine, mine)
    np.fill_diagonal(between, np.inf)
    usual = max(float(np.median(between.min(axis=1))), _TINY)
    nearest = np.maximum(_distances(np.stack(images), mine).min(axis=1), _TINY)
    found: NDArray[np.float64] = np.clip(np.square(usual / nearest), 1.0 / ratio, 1.0)
    return found


def _distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.sqrt(np.square(one[:, None] - other[None]).sum(axis=2))
    return found
