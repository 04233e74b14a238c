"""Volumes in a data folder: NIfTI and DICOM, their masks, one order of voxels, and the way back."""

from __future__ import annotations

from itertools import product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff
from PIL import Image

from secfl.errors import ConfigError, DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.dicom import read_dicom
from secfl.segmentation.data.dicom_seg import write_segmentation
from secfl.segmentation.data.folder import Reading, read_folder
from secfl.segmentation.data.labels import LabelMap
from secfl.segmentation.data.nifti import read_nifti, read_nifti_mask, write_nifti_mask
from secfl.segmentation.data.orientation import from_canonical, to_canonical
from secfl.segmentation.data.preparation import Recipe
from secfl.segmentation.data.scan import Geometry
from secfl.segmentation.data.sources import read_labels, read_scan

AFFINE = np.array([[-0.7, 0, 0, 80.0], [0, 0.7, 0, -95.5], [0, 0, 3.0, 12.25], [0, 0, 0, 1]])
LABELS = LabelMap.of({"organ": (1,), "lesion": (2,)})
PAIRS = [("nifti", "nifti"), ("picture", "picture")]  # of one kind: read together, tested above
CODES = ["RAS", "LPS", "LAS", "PIR", "SLA", "ILP"]


def oriented(values, affine, codes):
    """The same picture of the same patient, stored in another order."""
    orientation = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), axcodes2ornt(codes)
    )
    turned = nibabel.orientations.apply_orientation(values, orientation)
    return np.ascontiguousarray(turned), affine @ inv_ornt_aff(orientation, values.shape[:3])


@pytest.fixture
def pair(volume, truth):
    """Image and mask with the axes i, j, k."""
    return volume.transpose(2, 1, 0).astype(np.int16), truth.transpose(2, 1, 0)


class TestNifti:
    @pytest.mark.parametrize("codes", CODES)
    def test_every_stored_order_gives_the_same_case(self, pair, save_nifti, tmp_path, codes):
        image, mask = pair
        reference = Recipe().prepare(
            read_nifti(save_nifti(tmp_path / "r.nii", *oriented(image, AFFINE, "RAS")))
        )
        values, affine = oriented(image, AFFINE, codes)
        scan = read_nifti(save_nifti(tmp_path / "a.nii.gz", values, affine))
        classes = read_labels(save_nifti(tmp_path / "m.nii.gz", *oriented(mask, AFFINE, codes)), scan, LABELS)
        prepared = Recipe().prepare(scan, labels=classes)
        np.testing.assert_array_equal(prepared.image, reference.image)
        np.testing.assert_allclose(prepared.spacing, (0.7, 0.7, 3.0), rtol=1e-6)
        np.testing.assert_array_equal(prepared.restore(prepared.labels), classes)
        right = np.argwhere(prepared.labels == 2).mean(axis=0) * prepared.spacing
        assert aff2axcodes(affine) == tuple(codes)
        assert right.shape == (3,)

    @pytest.mark.parametrize("codes", CODES)
    def test_as_monai_orients(self, pair, save_nifti, tmp_path, codes):
        monai = pytest.importorskip("monai.transforms")
        values, affine = oriented(pair[0], AFFINE, codes)
        path = save_nifti(tmp_path / "a.nii", values.astype(np.float32), affine)
        theirs = monai.Orientation(axcodes="RAS", labels=None)(
            monai.LoadImage(image_only=True, ensure_channel_first=True)(path)
        )
        scan = read_nifti(path)
        turned, geometry = to_canonical(scan.values[0], scan.geometry)
        np.testing.assert_array_equal(turned, np.asarray(theirs)[0])
        np.testing.assert_allclose(geometry.affine, np.asarray(theirs.affine), atol=1e-5)

    @pytest.mark.parametrize("codes", CODES)
    def test_a_mask_stored_in_another_order_is_turned(self, pair, save_nifti, tmp_path, codes):
        image, mask = pair
        scan = read_nifti(save_nifti(tmp_path / "a.nii", image, AFFINE))
        path = save_nifti(tmp_path / "m.nii", *oriented(mask, AFFINE, codes))
        np.testing.assert_array_equal(read_labels(path, scan, LABELS), mask)

    def test_scale_and_channels(self, pair, tmp_path):
        values = np.stack([pair[0], pair[0] * 2], axis=-1).astype(np.float32)
        image = nibabel.Nifti1Image(values, AFFINE)
        image.header.set_slope_inter(0.5, 10)
        nibabel.save(image, tmp_path / "a.nii.gz")
        scan = read_nifti(tmp_path / "a.nii.gz")
        assert scan.values.shape == (2, 22, 18, 7)
        np.testing.assert_allclose(scan.values[1], nibabel.load(tmp_path / "a.nii.gz").get_fdata()[..., 1])

    @pytest.mark.parametrize("shape", [(22, 18), (22, 18, 1), (22, 18, 1, 1)])
    def test_one_slice_is_a_picture(self, pair, save_nifti, tmp_path, shape):
        image, mask = pair[0][..., 3].reshape(shape), pair[1][..., 3].reshape(shape)
        scan = read_nifti(save_nifti(tmp_path / "a.nii", image, AFFINE))
        assert scan.spatial_dims == 2
        classes = read_labels(save_nifti(tmp_path / "m.nii", mask, AFFINE), scan, LABELS)
        prepared = Recipe().prepare(scan, labels=classes)
        np.testing.assert_array_equal(prepared.labels, pair[1][..., 3].T)
        np.testing.assert_array_equal(prepared.restore(prepared.labels), classes)

    @pytest.mark.parametrize("forms", ["both", "sform", "qform"])
    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    def test_a_written_mask_has_the_same_affine_bit_for_bit(self, pair, tmp_path, forms, kind):
        turned = AFFINE.copy()
        turned[:3, :3] = nibabel.eulerangles.euler2mat(0.1, -0.2, 0.35) @ turned[:3, :3]
        image = kind(pair[0], turned)
        image.header["descrip"] = b"Mustermann^Erika"
        if "db_name" in image.header:
            image.header["db_name"] = b"MRN-4711"
        if forms != "both":
            image.set_sform(turned, code=0 if forms == "qform" else 2)
            image.set_qform(turned, code=0 if forms == "sform" else 1)
        nibabel.save(image, tmp_path / "a.nii")
        write_nifti_mask(tmp_path / "m.nii", pair[1], like=tmp_path / "a.nii")
        source, written = nibabel.load(tmp_path / "a.nii"), nibabel.load(tmp_path / "m.nii")
        np.testing.assert_array_equal(written.affine, source.affine)
        np.testing.assert_array_equal(written.header.get_zooms(), source.header.get_zooms()[:3])
        for code in ("sform_code", "qform_code"):
            assert written.header[code] == source.header[code]
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(read_nifti_mask(tmp_path / "m.nii")[0], pair[1])
        content = (tmp_path / "m.nii").read_bytes()
        assert b"Muster" not in content
        assert b"4711" not in content


