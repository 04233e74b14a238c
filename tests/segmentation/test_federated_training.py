"""What a site does differently in a federation: FedProx, own normalisation, stages, accumulation, early stopping."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from secfl.config import TrainingConfig, load_config
from secfl.errors import ConfigError
from secfl.federation import simulation
from secfl.federation.checkpoint import load
from secfl.federation.observer import SilentObserver
from secfl.randomness import ExperimentSeed
from secfl.segmentation import training
from secfl.segmentation.data.phantom import make_phantom_dataset
from secfl.segmentation.models import ModelSpec, build_model, families
from secfl.segmentation.models.parts import (
    freeze_for_stage,
    head_names,
    local_names,
    normalization_names,
    order_of_use,
)
from secfl.segmentation.models.state import state_of
from secfl.segmentation.segmentation_task import build_task
from secfl.segmentation.training import Span, deterministic, learning_rate_factor, samples_of, train_span

SPEC = ModelSpec(family="unet", in_channels=1, classes=2, channels=(4, 8, 8), normalization="instance")
SMALL = {
    "clients": 3,
    "threads": 1,
    "data": {"phantom_images": 8, "image_size": 32},
    "model": {"channels": [4, 8, 8]},
    "training": {"rounds": 2, "local_epochs": 1},
}


def settings(*, data=None, **training_keys):
    tree = {
        **SMALL,
        "data": SMALL["data"] | (data or {}),
        "training": SMALL["training"] | training_keys,
    }
    return load_config(None, tree)


@pytest.fixture(scope="module")
def samples():
    data = make_phantom_dataset(
        sites=1, images_per_site=8, size=32, test_fraction=0.3, seed=ExperimentSeed(0)
    )
    return samples_of(data.sites["clinic-1"].train)


def train(samples, *, epochs=2, **keys):
    with deterministic(1):
        model = build_model(SPEC, seed=0)
        before = state_of(model)
        train_span(
            model,
            samples,
            settings=TrainingConfig(**{"batch_size": 2, "augmentation": "none"} | keys),
            span=Span(first=0, epochs=epochs, total=10),
            multiple=SPEC.multiple,
            seed=0,
        )
    after = state_of(model)
    return after, float(np.sqrt(sum(np.square(after[name] - before[name]).sum() for name in before)))


class TestProximal:
    def test_it_holds_the_model_back(self, samples):
        moved = [train(samples, epochs=4, proximal=strength)[1] for strength in (0.0, 1.0, 100.0)]
        assert moved[0] > moved[1] > moved[2] > 0

    def test_the_gradient_is_that_of_the_penalty(self):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        start = torch.tensor([0.5, 1.0])
        (weight**3).sum().backward()
        training._pull_back([weight], [start], 0.7)
        other = torch.nn.Parameter(weight.detach().clone())
        ((other**3).sum() + 0.35 * (other - start).square().sum()).backward()
        torch.testing.assert_close(weight.grad, other.grad)

    def test_zero_changes_nothing(self, samples):
        one, two = train(samples)[0], train(samples, proximal=0.0)[0]
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_accumulated_batches_are_one_batch(samples, monkeypatch):
    """With a loss that is a mean over images, six batches of one are one batch of six."""
    monkeypatch.setattr(
        training,
        "dice_and_cross_entropy",
        lambda logits, labels, _: torch.nn.functional.cross_entropy(logits, labels),
    )
    count = len(samples)
    together = train(samples, batch_size=count)[0]
    apart = train(samples, batch_size=1, accumulate=count)[0]
    single = train(samples, batch_size=1)[0]
    for name in together:
        np.testing.assert_allclose(apart[name], together[name], atol=2e-4)
    assert max(np.abs(single[name] - together[name]).max() for name in together) > 1e-3


def test_the_polynomial_schedule():
    factors = [learning_rate_factor(step / 100, "poly") for step in range(101)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5**0.9)
    assert factors[-1] == 0
    assert np.all(np.diff(factors) < 0)


def test_mixed_precision_needs_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.precision: bfloat16 needs a CUDA device"):
        build_task(settings(precision="bfloat16"))


class TestParts:
    @pytest.mark.parametrize("family", families())
    def test_the_head_depends_on_the_classes_and_nothing_else_does(self, family):
        one, two = (
            ModelSpec(
                family=family,
                in_channels=1,
                classes=classes,
                channels=(4, 8, 8, 8),
                normalization="group",
            )
            for classes in (2, 5)
        )
        few, many = build_model(one, seed=0), build_model(two, seed=0)
        shapes = {name: value.shape for name, value in many.named_parameters()}
        differ = {name for name, value in few.named_parameters() if value.shape != shapes[name]}
        head = head_names(few, one)
        assert head <= set(shapes)
        if family != "semantic":  # its votes are enlarged class by class, so more than the last layer differs
            assert differ == head

    @pytest.mark.parametrize("family", families())
    def test_every_parameter_has_its_place_in_the_order(self, family):
        spec = ModelSpec(
            family=family, in_channels=1, classes=2, channels=(4, 8, 8), normalization="instance"
        )
        model = build_model(spec, seed=0)
        assert set(order_of_use(model, spec)) == {name for name, _ in model.named_parameters()}
        norms = normalization_names(model)
        assert norms
        assert all(value.ndim == 1 for name, value in model.named_parameters() if name in norms)

    def test_stages_thaw_from_the_head(self):
        def learned(round_index):
            model = build_model(SPEC, seed=0)
            freeze_for_stage(model, SPEC, stages=(1, 2), round_index=round_index)
            return {name for name, value in model.named_parameters() if value.requires_grad}

        model = build_model(SPEC, seed=0)
        everything = {name for name, _ in model.named_parameters()}
        assert learned(0) == head_names(model, SPEC)
        assert learned(0) < learned(1) == learned(2) < learned(3) == everything
        assert not any(name.startswith(("input_block", "downsamples")) for name in learned(1))


class TestOwnNormalization:
    """Scale and shift of the normalisation never enter the summed vector."""

    def test_the_vector_holds_everything_else_and_sites_differ(self):
        task = build_task(settings(local_parameters="normalization"))
        whole = build_task(settings()).initial_state()
        shared = task.initial_state()
        names = local_names(build_model(SPEC, seed=0), SPEC, "normalization")
        assert set(whole) - set(shared) == names
        one, two = task.sites[:2]
        for site in (one, two):
            result = task.train(site, shared, round_index=0)
            assert set(result.state) == set(shared)
            assert set(task.personal_state(site)) == names
        first, second = task.personal_state(one), task.personal_state(two)
        assert any(not np.array_equal(first[name], second[name]) for name in names)
        # The same shared model is judged with the site's own parameters.
        initial = build_task(settings(local_parameters="normalization"))
        assert task.evaluate(one, shared) != initial.evaluate(one, shared)

    def test_a_second_training_in_a_round_starts_where_the_first_did(self):
        task = build_task(settings(local_parameters="normalization"))
        state, site = task.initial_state(), task.sites[0]
        first = task.train(site, state, round_index=0).state
        own = task.personal_state(site)
        again = task.train(site, state, round_index=0).state
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert all(np.array_equal(own[name], task.personal_state(site)[name]) for name in own)
        later = task.train(site, state, round_index=1).state
        assert any(not np.array_equal(first[name], later[name]) for name in first)

    def test_an_interrupted_run_ends_in_the_identical_model(self, tmp_path):
        config = settings(local_parameters="normalization", rounds=3)
        whole = simulation.simulate(config, out=tmp_path / "whole", observer=SilentObserver())

        class Interrupt(SilentObserver):
            def round_finished(self, report):
                if report.round_index == 1:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            simulation.simulate(config, out=tmp_path / "cut", observer=Interrupt())
        resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver())
        assert resumed["final_model_sha256"] == whole["final_model_sha256"]
        assert resumed["evaluation_only"] == whole["evaluation_only"]
        kept = sorted(path.name for path in (tmp_path / "cut" / "sites").iterdir())
        assert kept == [f"clinic-{n}-round-0000{r}.safetensors" for n in (1, 2, 3) for r in (2, 3)]

    def test_the_head_may_stay_too(self):
        task = build_task(settings(local_parameters="head"))
        missing = set(build_task(settings()).initial_state()) - set(task.initial_state())
        assert missing == head_names(build_model(SPEC, seed=0), SPEC)


class TestEarlyStopping:
    def test_the_best_public_round_is_kept(self, tmp_path):
        config = settings(data={"public": ["open-1"]}, early_stopping=1, rounds=6, learning_rate=0.5)
        summary = simulation.simulate(config, out=tmp_path / "run", observer=SilentObserver())
        rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        scores = [row["public_dice"] for row in rows]
        assert summary["rounds_completed"] == len(scores) < 6
        assert summary["stopped_because"] == "no better Dice on public images for 1 rounds"
        assert "open-1" not in summary["sites"]
        task = build_task(config)
        final = load(tmp_path / "run/checkpoints/final.safetensors").state
        assert round(task.public_score(final), 6) == max(scores)

    def test_public_sites_are_no_clients(self):
        task = build_task(settings(data={"public": ["open-1", "open-2"]}))
        assert task.sites == ("clinic-1", "clinic-2", "clinic-3")
        assert build_task(settings()).public_score(task.initial_state()) is None

    def test_public_sites_do_not_change_the_others(self):
        one, two = build_task(settings()), build_task(settings(data={"public": ["open"]}))
        state = one.initial_state()
        assert all(one.evaluate(site, state) == two.evaluate(site, state) for site in one.sites)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"early_stopping": 2}, r"training\.early_stopping: needs public images"),
        ({"early_stopping": 2, "local_parameters": "head", "data": {"public": ["a"]}}, "local_parameters"),
        ({"stages": [-1]}, r"training\.stages: expected numbers of rounds"),
        ({"data": {"public": ["clinic-1"]}}, r"data\.public: clinic-1 is another site's name"),
    ],
)
def test_what_does_not_fit_together_is_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_task(settings(**keys))


@pytest.mark.parametrize("key", [{"local_parameters": "head"}, {"stages": [1]}, {"proximal": 0.1}])
def test_private_steps_take_the_whole_model(key):
    tree = SMALL | {"training": key, "privacy": {"mode": "patient", "epsilon": 8}}
    with pytest.raises(ConfigError, match=f"training.{next(iter(key))}: --dp patient"):
        load_config(None, tree)
