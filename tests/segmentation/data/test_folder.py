"""The folder reader: what it accepts, and one line for everything else."""

from __future__ import annotations

import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from secfl.errors import DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.folder import Reading, read_folder
from secfl.segmentation.data.labels import LabelMap


def read(folder, **settings):
    chosen = {"test_fraction": 0.25, "seed": ExperimentSeed(0)} | settings
    return read_folder(folder.root, **chosen)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


class TestReading:
    def test_sites_cases_and_shapes(self, folder):
        data = read(folder)
        assert list(data.sites) == ["north", "south", "west"]
        assert (data.channels, data.classes, data.is_phantom) == (3, 2, False)
        for name, site in data.sites.items():
            assert (len(site.train), len(site.test)) == (3, 1)
            for case in (*site.train, *site.test):
                assert case.image.shape == (3, 32, 40)
                assert case.image.dtype == np.float32
                number = int(case.name[-1])
                assert case.name == f"{name}-{number}"
                assert case.labels.sum() == (12 - number) * 14
                assert case.labels[8 + number, 10] == 1
                assert case.labels[8 + number, 9] == 0

    def test_intensities_are_normalised_per_image(self, folder):
        for case in read(folder).sites["north"].train:
            np.testing.assert_allclose(case.image.mean(axis=(1, 2)), 0, atol=1e-5)
            np.testing.assert_allclose(case.image.std(axis=(1, 2)), 1, atol=1e-5)

    def test_the_same_seed_draws_the_same_split(self, folder):
        def names(seed):
            return [
                case.name
                for site in read(folder, seed=ExperimentSeed(seed)).sites.values()
                for case in site.test
            ]

        assert names(3) == names(3)
        assert len({tuple(names(seed)) for seed in range(8)}) > 1

    @pytest.mark.parametrize("suffix", ["jpg", "tiff", "TIF", "jpeg"])
    def test_other_formats(self, folder, suffix):
        for number in range(4):
            path = folder.image("south", number)
            with Image.open(path) as image:
                image.save(path.with_suffix(f".{suffix}"), format="TIFF" if suffix[0] in "tT" else "JPEG")
            path.unlink()
        assert read(folder).sites["south"].train[0].image.shape == (3, 32, 40)

    def test_sixteen_bits_and_grey(self, folder):
        draw = np.random.default_rng(0)
        for site in ("north", "south", "west"):
            for number in range(4):
                save(folder.image(site, number), draw.integers(0, 60_000, (32, 40)).astype(np.uint16))
        data = read(folder)
        assert data.channels == 1
        assert data.sites["west"].test[0].image.std() == pytest.approx(1, abs=1e-4)

    def test_masks_of_zero_and_one_and_of_one_bit(self, folder):
        before = read(folder)
        with Image.open(folder.mask("north", 0)) as mask:
            pixels = np.asarray(mask)
        save(folder.mask("north", 0), (pixels // 255).astype(np.uint8))
        with Image.open(folder.mask("north", 1)) as mask:
            mask.convert("1").save(folder.mask("north", 1))
        after = read(folder)
        for old, new in zip(before.sites["north"].train, after.sites["north"].train, strict=True):
            np.testing.assert_array_equal(old.labels, new.labels)

    def test_an_empty_mask_and_a_constant_channel_are_fine(self, folder):
        save(folder.mask("north", 0), np.zeros((32, 40), np.uint8))
        pixels = np.full((32, 40, 3), 90, np.uint8)
        pixels[4:9, :, 1] = 20
        save(folder.image("north", 0), pixels)
        site = read(folder).sites["north"]
        case = next(case for case in (*site.train, *site.test) if case.name == "north-0")
        assert not case.labels.any()
        assert not case.image[[0, 2]].any()

    def test_several_classes(self, folder):
        values = {}
        for site in ("north", "south", "west"):
            for number in range(4):
                mask = np.zeros((32, 40), np.uint8)
                mask[4:9, 5 : 20 + number], mask[20:25, 3:9], mask[26:28, 3:9] = 7, 40, 200
                save(folder.mask(site, number), mask)
                values[f"{site}-{number}"] = mask
        labels = LabelMap.of({"disc": (40, 200), "cup": (7,)})
        data = read(folder, reading=Reading(labels=labels))
        assert (data.classes, data.class_names) == (3, ("background", "disc", "cup"))
        for site in data.sites.values():
            for case in (*site.train, *site.test):
                stored = values[case.name]
                np.testing.assert_array_equal(case.labels, np.where(stored == 7, 2, stored > 7))

    def test_classes_as_a_palette(self, folder):
        labels = Reading(labels=LabelMap.of({"a": (1,), "b": (2,)}))
        for site in ("north", "south", "west"):
            for number in range(4):
                mask = np.zeros((32, 40), np.uint8)
                mask[4:9], mask[9:12] = 1, 2
                picture = Image.fromarray(mask, mode="P")
                picture.putpalette([0, 0, 0, 250, 10, 10, 10, 250, 10])
                picture.save(folder.mask(site, number))
        case = read(folder, reading=labels).sites["north"].train[0]
        np.testing.assert_array_equal(case.labels[:, 0], np.repeat([0, 1, 2, 0], [4, 5, 3, 20]))

    def test_field_of_view(self, folder):
        view = np.zeros((32, 40), np.uint8)
        view[4:28, 4:36] = 255
        for number in range(4):
            save(folder.root / "west" / "fov" / f"west-{number}.png", view)
        data = read(folder)
        assert data.sites["north"].train[0].valid is None
        for case in data.sites["west"].train:
            np.testing.assert_array_equal(case.valid, view > 0)
            assert not case.image[:, view == 0].any()
            np.testing.assert_allclose(case.image[:, view > 0].mean(axis=1), 0, atol=1e-5)

    def test_hidden_files_are_left_alone(self, folder):
        (folder.root / ".cache").mkdir()
        (folder.root / "north" / "images" / ".DS_Store").write_bytes(b"x")
        assert len(read(folder).sites) == 3


class TestSplits:
    def test_a_given_split_is_kept(self, folder):
        folder.write_splits(
            {
                site: {"train": [f"{site}-3", f"{site}-1"], "test": [f"{site}-0"]}
                for site in ("north", "south", "west")
            }
        )
        site = read(folder).sites["south"]
        assert [case.name for case in site.train] == ["south-1", "south-3"]
        assert [case.name for case in site.test] == ["south-0"]

    def test_patients_stay_together(self, folder):
        folder.write_patients(
            {f"{site}-{n}": f"{site}/{n // 2}" for site in ("north", "south") for n in range(4)}
        )
        for seed in range(6):
            site = read(folder, seed=ExperimentSeed(seed)).sites["north"]
            assert len(site.test) == 2
            assert {case.patient for case in site.train}.isdisjoint(case.patient for case in site.test)

    def test_a_split_that_cuts_a_patient_is_refused(self, folder):
        folder.write_splits(
            {site: {"train": [f"{site}-0"], "test": [f"{site}-1"]} for site in ("north", "south", "west")}
        )
        folder.write_patients({"north-0": "p", "north-1": "p"})
        with pytest.raises(DataError, match=r"splits\.json: site north: a patient is in train and in test"):
            read(folder)

    def test_a_patient_at_two_sites_is_refused(self, folder):
        folder.write_patients({"north-0": "p", "south-1": "p"})
        with pytest.raises(
            DataError, match=r"patients\.csv: one patient has images in the sites north and south"
        ):
            read(folder)

    def test_one_stem_at_two_sites_is_named_with_its_site(self, folder):
        for site in ("north", "south"):
            for kind in ("images", "masks"):
                part = folder.root / site / kind
                (part / f"{site}-0.png").rename(part / "same.png")
        read(folder)
        folder.write_patients({"north/same": "a", "south/same": "b"})
        read(folder)
        folder.write_patients({"same": "a"})
        with pytest.raises(DataError, match="write <site>/<stem>"):
            read(folder)

    @pytest.mark.parametrize(
        ("splits", "expected"),
        [
            ({"north": {"train": ["north-0"], "test": ["north-1"]}}, "site south is missing"),
            ({"east": {"train": [], "test": []}}, "no folder for site east"),
            ({site: {"train": ["x"], "test": ["y"]} for site in ("north", "south", "west")}, "train names x"),
            (
                {site: {"train": [], "test": [f"{site}-1"]} for site in ("north", "south", "west")},
                "site north: train is empty",
            ),
            ({"north": {"train": ["a", "a"], "test": []}}, "listed twice"),
            ({"north": {"train": ["a"], "test": ["a"]}}, "listed twice"),
            ({"north": {"train": ["a"]}}, "expected JSON"),
            ({"north": {"train": [1], "test": []}}, "expected JSON"),
            (["north"], "expected JSON"),
        ],
    )
    def test_a_wrong_splits_file(self, folder, splits, expected):
        folder.write_splits(splits)
        with pytest.raises(DataError, match=rf"splits\.json: .*{expected}"):
            read(folder)

    def test_a_splits_file_that_is_not_json(self, folder):
        (folder.root / "splits.json").write_text("{", encoding="utf-8")
        with pytest.raises(DataError, match=r"splits\.json: expected JSON"):
            read(folder)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("name,who\na,b\n", "columns stem,patient"),
            ("", "columns stem,patient"),
            ("stem,patient\nnorth-0,\n", "line 2: expected a stem and a patient"),
            ("stem,patient\nnorth-0\n", "line 2: expected a stem and a patient"),
            ("stem,patient\nnorth-0,a\nnorth-0,b\n", "line 3: this stem already has another patient"),
        ],
    )
    def test_a_wrong_patients_table(self, folder, text, expected):
        (folder.root / "patients.csv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=rf"patients\.csv: .*{expected}"):
            read(folder)

    def test_one_patient_cannot_be_split(self, folder):
        folder.write_patients({f"north-{number}": "only" for number in range(4)})
        with pytest.raises(DataError, match="site north: images of 1 patient; expected at least 2"):
            read(folder)


def refused(folder, *expected):
    """The reader refuses in one line that holds every expected part."""
    with pytest.raises(DataError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert str(part) in message
    assert caught.value.exit_code == 2


class TestBadInput:
    def test_no_folder(self, folder):
        shutil.rmtree(folder.root)
        refused(folder, folder.root, "no such folder")

    def test_no_site(self, folder):
        for site in ("north", "south", "west"):
            shutil.rmtree(folder.root / site)
        refused(folder, folder.root, "no site in it")

    def test_an_empty_site(self, folder):
        (folder.root / "east").mkdir()
        refused(folder, folder.root / "east" / "images", "no such folder")

    def test_a_site_without_images(self, folder):
        for number in range(4):
            folder.image("west", number).unlink()
        refused(folder, folder.root / "west" / "images", "no image in it")

    def test_a_site_without_masks(self, folder):
        shutil.rmtree(folder.root / "west" / "masks")
        refused(folder, folder.root / "west" / "masks", "no such folder")

    def test_a_missing_mask(self, folder):
        folder.mask("south", 2).unlink()
        refused(folder, folder.image("south", 2), "no mask", folder.mask("south", 2).with_suffix(""))

    def test_a_mask_without_an_image(self, folder):
        folder.image("south", 2).unlink()
        refused(folder, folder.mask("south", 2), "no image")

    def test_a_mask_of_another_size(self, folder):
        save(folder.mask("north", 1), np.zeros((40, 32), np.uint8))
        refused(folder, folder.mask("north", 1), "32x40 pixels", "40x32", "expected the same size")

    @pytest.mark.parametrize("values", [(0, 128), (0, 1, 255), (0, 1, 2), (7,)])
    def test_a_mask_that_is_not_binary(self, folder, values):
        mask = np.resize(np.array(values, np.uint8), (32, 40))
        save(folder.mask("north", 3), mask)
        refused(folder, folder.mask("north", 3), "expected a binary mask")

    def test_a_coloured_mask(self, folder):
        mask = np.zeros((32, 40, 3), np.uint8)
        mask[..., 0] = 255
        save(folder.mask("north", 3), mask)
        refused(folder, folder.mask("north", 3), "expected a mask with one channel")

    @pytest.mark.parametrize("kind", ["cut", "not an image", "empty"])
    @pytest.mark.parametrize("which", ["image", "mask"])
    def test_a_corrupt_file(self, folder, kind, which):
        path = getattr(folder, which)("west", 0)
        content = {
            "cut": path.read_bytes()[: path.stat().st_size * 2 // 3],
            "not an image": b"patient: Jane Doe",
            "empty": b"",
        }[kind]
        path.write_bytes(content)
        refused(folder, path, "cannot be read as an image")
        with pytest.raises(DataError) as caught:
            read(folder)
        assert "Jane" not in str(caught.value)

    def test_a_label_of_no_class(self, folder):
        mask = np.zeros((32, 40), np.uint8)
        mask[3:5] = 9
        save(folder.mask("north", 3), mask)
        reading = Reading(labels=LabelMap.of({"vessel": (255, 1)}))
        with pytest.raises(DataError, match=r"north-3\.png: labels out of range: 9 belong to no class"):
            read(folder, reading=reading)

    def test_a_constant_image(self, folder):
        save(folder.image("north", 0), np.full((32, 40, 3), 90, np.uint8))
        refused(folder, folder.image("north", 0), "a constant image")

    def test_an_image_that_is_constant_where_it_counts(self, folder):
        view = np.zeros((32, 40), np.uint8)
        view[4:28, 4:36] = 255
        for number in range(4):
            save(folder.root / "west" / "fov" / f"west-{number}.png", view)
        pixels = np.full((32, 40, 3), 90, np.uint8)
        pixels[0] = 3
        save(folder.image("west", 2), pixels)
        refused(folder, folder.image("west", 2), "constant image inside its field of view")

    @pytest.mark.parametrize("sides", [(1, 1), (40, 7), (2, 40)])
    def test_a_tiny_image(self, folder, sides):
        pixels = np.arange(sides[0] * sides[1] * 3, dtype=np.uint8).reshape(*sides, 3)
        save(folder.image("north", 0), pixels)
        save(folder.mask("north", 0), np.zeros(sides, np.uint8))
        refused(folder, folder.image("north", 0), "expected at least 8 along two axes")

    def test_colours_of_sixteen_bits(self, folder):
        """Written by hand: Pillow reads such a file, and drops half of every value without a word."""
        rows = [
            b"\0" + draw.tobytes() for draw in np.random.default_rng(0).integers(0, 255, (32, 240), np.uint8)
        ]
        header = struct.pack(">IIBBBBB", 40, 32, 16, 2, 0, 0, 0)
        path = folder.image("north", 1)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                for kind, data in chunks
            )
        )
        with Image.open(path) as image:
            assert image.mode == "RGB"
        refused(folder, path, "expected colours of 8 bits, found 16")

    def test_sixteen_bits_of_grey_among_colours(self, folder):
        save(folder.image("south", 1), np.arange(32 * 40, dtype=np.uint16).reshape(32, 40))
        refused(folder, f"{folder.image('south', 1)}: 1 channel", "expected the same number")

    def test_unequal_channels(self, folder):
        save(folder.image("south", 1), np.eye(32, 40, dtype=np.uint8))
        refused(folder, f"{folder.image('south', 1)}: 1 channel", "expected the same number")

    @pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK"])
    def test_unstated_channels(self, folder, mode):
        path = folder.image("south", 1)
        with Image.open(path) as image:
            changed = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
        if mode == "CMYK":
            path.unlink()
            path = path.with_suffix(".jpg")
        changed.save(path)
        refused(folder, path, f"got mode {mode}")

    def test_several_pages(self, folder):
        path = folder.image("south", 1)
        pages = [Image.fromarray(np.zeros((32, 40, 3), np.uint8)) for _ in range(2)]
        path.unlink()
        pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])
        refused(folder, path.with_suffix(".tif"), "expected one image in the file, found 2")

    def test_not_a_number(self, folder):
        pixels = np.zeros((32, 40), np.float32)
        pixels[3, 4] = np.nan
        folder.image("south", 1).unlink()
        path = folder.image("south", 1).with_suffix(".tif")
        Image.fromarray(pixels).save(path)
        refused(folder, path, "NaN or infinity")

    def test_an_unknown_kind_of_file(self, folder):
        path = folder.root / "north" / "images" / "notes.txt"
        path.write_text("x", encoding="utf-8")
        refused(folder, path, "unknown kind of file")

    def test_two_files_with_one_stem(self, folder):
        path = folder.image("north", 0)
        shutil.copy(path, path.with_suffix(".jpg"))
        refused(folder, path, "same stem")

    @pytest.mark.parametrize("name", ["two words", "aggregator"])
    def test_a_site_that_cannot_be_a_client(self, folder, name):
        (folder.root / "north").rename(folder.root / name)
        refused(folder, folder.root / name, "client name")

    def test_a_field_of_view_is_missing_or_empty_or_of_another_size(self, folder):
        view = folder.root / "west" / "fov"
        for number in range(3):
            save(view / f"west-{number}.png", np.full((32, 40), 255, np.uint8))
        refused(folder, folder.image("west", 3), "no field of view")
        save(view / "west-3.png", np.zeros((32, 40), np.uint8))
        refused(folder, view / "west-3.png", "field of view is empty")
        save(view / "west-3.png", np.full((8, 8), 255, np.uint8))
        refused(folder, view / "west-3.png", "8x8 pixels")
