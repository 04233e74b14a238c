"""One order of voxels for all volumes, without interpolation: axes are swapped and turned until they are RAS+."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from secfl.segmentation.data.scan import Geometry, Scan, same_grid

__all__ = ["from_canonical", "on_grid_of", "to_canonical"]

_Kind = TypeVar("_Kind", bound=np.generic)


def to_canonical(values: NDArray[_Kind], geometry: Geometry) -> tuple[NDArray[_Kind], Geometry]:
    """Bring an array of shape ``(i, j, k, ...)`` to axes that run to the right, to the front and to the head."""
    orientation = io_orientation(geometry.affine)
    turned = np.ascontiguousarray(apply_orientation(values, orientation))
    affine = geometry.affine @ inv_ornt_aff(orientation, geometry.shape)
    x, y, z = turned.shape[:3]
    return turned, Geometry(shape=(x, y, z), affine=affine, in_patient=geometry.in_patient)


def from_canonical(values: NDArray[_Kind], geometry: Geometry) -> NDArray[_Kind]:
    """The way back: an array in canonical order to the stored order of ``geometry``."""
    # io_orientation says for every stored axis which canonical one it is, and whether it runs backwards.
    orientation = io_orientation(geometry.affine)
    order, flips = orientation[:, 0].astype(int), orientation[:, 1]
    result = values
    for axis, flip in zip(order, flips, strict=True):
        if flip < 0:
            result = np.flip(result, int(axis))
    rest = tuple(range(3, values.ndim))
    return np.ascontiguousarray(np.transpose(result, (*order.tolist(), *rest)))


def on_grid_of(path: Path, mask: NDArray[_Kind], geometry: Geometry, image: Scan) -> NDArray[_Kind]:
    """A mask of shape ``(i, j, k)`` in the image's stored order.

    Raises:
        DataError: Its voxels do not lie on the image's.
    """
    assert image.geometry is not None
    turned, ours = to_canonical(mask, geometry)
    _, theirs = to_canonical(np.empty(image.geometry.shape, dtype=np.bool_), image.geometry)
    same_grid(path, ours, image.path, theirs)
    return from_canonical(turned, image.geometry)