@given(
    codes=st.sampled_from(CODES),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
)
def test_turning_and_turning_back(codes, shape):
    values = np.arange(np.prod(shape)).reshape(shape)
    turned, affine = oriented(values, AFFINE, codes)
    geometry = Geometry(shape=turned.shape, affine=affine)
    canonical, _ = to_canonical(turned, geometry)
    np.testing.assert_array_equal(from_canonical(canonical, geometry), turned)


class TestResampling:
    def test_there_and_back(self, save_nifti, tmp_path):
        x, y, z = np.mgrid[:30, :28, :12]
        ball = np.hypot(np.hypot((x - 14) * 0.7, (y - 13) * 0.7), (z - 6) * 3.0) < 8
        image = (ball * 100 + x).astype(np.float32)
        scan = read_nifti(save_nifti(tmp_path / "a.nii", image, AFFINE))
        prepared = Recipe(spacing=(1.0, 1.0, 1.5)).prepare(scan, labels=ball.astype(np.uint8))
        assert prepared.image.shape == (1, 21, 20, 24)
        assert prepared.labels.shape == (21, 20, 24)
        np.testing.assert_allclose(np.multiply(prepared.spacing, (21, 20, 24)), (21, 19.6, 36), rtol=1e-6)
        back = prepared.restore(prepared.labels)
        dice = 2 * (back & ball).sum() / (back.sum() + ball.sum())
        assert back.shape == ball.shape
        assert dice > 0.93

    def test_places_stay(self, save_nifti, tmp_path):
        """The centre of mass in mm is the same before and after."""
        image = np.random.default_rng(0).normal(0, 1, (30, 28, 12)).astype(np.float32)
        labels = np.zeros(image.shape, np.uint8)
        labels[5:12, 15:26, 3:6] = 1
        scan = read_nifti(save_nifti(tmp_path / "a.nii", image, np.diag([0.7, 0.7, 3.0, 1.0])))
        prepared = Recipe(spacing=(0.5, 0.9, 1.0)).prepare(scan, labels=labels)
        before = (np.argwhere(labels).mean(axis=0) + 0.5) * (0.7, 0.7, 3.0)
        after = (np.argwhere(prepared.labels).mean(axis=0) + 0.5) * prepared.spacing
        np.testing.assert_allclose(after, before, atol=0.3)


