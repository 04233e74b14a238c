"""``secfl predict`` end to end: a federation learns from NIfTI volumes and segments NIfTI, DICOM and pictures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from PIL import Image

from secfl.cli.main import main

_SPEC = importlib.util.spec_from_file_location(
    "dicom_files", Path(__file__).parent.parent / "segmentation" / "data" / "conftest.py"
)
dicom_files = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = dicom_files  # dataclasses look their module up
_SPEC.loader.exec_module(dicom_files)

SITES = {"north": "RAS", "south": "LPS", "west": "PIR"}
SHAPES = [(31, 27, 9), (29, 33, 11), (33, 30, 8), (27, 29, 13)]
VOLUMES = """
clients = 3
threads = 1
evaluate_every = 4
[data]
source = "{source}"
windows = [[-160, 240]]
test_fraction = 0.25
labels = {{ organ = [3], lesion = 7 }}
[model]
channels = [6, 12, 16]
[training]
rounds = 4
local_epochs = 10
batch_size = 2
crop = 24
learning_rate = 0.01
augmentation = "none"
[secure_agg]
scheme = "plain"
"""


def patient(number: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hounsfield units, labels and an oblique affine with flat voxels; axes x, y, z."""
    draw = np.random.default_rng(number)
    spacing = np.array([1.0 + 0.1 * draw.uniform(), 1.1, 3.0 + draw.uniform()])
    rotation = nibabel.eulerangles.euler2mat(*draw.uniform(-0.12, 0.12, 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = draw.uniform(-80, 80, 3)
    place = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), -1) * spacing
    extent = np.array(shape) * spacing
    organ = extent * draw.uniform(0.4, 0.6, 3)
    labels = np.zeros(shape, np.uint8)
    labels[np.linalg.norm(place - organ, axis=-1) < 9.5] = 3
    labels[np.linalg.norm(place - organ - (3, 0, 0), axis=-1) < 4.5] = 7
    values = np.select([labels == 7, labels == 3], [190, 90], -60) + draw.normal(0, 8, shape)
    return np.rint(values).astype(np.int16), labels, affine


def stored_as(values: np.ndarray, affine: np.ndarray, codes: str) -> nibabel.Nifti1Image:
    orientation = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), axcodes2ornt(codes)
    )
    turned = nibabel.orientations.apply_orientation(values, orientation)
    return nibabel.Nifti1Image(np.ascontiguousarray(turned), affine @ inv_ornt_aff(orientation, values.shape))


