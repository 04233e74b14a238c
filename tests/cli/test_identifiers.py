"""No DICOM identifier leaves the images: every command that reads them, every file that it writes, all that it says."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from secfl.cli.main import main

_SPEC = importlib.util.spec_from_file_location(
    "dicom_files_named", Path(__file__).parent.parent / "segmentation" / "data" / "conftest.py"
)
dicom_files = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = dicom_files  # dataclasses look their module up
_SPEC.loader.exec_module(dicom_files)

SITES = ("a", "b", "c")
TEXTS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName"),
    *(
        "PatientAddress",
        "PatientTelephoneNumbers",
        "PatientComments",
        "AdditionalPatientHistory",
        "Occupation",
    ),
    *("EthnicGroup", "MedicalRecordLocator", "MilitaryRank", "BranchOfService", "CountryOfResidence"),
    *("RegionOfResidence", "PatientReligiousPreference", "IssuerOfPatientID", "PatientInstitutionResidence"),
    *("CurrentPatientLocation", "AdmissionID", "AccessionNumber", "StudyID", "StudyDescription"),
    *("SeriesDescription", "ProtocolName", "ImageComments", "InstitutionName", "InstitutionAddress"),
    *("InstitutionalDepartmentName", "StationName", "DeviceSerialNumber", "ReferringPhysicianName"),
    *("PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy"),
    *("RequestingPhysician", "RequestingService", "ContentCreatorName", "PerformedProcedureStepID"),
    *("PerformedProcedureStepDescription", "RequestedProcedureDescription"),
    "FillerOrderNumberImagingServiceRequest",
)
"""Attributes of the Basic Application Level Confidentiality Profile (DICOM PS3.15, table E.1-1) that are text."""

DATES = (
    *(
        "PatientBirthDate",
        "StudyDate",
        "SeriesDate",
        "AcquisitionDate",
        "ContentDate",
        "InstanceCreationDate",
    ),
    "PerformedProcedureStepStartDate",
)


def identify(made: pydicom.FileDataset, number: int) -> dict[str, str]:
    """Give a slice a value of its own in every attribute; which ones those are."""
    values = {keyword: f"ZQ{number:02d}Q{place:02d}XJ" for place, keyword in enumerate(TEXTS)}
    values |= {keyword: f"19{number:02d}{place + 1:02d}17" for place, keyword in enumerate(DATES)}
    for keyword, value in values.items():
        setattr(made, keyword, value)
    nested = Dataset()
    nested.ScheduledProcedureStepID = values["nested"] = f"ZQ{number:02d}QN1XJ"
    made.RequestAttributesSequence = [nested]
    made.private_block(0x0011, "ACME", create=True).add_new(1, "LO", f"ZQ{number:02d}QP1XJ")
    values["private"] = f"ZQ{number:02d}QP1XJ"
    made.file_meta.SourceApplicationEntityTitle = values["title"] = f"ZQ{number:02d}QT1XJ"
    return values


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """Three sites with two series each; what names their patients, and the identifiers of studies and images."""
    root = tmp_path_factory.mktemp("clinic")
    draw = np.random.default_rng(9)
    names: list[str] = []
    identifiers: list[str] = []
    for number, (site, stem) in enumerate((site, stem) for site in SITES for stem in ("one", "two")):
        values = draw.normal(40, 15, (8, 20, 22))
        values[2:6, 5:12, 6:16] += 300
        series = dicom_files.Series(np.rint(values))
        folder = series.write(root / "data" / site / "images" / stem)
        for path in folder.iterdir():
            made = pydicom.dcmread(path)
            names += identify(made, number).values()
            made.save_as(path, enforce_file_format=True)
        identifiers += [series.study, series.series, series.frame_of_reference, *series.instances]
        labels = (values > 180).astype(np.uint8).transpose(2, 1, 0)
        (root / "data" / site / "masks").mkdir(exist_ok=True)
        nibabel.save(
            nibabel.Nifti1Image(labels, series.affine()), root / "data" / site / "masks" / f"{stem}.nii"
        )
    (root / "config.toml").write_text(
        f"clients = 3\nthreads = 1\nrecord = true\ninclude_images = true\n"
        f"[data]\nsource = '{root / 'data'}'\ntest_fraction = 0.5\ncache = '{root / 'cache'}'\n"
        "[model]\nname = 'cnn'\nchannels = [2, 2, 2]\n"
        "[training]\nrounds = 1\nlocal_epochs = 1\ncrop = 16\n[secure_agg]\nscheme = 'masking'\n"
    )
    return root, sorted(set(names)), sorted(set(identifiers))


def written(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def leaks(needles, said: str, files: dict[Path, bytes]) -> list[str]:
    found = [f"{needle} was said" for needle in needles if needle in said]
    for path, content in files.items():
        found += [f"{needle} in {path.name}" for needle in needles if needle.encode() in content]
    return found


def run(capfd, caplog, *arguments, code=0) -> str:
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        assert main([str(part) for part in arguments]) == code
    captured = capfd.readouterr()
    return captured.out + captured.err + caplog.text


def test_nothing_that_names_a_patient_gets_out(clinic, capfd, caplog, tmp_path):
    root, names, identifiers = clinic
    assert len(names) == 6 * (len(TEXTS) + len(DATES) + 3)
    config, made = root / "config.toml", tmp_path / "run"
    said = run(capfd, caplog, "data", "check", root / "data", "--config", config)
    said += run(
        capfd,
        caplog,
        "data",
        "check",
        root / "data",
        "--config",
        config,
        "--json",
        "--sheet",
        tmp_path / "s.html",
    )
    said += run(
        capfd, caplog, "data", "check", root / "data", "--config", config, "--sheet", tmp_path / "s.png"
    )
    said += run(capfd, caplog, "simulate", "--config", config, "--out", made)
    files = written(tmp_path, root / "cache")
    kinds = {path.suffix for path in files}
    assert {".jsonl", ".json", ".toml", ".txt", ".safetensors", ".png", ".bin", ".html"} <= kinds, kinds
    assert leaks([*names, *identifiers], said, files) == []

    inputs = [root / "data" / site / "images" / "one" for site in SITES[:1]]
    said = run(capfd, caplog, "predict", made, *inputs, "--out", tmp_path / "out")
    said += run(capfd, caplog, "predict", made, *inputs, "--out", tmp_path / "again", "--json")
    predictions = written(tmp_path / "out", tmp_path / "again")
    segmentations = {path: content for path, content in predictions.items() if path.suffix == ".dcm"}
    assert len(segmentations) == 2
    assert leaks(names, said, predictions) == []
    # A segmentation refers to its study and images by their UIDs, or it could not be laid over them; nothing else does.
    others = {path: content for path, content in predictions.items() if path not in segmentations}
    assert leaks(identifiers, said, others) == []


@pytest.mark.parametrize("how", ["cut", "missing", "orientation", "mixed"])
def test_nor_when_something_is_wrong(clinic, capfd, caplog, tmp_path, how):
    import shutil

    root, names, _ = clinic
    shutil.copytree(root / "data", tmp_path / "data")
    path = sorted((tmp_path / "data" / "b" / "images" / "two").iterdir())[3]
    content = pydicom.dcmread(path)
    match how:
        case "cut":
            path.write_bytes(path.read_bytes()[:-300])
        case "missing":
            path.unlink()
        case "orientation":
            content.ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
            content.save_as(path)
        case "mixed":
            content.SeriesInstanceUID = "1.2.3.4"
            content.save_as(path)
    flags = ["--data", tmp_path / "data", "--config", root / "config.toml"]
    said = run(capfd, caplog, "simulate", *flags, "--out", tmp_path / "run", code=2)
    said += run(capfd, caplog, "data", "check", tmp_path / "data", "--config", root / "config.toml", code=2)
    assert "two" in said
    assert leaks(names, said, {}) == []
    assert not (tmp_path / "run").exists()


def test_a_leak_would_be_found(clinic, tmp_path):
    _, names, _ = clinic
    (tmp_path / "log.txt").write_text(f"reading {names[0]}")
    assert leaks(names, f"for {names[1]}", written(tmp_path)) == [
        f"{names[1]} was said",
        f"{names[0]} in log.txt",
    ]
