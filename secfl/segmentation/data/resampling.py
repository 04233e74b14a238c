"""Volumes to another voxel size and back. Both grids cover the same box; linear interpolation throughout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

__all__ = ["resample_image", "resample_labels", "resampled_shape"]


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]
) -> tuple[int, ...]:
    """Voxels along each axis after resampling: the box divided by the wanted size, rounded, at least one."""
    return tuple(
        max(1, round(side * have / want)) for side, have, want in zip(shape, spacing, wanted, strict=True)
    )


def resample_image(values: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    """Intensities on a grid of another shape; smoothed first along axes that become coarser."""
    scale = np.array(values.shape) / np.array(shape)
    smooth = np.maximum(0.0, (scale - 1.0) / 2.0)
    source = gaussian_filter(values, smooth, mode="nearest") if smooth.any() else values
    return _transform(source, scale, shape)


def resample_labels(labels: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Classes on a grid of another shape: each class's share is interpolated, and the largest wins."""
    scale = np.array(labels.shape) / np.array(shape)
    best = np.zeros(tuple(shape), dtype=np.float32)
    result = np.zeros(tuple(shape), dtype=np.uint8)
    for label in np.unique(labels).tolist():
        share = _transform((labels == label).astype(np.float32), scale, shape)
        larger = share > best
        result[larger] = label
        best = np.maximum(best, share)
    return result


def _transform(
    values: NDArray[np.float32], scale: NDArray[np.float64], shape: Sequence[int]
) -> NDArray[np.float32]:
    moved: NDArray[np.float32] = affine_transform(
        values, scale, offset=(scale - 1.0) / 2.0, output_shape=tuple(shape), order=1, mode="nearest"
    )
    return moved
