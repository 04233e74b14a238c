"""From the planes of DICOM slices to one grid: order, step, and what can be wrong with either.

Source: DICOM PS3.3 C.7.6.2.1.1 (image plane module). DICOM's space is LPS+; ours is RAS+.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError
from secfl.segmentation.data.scan import Geometry

__all__ = ["Plane", "lps", "stack"]

_DIRECTION_TOLERANCE = 1e-3
_SPACING_TOLERANCE = 1e-3
_STEP_TOLERANCE = 0.05
"""Of the step from slice to slice: positions are rounded in headers, and missing slices are off by a whole step."""

lps = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Between LPS+ and RAS+, both ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One slice as its header places it; mm, LPS+.

    Attributes:
        rows: Rows of pixels.
        columns: Columns of pixels.
        position: Centre of the first pixel.
        orientation: Direction of a row (towards higher columns), then of a column (towards higher rows).
        pixel: Distance between rows, then between columns.
        thickness: Of the slice.
    """

    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel: tuple[float, float] | None
    thickness: float | None


def stack(
    path: Path, planes: Sequence[Plane | None], *, shape: tuple[int, int]
) -> tuple[list[int], Geometry]:
    """Order slices in space and find their common grid.

    Args:
        path: What errors name.
        planes: At least one; where there are several, each with position and orientation.
        shape: Rows and columns.

    Returns:
        Indices of ``planes`` along k, and the grid with axes i (along a row), j (along a column), k.

    Raises:
        DataError: Unlike orientation or spacing, two slices in one place, or missing slices.
    """
    rows, columns = shape
    first = planes[0]
    if first is None or first.position is None or first.orientation is None:
        down, across = (first.pixel if first is not None else None) or (1.0, 1.0)
        affine = np.diag([across, down, 1.0, 1.0])
        return [0], Geometry(shape=(columns, rows, 1), affine=affine, in_patient=False)
    known = [plane for plane in planes if plane is not None]
    if any(plane.pixel is None or min(plane.pixel) <= 0 for plane in known):
        raise DataError(f"{path}: a slice without pixel spacing; expected PixelSpacing above 0 mm in each")
    along_row, along_column = _directions(path, known)
    _same_spacing(path, known)
    assert first.pixel is not None
    down, across = first.pixel
    normal = np.cross(along_row, along_column)
    positions = np.array([plane.position for plane in known], dtype=np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    if len(known) == 1:
        step = normal * (first.thickness if first.thickness and first.thickness > 0 else 1.0)
    else:
        step = _step(path, positions[order], normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * across, along_column * down
    affine[:3, 2], affine[:3, 3] = step, positions[order[0]]
    return [int(index) for index in order], Geometry(shape=(columns, rows, len(known)), affine=lps @ affine)


def _directions(path: Path, planes: Sequence[Plane]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    orientations = np.array([plane.orientation for plane in planes], dtype=np.float64)
    apart = np.abs(orientations - orientations[0]).max(axis=1)
    if (apart > _DIRECTION_TOLERANCE).any():
        others = int((apart > _DIRECTION_TOLERANCE).sum())
        raise DataError(
            f"{path}: mixed orientations: {others} of {len(planes)} slices lie in another direction than the "
            "first; expected parallel slices (a localizer belongs in a folder of its own)"
        )
    row, column = orientations[0, :3], orientations[0, 3:]
    if abs(row @ column) > 1e-2 or abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2:
        raise DataError(f"{path}: the orientation is none; expected two perpendicular directions of length 1")
    return row / np.linalg.norm(row), column / np.linalg.norm(column)


def _same_spacing(path: Path, planes: Sequence[Plane]) -> None:
    spacings = np.array([plane.pixel for plane in planes], dtype=np.float64)
    if (np.abs(spacings - spacings[0]) > _SPACING_TOLERANCE * spacings[0]).any():
        raise DataError(f"{path}: slices with different pixel spacing; expected one spacing in a series")


def _step(path: Path, positions: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector from slice to slice; positions are sorted along the normal."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() <= _STEP_TOLERANCE * max(usual, 1e-6):
        twice = int((gaps <= _STEP_TOLERANCE * max(usual, 1e-6)).sum())
        raise DataError(
            f"{path}: {twice} slices lie where another one lies; expected one slice per position (phases and "
            "echoes belong in folders of their own)"
        )
    wrong = np.flatnonzero(np.abs(gaps - usual) > _STEP_TOLERANCE * usual)
    if wrong.size:
        at = int(wrong[0])
        raise DataError(
            f"{path}: missing slices: {gaps[at]:.4g} mm between slices {at + 1} and {at + 2} in space, "
            f"{usual:.4g} mm elsewhere ({wrong.size} such gaps); expected equal steps"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(positions) - 1)
    astray = np.linalg.norm(positions - (positions[0] + np.arange(len(positions))[:, None] * step), axis=1)
    if astray.max() > max(_STEP_TOLERANCE * usual, 0.01):
        raise DataError(
            f"{path}: slices shifted sideways by up to {astray.max():.3g} mm; expected slices on one line"
        )
    return step
