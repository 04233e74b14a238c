"""DICOM SEG to classes on an image's grid, and predictions to DICOM SEG, by highdicom.

A segmentation belongs to an image if it has the same frame of reference and its voxels lie on the image's, which
highdicom's ``match_geometry`` checks without resampling; frames that a segmentation leaves out are background.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secfl._version import __version__
from secfl.errors import DataError
from secfl.segmentation.data.dicom import SEGMENTATION_STORAGE, read_header
from secfl.segmentation.data.dicom_geometry import lps
from secfl.segmentation.data.labels import LabelMap
from secfl.segmentation.data.quiet import quietly
from secfl.segmentation.data.scan import Geometry, Scan, same_grid, shape_text

if TYPE_CHECKING:
    from pydicom import Dataset

_TOLERANCE = 0.05
"""Voxels."""

__all__ = ["Identifiers", "is_segmentation", "read_segmentation", "write_segmentation"]

_IDENTIFYING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Type 2 elements: they may be empty."""


class Identifiers(Enum):
    """What a written segmentation says about the person besides the UIDs that it must point at."""

    REMOVE = "remove"
    KEEP = "keep"


def is_segmentation(path: Path) -> bool:
    """Whether a DICOM file is a segmentation."""
    return str(read_header(path).SOPClassUID) in SEGMENTATION_STORAGE


def read_segmentation(path: Path, image: Scan, labels: LabelMap) -> NDArray[np.uint8]:
    """Classes on the image's grid, shape ``(i, j, k)``.

    Args:
        path: The segmentation: binary or label map, not fractional.
        image: A scan with geometry.
        labels: The classes.

    Raises:
        DataError: Damaged, fractional, of another space or size, with segments of no class, or with segments of
            two classes that overlap.
    """
    import highdicom

    if not is_segmentation(path):
        raise DataError(f"{path}: a DICOM image; expected a segmentation (DICOM SEG)")
    try:
        with quietly():
            segmentation = highdicom.seg.segread(path)
            kind = segmentation.segmentation_type.value
            numbers = list(segmentation.segment_numbers)
            names = [str(segmentation.get_segment_description(number).SegmentLabel) for number in numbers]
            reference = str(segmentation.get("FrameOfReferenceUID") or "")
    except Exception:  # noqa: BLE001 - the parser raises many kinds of errors, whose texts may quote elements
        raise DataError(f"{path}: cannot be read as DICOM SEG; expected an intact segmentation") from None
    if kind == "FRACTIONAL":
        raise DataError(f"{path}: a fractional segmentation; expected a binary one or a label map")
    numbers, names = _without_background(numbers, names)
    assert image.geometry is not None
    ours = image.dicom.frame_of_reference if image.dicom else None
    if ours and reference and reference != ours:
        raise DataError(
            f"{path}: lies in another space than {image.path}: the frames of reference differ; "
            "expected a segmentation of this series"
        )
    classes = [
        labels.class_of_segment(path, number, name, segments=len(numbers))
        for number, name in zip(numbers, names, strict=True)
    ]
    planes = (
        _by_position(path, segmentation, image, numbers)
        if image.geometry.in_patient
        else _by_instance(path, segmentation, image, numbers)
    )
    result = np.zeros(image.geometry.shape, dtype=np.uint8)
    for plane, label in zip(planes, classes, strict=True):
        if ((result != 0) & (result != label) & plane).any():
            raise DataError(f"{path}: segments of two classes overlap; expected every voxel in one class")
        result[plane] = label
    return result


def _without_background(numbers: list[int], names: list[str]) -> tuple[list[int], list[str]]:
    """A label map may describe its background as segment 0."""
    kept = [(number, name) for number, name in zip(numbers, names, strict=True) if number != 0]
    return [number for number, _ in kept], [name for _, name in kept]


def _by_position(
    path: Path, segmentation: Any, image: Scan, numbers: list[int]
) -> Iterable[NDArray[np.bool_]]:
    assert image.geometry is not None
    try:
        with quietly():
            volume = segmentation.get_volume(segment_numbers=numbers, allow_missing_positions=True)
            matched = volume.match_geometry(_volume_geometry(image.geometry), tol=_TOLERANCE)
            planes, affine, step = matched.array, lps @ matched.affine[:, [2, 1, 0, 3]], volume.spacing
    except (RuntimeError, ValueError):
        shape = shape_text((int(segmentation.Columns), int(segmentation.Rows)))
        raise DataError(
            f"{path}: lies in another space than {image.path}: its voxels ({shape} a slice) are not on the "
            "image's grid; expected a segmentation of this series"
        ) from None
    except Exception:  # noqa: BLE001 - the same as above
        raise DataError(f"{path}: cannot be read as DICOM SEG; expected an intact segmentation") from None
    # highdicom also takes every second voxel and cuts off what lies outside; a truth must not be changed so.
    if not np.allclose(sorted(step), sorted(matched.spacing), rtol=_TOLERANCE):
        raise DataError(f"{path}: finer or coarser than {image.path}; expected a mask on the image's grid")
    if int((volume.array > 0).sum()) != int((planes > 0).sum()):
        raise DataError(
            f"{path}: part of it lies outside {image.path}; expected a segmentation of this series"
        )
    same_grid(path, Geometry(shape=image.geometry.shape, affine=affine), image.path, image.geometry)
    return [planes[..., index].transpose(2, 1, 0) > 0 for index in range(len(numbers))]


