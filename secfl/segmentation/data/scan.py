"""An image file as it is stored: values, and where its voxels lie in the patient.

Inside secfl space is RAS+ (x to the right, y to the front, z to the head), in mm, as in NIfTI. A `Scan` keeps the
file's own order of voxels; `secfl.segmentation.data.preparation` brings it to one order and remembers the way back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError

__all__ = ["DicomReference", "Geometry", "ImageFormat", "Scan", "same_grid", "shape_text"]

_TOLERANCE = 0.1
"""Voxels. Two grids are the same if no corner lies further away; headers round, masks are not moved by less."""


class ImageFormat(Enum):
    """What kind of file an image came from, and so what its predicted mask is written as."""

    RASTER = "raster"
    NIFTI = "nifti"
    DICOM = "dicom"


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where voxels lie.

    Attributes:
        shape: Voxels along the stored axes i, j, k.
        affine: float64, shape ``(4, 4)``: index ``(i, j, k, 1)`` to mm in RAS+. Invertible.
        in_patient: Whether the position in the patient is known; otherwise only the spacing means something.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64] = field(repr=False)
    in_patient: bool = True

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxels along i, j, k in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    def corners(self) -> NDArray[np.float64]:
        """The eight corner voxels' centres in mm, shape ``(8, 3)``."""
        grid = np.array(np.meshgrid(*((0, side - 1) for side in self.shape), indexing="ij")).reshape(3, -1)
        points: NDArray[np.float64] = (self.affine[:3, :3] @ grid).T + self.affine[:3, 3]
        return points


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomReference:
    """What a segmentation of a series has to point at. Never printed.

    Attributes:
        files: One file per slice in the order of k, or one multi-frame file.
        series: SeriesInstanceUID.
        frame_of_reference: FrameOfReferenceUID, or ``None`` where there is none.
        instances: SOPInstanceUID per file.
        frames: For a multi-frame file the stored frame (from 0) at every k.
    """

    files: tuple[Path, ...] = field(repr=False)
    series: str = field(repr=False)
    frame_of_reference: str | None = field(repr=False)
    instances: tuple[str, ...] = field(repr=False)
    frames: tuple[int, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One image as stored.

    Attributes:
        path: The file, or the folder of a series.
        values: float32. Without geometry ``(channels, rows, columns)``; with geometry ``(channels, i, j, k)``.
            CT is in Hounsfield units.
        format: What it was read from.
        geometry: ``None`` for PNG, JPEG and TIFF.
        dicom: What it was read from, for DICOM.
    """

    path: Path
    values: NDArray[np.float32] = field(repr=False)
    format: ImageFormat
    geometry: Geometry | None = None
    dicom: DicomReference | None = field(default=None, repr=False)

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return int(self.values.shape[0])

    @property
    def spatial_dims(self) -> int:
        """3 for a volume, 2 for one slice or a picture."""
        return 3 if self.values.ndim == 4 and self.values.shape[3] > 1 else 2


def same_grid(path: Path, mask: Geometry, image_path: Path, image: Geometry) -> None:
    """Refuse a mask whose voxels do not lie on the image's.

    Raises:
        DataError: Another number of voxels, or another place in the patient; says by how many mm.
    """
    if mask.shape != image.shape:
        raise DataError(
            f"{path}: {shape_text(mask.shape)} voxels, but {image_path} has {shape_text(image.shape)}; "
            "expected a mask on the image's grid"
        )
    distance = float(np.linalg.norm(mask.corners() - image.corners(), axis=1).max())
    if distance > _TOLERANCE * min(image.spacing):
        raise DataError(
            f"{path}: lies in another space than {image_path}: corners up to {distance:.3g} mm apart; "
            "expected the same affine, so that every voxel of the mask lies on one of the image"
        )


def shape_text(shape: tuple[int, ...]) -> str:
    """``256x256x40``."""
    return "x".join(str(side) for side in shape)
