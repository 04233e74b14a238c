"""DICOM SEG: from classes to a file and back, on the image's grid and only there."""

from __future__ import annotations

import highdicom
import numpy as np
import pydicom
import pytest

from secfl.errors import DataError
from secfl.segmentation.data.dicom import read_dicom
from secfl.segmentation.data.dicom_seg import Identifiers, read_segmentation, write_segmentation
from secfl.segmentation.data.labels import LabelMap

LABELS = LabelMap.of({"organ": (1,), "lesion": (2,)})


@pytest.fixture
def classes(truth):
    return truth.transpose(2, 1, 0)


@pytest.fixture
def scan(make_series, volume, tmp_path):
    return read_dicom(make_series(volume).write(tmp_path / "image"))


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), (0.8, 0.6, 0, -0.6, 0.8, 0)]
)
@pytest.mark.parametrize("frames", ["one file per slice", "one file"])
def test_what_is_written_is_read(make_series, volume, classes, tmp_path, orientation, frames):
    series = make_series(volume, orientation=orientation)
    image = (
        series.write(tmp_path / "i") if frames != "one file" else series.write_multiframe(tmp_path / "i.dcm")
    )
    scan = read_dicom(image)
    write_segmentation(tmp_path / "seg.dcm", classes, scan, LABELS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", scan, LABELS), classes)


def test_highdicom_finds_the_same_voxels_in_the_patient(make_series, volume, truth, tmp_path):
    """Held against the source slices by UID and against the definition of the affine, without our reader."""
    series = make_series(volume, orientation=(0, 1, 0, 0, 0, -1))
    scan = read_dicom(series.write(tmp_path / "image"))
    write_segmentation(tmp_path / "seg.dcm", truth.transpose(2, 1, 0), scan, LABELS)
    written = highdicom.seg.segread(tmp_path / "seg.dcm")
    planes = written.get_pixels_by_source_instance(
        series.instances, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(planes, truth)
    found = written.get_volume(combine_segments=True)
    index = np.argwhere(found.array == 2)
    places = (found.affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    lps = np.diag([-1, -1, 1, 1]) @ series.affine()
    expected = (lps @ np.c_[np.argwhere(truth == 2)[:, ::-1], np.ones((truth == 2).sum())].T)[:3].T
    np.testing.assert_allclose(np.sort(places, axis=0), np.sort(expected, axis=0), atol=1e-3)
    assert written.FrameOfReferenceUID == series.frame_of_reference
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == series.series
    assert [written.get_segment_description(number).SegmentLabel for number in (1, 2)] == ["organ", "lesion"]


@pytest.mark.parametrize("kept", ["one slice", "nothing"])
def test_left_out_frames_are_background(scan, classes, tmp_path, kept):
    few = np.zeros_like(classes)
    if kept == "one slice":
        few[..., 3] = classes[..., 3]
    write_segmentation(tmp_path / "seg.dcm", few, scan, LABELS)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", scan, LABELS), few)


def test_segments_by_label_and_number(scan, classes, tmp_path):
    write_segmentation(tmp_path / "seg.dcm", classes, scan, LABELS)
    by_name = LabelMap.of({"x": ("lesion",), "y": ("organ",)})
    found = read_segmentation(tmp_path / "seg.dcm", scan, by_name)
    np.testing.assert_array_equal(found, np.array([0, 2, 1], np.uint8)[classes])
    together = LabelMap.of({"all": (1, 2)})
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", scan, together), classes > 0)


class TestBadInput:
    def refused(self, path, scan, *expected, labels=LABELS):
        with pytest.raises(DataError) as caught:
            read_segmentation(path, scan, labels)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        for part in expected:
            assert part in message

    def test_of_another_patient_space(self, make_series, volume, classes, scan, tmp_path):
        other = read_dicom(make_series(volume).write(tmp_path / "other"))
        write_segmentation(tmp_path / "seg.dcm", classes, other, LABELS)
        self.refused(tmp_path / "seg.dcm", scan, "another space", "frames of reference differ")

    @pytest.mark.parametrize(
        "change",
        [
            {"origin": (-49.7, -60, 20)},
            {"spacing": (0.8, 0.6, 2.0)},
            {"spacing": (0.4, 0.3, 2.5)},
            {"orientation": (0.9998, 0.02, 0, -0.02, 0.9998, 0)},
            {"origin": (-50, -60, 27.5)},
        ],
        ids=["shifted by half a voxel", "other slices", "finer", "turned by a degree", "outside"],
    )
    def test_on_another_grid_of_the_same_space(self, make_series, volume, classes, scan, tmp_path, change):
        other = make_series(volume, frame_of_reference=scan.dicom.frame_of_reference, **change)
        image = read_dicom(other.write(tmp_path / "other"))
        moved = classes.copy()
        moved[3, 3, -1] = 1
        write_segmentation(tmp_path / "seg.dcm", moved, image, LABELS)
        self.refused(tmp_path / "seg.dcm", scan, "; expected")

    def test_a_segment_of_no_class(self, scan, classes, tmp_path):
        write_segmentation(tmp_path / "seg.dcm", classes, scan, LABELS)
        self.refused(
            tmp_path / "seg.dcm", scan, "segment 2 belongs to no class", labels=LabelMap.of({"a": (1,)})
        )
        self.refused(tmp_path / "seg.dcm", scan, "2 segments; expected one", labels=LabelMap())

    def test_overlapping_classes(self, scan, classes, tmp_path):
        write_segmentation(tmp_path / "seg.dcm", classes, scan, LABELS)
        written = pydicom.dcmread(tmp_path / "seg.dcm")
        for frame in written.PerFrameFunctionalGroupsSequence:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
                frame.PlanePositionSequence[0].ImagePositionPatient = [position[0] + 0.6, *position[1:]]
                frame.PlanePositionSequence[0].ImagePositionPatient = list(position)
        bits = np.unpackbits(np.frombuffer(written.PixelData, np.uint8), bitorder="little")
        bits[:] = 1
        written.PixelData = np.packbits(bits, bitorder="little").tobytes()
        written.save_as(tmp_path / "seg.dcm")
        self.refused(tmp_path / "seg.dcm", scan, "overlap")

    def test_an_image_in_place_of_a_segmentation(self, make_series, volume, scan, tmp_path):
        series = make_series(volume)
        series.slice(0).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
        self.refused(tmp_path / "seg.dcm", scan, "expected a segmentation")

    def test_a_cut_file(self, scan, classes, tmp_path):
        write_segmentation(tmp_path / "seg.dcm", classes, scan, LABELS)
        content = (tmp_path / "seg.dcm").read_bytes()
        (tmp_path / "seg.dcm").write_bytes(content[: len(content) // 2])
        self.refused(tmp_path / "seg.dcm", scan, "cannot be read")


class TestIdentifiers:
    def test_by_default_none_is_written(self, scan, classes, identity, tmp_path):
        write_segmentation(tmp_path / "seg.dcm", classes, scan, LABELS)
        content = (tmp_path / "seg.dcm").read_bytes()
        for value in identity.values():
            assert value.encode() not in content

    def test_on_request_the_patient_is_named(self, scan, classes, identity, tmp_path):
        write_segmentation(tmp_path / "seg.dcm", classes, scan, LABELS, identifiers=Identifiers.KEEP)
        written = pydicom.dcmread(tmp_path / "seg.dcm")
        assert written.PatientName == identity["PatientName"]
        assert written.PatientID == identity["PatientID"]
