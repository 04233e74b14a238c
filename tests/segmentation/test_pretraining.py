"""Learning without labels: what is hidden, what is learned, what segmentation takes over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from secfl.config import load_config
from secfl.errors import ConfigError, DataError
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver
from secfl.segmentation.models.parts import head_names
from secfl.segmentation.pretraining import PretrainingTask, hide_patches, read_pretrained, transfer
from secfl.segmentation.segmentation_task import build_task, load_dataset


def settings(*, model=None, scheme="masking", **training):
    return load_config(
        None,
        {
            "clients": 3,
            "threads": 1,
            "data": {"phantom_images": 8, "image_size": 32},
            "model": {"channels": [4, 8, 8]} | (model or {}),
            "training": {"rounds": 2, "local_epochs": 1, "objective": "masked-images"} | training,
            "secure_agg": {"scheme": scheme},
        },
    )


class TestHiding:
    @pytest.mark.parametrize("sides", [(32, 48), (16, 16, 24), (33, 20)])
    def test_three_quarters_of_whole_patches_are_hidden(self, sides):
        images = torch.ones(5, 2, *sides)
        generator = torch.Generator().manual_seed(0)
        seen, hidden = hide_patches(images, patch=8, share=0.75, generator=generator)
        assert hidden.shape == (5, 1, *sides)
        assert torch.equal(seen == 0, hidden.expand_as(images))
        if all(side % 8 == 0 for side in sides):
            assert torch.equal(hidden.flatten(1).float().mean(1), torch.full((5,), 0.75))
        # A patch is hidden or seen as a whole.
        patches = hidden[:, 0, : sides[0] // 8 * 8]
        first = patches[:, :8].float()
        assert set(first.mean(dim=1).unique().tolist()) <= {0.0, 1.0}
        assert not torch.equal(hidden[0], hidden[1])

    def test_the_seed_decides(self):
        images = torch.ones(2, 1, 32, 32)
        one, same, other = (
            hide_patches(images, patch=8, share=0.5, generator=torch.Generator().manual_seed(seed))[1]
            for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_it_learns_to_fill_in_more_than_the_mean():
    task = build_task(settings(rounds=20, learning_rate=0.01, augmentation="none"))
    assert isinstance(task, PretrainingTask)
    site = task.sites[0]
    before = task.evaluate(site, task.initial_state()).dice
    after = task.evaluate(site, task.train_reference([site], rounds=20)).dice
    assert before < 0.2
    assert after > before + 0.3


def test_labels_are_never_read():
    config = settings()
    data = load_dataset(config)
    blind = replace(
        data,
        sites={
            name: replace(
                site,
                train=tuple(replace(case, labels=np.zeros_like(case.labels)) for case in site.train),
                test=tuple(replace(case, labels=np.zeros_like(case.labels)) for case in site.test),
            )
            for name, site in data.sites.items()
        },
    )
    one, two = PretrainingTask(config, data), PretrainingTask(config, blind)
    start = one.initial_state()
    first, second = (task.train("clinic-1", start, round_index=0).state for task in (one, two))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert one.evaluate("clinic-2", first) == two.evaluate("clinic-2", first)


@pytest.mark.parametrize("scheme", ["plain", "masking"])
def test_a_federated_backbone_starts_a_segmentation(tmp_path, scheme):
    config = settings(scheme=scheme)
    simulation.simulate(config, out=tmp_path / "run", observer=SilentObserver())
    path = tmp_path / "run/checkpoints/final.safetensors"
    later = settings(objective="segmentation", model={"pretrained": str(path)}, stages=[1])
    task = build_task(later)
    plain = build_task(settings(objective="segmentation")).initial_state()
    started, backbone = task.initial_state(), read_pretrained(path)
    model, _ = task.module(started)
    head = head_names(model, task._spec)
    assert all(np.array_equal(started[name], backbone[name]) for name in started if name not in head)
    assert all(np.array_equal(started[name], plain[name]) for name in head)
    # The first stage of the schedule learns the head alone.
    trained = task.train(task.sites[0], started, round_index=0).state
    changed = {name for name in trained if not np.array_equal(trained[name], started[name])}
    assert changed == set(head)


class TestTransfer:
    def test_what_does_not_fit_starts_anew(self):
        state = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32), "head": np.zeros(1, np.float32)}
        other = {"a": np.ones(3, np.float32), "b": np.ones(5, np.float32), "head": np.ones(1, np.float32)}
        found = transfer(other, state, head=frozenset({"head"}))
        assert [float(found[name].mean()) for name in state] == [1.0, 0.0, 0.0]

    def test_another_model_is_refused(self):
        with pytest.raises(ConfigError, match=r"model\.pretrained: no tensor fits"):
            transfer({"x": np.zeros(1, np.float32)}, {"a": np.zeros(1, np.float32)}, head=frozenset())

    def test_files_that_are_none_are_named(self, tmp_path):
        with pytest.raises(DataError, match=r"absent\.safetensors: no such file"):
            read_pretrained(tmp_path / "absent.safetensors")
        (tmp_path / "broken.safetensors").write_bytes(b"not a model")
        with pytest.raises(DataError, match="cannot be read"):
            read_pretrained(tmp_path / "broken.safetensors")
        save_file({"a": np.zeros(1, np.int64)}, tmp_path / "empty.safetensors")
        with pytest.raises(DataError, match="no float32 tensor"):
            read_pretrained(tmp_path / "empty.safetensors")


@pytest.mark.parametrize("more", [{"stages": [1]}, {"proximal": 0.1}, {"local_parameters": "head"}])
def test_what_does_not_fit_together_is_named(more):
    with pytest.raises(ConfigError, match=r"training\.objective: masked-images needs"):
        settings(**more)


def test_folders_without_masks_do(tmp_path):
    rng = np.random.default_rng(0)
    for site in "abc":
        for number in range(4):
            place = tmp_path / site / "images" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(place)
    folder = {"data": {"source": str(tmp_path)}, "threads": 1, "model": {"channels": [4, 8, 8]}}
    keys = {"rounds": 1, "local_epochs": 1}
    config = load_config(None, {**folder, "training": {**keys, "objective": "masked-images"}})
    summary = simulation.simulate(config, out=tmp_path.parent / "run", observer=SilentObserver())
    assert summary["sites"] == ["a", "b", "c"]
    with pytest.raises(DataError, match="a/masks: no such folder"):
        build_task(load_config(None, {**folder, "training": keys}))
