"""DICOM images to arrays, by pydicom: one series in a folder, or one file with one or many frames.

What identifies a person (names, numbers, dates) is not read into anything that is kept or printed. Errors name
files, counts, millimetres and, where series are mixed, the series' UIDs; never what an element holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError
from secfl.segmentation.data.dicom_geometry import Plane, stack
from secfl.segmentation.data.quiet import quietly
from secfl.segmentation.data.scan import DicomReference, Geometry, ImageFormat, Scan

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["SEGMENTATION_STORAGE", "is_dicom", "read_dicom", "read_header", "series_files"]

SEGMENTATION_STORAGE = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""SOP classes Segmentation Storage and Label Map Segmentation Storage."""

_MAGIC_AT = 128
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LOSSLESS_JPEG = frozenset(
    {"1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
)  # JPEG Extended, JPEG Lossless, JPEG Lossless SV1


@dataclass(frozen=True, slots=True)
class _Slice:
    """One frame of one file, before decoding."""

    path: Path
    frame: int
    plane: Plane | None
    header: Dataset = field(repr=False)


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM Part 10, whatever it is called."""
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"
    except OSError:
        return False


def series_files(folder: Path) -> list[Path]:
    """The files of a folder that holds a series: all but hidden ones and a DICOMDIR, also in folders below."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name.upper() != "DICOMDIR"
    )


