"""Choosing a setting never sees a test image."""

from __future__ import annotations

import json

import pytest

from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.folder import read_folder
from secfl.studies.held_out import hold_out
from tests.studies.drawn import drawn_folder


def test_only_training_images_are_left_and_every_patient_is_in_one_part(tmp_path):
    data = drawn_folder(tmp_path / "data")
    given = json.loads((data / "splits.json").read_text())
    out = hold_out(data, tmp_path / "out" / "held-out", seed=7)
    listed = json.loads((out / "splits.json").read_text())
    assert set(listed) == set(given)
    for site, split in listed.items():
        assert sorted(split["train"] + split["test"]) == sorted(given[site]["train"])
        assert not set(split["train"]) & set(split["test"])
        assert len({stem[:2] for stem in split["train"]} & {stem[:2] for stem in split["test"]}) == 0
    dataset = read_folder(out, test_fraction=0.5, seed=ExperimentSeed(0))
    seen = {case.name for site in dataset.sites.values() for case in (*site.train, *site.test)}
    tests = {stem for split in given.values() for stem in split["test"]}
    assert not {name.rsplit("/", 1)[-1] for name in seen} & tests


def test_again_the_same_folder_stays_and_another_draw_is_refused(tmp_path):
    data = drawn_folder(tmp_path / "data")
    out = hold_out(data, tmp_path / "held-out", seed=7)
    before = (out / "splits.json").read_bytes()
    assert hold_out(data, out, seed=7) == out
    assert (out / "splits.json").read_bytes() == before
    with pytest.raises(ConfigError, match="holds out other images"):
        hold_out(data, out, seed=8)


def test_a_folder_without_a_split_is_refused(tmp_path):
    data = drawn_folder(tmp_path / "data")
    (data / "splits.json").unlink()
    with pytest.raises(ConfigError, match=r"no splits\.json"):
        hold_out(data, tmp_path / "held-out", seed=7)
    assert not (tmp_path / "held-out").exists()