def _by_instance(
    path: Path, segmentation: Any, image: Scan, numbers: list[int]
) -> Iterable[NDArray[np.bool_]]:
    """Without a position in the patient a segmentation says which images its frames belong to."""
    assert image.dicom is not None
    try:
        with quietly():
            planes = segmentation.get_pixels_by_source_instance(
                list(image.dicom.instances), segment_numbers=numbers, ignore_spatial_locations=True
            )
    except Exception:  # noqa: BLE001 - the same as above
        raise DataError(
            f"{path}: does not refer to {image.path}; expected a segmentation of this image"
        ) from None
    rows, columns = planes.shape[1:3]
    assert image.geometry is not None
    if (columns, rows) != image.geometry.shape[:2]:
        raise DataError(
            f"{path}: {shape_text((columns, rows))} pixels, but {image.path} has "
            f"{shape_text(image.geometry.shape[:2])}; expected the same size"
        )
    return [planes[..., index].transpose(2, 1, 0) > 0 for index in range(len(numbers))]


def _volume_geometry(geometry: Geometry) -> Any:
    """The same grid in highdicom's order of axes: slice, row, column; LPS+."""
    import highdicom

    affine = lps @ geometry.affine
    return highdicom.VolumeGeometry(
        affine=affine[:, [2, 1, 0, 3]],
        spatial_shape=geometry.shape[::-1],
        coordinate_system="PATIENT",
    )


def write_segmentation(
    path: Path,
    classes: NDArray[np.uint8],
    image: Scan,
    labels: LabelMap,
    *,
    identifiers: Identifiers = Identifiers.REMOVE,
) -> None:
    """Write predicted classes as a binary DICOM SEG that points at the image's series.

    Args:
        path: The file to write.
        classes: Shape ``(i, j, k)``, the image's stored order.
        image: What was segmented.
        labels: The classes' names; a segment's number is the class.
        identifiers: Whether name, number and dates of the patient are copied from the image.

    Raises:
        DataError: The image lacks what a segmentation has to repeat of it (such as the study's UID).
    """
    import highdicom
    from pydicom.uid import generate_uid

    assert image.dicom is not None
    sources = [_source(file, identifiers) for file in image.dicom.files]
    pixels = classes.transpose(2, 1, 0)
    if image.dicom.frames is not None:
        stored = np.empty_like(pixels)
        stored[list(image.dicom.frames)] = pixels
        pixels = stored
    try:
        with quietly():
            segmentation = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=pixels,
                segmentation_type="BINARY",
                segment_descriptions=[
                    _description(number, name) for number, name in enumerate(labels.names[1:], 1)
                ],
                series_instance_uid=generate_uid(),
                series_number=1000,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="secfl",
                manufacturer_model_name="secfl",
                software_versions=__version__,
                device_serial_number="0",
                content_label="SEGMENTATION",
                series_description="secfl prediction",
                omit_empty_frames=bool(pixels.any()),
            )
            segmentation.save_as(path)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{image.path}: no segmentation can point at it; expected a complete header "
            "(study, series, frame of reference)"
        ) from None


_DESCRIBING_GROUPS = {0x0008, 0x0010, 0x0012, 0x0032, 0x0038, 0x0040}
"""Groups of attributes about people, places, times and procedures (DICOM PS3.6)."""

_DESCRIBING = {"StudyID", "OtherStudyNumbers", "ImageComments"}
_KEPT = {"SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality"}


def _source(file: Path, identifiers: Identifiers) -> Dataset:
    header = read_header(file)
    if identifiers is Identifiers.REMOVE:
        # highdicom copies the whole modules of patient and study, so everything that may be in them has to go.
        for element in list(header):
            described = element.tag.group in _DESCRIBING_GROUPS or element.keyword in _DESCRIBING
            if described and element.keyword not in _KEPT:
                del header[element.tag]
    for keyword in _IDENTIFYING:
        if keyword not in header:
            setattr(header, keyword, None if keyword.endswith(("Date", "Time")) else "")
    return header


def _description(number: int, name: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="secfl", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
