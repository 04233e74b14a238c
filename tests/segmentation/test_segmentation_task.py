"""The task behind the plug point."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from secfl.config import RunConfig, load_config
from secfl.errors import ConfigError, DataError
from secfl.segmentation import build_task
from secfl.segmentation.task import SiteMetrics

SMALL = {
    "threads": 1,
    "data": {"phantom_images": 8, "image_size": 32},
    "model": {"channels": [4, 8, 8]},
    "training": {"rounds": 3, "local_epochs": 1, "batch_size": 2, "device": "cpu"},
}


def config(**changes) -> RunConfig:
    merged = {
        key: value | changes.pop(key, {}) if isinstance(value, dict) else value
        for key, value in SMALL.items()
    }
    return load_config(None, merged | changes)


def equal(one, other):
    return list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def task():
    return build_task(config())


class TestPhantom:
    def test_sites_and_counts(self, task):
        assert task.sites == ("clinic-1", "clinic-2", "clinic-3")
        assert task.is_phantom
        assert all(task.examples(site) == 6 for site in task.sites)

    def test_the_number_of_clients(self):
        assert len(build_task(config(clients=5)).sites) == 5

    def test_the_initial_state(self, task):
        state = task.initial_state()
        assert all(value.dtype == np.float32 for value in state.values())
        assert equal(state, build_task(config()).initial_state())
        assert not equal(state, build_task(config(seed=1)).initial_state())

    def test_training_depends_on_site_round_and_state_only(self, task):
        state = task.initial_state()
        before = {name: value.copy() for name, value in state.items()}
        first = task.train("clinic-2", state, round_index=1)
        task.train("clinic-1", state, round_index=0)
        resumed = build_task(config()).train("clinic-2", state, round_index=1)
        assert equal(first.state, resumed.state)
        assert first.loss == resumed.loss
        assert first.examples == 6
        assert equal(state, before)
        assert not equal(first.state, task.train("clinic-2", state, round_index=2).state)
        assert not equal(first.state, task.train("clinic-1", state, round_index=1).state)

    def test_a_reference_is_not_the_federated_model(self, task):
        pooled = task.train_reference(task.sites, rounds=1)
        assert equal(pooled, task.train_reference(tuple(reversed(task.sites)), rounds=1))
        assert not equal(pooled, task.train_reference(("clinic-1",), rounds=1))

    def test_evaluation(self, task):
        found = task.evaluate("clinic-3", task.initial_state())
        assert isinstance(found, SiteMetrics)
        assert found.cases == 2
        assert 0 <= found.dice <= 1
        assert found == task.evaluate("clinic-3", task.initial_state())

    def test_several_classes(self):
        task = build_task(config(data={"phantom_target": "tissues"}))
        state = task.train("clinic-1", task.initial_state(), round_index=0).state
        assert 0 < task.evaluate("clinic-1", state).dice < 1
        assert (
            len(np.unique(task.previews("clinic-1", state)[0].pixels[:, 32:64].reshape(-1, 3), axis=0)) >= 5
        )

    def test_flips_at_test_time_change_the_prediction(self):
        plain, flipped = (
            build_task(config(model={"test_time_augmentation": mode})) for mode in ("none", "flips")
        )
        state = plain.train("clinic-1", plain.initial_state(), round_index=0).state
        assert plain.evaluate("clinic-1", state) != flipped.evaluate("clinic-1", state)

    def test_previews(self, task):
        shown = task.previews("clinic-1", task.initial_state())
        assert [preview.site for preview in shown] == ["clinic-1"] * 2
        for preview in shown:
            assert preview.pixels.shape == (32, 96, 3)
            assert preview.pixels.dtype == np.uint8


class TestFolder:
    def folder_task(self, folder, **changes):
        return build_task(config(data={"source": str(folder.root)}, **changes))

    def test_sites_train_and_evaluate(self, folder):
        task = self.folder_task(folder)
        assert task.sites == ("north", "south", "west")
        assert not task.is_phantom
        state = task.train("west", task.initial_state(), round_index=0).state
        assert task.evaluate("south", state).cases == 1
        assert task.previews("north", state)[0].pixels.shape == (32, 120, 3)

    def test_the_number_of_clients_must_match(self, folder):
        assert len(self.folder_task(folder, clients=3).sites) == 3
        with pytest.raises(ConfigError, match=r"--clients 4: .* has 3 sites"):
            self.folder_task(folder, clients=4)

    def test_bad_data_stops_before_training(self, folder):
        folder.mask("south", 2).unlink()
        with pytest.raises(DataError, match="no mask"):
            self.folder_task(folder)

    def test_the_place_of_the_data_is_not_in_the_digest(self, folder):
        before = self.folder_task(folder).digest()
        moved = type(folder)(folder.root.rename(folder.root.with_name("elsewhere")))
        assert self.folder_task(moved).digest() == before


class TestDigest:
    def test_it_is_stable(self, task):
        assert len(task.digest()) == 32
        assert task.digest() == build_task(config()).digest()

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 1},
            {"training": {"learning_rate": 0.001}},
            {"training": {"local_epochs": 2}},
            {"training": {"rounds": 4}},
            {"training": {"augmentation": "strong"}},
            {"model": {"normalization": "group"}},
            {"data": {"test_fraction": 0.5}},
        ],
    )
    def test_what_affects_training_changes_it(self, task, changes):
        assert build_task(config(**changes)).digest() != task.digest()

    def test_threads_do_not(self, task):
        assert build_task(config(threads=2)).digest() == task.digest()

    def test_code_changes_it(self, task, monkeypatch):
        before = task.digest()
        other = build_task(config())
        monkeypatch.setattr(type(other), "_code_digest", b"another version")
        assert other.digest() != before


def test_an_unknown_model_is_refused():
    with pytest.raises(ConfigError, match=r"model\.name: 'vnet'"):
        build_task(config(model={"name": "vnet"}))


def test_importing_loads_no_torch():
    code = (
        "import sys, secfl.segmentation, secfl.segmentation.data.folder, secfl.segmentation.data.phantom;"
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
