"""NIfTI to arrays and back, by nibabel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError
from secfl.segmentation.data.quiet import quietly
from secfl.segmentation.data.scan import Geometry, ImageFormat, Scan

__all__ = ["NIFTI_SUFFIXES", "read_nifti", "read_nifti_mask", "write_nifti_mask"]

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_MOST_VALUES = 2**31


def read_nifti(path: Path) -> Scan:
    """Read an image of 2 or 3 dimensions, with channels as the fourth.

    The scale and intercept of the header are applied.

    Raises:
        DataError: Damaged, of an unsupported type or shape, with a singular affine, or with values that are not
            finite.
    """
    values, geometry = _read(path, most_channels=64)
    image = np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise DataError(f"{path}: {count} voxels are NaN or infinite; expected finite intensities")
    return Scan(path=path, values=image, format=ImageFormat.NIFTI, geometry=geometry)


def read_nifti_mask(path: Path) -> tuple[NDArray[np.int64], Geometry]:
    """Read labels: whole numbers of shape ``(i, j, k)``, and where they lie.

    Raises:
        DataError: As `read_nifti`, or values that are no whole numbers from 0 to 65535.
    """
    values, geometry = _read(path, most_channels=1)
    stored = values[..., 0]
    if not np.isfinite(stored).all():
        raise DataError(f"{path}: voxels that are NaN or infinite; expected labels")
    labels = np.rint(stored).astype(np.int64)
    if np.abs(stored - labels).max() > 1e-3 or labels.min() < 0 or labels.max() > 65535:
        raise DataError(f"{path}: values that are no labels; expected whole numbers from 0 to 65535")
    return labels, geometry


def write_nifti_mask(path: Path, labels: NDArray[np.integer], *, like: Path) -> None:
    """Write labels of shape ``(i, j, k)`` on the grid of another file, with the same affine.

    The header is a fresh one: free text of the source, which may name a person, is not copied.
    """
    import nibabel

    with quietly():
        source = nibabel.load(like)
        kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
        image = type(source)(labels.astype(kind), None)
        header, old = image.header, source.header
        # The two forms are copied as they are: rebuilding one from the other would move voxels by a rounding.
        for form in ("qform", "sform"):
            header[f"{form}_code"] = old[f"{form}_code"]
        for key in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            header[key] = old[key]
        for key in ("srow_x", "srow_y", "srow_z"):
            header[key] = old[key]
        pixdim = np.ones(8)
        pixdim[:4] = np.asarray(old["pixdim"], dtype=np.float64)[:4]
        header["pixdim"] = pixdim
        header.set_xyzt_units(old.get_xyzt_units()[0])
        written = type(source)(labels.astype(kind), None, header)
        nibabel.save(written, path)


def _read(path: Path, *, most_channels: int) -> tuple[NDArray[np.floating], Geometry]:
    """Values of shape ``(i, j, k, channels)`` and their geometry."""
    import nibabel

    try:
        with quietly():
            image = nibabel.load(path)
            kind, stored = isinstance(image, nibabel.Nifti1Image), image.get_data_dtype()
            shape = tuple(int(side) for side in image.shape)
            affine = np.array(image.affine, dtype=np.float64)
    except Exception:  # noqa: BLE001 - readers raise many kinds of errors, whose texts may quote the content
        raise DataError(f"{path}: cannot be read as NIfTI; expected an intact .nii or .nii.gz file") from None
    if not kind:
        raise DataError(f"{path}: another format under this name; expected NIfTI-1 or NIfTI-2")
    if stored.fields is not None or stored.kind == "c":
        raise DataError(f"{path}: colour or complex voxels; expected numbers, with channels as 4th dimension")
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise DataError(f"{path}: {len(shape)} dimensions; expected 2 or 3, and channels as the 4th")
    shape = (*shape, 1, 1)[:4]
    if shape[3] > most_channels:
        raise DataError(f"{path}: {shape[3]} channels; expected at most {most_channels}")
    if np.prod([float(side) for side in shape]) > _MOST_VALUES:
        raise DataError(f"{path}: more than {_MOST_VALUES} values; expected a smaller image")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path}: the affine cannot be inverted; expected voxels with a size")
    try:
        with quietly():
            values = np.asarray(image.dataobj).reshape(shape)
    except Exception:  # noqa: BLE001 - the same
        raise DataError(
            f"{path}: cannot be read to its end; expected an intact .nii or .nii.gz file"
        ) from None
    return values, Geometry(shape=(shape[0], shape[1], shape[2]), affine=affine)
