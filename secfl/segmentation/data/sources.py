"""Files of any format by stem: which image has which mask, and how each is read.

The pairing rule: an image and its mask have the same stem. A stem is the name of a file without its suffix
(``.nii.gz`` counts as one), or the name of a folder that holds one DICOM series. What is paired by name is then
held against the image: size for pictures, affine for NIfTI, frame of reference and grid for DICOM SEG.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError
from secfl.segmentation.data.dicom import is_dicom, read_dicom, series_files
from secfl.segmentation.data.dicom_seg import is_segmentation, read_segmentation
from secfl.segmentation.data.labels import LabelMap
from secfl.segmentation.data.nifti import NIFTI_SUFFIXES, read_nifti, read_nifti_mask
from secfl.segmentation.data.orientation import on_grid_of
from secfl.segmentation.data.reading import IMAGE_SUFFIXES, read_image, read_mask
from secfl.segmentation.data.scan import ImageFormat, Scan, shape_text

__all__ = ["KINDS", "files_by_stem", "format_of", "read_labels", "read_scan", "stem_of"]

KINDS = "PNG, JPEG, TIFF, NIfTI or DICOM"

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})


def format_of(path: Path) -> ImageFormat | None:
    """The format by name (a folder is a DICOM series; a file without a known suffix is looked into)."""
    name = path.name.lower()
    if path.is_dir() or path.suffix.lower() in _DICOM_SUFFIXES:
        return ImageFormat.DICOM
    if name.endswith(NIFTI_SUFFIXES):
        return ImageFormat.NIFTI
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFormat.RASTER
    return ImageFormat.DICOM if is_dicom(path) else None


def stem_of(path: Path) -> str:
    """The name that pairs an image with its mask."""
    if path.is_dir():
        return path.name
    if path.name.lower().endswith(".nii.gz"):
        return path.name[: -len(".nii.gz")]
    if path.suffix.lower() in _DICOM_SUFFIXES | IMAGE_SUFFIXES | {".nii"}:
        return path.stem
    return path.name


def files_by_stem(folder: Path) -> Mapping[str, Path]:
    """The images or masks of a folder, sorted by name; hidden files are left alone.

    Raises:
        DataError: No such folder, nothing in it, an unknown kind of file, or two files with one stem.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected <site>/images and <site>/masks with {KINDS} files"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
            continue
        if format_of(path) is None:
            raise DataError(f"{path}: unknown kind of file; expected {KINDS}")
        stem = stem_of(path)
        if stem in found:
            raise DataError(f"{path}: same stem as {found[stem].name}; expected one file per stem")
        found[stem] = path
    if not found:
        raise DataError(f"{folder}: no image in it; expected {KINDS} files")
    return found


def read_scan(path: Path) -> Scan:
    """Read an image of any format.

    Raises:
        DataError: It cannot be used; the message names the file and says why.
    """
    kind = format_of(path)
    if not path.exists() or kind is None:
        reason = "unknown kind of file" if path.exists() else "no such file"
        raise DataError(f"{path}: {reason}; expected {KINDS}")
    if kind is ImageFormat.NIFTI:
        return read_nifti(path)
    if kind is ImageFormat.DICOM:
        return read_dicom(path)
    return Scan(path=path, values=read_image(path), format=ImageFormat.RASTER)


def read_labels(path: Path, image: Scan, labels: LabelMap) -> NDArray[np.uint8]:
    """Read the mask of an image as classes on the image's stored grid.

    Returns:
        uint8, shape of the image's values without channels.

    Raises:
        DataError: Damaged, of another size or space, or with labels out of range.
    """
    kind = format_of(path)
    if kind is ImageFormat.NIFTI:
        if image.geometry is None:
            raise DataError(f"{path}: a NIfTI mask of a picture; expected a mask as PNG, JPEG or TIFF")
        stored, geometry = read_nifti_mask(path)
        return labels.classes_of(path, on_grid_of(path, stored, geometry, image))
    if kind is ImageFormat.DICOM:
        if path.is_dir() and not any(is_dicom(file) for file in series_files(path)):
            return _pictures_per_slice(path, image, labels)
        file = _only_file(path)
        if image.geometry is None:
            raise DataError(f"{path}: a DICOM mask of a picture; expected a mask as PNG, JPEG or TIFF")
        if not is_segmentation(file):
            raise DataError(f"{file}: a DICOM image; expected a segmentation (DICOM SEG), NIfTI or pictures")
        return read_segmentation(file, image, labels)
    return _picture(path, image, labels)


def _only_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = series_files(path)
    if len(files) != 1:
        raise DataError(f"{path}: {len(files)} files; expected one segmentation (DICOM SEG)")
    return files[0]


def _picture(path: Path, image: Scan, labels: LabelMap) -> NDArray[np.uint8]:
    """A mask as a picture, of a picture or of a DICOM image with one slice: rows and columns are the same."""
    if image.format is ImageFormat.NIFTI:
        raise DataError(f"{path}: a picture as mask of a NIfTI image; expected a NIfTI mask on the same grid")
    stored = read_mask(path)
    sizes = image.values.shape[1:3] if image.geometry is None else image.values.shape[2:0:-1]
    if image.spatial_dims == 3:
        raise DataError(
            f"{path}: one picture for {image.values.shape[3]} slices; expected DICOM SEG, NIfTI, or a folder of "
            "pictures named like the slices' files"
        )
    if stored.shape != sizes:
        raise DataError(
            f"{path}: {shape_text(stored.shape[::-1])} pixels, but {image.path} has "
            f"{shape_text(sizes[::-1])}; expected the same size"
        )
    classes = labels.classes_of(path, stored)
    return classes if image.geometry is None else classes.T[..., None]


def _pictures_per_slice(path: Path, image: Scan, labels: LabelMap) -> NDArray[np.uint8]:
    """A folder of pictures, each named like the file of its slice."""
    if image.dicom is None or image.dicom.frames is not None or image.geometry is None:
        raise DataError(f"{path}: a folder of pictures; expected one only for a folder of DICOM slices")
    pictures = files_by_stem(path)
    slices = [stem_of(file) for file in image.dicom.files]
    if len(set(slices)) != len(slices) or sorted(slices) != sorted(pictures):
        raise DataError(
            f"{path}: {len(pictures)} pictures for {len(slices)} slices in {image.path}; expected one picture "
            "per slice with the same name"
        )
    result = np.zeros(image.geometry.shape, dtype=np.uint8)
    for index, stem in enumerate(slices):
        stored = read_mask(pictures[stem])
        if stored.shape != (image.geometry.shape[1], image.geometry.shape[0]):
            raise DataError(
                f"{pictures[stem]}: {shape_text(stored.shape[::-1])} pixels, but {image.path} has "
                f"{shape_text(image.geometry.shape[:2])}; expected the same size"
            )
        result[:, :, index] = labels.classes_of(pictures[stem], stored).T
    return result
