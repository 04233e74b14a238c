"""Real DICOM and NIfTI files, made where a test needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

IDENTITY = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "MRN-4711-0815",
    "PatientBirthDate": "19640812",
    "AccessionNumber": "ACC998877",
    "ReferringPhysicianName": "Hausarzt^Karl",
    "InstitutionName": "Klinikum Musterstadt",
    "StudyID": "ST77",
    "StudyDate": "20240229",
}
"""What must never be seen again."""

CT, ENHANCED_CT, ULTRASOUND = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.6.1",
)


@dataclass
class Series:
    """A CT series; ``values`` has the axes slice, row, column and is in Hounsfield units."""

    values: np.ndarray
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    origin: tuple[float, ...] = (-50.0, -60.0, 20.0)
    spacing: tuple[float, float, float] = (0.8, 0.6, 2.5)  # between rows, between columns, between slices
    intercept: float = -1024.0
    slope: float = 1.0
    study: str = field(default_factory=generate_uid)
    series: str = field(default_factory=generate_uid)
    frame_of_reference: str = field(default_factory=generate_uid)

    def __post_init__(self) -> None:
        self.instances = [generate_uid() for _ in self.values]

    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    def affine(self) -> np.ndarray:
        """Index (column, row, slice) to mm in RAS+, from the definition in PS3.3 C.7.6.2.1.1."""
        down, across, step = self.spacing
        lps = np.eye(4)
        lps[:3, 0] = np.array(self.orientation[:3]) * across
        lps[:3, 1] = np.array(self.orientation[3:]) * down
        lps[:3, 2] = self.normal() * step
        lps[:3, 3] = self.origin
        return np.diag([-1, -1, 1, 1]) @ lps

    def slice(self, index: int) -> FileDataset:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CT
        meta.MediaStorageSOPInstanceUID = self.instances[index]
        made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        for keyword, value in IDENTITY.items():
            setattr(made, keyword, value)
        made.SOPClassUID, made.SOPInstanceUID = CT, self.instances[index]
        made.StudyInstanceUID, made.SeriesInstanceUID = self.study, self.series
        made.FrameOfReferenceUID = self.frame_of_reference
        made.PatientSex, made.StudyTime, made.Modality, made.SeriesNumber = "F", "101500", "CT", 3
        made.InstanceNumber = index + 1
        made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.ImagePositionPatient = [
            round(float(part), 4) for part in np.array(self.origin) + index * self.spacing[2] * self.normal()
        ]
        made.ImageOrientationPatient = list(self.orientation)
        made.PixelSpacing = list(self.spacing[:2])
        made.SliceThickness = self.spacing[2]
        made.RescaleSlope, made.RescaleIntercept, made.RescaleType = self.slope, self.intercept, "HU"
        made.PhotometricInterpretation, made.SamplesPerPixel = "MONOCHROME2", 1
        made.Rows, made.Columns = self.values.shape[1:]
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        stored = np.rint((self.values[index] - self.intercept) / self.slope).astype(np.int16)
        made.PixelData = stored.tobytes()
        return made

    def write(
        self, folder: Path, *, skip: tuple[int, ...] = (), compress: str | None = None, **changes: Any
    ) -> Path:
        """One file per slice, named so that the order of names is not the order in space."""
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(len(self.values)):
            if index in skip:
                continue
            made = self.slice(index)
            for keyword, value in changes.items():
                setattr(made, keyword, value)
            if compress:
                made.compress(compress, generate_instance_uid=False)
            made.save_as(folder / f"IM{(7 * index) % 97:03d}", enforce_file_format=True)
        return folder

    def write_multiframe(self, path: Path) -> Path:
        """An enhanced CT whose frames are stored from the last slice to the first."""
        made = self.slice(0)
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
        order = list(range(len(self.values)))[::-1]
        frames, pixels = [], []
        for index in order:
            one = self.slice(index)
            frame, position = Dataset(), Dataset()
            position.ImagePositionPatient = one.ImagePositionPatient
            frame.PlanePositionSequence = [position]
            frames.append(frame)
            pixels.append(one.PixelData)
        shared, orientation, measures, transformation = Dataset(), Dataset(), Dataset(), Dataset()
        orientation.ImageOrientationPatient = list(self.orientation)
        measures.PixelSpacing, measures.SliceThickness = list(self.spacing[:2]), self.spacing[2]
        transformation.RescaleSlope, transformation.RescaleIntercept = self.slope, self.intercept
        transformation.RescaleType = "HU"
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
        shared.PixelValueTransformationSequence = [transformation]
        made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], frames
        made.NumberOfFrames, made.PixelData = len(order), b"".join(pixels)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            delattr(made, keyword)
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
            delattr(made, keyword)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save_as(path, enforce_file_format=True)
        return path


@pytest.fixture
def volume() -> np.ndarray:
    """Hounsfield units with no symmetry: axes slice, row, column."""
    draw = np.random.default_rng(3)
    values = draw.normal(40, 15, (7, 18, 22))
    values[2:5, 4:9, 6:16] += 300
    values[0, :5, :3] = -900
    return np.rint(values)


@pytest.fixture
def truth() -> np.ndarray:
    """Labels 0, 1, 2 with the axes slice, row, column; the last slices are empty."""
    labels = np.zeros((7, 18, 22), np.uint8)
    labels[2:5, 4:9, 6:16] = 1
    labels[3, 6:8, 8:12] = 2
    return labels


@pytest.fixture
def make_series():
    return Series


@pytest.fixture
def identity():
    return IDENTITY


@pytest.fixture
def save_nifti():
    def save(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
        return path

    return save
