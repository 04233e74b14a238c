"""Defaults that depend on where the images come from."""

from __future__ import annotations

import pytest

from secfl.config import FOLDER_DEFAULTS, DataConfig, RunConfig, TrainingConfig, load_config

FOLDER = {"data": {"source": "images"}}


def test_the_phantom_has_the_sections_own_defaults():
    assert load_config(None, {}).training == TrainingConfig()
    assert load_config(None, {"data": {"source": "phantom"}}) == RunConfig()


def test_a_folder_has_its_own():
    config = load_config(None, FOLDER)
    for section, defaults in FOLDER_DEFAULTS.items():
        for key, value in defaults.items():
            assert getattr(getattr(config, section), key) == value
    assert config.training.weight_decay == TrainingConfig().weight_decay


@pytest.mark.parametrize("key", FOLDER_DEFAULTS["training"])
def test_what_is_given_wins(key):
    given = TrainingConfig().model_dump(mode="json")[key]
    assert given != FOLDER_DEFAULTS["training"][key]
    config = load_config(None, FOLDER | {"training": {key: given}})
    assert getattr(config.training, key) == given
    others = set(FOLDER_DEFAULTS["training"]) - {key}
    assert all(getattr(config.training, other) == FOLDER_DEFAULTS["training"][other] for other in others)


def test_objects_and_tables_are_alike():
    made = RunConfig(data=DataConfig(source="images"), training=TrainingConfig(rounds=3))
    assert made == load_config(None, FOLDER | {"training": {"rounds": 3}})
    assert made.training.crop == FOLDER_DEFAULTS["training"]["crop"]


def test_written_out_it_stays_the_same(tmp_path):
    config = load_config(None, FOLDER | {"training": {"crop": 64}})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(path, {}) == config