class TestDicomFolder:
    def test_windows_in_hounsfield_units(self, make_series, volume, tmp_path):
        scan = read_dicom(make_series(volume).write(tmp_path / "s"))
        prepared = Recipe(windows=((-160, 240), (0, 80))).prepare(scan)
        turned, _ = to_canonical(scan.values[0], scan.geometry)
        np.testing.assert_allclose(prepared.image[0], np.clip((turned + 160) / 200 - 1, -1, 1), atol=1e-5)
        np.testing.assert_allclose(prepared.image[1], np.clip(turned / 40 - 1, -1, 1), atol=1e-5)

    @pytest.mark.parametrize("kind", ["seg", "seg in a folder", "nifti", "pictures"])
    def test_every_kind_of_mask(self, make_series, volume, truth, save_nifti, tmp_path, kind):
        series = make_series(volume, orientation=(0, 1, 0, 0, 0, -1))
        image = series.write(tmp_path / "s")
        scan = read_dicom(image)
        expected = truth.transpose(2, 1, 0)
        if kind.startswith("seg"):
            path = tmp_path / "m" / "seg.dcm"
            path.parent.mkdir()
            write_segmentation(path, expected, scan, LABELS)
            path = path.parent if "folder" in kind else path
        elif kind == "nifti":
            path = save_nifti(tmp_path / "m.nii.gz", *oriented(expected, series.affine(), "RAS"))
        else:
            path = tmp_path / "m"
            path.mkdir()
            for index, file in enumerate(scan.dicom.files):
                Image.fromarray(truth[index]).save(path / f"{file.name}.png")
        np.testing.assert_array_equal(read_labels(path, scan, LABELS), expected)

    def test_a_picture_as_mask_of_one_slice(self, make_series, volume, truth, tmp_path):
        scan = read_dicom(make_series(volume[3:4]).write(tmp_path / "s"))
        Image.fromarray(truth[3]).save(tmp_path / "m.png")
        classes = read_labels(tmp_path / "m.png", scan, LABELS)
        prepared = Recipe().prepare(scan, labels=classes)
        np.testing.assert_array_equal(prepared.labels, truth[3])
        assert prepared.image.shape == (1, 18, 22)
        np.testing.assert_allclose(prepared.spacing, (0.8, 0.6))

    def test_a_site_of_series_with_segmentations(self, make_series, volume, truth, tmp_path):
        for number in range(4):
            series = make_series(volume + number)
            scan = read_dicom(series.write(tmp_path / "data" / "north" / "images" / f"case{number}"))
            path = tmp_path / "data" / "north" / "masks" / f"case{number}.dcm"
            path.parent.mkdir(exist_ok=True)
            write_segmentation(path, truth.transpose(2, 1, 0), scan, LABELS)
        data = read_folder(
            tmp_path / "data", test_fraction=0.25, seed=ExperimentSeed(0), reading=Reading(labels=LABELS)
        )
        assert (data.spatial_dims, data.channels, data.classes) == (3, 1, 3)
        assert data.sites["north"].train[0].spacing == pytest.approx((0.6, 0.8, 2.5))