def write_volumes(root: Path) -> None:
    for site_number, (site, codes) in enumerate(SITES.items()):
        for kind in ("images", "masks"):
            (root / site / kind).mkdir(parents=True)
        for number, shape in enumerate(SHAPES):
            values, labels, affine = patient(10 * site_number + number, shape)
            name = f"{site}-{number}.nii.gz"
            nibabel.save(stored_as(values, affine, codes), root / site / "images" / name)
            nibabel.save(stored_as(labels, affine, codes), root / site / "masks" / name)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run on three sites whose scanners store volumes in three orders."""
    root = tmp_path_factory.mktemp("volumes")
    write_volumes(root / "data")
    (root / "config.toml").write_text(VOLUMES.format(source=root / "data"), encoding="utf-8")
    assert (
        main(["simulate", "--config", str(root / "config.toml"), "--out", str(root / "run"), "--quiet"]) == 0
    )
    return root


@pytest.fixture(scope="module")
def made_of_slices(made, tmp_path_factory) -> Path:
    """A run of a model of pictures on axial slices of the same volumes."""
    root = tmp_path_factory.mktemp("slices")
    text = VOLUMES.format(source=made / "data").replace("[model]", "slices = 6\n[model]")
    text = text.replace("rounds = 4", "rounds = 2").replace("local_epochs = 10", "local_epochs = 8")
    (root / "config.toml").write_text(text.replace("evaluate_every = 4", ""), encoding="utf-8")
    assert (
        main(["simulate", "--config", str(root / "config.toml"), "--out", str(root / "run"), "--quiet"]) == 0
    )
    return root / "run"


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def places(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where labelled voxels lie in the patient, mm in RAS+, sorted."""
    index = np.argwhere(mask)
    found = (affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    return found[np.lexsort(np.round(found, 2).T)]


class TestVolumes:
    def test_predictions_lie_in_the_right_place(self, made, capsys, tmp_path):
        out = tmp_path / "out"
        images = [str(made / "data" / site / "images") for site in SITES]
        assert main(["predict", str(made / "run"), *images, "--out", str(out), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["images"]
        assert len(rows) == 12
        scores = []
        for row in rows:
            image, mask = nibabel.load(row["image"]), nibabel.load(row["mask"])
            truth = nibabel.load(row["image"].replace("/images/", "/masks/"))
            np.testing.assert_array_equal(mask.affine, image.affine)
            assert mask.shape == image.shape
            assert mask.header.get_zooms() == image.header.get_zooms()
            found, expected = np.asarray(mask.dataobj), np.asarray(truth.dataobj)
            assert set(np.unique(found)) <= {0, 3, 7}
            scores.append([dice(found > 0, expected > 0), dice(found == 7, expected == 7)])
            offset = places(found > 0, mask.affine).mean(axis=0) - places(expected > 0, truth.affine).mean(
                axis=0
            )
            assert np.linalg.norm(offset) < 2.0
            size = abs(np.linalg.det(image.affine[:3, :3])) / 1000
            assert row["millilitres"]["lesion"] == pytest.approx((found == 7).sum() * size, abs=1e-3)
        assert np.mean(scores, axis=0).min() > 0.8

    def test_the_order_of_storage_does_not_matter(self, made, tmp_path):
        """One patient stored in three orders and as DICOM: the same voxels of the patient, to the last one."""
        values, _, _ = patient(77, (30, 28, 10))
        series = dicom_files.Series(
            values.transpose(2, 1, 0).astype(float),
            orientation=(0.8, 0.6, 0, -0.6, 0.8, 0),
            spacing=(1.1, 1.0, 3.3),
        )
        affine = series.affine()
        for codes in ("RAS", "LPI", "SAR"):
            nibabel.save(stored_as(values, affine, codes), tmp_path / f"{codes}.nii")
        series.write(tmp_path / "series")
        series.write_multiframe(tmp_path / "frames.dcm")
        inputs = [tmp_path / name for name in ("RAS.nii", "LPI.nii", "SAR.nii", "series", "frames.dcm")]
        out = tmp_path / "out"
        assert main(["predict", str(made / "run"), *map(str, inputs), "--out", str(out)]) == 0
        reference = nibabel.load(out / "masks" / "RAS.nii")
        stored = np.asarray(reference.dataobj)
        assert (stored == 7).sum() > 10
        for name in ("LPI.nii", "SAR.nii"):
            mask = nibabel.load(out / "masks" / name)
            for label in (3, 7):
                np.testing.assert_allclose(
                    places(np.asarray(mask.dataobj) == label, mask.affine),
                    places(stored == label, reference.affine),
                    atol=1e-2,
                )
        for name in ("series.dcm", "frames.dcm"):
            written = highdicom.seg.segread(out / "masks" / name)
            assert written.FrameOfReferenceUID == series.frame_of_reference
            assert [written.get_segment_description(number).SegmentLabel for number in (1, 2)] == [
                "organ",
                "lesion",
            ]
            volume = written.get_volume(combine_segments=True)
            ras = np.diag([-1, -1, 1, 1]) @ volume.affine
            for number, label in ((1, 3), (2, 7)):
                np.testing.assert_allclose(
                    places(volume.array == number, ras), places(stored == label, reference.affine), atol=1e-2
                )

    def test_no_identifier_is_in_anything_written_or_said(self, made, capfd, tmp_path):
        values, _, _ = patient(78, (30, 28, 10))
        series = dicom_files.Series(values.transpose(2, 1, 0).astype(float), spacing=(1.1, 1.0, 3.3))
        series.write(tmp_path / "case")
        for flags, named in (([], False), (["--with-identifiers"], True)):
            out = tmp_path / f"out{named}"
            assert (
                main(["predict", str(made / "run"), str(tmp_path / "case"), "--out", str(out), *flags]) == 0
            )
            said = "".join(capfd.readouterr())
            for value in dicom_files.IDENTITY.values():
                assert value not in said
            for path in out.rglob("*"):
                content = path.read_bytes() if path.is_file() else b""
                assert (dicom_files.IDENTITY["PatientID"].encode() in content) == (
                    named and path.suffix == ".dcm"
                )
                if not named:
                    for value in dicom_files.IDENTITY.values():
                        assert value.encode() not in content
        assert pydicom.dcmread(tmp_path / "outTrue" / "masks" / "case.dcm").PatientName == "Mustermann^Erika"

    def test_dice_in_the_images_own_geometry(self, made, capsys, tmp_path):
        site = made / "data" / "west"
        out = tmp_path / "out"
        flags = ["--truth", str(site / "masks"), "--out", str(out), "--json"]
        assert main(["predict", str(made / "run"), str(site / "images"), *flags]) == 0
        for row in json.loads(capsys.readouterr().out)["images"]:
            mask = np.asarray(nibabel.load(row["mask"]).dataobj)
            truth = np.asarray(nibabel.load(site / "masks" / Path(row["image"]).name).dataobj)
            expected = np.mean([dice(mask == label, truth == label) for label in (3, 7)])
            assert row["dice"] == pytest.approx(expected, abs=1e-5)

    def test_predictions_can_be_read_as_masks(self, made, capsys, tmp_path):
        images = made / "data" / "north" / "images"
        assert main(["predict", str(made / "run"), str(images), "--out", str(tmp_path / "a")]) == 0
        flags = [
            "--truth",
            str(tmp_path / "a" / "masks"),
            "--out",
            str(tmp_path / "b"),
            "--json",
            "--no-overlays",
        ]
        capsys.readouterr()
        assert main(["predict", str(made / "run"), str(images), *flags]) == 0
        assert {row["dice"] for row in json.loads(capsys.readouterr().out)["images"]} == {1.0}
        assert not (tmp_path / "b" / "overlays").exists()

    def test_overlays(self, made, tmp_path):
        image = made / "data" / "south" / "images" / "south-1.nii.gz"
        assert main(["predict", str(made / "run"), str(image), "--out", str(tmp_path / "out")]) == 0
        with Image.open(tmp_path / "out" / "overlays" / "south-1.png") as file:
            pixels = np.asarray(file)
        assert pixels.shape[2] == 3
        coloured = (np.ptp(pixels.astype(int), axis=2) > 40).mean()
        assert 0.01 < coloured < 0.6


class TestSlicesOfVolumes:
    """A model that learned axial slices of volumes segments volumes, whatever the order they are stored in."""

    def test_the_order_of_storage_does_not_matter(self, made_of_slices, tmp_path):
        values, _, affine = patient(77, (30, 28, 10))
        inputs = []
        for codes in ("RAS", "LPS", "PIR", "SAL"):
            inputs.append(tmp_path / f"{codes}.nii.gz")
            nibabel.save(stored_as(values, affine, codes), inputs[-1])
        out = tmp_path / "out"
        assert main(["predict", str(made_of_slices), *map(str, inputs), "--out", str(out)]) == 0
        found = []
        for path in inputs:
            mask = nibabel.load(out / "masks" / path.name)
            np.testing.assert_array_equal(mask.affine, nibabel.load(path).affine)
            found.append(np.asarray(nibabel.as_closest_canonical(mask).dataobj))
        assert found[0].any()
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


class TestBadInput:
    def refused(self, capsys, arguments, *expected):
        assert main(["predict", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("error: ")
        for part in expected:
            assert str(part) in error

    @pytest.fixture
    def image(self, made):
        return made / "data" / "north" / "images" / "north-0.nii.gz"

    def test_four_channels(self, made, capsys, tmp_path):
        path = tmp_path / "a.nii"
        values = np.random.default_rng(0).normal(0, 1, (20, 20, 9, 4)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
        self.refused(capsys, [made / "run", path, "--out", tmp_path / "out"], path, "4 channels; expected 1")
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii"]

    def test_a_picture_where_a_volume_is_expected(self, made, capsys, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(path)
        self.refused(capsys, [made / "run", path, "--out", tmp_path / "out"], path, "expected a volume")

    def test_the_second_of_two_is_damaged(self, made, image, capsys, tmp_path):
        path = tmp_path / "b.nii.gz"
        path.write_bytes(image.read_bytes()[:900])
        self.refused(
            capsys, [made / "run", image, path, "--out", tmp_path / "out"], path, "expected an intact"
        )
        assert [entry.name for entry in tmp_path.iterdir()] == ["b.nii.gz"]

    def test_what_is_there_is_not_overwritten(self, made, image, capsys, tmp_path):
        self.refused(capsys, [made / "run", image, "--out", tmp_path], "--out", "exists already")

    def test_one_name_twice(self, made, image, capsys, tmp_path):
        self.refused(capsys, [made / "run", image, image, "--out", tmp_path / "out"], "same stem")

    def test_no_such_file(self, made, capsys, tmp_path):
        self.refused(capsys, [made / "run", tmp_path / "x.nii", "--out", tmp_path / "out"], "no such file")

    def test_not_a_run(self, made, image, capsys, tmp_path):
        self.refused(capsys, [made / "data", image, "--out", tmp_path / "out"], "expected a run directory")

    def test_a_missing_truth(self, made, image, capsys, tmp_path):
        flags = ["--truth", made / "data" / "south" / "masks", "--out", tmp_path / "out"]
        self.refused(capsys, [made / "run", image, *flags], "no mask north-0")


class TestPictures:
    """A model of the CT phantom: pictures and, slice by slice, volumes."""

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        out = tmp_path_factory.mktemp("phantom") / "run"
        config = out.with_suffix(".toml")
        config.write_text(
            "threads = 1\n[data]\nphantom_images = 8\nimage_size = 32\nphantom_target = 'tissues'\n"
            "[model]\nchannels = [4, 8, 8]\n[training]\nrounds = 2\n[secure_agg]\nscheme = 'plain'\n"
        )
        assert main(["simulate", "--config", str(config), "--out", str(out), "--quiet"]) == 0
        return out

    def test_parts_that_stayed_at_a_site(self, tmp_path, capsys):
        config = tmp_path / "c.toml"
        config.write_text(
            "threads = 1\n[data]\nphantom_task = 'dermoscopy'\nphantom_images = 8\nimage_size = 32\n"
            "[model]\nchannels = [4, 8, 8]\n[training]\nrounds = 1\nlocal_parameters = 'normalization'\n"
            "[secure_agg]\nscheme = 'plain'\n"
        )
        path = tmp_path / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 200, (41, 37, 3), np.uint8)).save(path)
        run = str(tmp_path / "run")
        assert main(["simulate", "--config", str(config), "--out", run, "--quiet"]) == 0
        assert main(["predict", run, str(path), "--out", str(tmp_path / "o"), "--site", "clinic-2"]) == 0
        for flags in ([], ["--site", "clinic-9"]):
            capsys.readouterr()
            assert main(["predict", run, str(path), "--out", str(tmp_path / "p"), *flags]) == 2
            assert "expected one of clinic-1, clinic-2, clinic-3" in capsys.readouterr().err

    @pytest.mark.parametrize(("suffix", "written"), [("png", "png"), ("tif", "tif"), ("jpg", "png")])
    def test_formats(self, run, tmp_path, suffix, written):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(0, 200, (41, 37), np.uint8)).save(path)
        assert main(["predict", str(run), str(path), "--out", str(tmp_path / "out")]) == 0
        with Image.open(tmp_path / "out" / "masks" / f"a.{written}") as mask:
            pixels = np.asarray(mask)
        assert pixels.shape == (41, 37)
        assert pixels.max() <= 5

    def test_a_series_slice_by_slice(self, run, tmp_path):
        values = np.random.default_rng(0).normal(0, 80, (4, 36, 40))
        values[2] = -1000
        series = dicom_files.Series(np.rint(values))
        series.write(tmp_path / "all")
        single = dicom_files.Series(series.values[1:2])
        single.write(tmp_path / "one")
        inputs = [str(tmp_path / "all"), str(tmp_path / "one")]
        assert main(["predict", str(run), *inputs, "--out", str(tmp_path / "out")]) == 0
        both = highdicom.seg.segread(tmp_path / "out" / "masks" / "all.dcm")
        one = highdicom.seg.segread(tmp_path / "out" / "masks" / "one.dcm")
        planes = both.get_pixels_by_source_instance(
            series.instances, combine_segments=True, assert_missing_frames_are_empty=True
        )
        alone = one.get_pixels_by_source_instance(
            single.instances, combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(planes[1], alone[0])
        assert planes[1].any()
        assert not planes[2].any()

    def test_an_ultrasound_picture_without_a_place(self, run, tmp_path):
        series = dicom_files.Series(np.random.default_rng(0).normal(0, 80, (1, 36, 40)))
        made = series.slice(0)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            delattr(made, keyword)
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = dicom_files.ULTRASOUND
        made.save_as(tmp_path / "us.dcm", enforce_file_format=True)
        assert main(["predict", str(run), str(tmp_path / "us.dcm"), "--out", str(tmp_path / "out")]) == 0
        written = highdicom.seg.segread(tmp_path / "out" / "masks" / "us.dcm")
        pixels = written.get_pixels_by_source_instance(
            series.instances, combine_segments=True, ignore_spatial_locations=True
        )
        assert pixels.shape == (1, 36, 40)