def read_dicom(path: Path) -> Scan:
    """Read one image: the series in a folder, or one file.

    Stored values are rescaled (CT to Hounsfield units) by every slice's own slope and intercept; padding pixels
    take the smallest value beside them; MONOCHROME1 is turned so that more is brighter.

    Args:
        path: A folder that holds exactly one series, or a file.

    Returns:
        A scan with geometry: i along the rows' direction, j along the columns', k from slice to slice.

    Raises:
        DataError: Damaged or not an image, several series (names their UIDs), slices that are missing, twice
            there, or of unlike size, spacing or orientation, or values that are not finite.
    """
    files = series_files(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no file in it; expected the DICOM files of one series")
    headers = {file: read_header(file) for file in files}
    _one_series(path, headers)
    reference = headers[files[0]]
    if len(files) > 1 and any(int(header.get("NumberOfFrames") or 1) > 1 for header in headers.values()):
        raise DataError(f"{path}: {len(files)} files, some with many frames; expected one multi-frame file")
    slices = [each for file, header in headers.items() for each in _slices(file, header)]
    order, geometry = _arrange(path, slices)
    ordered = [slices[index] for index in order]
    values = _values(path, ordered)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: pixels that are NaN or infinite; expected finite intensities")
    several = len(files) == 1 and len(ordered) > 1
    return Scan(
        path=path,
        values=values,
        format=ImageFormat.DICOM,
        geometry=geometry,
        dicom=DicomReference(
            files=(files[0],) if several else tuple(each.path for each in ordered),
            series=str(reference.SeriesInstanceUID),
            frame_of_reference=_text(reference, "FrameOfReferenceUID"),
            instances=tuple(
                str(headers[each.path].SOPInstanceUID) for each in (ordered[:1] if several else ordered)
            ),
            frames=tuple(each.frame for each in ordered) if several else None,
        ),
    )


def read_header(path: Path) -> Dataset:
    """The data elements of a file without its pixels.

    Raises:
        DataError: Not an intact DICOM file, or one without the UIDs of its series and instance.
    """
    import pydicom

    if not is_dicom(path):
        raise DataError(f"{path}: cannot be read as DICOM; expected an intact DICOM file")
    try:
        with quietly():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            complete = all(
                _text(header, keyword) for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
            )
    except Exception:  # noqa: BLE001 - the parser raises many kinds of errors, whose texts quote elements
        raise DataError(f"{path}: cannot be read as DICOM; expected an intact DICOM file") from None
    if not complete:
        raise DataError(f"{path}: no UID of its series, class or instance; expected a complete DICOM header")
    return header


def _one_series(path: Path, headers: Mapping[Path, Dataset]) -> None:
    series = sorted({str(header.SeriesInstanceUID) for header in headers.values()})
    if len(series) > 1:
        shown = ", ".join(series[:4]) + (", ..." if len(series) > 4 else "")
        raise DataError(
            f"{path}: {len(series)} series in one folder ({shown}); expected one folder per series"
        )
    seen: set[str] = set()
    for file, header in headers.items():
        if str(header.SOPClassUID) in SEGMENTATION_STORAGE:
            raise DataError(f"{file}: a segmentation; expected an image (segmentations belong under masks)")
        if not int(header.get("Rows") or 0) or not int(header.get("Columns") or 0):
            raise DataError(f"{file}: a DICOM object without an image; expected the slices of one series")
        if str(header.SOPInstanceUID) in seen:
            raise DataError(f"{file}: the same instance as another file; expected every slice once")
        seen.add(str(header.SOPInstanceUID))


def _slices(file: Path, header: Dataset) -> list[_Slice]:
    try:
        with quietly():
            count = int(header.get("NumberOfFrames") or 1)
            return [_Slice(file, frame, _plane(header, frame), header) for frame in range(count)]
    except (AttributeError, TypeError, ValueError, IndexError, KeyError):
        raise DataError(
            f"{file}: position, orientation or pixel spacing cannot be read; expected numbers of DICOM's form"
        ) from None


def _plane(header: Dataset, frame: int) -> Plane | None:
    """Where a frame lies: from its functional groups, or from the file's own elements; ``None`` if not told."""
    places: list[Dataset] = []
    if "PerFrameFunctionalGroupsSequence" in header:
        groups = header.PerFrameFunctionalGroupsSequence[frame]
        shared = header.get("SharedFunctionalGroupsSequence") or []
        for group in (groups, *shared):
            places += [item for element in group if element.VR == "SQ" for item in element.value]
    elif int(header.get("NumberOfFrames") or 1) == 1:
        places = [header]
    position = _numbers(places, "ImagePositionPatient", 3)
    orientation = _numbers(places, "ImageOrientationPatient", 6)
    pixel = _numbers(places, "PixelSpacing", 2)
    if pixel is None:
        pixel = _numbers([header], "PixelSpacing", 2) or _numbers([header], "ImagerPixelSpacing", 2)
    if pixel is None and position is None:
        return None
    return Plane(
        rows=int(header.Rows),
        columns=int(header.Columns),
        position=position,
        orientation=orientation,
        pixel=(pixel[0], pixel[1]) if pixel else None,
        thickness=(_numbers(places, "SliceThickness", 1) or (None,))[0],
    )


def _numbers(places: Iterable[Dataset], keyword: str, count: int) -> tuple[float, ...] | None:
    for place in places:
        value = place.get(keyword)
        if value is None or value == "":
            continue
        numbers = tuple(float(part) for part in ([value] if count == 1 else value))
        if len(numbers) != count or not all(np.isfinite(numbers)):
            raise ValueError(keyword)
        return numbers
    return None


def _arrange(path: Path, slices: Sequence[_Slice]) -> tuple[list[int], Geometry]:
    """The order of the slices along k, and where they lie."""
    first = slices[0]
    shapes = {(int(each.header.Rows), int(each.header.Columns)) for each in slices}
    if len(shapes) > 1:
        raise DataError(f"{path}: slices of {len(shapes)} different sizes; expected one size in a series")
    if len(slices) == 1:
        return [0], stack(path, [first.plane], shape=next(iter(shapes)))[1]
    planes = [each.plane for each in slices]
    if any(plane is None or plane.position is None or plane.orientation is None for plane in planes):
        raise DataError(
            f"{path}: {len(slices)} slices or frames without position and orientation in the patient; "
            "expected a volume (a film or a set of pictures has to be split into single images)"
        )
    return stack(path, planes, shape=next(iter(shapes)))


def _values(path: Path, slices: Sequence[_Slice]) -> NDArray[np.float32]:
    """Decoded, rescaled values of shape ``(channels, i, j, k)``."""
    import pydicom

    planes: list[NDArray[np.float32]] = []
    opened: tuple[Path, Dataset, NDArray[np.generic]] | None = None
    for each in slices:
        try:
            with quietly():
                if opened is None or opened[0] != each.path:
                    dataset = pydicom.dcmread(each.path)
                    opened = each.path, dataset, pydicom.pixels.pixel_array(dataset)
                _, dataset, decoded = opened
                several = int(dataset.get("NumberOfFrames") or 1) > 1
                plane = _modality(dataset, decoded[each.frame] if several else decoded, each.frame)
        except Exception:  # noqa: BLE001 - decoders raise many kinds of errors, whose texts may quote elements
            raise DataError(_undecodable(each)) from None
        if plane.ndim not in (2, 3) or plane.shape[:2] != (int(each.header.Rows), int(each.header.Columns)):
            raise DataError(f"{each.path}: pixels of another size than its header says")
        planes.append(plane if plane.ndim == 3 else plane[..., None])
    if len({plane.shape for plane in planes}) > 1:
        raise DataError(f"{path}: grey and colour slices; expected one kind in a series")
    return np.ascontiguousarray(np.stack(planes, axis=-1).transpose(2, 1, 0, 3))


def _undecodable(each: _Slice) -> str:
    meta = getattr(each.header, "file_meta", None)
    syntax = str(getattr(meta, "TransferSyntaxUID", ""))
    hint = ""
    if syntax in _LOSSLESS_JPEG:
        hint = " (this kind of JPEG needs: pip install secfl[jpeg])"
    return f"{each.path}: the pixels cannot be decoded; expected an intact image in a known compression{hint}"


def _modality(dataset: Dataset, stored: NDArray[np.generic], frame: int) -> NDArray[np.float32]:
    """Stored values to the modality's own: rescaled, padding removed, more is brighter."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return np.asarray(apply_color_lut(stored, dataset), dtype=np.float32)
    padding = dataset.get("PixelPaddingValue")
    pad = stored == int(padding) if padding is not None and stored.ndim == 2 else None
    groups = [dataset]
    if "PerFrameFunctionalGroupsSequence" in dataset:
        groups = [
            dataset.PerFrameFunctionalGroupsSequence[frame],
            *(dataset.get("SharedFunctionalGroupsSequence") or []),
        ]
    transformation = next(
        (
            group.PixelValueTransformationSequence[0]
            for group in groups
            if "PixelValueTransformationSequence" in group
        ),
        dataset,
    )
    if stored.ndim == 2:
        values = np.asarray(apply_modality_lut(stored, transformation), dtype=np.float32)
    else:
        values = stored.astype(np.float32)
    if pad is not None and pad.any() and not pad.all():
        values = np.where(pad, values[~pad].min(), values).astype(np.float32)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = (values.max() + values.min()) - values
    return values


def _text(header: Dataset, keyword: str) -> str | None:
    value = header.get(keyword)
    return str(value) if value else None
