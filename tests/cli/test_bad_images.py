"""Every bad input that is named in the documentation, through the three commands that read images.

Each ends with exit code 2 and one line that names the file and what was expected; nothing is left behind.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from secfl.cli.main import main

_SPEC = importlib.util.spec_from_file_location(
    "dicom_files_again", Path(__file__).parent.parent / "segmentation" / "data" / "conftest.py"
)
dicom_files = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = dicom_files  # dataclasses look their module up
_SPEC.loader.exec_module(dicom_files)

CONFIG = """
clients = 3
threads = 1
[data]
source = "{source}"
test_fraction = 0.5
labels = {{ target = {label} }}
[model]
name = "cnn"
channels = [2, 2, 2]
[training]
rounds = 1
local_epochs = 1
crop = 16
[secure_agg]
scheme = "plain"
"""
SITES = ("a", "b", "c")
LABELS = {"series": 1, "pictures": 255}


def write_series(root: Path) -> None:
    """Two DICOM series a site, with NIfTI masks in their geometry."""
    draw = np.random.default_rng(4)
    for site in SITES:
        for name in ("one", "two"):
            values = draw.normal(40, 15, (8, 20, 22))
            values[2:6, 5:12, 6:16] += 300
            series = dicom_files.Series(np.rint(values))
            series.write(root / site / "images" / name)
            labels = (values > 180).astype(np.uint8).transpose(2, 1, 0)
            (root / site / "masks").mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(labels, series.affine()), root / site / "masks" / f"{name}.nii")


def write_pictures(root: Path) -> None:
    draw = np.random.default_rng(5)
    for site in SITES:
        for name in ("one", "two"):
            pixels = draw.integers(0, 255, (24, 24, 3), np.uint8)
            for kind, content in (
                ("images", pixels),
                ("masks", (pixels[..., 0] > 128).astype(np.uint8) * 255),
            ):
                (root / site / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(root / site / kind / f"{name}.png")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder and a run for series and for pictures."""
    made = {}
    for kind, write in (("series", write_series), ("pictures", write_pictures)):
        root = tmp_path_factory.mktemp(kind)
        write(root / "data")
        (root / "config.toml").write_text(CONFIG.format(source=root / "data", label=LABELS[kind]))
        flags = ["--config", str(root / "config.toml"), "--out", str(root / "run"), "--quiet"]
        assert main(["simulate", *flags]) == 0
        made[kind] = root
    return made


def a_slice(root: Path) -> Path:
    return sorted((root / "b" / "images" / "two").iterdir())[3]


