"""DICOM in, DICOM SEG out: a federation on series with segmentations, its predictions read back with highdicom."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from secfl.cli.main import main
from secfl.federation.prediction import predictor_of_run
from secfl.segmentation.data.dicom import read_dicom

_SPEC = importlib.util.spec_from_file_location(
    "dicom_files_both_ways", Path(__file__).parent.parent / "segmentation" / "data" / "conftest.py"
)
dicom_files = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = dicom_files  # dataclasses look their module up
_SPEC.loader.exec_module(dicom_files)

CONFIG = """
clients = 3
threads = 1
evaluate_every = 2
[data]
source = "{source}"
test_fraction = 0.5
windows = [[-160, 440]]
labels = {{ vessel = ["vessel"] }}
[model]
name = "cnn"
channels = [4, 4, 4]
[training]
rounds = 2
local_epochs = 15
batch_size = 1
learning_rate = 0.03
crop = 16
augmentation = "none"
[secure_agg]
scheme = "masking"
"""
ORIENTATIONS = [(1, 0, 0, 0, 1, 0), (0.8, 0.6, 0, -0.6, 0.8, 0), (0, 1, 0, 0, 0, -1)]


def description() -> SegmentDescription:
    return SegmentDescription(
        segment_number=1,
        segment_label="vessel",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.BloodVessel,
        algorithm_type="MANUAL",
    )


def write_segmentation(path: Path, folder: Path, labels: np.ndarray) -> None:
    """With highdicom alone: slices in the order of the sources that it is given."""
    sources = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda one: one.InstanceNumber)
    highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type="BINARY",
        segment_descriptions=[description()],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three sites that scan in three orientations, and a run on their series and segmentations."""
    root = tmp_path_factory.mktemp("dicom")
    draw = np.random.default_rng(3)
    series = {}
    for site, orientation in zip("abc", ORIENTATIONS, strict=True):
        for name in ("one", "two"):
            labels = np.zeros((8, 20, 22), np.uint8)
            row, column = draw.integers(3, 9, 2)
            labels[2:6, row : row + 8, column : column + 7] = 1
            values = np.rint(draw.normal(40, 15, labels.shape) + 300.0 * labels)
            one = dicom_files.Series(values, orientation=orientation, spacing=(0.9, 0.7, 2.5))
            folder = one.write(root / "data" / site / "images" / name)
            (root / "data" / site / "masks").mkdir(exist_ok=True)
            write_segmentation(root / "data" / site / "masks" / f"{name}.dcm", folder, labels)
            series[site, name] = (one, labels)
    (root / "config.toml").write_text(CONFIG.format(source=root / "data"))
    flags = ["--config", str(root / "config.toml"), "--out", str(root / "run"), "--quiet"]
    assert main(["simulate", *flags]) == 0
    return root, series


def test_what_is_read_back_is_what_was_predicted_in_its_place(made, tmp_path, capsys):
    root, series = made
    for (site, name), (one, labels) in series.items():
        image = root / "data" / site / "images" / name
        out = tmp_path / site / name
        flags = ["--truth", str(root / "data" / site / "masks"), "--out", str(out), "--json", "--no-overlays"]
        capsys.readouterr()
        assert main(["predict", str(root / "run"), str(image), *flags]) == 0
        (row,) = json.loads(capsys.readouterr().out)["images"]

        # The array before conversion: columns, rows, slices as the scan has them.
        before = predictor_of_run(root / "run").classes_of(read_dicom(image))
        assert before.any()

        read = highdicom.seg.segread(row["mask"])
        assert read.FrameOfReferenceUID == one.frame_of_reference
        assert read.StudyInstanceUID == one.study
        assert {
            item.ReferencedSOPInstanceUID
            for item in read.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        } <= set(one.instances)
        planes = read.get_pixels_by_source_instance(
            one.instances, combine_segments=True, assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(planes, before.transpose(2, 1, 0))

        # In the patient: the voxel (column, row, slice) of the scan lies where the segmentation's volume has it.
        volume = read.get_volume(combine_segments=True)
        found = np.argwhere(volume.array)
        places = (volume.affine @ np.c_[found, np.ones(len(found))].T)[:3].T
        lps = np.diag([-1, -1, 1, 1]) @ one.affine()
        voxels = np.argwhere(before)
        expected = (lps @ np.c_[voxels, np.ones(len(voxels))].T)[:3].T
        np.testing.assert_allclose(np.sort(places, axis=0), np.sort(expected, axis=0), atol=1e-3)

        truth = labels.astype(bool)
        dice = 2 * (planes.astype(bool) & truth).sum() / (planes.astype(bool).sum() + truth.sum())
        assert row["dice"] == pytest.approx(dice, abs=1e-6)
        assert dice > 0.5
