"""Pictures of an image with its mask laid over it, for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from secfl.segmentation.data.orientation import to_canonical
from secfl.segmentation.data.scan import Scan
from secfl.segmentation.previews import COLOURS, axial

__all__ = ["overlay_of", "save_png"]

_OPACITY = 0.35
_LARGEST_SIDE = 1024


def overlay_of(scan: Scan, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with coloured classes: uint8, shape ``(height, width, 3)``.

    Of a volume: the slices across, from the front and from the side that hold most of the mask, with voxels as
    wide and high as they are in the patient; the head is up, and the patient's right is left.
    """
    low, high = np.percentile(scan.values, [0.5, 99.5])
    grey = np.clip((scan.values - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    if scan.geometry is None:
        return _laid_over(grey, classes)
    if scan.spatial_dims == 2:
        return _laid_over(grey[..., 0].transpose(0, 2, 1), classes[..., 0].T)
    turned, geometry = to_canonical(np.moveaxis(grey, 0, -1), scan.geometry)
    labels, _ = to_canonical(classes, scan.geometry)
    image = np.moveaxis(turned, -1, 0)
    views = []
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        inside = (labels > 0).sum(axis=others)
        at = int(inside.argmax()) if inside.any() else labels.shape[axis] // 2
        plane = _laid_over(axial(np.take(image, at, axis=axis + 1)), axial(np.take(labels, at, axis=axis)))
        views.append(_resized(plane, width=geometry.spacing[others[0]], height=geometry.spacing[others[1]]))
    height = max(view.shape[0] for view in views)
    padded = [np.pad(view, ((0, height - view.shape[0]), (0, 4), (0, 0))) for view in views]
    return np.hstack(padded)


def _laid_over(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each class half transparent with an opaque outline; ``image`` is ``(channels, rows, columns)``."""
    planes = image if image.shape[0] == 3 else np.repeat(image[:1], 3, axis=0)
    result = np.moveaxis(planes, 0, -1).astype(np.float32)
    for label in np.unique(labels[labels > 0]).tolist():
        colour = COLOURS[1 + (label - 1) % (len(COLOURS) - 1)].astype(np.float32)
        inside = labels == label
        result[inside] = (1 - _OPACITY) * result[inside] + _OPACITY * colour
        result[inside & ~binary_erosion(inside)] = colour
    return result.astype(np.uint8)


def _resized(plane: NDArray[np.uint8], *, width: float, height: float) -> NDArray[np.uint8]:
    """Square pixels, as large as the smaller side of a voxel."""
    from PIL import Image

    unit = min(width, height)
    rows, columns = plane.shape[0] * height / unit, plane.shape[1] * width / unit
    shrink = min(1.0, _LARGEST_SIDE / max(rows, columns))
    size = max(1, round(columns * shrink)), max(1, round(rows * shrink))
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST))


def save_png(path: Path, pixels: NDArray[np.generic]) -> None:
    """Write a picture in the format of its suffix, without any metadata."""
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
