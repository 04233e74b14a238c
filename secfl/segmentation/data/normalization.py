"""Intensity normalisation of one image, inside its field of view. Needs no statistics of other images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["Normalization", "apply_windows", "normalize"]

Normalization: TypeAlias = Literal["zscore", "local"]

_SMALLEST_DEVIATION = 1e-6
_LOCAL_SCALE = 1 / 16
_LARGEST = 8.0


def normalize(
    image: NDArray[np.float32],
    *,
    valid: NDArray[np.bool_] | None = None,
    method: Normalization = "zscore",
) -> NDArray[np.float32]:
    """Bring every channel of an image to mean 0 and deviation 1 over its field of view.

    Args:
        image: float32, shape ``(channels, *spatial)``, any scale.
        valid: The field of view; outside it the result is 0, the mean.
        method: ``zscore`` uses one mean and deviation per channel. ``local`` uses Gaussian-weighted ones
            around every pixel (standard deviation 1/16 of the shorter side, only inside the field of view),
            which removes uneven illumination and most of the differences between cameras.

    Returns:
        float32, same shape, within ±8. A constant channel becomes 0.
    """
    inside = np.ones(image.shape[1:], dtype=bool) if valid is None or not valid.any() else valid
    result = np.empty_like(image, dtype=np.float32)
    for channel, plane in enumerate(image):
        values = plane.astype(np.float64)
        mean = values[inside].mean()
        values = (values - mean) * inside
        if method == "local":
            values = _remove_local(values, inside)
        deviation = values[inside].std()
        scale = 1.0 / deviation if deviation > _SMALLEST_DEVIATION * max(1.0, abs(mean)) else 0.0
        result[channel] = np.clip(values * scale, -_LARGEST, _LARGEST) * inside
    return result


def apply_windows(
    image: NDArray[np.float32],
    windows: Sequence[tuple[float, float]],
    *,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Map intervals of an image's units to -1..1, each as a channel, and clip what lies outside them.

    Args:
        image: float32, shape ``(*spatial)``; for CT in Hounsfield units.
        windows: Lower and upper end of each interval.
        valid: The field of view; outside it the result is -1.

    Returns:
        float32, shape ``(windows, *spatial)``.
    """
    channels = [np.clip((image - low) * (2.0 / (high - low)) - 1.0, -1.0, 1.0) for low, high in windows]
    result = np.stack(channels).astype(np.float32)
    return result if valid is None else np.where(valid, result, np.float32(-1.0))


def _remove_local(values: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    width = max(1.0, min(values.shape) * _LOCAL_SCALE)
    weight = np.maximum(gaussian_filter(inside.astype(np.float64), width, mode="constant"), 1e-9)
    centred = (values - gaussian_filter(values, width, mode="constant") / weight) * inside
    variance = gaussian_filter(centred**2, width, mode="constant") / weight
    # A floor keeps the noise of featureless regions from being blown up to the size of structure.
    floor = 0.1 * variance[inside].mean() + 1e-12
    result: NDArray[np.float64] = centred / np.sqrt(np.maximum(variance, floor)) * inside
    return result