class TestBadInput:
    def refused(self, action, *expected):
        with pytest.raises(DataError) as caught:
            action()
        message = str(caught.value)
        assert "\n" not in message
        assert caught.value.exit_code == 2
        for part in expected:
            assert str(part) in message

    @pytest.mark.parametrize(
        ("affine", "expected"),
        [
            (AFFINE + np.outer([1, 0, 0, 0], [0, 0.2, 0, 0]), "another space"),
            (np.diag([1.1, 1, 1, 1]) @ AFFINE, "another space"),
            (np.diag([1, 1, 1, 1.0]), "another space"),
        ],
        ids=["sheared", "scaled", "no affine"],
    )
    def test_a_mask_in_another_space(self, pair, save_nifti, tmp_path, affine, expected):
        scan = read_nifti(save_nifti(tmp_path / "a.nii", pair[0], AFFINE))
        path = save_nifti(tmp_path / "m.nii", pair[1], affine)
        self.refused(lambda: read_labels(path, scan, LABELS), path, scan.path, expected)

    def test_a_shifted_mask_says_how_far(self, pair, save_nifti, tmp_path):
        scan = read_nifti(save_nifti(tmp_path / "a.nii", pair[0], AFFINE))
        moved = AFFINE.copy()
        moved[2, 3] += 3.0
        path = save_nifti(tmp_path / "m.nii", pair[1], moved)
        self.refused(lambda: read_labels(path, scan, LABELS), "corners up to 3 mm apart")

    def test_a_mask_of_another_size(self, pair, save_nifti, tmp_path):
        scan = read_nifti(save_nifti(tmp_path / "a.nii", pair[0], AFFINE))
        path = save_nifti(tmp_path / "m.nii", pair[1][:-1], AFFINE)
        self.refused(lambda: read_labels(path, scan, LABELS), "21x18x7 voxels", "22x18x7")

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda labels: labels.astype(np.float32) * 0.5, "no labels"),
            (lambda labels: labels.astype(np.int16) - 3, "no labels"),
            (lambda labels: labels * 3, "labels out of range: 3, 6 belong to no class"),
            (lambda labels: np.where(labels, np.nan, 0).astype(np.float32), "NaN"),
            (lambda labels: np.stack([labels] * 2, axis=-1), "2 channels; expected at most 1"),
        ],
        ids=["fractions", "negative", "unknown", "not a number", "channels"],
    )
    def test_labels_that_are_none(self, pair, save_nifti, tmp_path, change, expected):
        scan = read_nifti(save_nifti(tmp_path / "a.nii", pair[0], AFFINE))
        path = save_nifti(tmp_path / "m.nii", change(pair[1]), AFFINE)
        self.refused(lambda: read_labels(path, scan, LABELS), path, expected)

    def test_voxels_that_are_not_a_number(self, pair, save_nifti, tmp_path):
        values = pair[0].astype(np.float32)
        values[3, 4, 5:7] = np.nan
        path = save_nifti(tmp_path / "a.nii", values, AFFINE)
        self.refused(lambda: read_nifti(path), path, "2 voxels are NaN or infinite")

    @pytest.mark.parametrize("shape", [(1, 1, 1), (30, 1, 5), (7, 7, 40)])
    def test_a_tiny_volume(self, save_nifti, tmp_path, shape):
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        scan = read_nifti(save_nifti(tmp_path / "a.nii", values, AFFINE))
        self.refused(lambda: Recipe().prepare(scan), "voxels; expected at least 8 along two axes")

    def test_a_constant_volume(self, save_nifti, tmp_path):
        scan = read_nifti(save_nifti(tmp_path / "a.nii", np.full((20, 20, 4), 3.5, np.float32), AFFINE))
        self.refused(lambda: Recipe().prepare(scan), scan.path, "a constant image")

    def test_channels_where_windows_want_one(self, save_nifti, tmp_path):
        values = np.random.default_rng(0).normal(0, 1, (20, 20, 4, 4)).astype(np.float32)
        scan = read_nifti(save_nifti(tmp_path / "a.nii", values, AFFINE))
        self.refused(lambda: Recipe(windows=((0, 1),)).prepare(scan), "4 channels; expected 1")

    @pytest.mark.parametrize(
        "kind", ["cut", "cut gz", "not NIfTI", "empty", "singular", "colour", "many axes"]
    )
    def test_a_corrupt_file(self, pair, save_nifti, tmp_path, kind):
        path = tmp_path / ("a.nii.gz" if kind == "cut gz" else "a.nii")
        if kind == "many axes":
            save_nifti(path, np.zeros((4, 4, 4, 2, 2), np.float32), AFFINE)
        elif kind == "singular":
            image = nibabel.Nifti1Image(pair[0], None)
            image.header["sform_code"] = 1
            nibabel.save(image, path)
        elif kind == "colour":
            colour = np.zeros((20, 20, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
            nibabel.save(nibabel.Nifti1Image(colour, AFFINE), path)
        else:
            content = save_nifti(path, pair[0], AFFINE).read_bytes()
            path.write_bytes(
                {"not NIfTI": b"Jane Doe" * 90, "empty": b""}.get(kind, content[: len(content) * 2 // 3])
            )
        self.refused(lambda: read_nifti(path), path, "expected")
        with pytest.raises(DataError) as caught:
            read_nifti(path)
        assert "Jane" not in str(caught.value)

    def test_pictures_and_volumes_do_not_mix(self, pair, save_nifti, tmp_path):
        for number in range(3):
            values = pair[0] if number else pair[0][..., :1]
            mask = (pair[1] if number else pair[1][..., :1]) > 0
            save_nifti(tmp_path / "d" / "s" / "images" / f"{number}.nii", values, AFFINE)
            save_nifti(tmp_path / "d" / "s" / "masks" / f"{number}.nii", mask.astype(np.uint8), AFFINE)
        self.refused(
            lambda: read_folder(tmp_path / "d", test_fraction=0.3, seed=ExperimentSeed(0)),
            "a volume",
            "a picture or single slice",
        )

    @pytest.mark.parametrize(
        ("image", "mask"),
        [pair for pair in product(("picture", "nifti", "dicom"), repeat=2) if pair not in PAIRS],
    )
    def test_masks_of_another_kind(self, make_series, volume, pair, save_nifti, tmp_path, image, mask):
        """What cannot be placed is refused; what can is tested above."""
        made = {}
        for part in ("i", "m"):
            folder = tmp_path / part
            Image.fromarray(pair[1][..., 3]).save(folder.with_suffix(".png"))
            save_nifti(folder.with_suffix(".nii"), pair[0] if part == "i" else pair[1], AFFINE)
            made[part] = {
                "picture": folder.with_suffix(".png"),
                "nifti": folder.with_suffix(".nii"),
                "dicom": make_series(volume).write(folder),
            }
        scan = read_scan(made["i"][image])
        self.refused(lambda: read_labels(made["m"][mask], scan, LABELS), made["m"][mask], "expected")

    def test_pictures_that_do_not_fit_the_slices(self, make_series, volume, truth, tmp_path):
        scan = read_dicom(make_series(volume).write(tmp_path / "s"))
        (tmp_path / "m").mkdir()
        for index in range(7):
            Image.fromarray(truth[index]).save(tmp_path / "m" / f"slice{index}.png")
        self.refused(
            lambda: read_labels(tmp_path / "m", scan, LABELS),
            "7 pictures for 7 slices",
            "one picture per slice with the same name",
        )

    @pytest.mark.parametrize(
        "labels", [{"a": ()}, {"a": (0,)}, {"a": (1,), "b": (1,)}, {"a": (70000,)}, {"": (1,)}]
    )
    def test_a_wrong_label_map(self, labels):
        with pytest.raises(ConfigError, match=r"data\.labels"):
            LabelMap.of(labels)


class TestCache:
    @pytest.fixture
    def root(self, pair, save_nifti, tmp_path):
        for number in range(4):
            save_nifti(tmp_path / "d" / "s" / "images" / f"{number}.nii.gz", pair[0] + number, AFFINE)
            save_nifti(tmp_path / "d" / "s" / "masks" / f"{number}.nii.gz", pair[1], AFFINE)
        return tmp_path / "d"

    def read(self, root, cache, **recipe):
        return read_folder(
            root,
            test_fraction=0.25,
            seed=ExperimentSeed(0),
            reading=Reading(labels=LABELS, cache=cache, recipe=Recipe(**recipe)),
        )

    def test_the_same_cases_mapped(self, root, tmp_path):
        plain, cached, again = (self.read(root, cache) for cache in (None, tmp_path / "c", tmp_path / "c"))
        for mine, first, second in zip(
            plain.sites["s"].train, cached.sites["s"].train, again.sites["s"].train, strict=True
        ):
            for other in (first, second):
                np.testing.assert_array_equal(other.image, mine.image)
                np.testing.assert_array_equal(other.labels, mine.labels)
                assert (other.spacing, other.name, other.patient) == (mine.spacing, mine.name, mine.patient)
                assert isinstance(other.image, np.memmap)
        assert len(list((tmp_path / "c").iterdir())) == 4
        assert (tmp_path / "c").stat().st_mode & 0o077 == 0

    def test_a_changed_file_or_setting_is_read_again(self, root, pair, save_nifti, tmp_path):
        self.read(root, tmp_path / "c")
        case = self.read(root, tmp_path / "c", windows=((0, 100),)).sites["s"].train[0]
        assert case.image.min() == -1
        save_nifti(root / "s" / "images" / "1.nii.gz", pair[0] * 3, AFFINE)
        fresh, cached = self.read(root, None), self.read(root, tmp_path / "c")
        for mine, other in zip(fresh.sites["s"].train, cached.sites["s"].train, strict=True):
            np.testing.assert_array_equal(mine.image, other.image)

    def test_a_damaged_entry_is_not_believed(self, root, tmp_path):
        first = self.read(root, tmp_path / "c")
        for entry in (tmp_path / "c").iterdir():
            (entry / "image.npy").write_bytes(b"\x80\x04torn")
        again = self.read(root, tmp_path / "c")
        np.testing.assert_array_equal(first.sites["s"].train[0].labels, again.sites["s"].train[0].labels)
        assert np.isfinite(again.sites["s"].train[0].image).all()
