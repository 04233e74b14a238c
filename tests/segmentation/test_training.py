"""Local training: deterministic, placed in the run's schedule, and it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secfl.config import Device, TrainingConfig
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.phantom import make_phantom_dataset
from secfl.segmentation.models import ModelSpec, build_model
from secfl.segmentation.models.state import state_of
from secfl.segmentation.training import (
    Span,
    crop_shape,
    deterministic,
    learning_rate_factor,
    resolve_device,
    samples_of,
    train_span,
)

SPEC = ModelSpec(family="unet", in_channels=1, classes=2, channels=(4, 8, 8), normalization="instance")


@pytest.fixture(scope="module")
def samples():
    data = make_phantom_dataset(
        sites=1, images_per_site=12, size=48, test_fraction=0.3, seed=ExperimentSeed(0)
    )
    return samples_of(data.sites["clinic-1"].train)


def train(samples, *, seed=0, span=None, threads=1, **settings):
    chosen = TrainingConfig(**{"batch_size": 4, "learning_rate": 0.01} | settings)
    with deterministic(threads):
        model = build_model(SPEC, seed=0)
        loss = train_span(
            model,
            samples,
            settings=chosen,
            span=span or Span(first=0, epochs=2, total=10),
            multiple=SPEC.multiple,
            seed=seed,
        )
    return state_of(model), loss


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


class TestDeterminism:
    @pytest.mark.parametrize("augmentation", ["none", "standard", "strong"])
    def test_the_same_inputs_give_the_same_bits(self, samples, augmentation):
        first, loss = train(samples, augmentation=augmentation)
        torch.manual_seed(99)
        torch.rand(1000)
        again, same_loss = train(samples, augmentation=augmentation)
        assert equal(first, again)
        assert loss == same_loss

    def test_the_seed_matters(self, samples):
        assert not equal(train(samples, seed=1)[0], train(samples, seed=2)[0])

    def test_the_place_in_the_run_matters(self, samples):
        early = train(samples, span=Span(first=2, epochs=1, total=10))[0]
        late = train(samples, span=Span(first=8, epochs=1, total=10))[0]
        assert not equal(early, late)

    def test_torch_is_left_as_it_was(self, samples):
        before = (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state(),
        )
        fill = torch.utils.deterministic.fill_uninitialized_memory
        train(samples, threads=before[0] + 1)
        assert torch.get_num_threads() == before[0]
        assert torch.are_deterministic_algorithms_enabled() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
        assert torch.utils.deterministic.fill_uninitialized_memory == fill

    def test_also_after_an_error(self):
        before = torch.get_num_threads()
        with pytest.raises(ZeroDivisionError), deterministic(before + 1):
            raise ZeroDivisionError
        assert torch.get_num_threads() == before
        assert not torch.are_deterministic_algorithms_enabled()


class TestSchedule:
    def test_warm_up_and_cosine(self):
        factors = [learning_rate_factor(step / 1000, "cosine") for step in range(1001)]
        peak = int(np.argmax(factors))
        assert max(factors) == pytest.approx(1.0, abs=1e-3)
        assert 30 < peak < 100
        assert np.all(np.diff(factors[:peak]) >= 0)
        assert np.all(np.diff(factors[peak:]) <= 0)
        assert factors[-1] == pytest.approx(0.01)
        assert min(factors) > 0

    def test_constant(self):
        assert {learning_rate_factor(progress, "constant") for progress in (0.0, 0.01, 0.5, 1.0)} == {1.0}


class TestCrops:
    @pytest.mark.parametrize(("crop", "expected"), [(0, 48), (24, 24), (25, 28), (400, 48)])
    def test_their_side_fits_the_model_and_the_images(self, samples, crop, expected):
        assert crop_shape(samples, crop=crop, multiple=4) == (expected, expected)


class TestDevice:
    def test_cuda_is_refused_where_there_is_none(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match="--device cuda: torch finds no CUDA device"):
            resolve_device(Device.CUDA)
        assert resolve_device(Device.AUTO).type == resolve_device(Device.CPU).type == "cpu"

    def test_auto_takes_cuda_where_there_is_one(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        assert resolve_device(Device.AUTO).type == "cuda"
        assert resolve_device(Device.CPU).type == "cpu"


def test_it_learns(samples):
    _, first = train(samples, augmentation="none", span=Span(first=0, epochs=1, total=40))
    _, last = train(samples, augmentation="none", span=Span(first=0, epochs=40, total=40))
    assert last < 0.6 * first
