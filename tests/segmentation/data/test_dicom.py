"""DICOM series to arrays: where every voxel lies, what it means, and what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from secfl.errors import DataError
from secfl.segmentation.data.dicom import read_dicom

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "oblique": (0.8, 0.6, 0, -0.6, 0.8, 0),
}


@pytest.fixture
def series(make_series, volume):
    return make_series(volume)


@pytest.fixture
def large(volume):
    """Wide enough for JPEG 2000."""
    return np.tile(volume, (1, 2, 2))


def refused(path, *expected):
    with pytest.raises(DataError) as caught:
        read_dicom(path)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    for part in expected:
        assert str(part) in message
    return message


class TestSeries:
    @pytest.mark.parametrize("name", ORIENTATIONS)
    def test_voxels_and_places(self, make_series, volume, tmp_path, name):
        series = make_series(volume, orientation=ORIENTATIONS[name])
        scan = read_dicom(series.write(tmp_path / "s"))
        np.testing.assert_array_equal(scan.values[0], volume.transpose(2, 1, 0))
        np.testing.assert_allclose(scan.geometry.affine, series.affine(), atol=1e-3)
        np.testing.assert_allclose(scan.geometry.spacing, (0.6, 0.8, 2.5), atol=1e-4)
        assert scan.spatial_dims == 3

    def test_the_slice_that_a_header_places_is_the_one_at_that_place(self, series, tmp_path):
        folder = series.write(tmp_path / "s")
        scan = read_dicom(folder)
        for file in folder.iterdir():
            header = pydicom.dcmread(file)
            x, y, z = (float(part) for part in header.ImagePositionPatient)
            index = np.linalg.solve(scan.geometry.affine, [-x, -y, z, 1])[:3]
            np.testing.assert_allclose(index[:2], 0, atol=1e-3)
            stored = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
            np.testing.assert_array_equal(scan.values[0, :, :, round(index[2])], stored.T)

    def test_every_slice_is_rescaled_by_its_own_slope(self, series, volume, tmp_path):
        folder = series.write(tmp_path / "s")
        path = min(folder.iterdir())
        changed = pydicom.dcmread(path)
        changed.RescaleSlope, changed.RescaleIntercept = 2, -100
        changed.save_as(path)
        scan = read_dicom(folder)
        different = (scan.values[0] != volume.transpose(2, 1, 0)).any(axis=(0, 1))
        assert different.sum() == 1

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
    def test_lossless_compression(self, make_series, large, tmp_path, syntax):
        scan = read_dicom(make_series(large).write(tmp_path / "s", compress=syntax))
        np.testing.assert_array_equal(scan.values[0], large.transpose(2, 1, 0))

    def test_lossy_compression(self, make_series, large, tmp_path):
        folder = make_series(large).write(tmp_path / "s")
        for file in folder.iterdir():
            made = pydicom.dcmread(file)
            made.compress(JPEG2000, j2k_cr=[4], generate_instance_uid=False)
            made.save_as(file)
        scan = read_dicom(folder)
        error = np.abs(scan.values[0] - large.transpose(2, 1, 0))
        assert 0 < error.mean() < 8

    @pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG2000.dcm", "SC_rgb_jpeg.dcm"])
    def test_other_peoples_files(self, name):
        """12-bit JPEG needs the extra ``jpeg``; the files come with pydicom."""
        path = Path(pydicom.__file__).parent / "data" / "test_files" / name
        scan = read_dicom(path)
        header = pydicom.dcmread(path)
        assert scan.values.shape[1:] == (header.Columns, header.Rows, 1)
        assert np.ptp(scan.values) > 0

    def test_frames_in_one_file(self, series, volume, tmp_path):
        scan = read_dicom(series.write_multiframe(tmp_path / "ct.dcm"))
        np.testing.assert_array_equal(scan.values[0], volume.transpose(2, 1, 0))
        np.testing.assert_allclose(scan.geometry.affine, series.affine(), atol=1e-3)
        assert scan.dicom.frames == tuple(range(len(volume)))[::-1]

    def test_padding_takes_the_smallest_value(self, make_series, volume, tmp_path):
        volume[:, :2, :2] = -3024
        series = make_series(volume)
        scan = read_dicom(series.write(tmp_path / "s", PixelPaddingValue=-2000))
        assert scan.values.min() >= -900
        np.testing.assert_array_equal(scan.values[0, 2:, 2:], volume.transpose(2, 1, 0)[2:, 2:])

    def test_inverted_grey_is_turned(self, series, volume, tmp_path):
        scan = read_dicom(series.write(tmp_path / "s", PhotometricInterpretation="MONOCHROME1"))
        for index in range(len(volume)):
            ours, theirs = scan.values[0, :, :, index].ravel(), volume[index].T.ravel()
            assert np.corrcoef(ours, theirs)[0, 1] == pytest.approx(-1)
            assert (ours.min(), ours.max()) == (theirs.min(), theirs.max())

    def test_a_tilted_gantry(self, series, volume, tmp_path):
        """Slices shifted along the table by the same amount each: the affine has a shear."""
        folder = series.write(tmp_path / "s")
        for file in folder.iterdir():
            made = pydicom.dcmread(file)
            index = made.InstanceNumber - 1
            made.ImagePositionPatient[1] = series.origin[1] + 0.4 * index
            made.save_as(file)
        scan = read_dicom(folder)
        np.testing.assert_allclose(scan.geometry.affine[:3, 2], [0, -0.4, 2.5], atol=1e-4)


class TestPictures:
    def test_colour_without_a_place(self, series, tmp_path):
        made = series.slice(0)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            delattr(made, keyword)
        pixels = np.random.default_rng(0).integers(0, 255, (18, 22, 3), np.uint8)
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
        made.PixelData = pixels.tobytes()
        made.save_as(tmp_path / "us.dcm", enforce_file_format=True)
        scan = read_dicom(tmp_path / "us.dcm")
        np.testing.assert_array_equal(scan.values[..., 0], pixels.transpose(2, 1, 0))
        assert not scan.geometry.in_patient
        np.testing.assert_allclose(scan.geometry.spacing[:2], (0.6, 0.8))

    def test_a_palette_is_resolved(self, series, tmp_path):
        made = series.slice(0)
        index = np.random.default_rng(0).integers(0, 4, (18, 22), np.uint8)
        table = np.array([[0, 10, 20, 250], [0, 60, 70, 80], [5, 6, 7, 8]], np.uint8)
        made.PhotometricInterpretation = "PALETTE COLOR"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
        for colour, row in zip(("Red", "Green", "Blue"), table, strict=True):
            setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 8])
            setattr(made, f"{colour}PaletteColorLookupTableData", row.tobytes())
        made.PixelData = index.tobytes()
        made.save_as(tmp_path / "us.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(read_dicom(tmp_path / "us.dcm").values[..., 0], table[:, index.T])


class TestBadInput:
    def test_two_series_in_one_folder_are_named(self, series, make_series, volume, tmp_path):
        other = make_series(volume)
        series.write(tmp_path / "s")
        other.write(tmp_path / "s" / "more")
        refused(tmp_path / "s", "2 series in one folder", series.series, other.series)

    def test_missing_slices(self, series, tmp_path):
        refused(series.write(tmp_path / "s", skip=(3,)), "missing slices: 5 mm between slices 3 and 4")

    def test_a_slice_twice_there(self, series, tmp_path):
        folder = series.write(tmp_path / "s")
        file = min(folder.iterdir())
        shutil.copy(file, folder / "again")
        refused(folder, "the same instance")
        changed = pydicom.dcmread(file)
        changed.SOPInstanceUID = changed.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        changed.save_as(folder / "again")
        refused(folder, "1 slices lie where another one lies")

    def test_mixed_orientations(self, series, tmp_path):
        folder = series.write(tmp_path / "s")
        file = sorted(folder.iterdir())[2]
        changed = pydicom.dcmread(file)
        changed.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        changed.save_as(file)
        refused(folder, "mixed orientations: 1 of 7")

    @pytest.mark.parametrize(
        ("keyword", "value", "expected"),
        [
            ("PixelSpacing", [0.9, 0.6], "different pixel spacing"),
            ("PixelSpacing", [0, 0.6], "PixelSpacing above 0"),
            ("ImagePositionPatient", None, "without position and orientation"),
            ("ImageOrientationPatient", [1, 1, 0, 0, 1, 0], "mixed orientations"),
            ("ImagePositionPatient", [-40, -60, 22.5], "shifted sideways"),
        ],
    )
    def test_one_slice_unlike_the_others(self, series, tmp_path, keyword, value, expected):
        folder = series.write(tmp_path / "s")
        for file in folder.iterdir():
            changed = pydicom.dcmread(file)
            if changed.InstanceNumber == 2:
                setattr(changed, keyword, value)
                changed.save_as(file)
        refused(folder, folder, expected)

    def test_directions_that_are_none(self, series, tmp_path):
        refused(
            series.write(tmp_path / "s", ImageOrientationPatient=[1, 1, 0, 0, 1, 0]), "orientation is none"
        )

    def test_slices_of_two_sizes(self, series, make_series, volume, tmp_path):
        folder = series.write(tmp_path / "s")
        small = make_series(volume[:1, :9], origin=(-50, -60, 60), series=series.series)
        small.slice(0).save_as(folder / "small", enforce_file_format=True)
        refused(folder, "2 different sizes")

    @pytest.mark.parametrize("kind", ["cut", "not DICOM", "empty", "header only"])
    def test_a_corrupt_file(self, series, tmp_path, kind):
        folder = series.write(tmp_path / "s")
        file = sorted(folder.iterdir())[4]
        content = file.read_bytes()
        file.write_bytes(
            {
                "cut": content[: len(content) * 2 // 3],
                "not DICOM": b"Mustermann^Erika" * 20,
                "empty": b"",
                "header only": content[:200],
            }[kind]
        )
        refused(folder, file, "expected a")

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
    def test_a_corrupt_compressed_frame(self, make_series, large, tmp_path, syntax):
        folder = make_series(large).write(tmp_path / "s", compress=syntax)
        file = sorted(folder.iterdir())[1]
        content = bytearray(file.read_bytes())
        content[-200:-40] = b"\x55" * 160
        file.write_bytes(content[:-30])
        refused(folder, file, "the pixels cannot be decoded")

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "s").mkdir()
        refused(tmp_path / "s", "no file in it")

    def test_an_object_without_an_image(self, series, tmp_path):
        folder = series.write(tmp_path / "s")
        made = series.slice(0)
        for keyword in ("PixelData", "Rows", "Columns"):
            delattr(made, keyword)
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        made.save_as(folder / "report", enforce_file_format=True)
        refused(folder, "report", "without an image")

    def test_frames_without_places(self, series, tmp_path):
        made = series.slice(0)
        made.NumberOfFrames, made.PixelData = 3, made.PixelData * 3
        made.save_as(tmp_path / "cine.dcm", enforce_file_format=True)
        refused(tmp_path / "cine.dcm", "3 slices or frames without position")

    def test_pixels_that_are_no_numbers(self, series, tmp_path):
        made = series.slice(0)
        del made.PixelData
        made.BitsAllocated = 32
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(made, keyword)
        made.FloatPixelData = np.full((18, 22), np.nan, np.float32).tobytes()
        made.save_as(tmp_path / "f.dcm", enforce_file_format=True)
        refused(tmp_path / "f.dcm", "NaN or infinite")

    def test_a_header_without_uids(self, series, tmp_path):
        folder = series.write(tmp_path / "s")
        file = min(folder.iterdir())
        changed = pydicom.dcmread(file)
        del changed.SeriesInstanceUID
        changed.save_as(file)
        refused(folder, file, "no UID")


class TestIdentifiers:
    """Nothing that names the person is printed, logged or raised, whatever is wrong with the file."""

    def spoil(self, series, folder, how):
        series.write(folder)
        file = sorted(folder.iterdir())[1]
        changed = pydicom.dcmread(file)
        secret = str(changed.PatientName)
        if how == "spacing":
            content = file.read_bytes().replace(b"0.8\\0.6", b"Muster^")
            file.write_bytes(content)
            return
        if how == "cut":
            file.write_bytes(file.read_bytes()[:1200])
            return
        match how:
            case "malformed":
                block = Dataset()
                block.add_new(0x00080018, "UI", changed.SOPInstanceUID)
                changed.add_new(0x00181030, "DS", "1")
                changed["PatientBirthDate"].value = "gest" + secret[:3]
                changed["StudyDate"].value = "Mustermann"
            case "position":
                del changed.ImagePositionPatient
            case "series":
                changed.SeriesInstanceUID = generate_uid()
            case "image":
                del changed.PixelData
            case "syntax":
                changed.PixelData = b"\0\0"
            case "class":
                changed.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        changed.save_as(file)

    @pytest.mark.parametrize(
        "how", ["spacing", "cut", "malformed", "position", "series", "image", "syntax", "class"]
    )
    def test_none_gets_out(self, series, identity, tmp_path, caplog, capfd, recwarn, how):
        self.spoil(series, tmp_path / "s", how)
        recwarn.clear()
        caplog.clear()
        capfd.readouterr()
        caplog.set_level(logging.DEBUG)
        pydicom.config.debug(debug_on=True, default_handler=False)
        try:
            said = ""
            try:
                scan = read_dicom(tmp_path / "s")
                said = repr(scan) + repr(scan.dicom)
            except DataError as error:
                said = str(error)
        finally:
            pydicom.config.debug(debug_on=False, default_handler=False)
        captured = capfd.readouterr()
        everything = "\n".join(
            [said, caplog.text, captured.out, captured.err, *(str(entry.message) for entry in recwarn)]
        )
        for value in (*identity.values(), "Muster", "Erika", "gest"):
            assert value not in everything
        assert said
