"""``secfl data``: phantoms written, folders checked, one set dealt out to sites."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from secfl.cli.main import main
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.partition import Skew, deal_patients


@pytest.fixture
def folder(tmp_path):
    """Three sites of the ultrasound phantom, eight images each, two of a patient."""
    root = tmp_path / "data"
    flags = ["--task", "ultrasound", "--images", "8", "--size", "48", "--out", str(root)]
    assert main(["data", "phantom", *flags]) == 0
    return root


def check(folder, capsys, *flags, code=0):
    capsys.readouterr()
    arguments = ["data", "check", str(folder), "--config", str(folder / "config.toml"), "--json", *flags]
    assert main(arguments) == code
    return json.loads(capsys.readouterr().out)


class TestCheck:
    def test_the_table_is_whole_on_a_narrow_terminal(self, folder, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        capsys.readouterr()
        assert main(["data", "check", str(folder), "--config", str(folder / "config.toml")]) == 0
        shown = capsys.readouterr().out
        assert "…" not in shown
        for head in ("patients", "train/test", "spacings", "channels", "foreground", "empty"):
            assert head in shown

    def test_what_is_counted(self, folder, capsys):
        report = check(folder, capsys)
        assert report["usable"]
        assert report["problems"] == report["duplicates"] == []
        for name, site in report["sites"].items():
            assert (site["images"], site["patients"], site["train"], site["test"]) == (8, 4, 6, 2)
            assert site["sizes"] == {"48x48": 8}
            assert site["channels"] == {"1": 8}
            truth = sum(
                int((np.asarray(Image.open(path)) == 1).sum()) for path in (folder / name / "masks").iterdir()
            )
            assert site["voxels"] == {"background": 8 * 48 * 48 - truth, "lesion": truth}

    def test_spacings_of_volumes(self, tmp_path, capsys):
        root = tmp_path / "v"
        flags = ["--task", "kidney-ct", "--images", "4", "--size", "32", "--sites", "1", "--out", str(root)]
        assert main(["data", "phantom", *flags]) == 0
        site = check(root, capsys)["sites"]["clinic-1"]
        assert site["formats"] == {"nifti": 4}
        assert site["sizes"] == {"32x32x12": 4}
        ((spacing, count),) = site["spacings"].items()
        assert count == 4
        assert spacing.endswith(" mm")

    def test_empty_masks(self, folder, capsys):
        path = next((folder / "clinic-2" / "masks").iterdir())
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(path)
        report = check(folder, capsys)
        assert report["sites"]["clinic-2"]["empty_masks"] == [path.stem]
        assert report["usable"]

    def test_the_same_pixels_in_training_and_test(self, folder, capsys):
        stems = sorted(path.stem for path in (folder / "clinic-1" / "images").iterdir())
        splits = {
            site: {
                "train": [f"{site}-{number:05d}" for number in range(6)],
                "test": [f"{site}-{number:05d}" for number in (6, 7)],
            }
            for site in ("clinic-1", "clinic-2", "clinic-3")
        }
        (folder / "splits.json").write_text(json.dumps(splits))
        images = folder / "clinic-1" / "images"
        with Image.open(images / f"{stems[0]}.png") as file:
            file.save(images / f"{stems[7]}.png", compress_level=1)
        report = check(folder, capsys, code=2)
        assert report["duplicates"] == [
            {"images": [f"clinic-1/{stems[0]}", f"clinic-1/{stems[7]}"], "crosses": "train and test"}
        ]

    def test_the_same_pixels_at_two_sites_and_within_training(self, folder, capsys):
        images = sorted((folder / "clinic-1" / "images").iterdir())
        other = sorted((folder / "clinic-3" / "images").iterdir())[2]
        shutil.copy(images[0], other)
        assert [one["crosses"] for one in check(folder, capsys, code=2)["duplicates"]] == ["sites"]

    def test_every_problem_is_named_not_only_the_first(self, folder, capsys):
        images = sorted((folder / "clinic-1" / "images").iterdir())
        images[0].write_bytes(b"no image")
        Image.fromarray(np.full((48, 48), 9, np.uint8)).save(images[1])
        mask = sorted((folder / "clinic-3" / "masks").iterdir())[3]
        Image.fromarray(np.full((48, 48), 77, np.uint8)).save(mask)
        report = check(folder, capsys, code=2)
        assert len(report["sites"]["clinic-1"]["problems"]) == 2
        assert "constant image" in report["sites"]["clinic-1"]["problems"][1]
        assert "labels out of range: 77" in report["sites"]["clinic-3"]["problems"][0]
        assert report["sites"]["clinic-2"]["problems"] == []

    def test_text_and_sheets(self, folder, tmp_path, capsys):
        flags = [str(folder), "--config", str(folder / "config.toml")]
        for name in ("sheet.html", "sheet.png"):
            assert main(["data", "check", *flags, "--sheet", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert "clinic-3" in said
        assert "48x48" in said
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.size == (4 * 96, 3 * 96)
        page = (tmp_path / "sheet.html").read_text()
        assert page.count("data:image/png;base64,") == 12
        assert "http" not in page
        assert main(["data", "check", *flags, "--sheet", str(tmp_path / "sheet.pdf")]) == 2


class TestPartition:
    def deal(self, folder, out, *flags):
        arguments = ["data", "partition", str(folder), "--out", str(out), "--sites", "2", *flags]
        assert main([*arguments, "--config", str(folder / "config.toml")]) == 0
        rows = list(csv.DictReader((out / "patients.csv").open()))
        return {row["stem"]: row["patient"] for row in rows}

    @pytest.mark.parametrize("skew", ["size", "appearance", "prevalence"])
    def test_patients_never_cross_and_nothing_is_lost(self, folder, tmp_path, capsys, skew):
        patients = self.deal(folder, tmp_path / "out", "--skew", skew, "--concentration", "0.5")
        sites_of: dict[str, set[str]] = {}
        for stem, patient in patients.items():
            sites_of.setdefault(patient, set()).add(stem.split("/")[0])
        assert len(sites_of) == 12
        assert {len(sites) for sites in sites_of.values()} == {1}
        images = sorted(path.read_bytes() for path in folder.glob("*/images/*"))
        assert sorted(path.read_bytes() for path in (tmp_path / "out").glob("*/images/*")) == images
        for path in (tmp_path / "out").glob("*/images/*"):
            original = path.name.split("-", 2)
            mask = folder / "-".join(original[:2]) / "masks" / original[2]
            assert (path.parent.parent / "masks" / path.name).read_bytes() == mask.read_bytes()
        shutil.copy(folder / "config.toml", tmp_path / "out" / "config.toml")
        assert check(tmp_path / "out", capsys)["usable"]

    def test_the_same_seed_deals_the_same(self, folder, tmp_path):
        one, same, other = (
            self.deal(folder, tmp_path / name, "--seed", seed)
            for name, seed in (("a", "3"), ("b", "3"), ("c", "4"))
        )
        assert one == same
        assert one != other

    def test_what_is_there_is_not_overwritten(self, folder, tmp_path, capsys):
        assert main(["data", "partition", str(folder), "--out", str(tmp_path)]) == 2
        assert "exists already" in capsys.readouterr().err


PATIENTS = {f"p{number:03d}": number / 200 for number in range(200)}


class TestDealing:
    def spread(self, skew, concentration):
        """How far the sites' mean traits and sizes lie apart, over 20 seeds."""
        traits, sizes = [], []
        for seed in range(20):
            dealt = deal_patients(
                PATIENTS, sites=4, skew=skew, concentration=concentration, seed=ExperimentSeed(seed)
            )
            assert sorted(dealt) == sorted(PATIENTS)
            groups = [[PATIENTS[name] for name, site in dealt.items() if site == index] for index in range(4)]
            assert min(map(len, groups)) >= 2
            traits.append(np.std([np.mean(group) for group in groups]))
            sizes.append(np.std([len(group) for group in groups]))
        return float(np.mean(traits)), float(np.mean(sizes))

    def test_a_small_concentration_makes_sites_unlike(self):
        for skew in (Skew.APPEARANCE, Skew.PREVALENCE):
            assert self.spread(skew, 0.3)[0] > 3 * self.spread(skew, 100)[0]
        assert self.spread(Skew.SIZE, 0.3)[1] > 3 * self.spread(Skew.SIZE, 100)[1]

    def test_size_skew_leaves_the_trait_alone(self):
        assert self.spread(Skew.SIZE, 100)[0] < 0.06
        assert self.spread(Skew.APPEARANCE, 0.3)[0] > 0.1