def change_slice(root: Path, **changes) -> None:
    path = a_slice(root)
    made = pydicom.dcmread(path)
    for keyword, value in changes.items():
        setattr(made, keyword, value)
    made.save_as(path, enforce_file_format=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_mask(root: Path, *, shift: float = 0.0, factor: int = 1) -> None:
    path = root / "b" / "masks" / "two.nii"
    old = nibabel.load(path)
    affine = old.affine.copy()
    affine[0, 3] += shift
    values = np.asarray(old.dataobj) * np.uint8(factor)
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def as_nifti(root: Path, change) -> None:
    """The series in place of a file in its geometry, with other values."""
    shutil.rmtree(root / "b" / "images" / "two")
    mask = nibabel.load(root / "b" / "masks" / "two.nii")
    labels = np.asarray(mask.dataobj)
    values = change(np.random.default_rng(1).normal(0, 50, labels.shape).astype(np.float32))
    labels = labels[tuple(slice(side) for side in values.shape)]
    nibabel.save(nibabel.Nifti1Image(values, mask.affine), root / "b" / "images" / "two.nii")
    (root / "b" / "masks" / "two.nii").unlink()
    nibabel.save(nibabel.Nifti1Image(labels, mask.affine), root / "b" / "masks" / "two.nii")


def with_nan(values: np.ndarray) -> np.ndarray:
    values[3, 4, 5] = np.nan
    return values


def constant_series(root: Path) -> None:
    for path in sorted((root / "b" / "images" / "two").iterdir()):
        made = pydicom.dcmread(path)
        made.PixelData = np.full((20, 22), 7, np.int16).tobytes()
        made.save_as(path, enforce_file_format=True)


def save_picture(root: Path, pixels: np.ndarray, *, kind: str = "images", suffix: str = "png") -> None:
    (root / "b" / kind / "two.png").unlink()
    Image.fromarray(pixels).save(root / "b" / kind / f"two.{suffix}")


def picture_with_nan(root: Path) -> None:
    values = np.random.default_rng(2).normal(0, 1, (24, 24)).astype(np.float32)
    values[2, 3] = np.nan
    save_picture(root, values, suffix="tif")


DRAW = np.random.default_rng(6)
CASES = {
    "corrupt DICOM": ("series", lambda root: cut(a_slice(root)), "two"),
    "missing slices": ("series", lambda root: a_slice(root).unlink(), "slice"),
    "mixed orientations": (
        "series",
        lambda root: change_slice(root, ImageOrientationPatient=[0, 1, 0, -1, 0, 0]),
        "orientation",
    ),
    "two series in a folder": (
        "series",
        lambda root: change_slice(root, SeriesInstanceUID="1.2.3.4"),
        "1.2.3.4",
    ),
    "mask in another space": ("series", lambda root: change_mask(root, shift=9.0), "another space"),
    "mask with labels out of range": (
        "series",
        lambda root: change_mask(root, factor=9),
        "labels out of range",
    ),
    "constant volume": ("series", constant_series, "constant image"),
    "NaN voxels": ("series", lambda root: as_nifti(root, with_nan), "NaN"),
    "1-voxel volume": ("series", lambda root: as_nifti(root, lambda values: values[:1, :1, :1]), "expected"),
    "corrupt picture": ("pictures", lambda root: cut(root / "b" / "images" / "two.png"), "two.png"),
    "constant picture": (
        "pictures",
        lambda root: save_picture(root, np.full((24, 24, 3), 9, np.uint8)),
        "constant image",
    ),
    "1-pixel picture": (
        "pictures",
        lambda root: [
            save_picture(root, np.full((1, 1, 3), 9, np.uint8)),
            save_picture(root, np.full((1, 1), 255, np.uint8), kind="masks"),
        ],
        "1x1 voxels; expected at least 8",
    ),
    "16-bit picture": (
        "pictures",
        lambda root: save_picture(root, DRAW.integers(0, 65535, (24, 24), np.uint16)),
        "expected",
    ),
    "4 channels": (
        "pictures",
        lambda root: save_picture(root, DRAW.integers(0, 255, (24, 24, 4), np.uint8)),
        "expected",
    ),
    "picture of NaN": ("pictures", picture_with_nan, "NaN"),
    "picture's mask out of range": (
        "pictures",
        lambda root: save_picture(root, DRAW.integers(0, 99, (24, 24), np.uint8), kind="masks"),
        "labels out of range",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_is_one_line_and_exit_code_2(case, good, tmp_path, capfd):
    kind, spoil, expected = CASES[case]
    root = tmp_path / "data"
    shutil.copytree(good[kind] / "data", root)
    spoil(root)
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(source=root, label=LABELS[kind]))
    image = next(path for path in (root / "b" / "images").iterdir() if path.name.startswith("two"))
    before = sorted(path.name for path in tmp_path.iterdir())
    commands = {
        "simulate": ["simulate", "--config", str(config), "--out", str(tmp_path / "run"), "--quiet"],
        "check": ["data", "check", str(root), "--config", str(config), "--json"],
        "predict": [
            *("predict", str(good[kind] / "run"), str(image)),
            *("--truth", str(root / "b" / "masks"), "--out", str(tmp_path / "out")),
        ],
    }
    for name, arguments in commands.items():
        capfd.readouterr()
        code = main(arguments)
        said = capfd.readouterr()
        assert code == 2, (name, said)
        if name == "check":
            report = json.loads(said.out)
            problems = [text for site in (report, *report["sites"].values()) for text in site["problems"]]
        else:
            assert said.err.count("\n") == 1, (name, said.err)
            assert said.err.startswith("error: ")
            problems = [said.err]
        assert len(problems) == 1, problems
        assert expected in problems[0], (name, problems)
        assert "two" in problems[0], (name, problems)
        assert "Traceback" not in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "something was left behind"
