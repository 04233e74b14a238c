"""FedAvg, FedAvgM and FedAdam on the server's side of the sum: the same steps as torch's, kept between rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secfl.config import ServerOptimizerName, load_config
from secfl.errors import ConfigError, DataError
from secfl.federation import checkpoint, simulation
from secfl.federation.observer import SilentObserver
from secfl.federation.server_optimizer import Falling, server_optimizer
from secfl.testing.tasks import LinearTask

MEANS = np.random.default_rng(0).normal(0, 1, (6, 11))


def steps(name, means, *, rate=0.3, start=None):
    optimizer = server_optimizer(name, learning_rate=rate)
    if start is not None:
        optimizer.load(start)
    return [optimizer.step(mean) for mean in means], optimizer.arrays()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        (ServerOptimizerName.AVERAGE, lambda values: torch.optim.SGD(values, lr=0.3)),
        (ServerOptimizerName.MOMENTUM, lambda values: torch.optim.SGD(values, lr=0.3, momentum=0.9)),
        (ServerOptimizerName.ADAM, lambda values: torch.optim.Adam(values, lr=0.3, eps=1e-12)),
    ],
)
def test_the_mean_update_is_a_descent_direction(name, reference):
    """What a client moved by is minus a gradient, as far as an optimizer is concerned (Reddi et al. 2021)."""
    model = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    optimizer = reference([model])
    found = np.zeros(11)
    for mean, step in zip(MEANS, steps(name, MEANS)[0], strict=True):
        model.grad = torch.tensor(-mean)
        optimizer.step()
        found += step
        np.testing.assert_allclose(found, model.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(ServerOptimizerName))
def test_its_state_goes_on_where_it_was(name):
    whole, _ = steps(name, MEANS)
    _, state = steps(name, MEANS[:3])
    again, _ = steps(name, MEANS[3:], start=state)
    for one, other in zip(whole[3:], again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_ones_state_is_refused():
    _, state = steps(ServerOptimizerName.ADAM, MEANS)
    with pytest.raises(DataError, match="another server optimizer"):
        server_optimizer(ServerOptimizerName.MOMENTUM, learning_rate=1.0).load(state)


class Interrupt(SilentObserver):
    def round_finished(self, report):
        if report.round_index == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_runs_end_alike_under_every_scheme_and_after_an_interruption(tmp_path, name):
    def config(scheme):
        training = {"rounds": 4, "server": name, "server_learning_rate": 0.05}
        return load_config(
            None, {"secure_agg": {"scheme": scheme, "coordinate_bound": 4.0}, "training": training}
        )

    def simulate(scheme, folder, observer=None):
        return simulation.simulate(
            config(scheme), out=tmp_path / folder, observer=observer or SilentObserver(), task=LinearTask()
        )["final_model_sha256"]

    expected = simulate("plain", "plain")
    assert simulate("masking", "masking") == expected
    with pytest.raises(KeyboardInterrupt):
        simulate("masking", "cut", Interrupt())
    resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver(), task=LinearTask())
    assert resumed["final_model_sha256"] == expected
    average = load_config(
        None, {"secure_agg": {"scheme": "plain", "coordinate_bound": 4.0}, "training": {"rounds": 4}}
    )
    other = simulation.simulate(
        average, out=tmp_path / "average", observer=SilentObserver(), task=LinearTask()
    )
    assert other["final_model_sha256"] != expected


def falling(count, *, last=0.2, total=6, start=None):
    optimizer = Falling(server_optimizer(ServerOptimizerName.ADAM, learning_rate=0.3), last=last, steps=total)
    if start is not None:
        optimizer.load(start)
    return [optimizer.step(mean) for mean in MEANS[:count]], optimizer.arrays()


def test_falling_steps_are_the_others_times_a_factor_that_ends_at_the_last_one():
    whole, _ = steps(ServerOptimizerName.ADAM, MEANS)
    factors = [found / plain for found, plain in zip(falling(6)[0], whole, strict=True)]
    for factor, expected in zip(factors, (1.0, 0.84, 0.68, 0.52, 0.36, 0.2), strict=True):
        np.testing.assert_allclose(factor, expected, rtol=1e-12)


def test_falling_steps_go_on_where_they_were_and_stay_at_the_last_one():
    whole, _ = falling(6, total=4)
    _, state = falling(3, total=4)
    optimizer = Falling(server_optimizer(ServerOptimizerName.ADAM, learning_rate=0.3), last=0.2, steps=4)
    optimizer.load(state)
    for mean, expected in zip(MEANS[3:], whole[3:], strict=True):
        np.testing.assert_array_equal(optimizer.step(mean), expected)
    plain, _ = steps(ServerOptimizerName.ADAM, MEANS)
    np.testing.assert_allclose(whole[5], 0.2 * plain[5], rtol=1e-12)


def test_the_state_of_steps_that_do_not_fall_is_refused():
    _, state = steps(ServerOptimizerName.ADAM, MEANS)
    with pytest.raises(DataError, match="another server optimizer"):
        falling(1, start=state)
    with pytest.raises(DataError, match="another server optimizer"):
        server_optimizer(ServerOptimizerName.ADAM, learning_rate=0.3).load(falling(1)[1])


PRIVATE = {
    "mode": "patient",
    "nominal_patients": 60,
    "sampling_rate": 0.5,
    "steps": 4,
    "step_size": 0.05,
    "noise_multiplier": 2.0,
    "accept_weak": True,
}


def test_private_steps_fall_in_a_run_and_go_on_falling_after_an_interruption(tmp_path):
    settings = load_config(None, {"privacy": {**PRIVATE, "final_step_size": 0.01}})
    task = LinearTask(features=10, examples=60)
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(settings, out=tmp_path / "run", observer=Interrupt(), task=task)
    simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task)
    kept = checkpoint.load(checkpoint.latest_checkpoint(tmp_path / "run" / "checkpoints")).optimizer
    assert kept["falling.count"] == 4
    assert kept["count"] == 4


def test_the_last_step_size_belongs_to_the_runs_digest_only_where_it_is_given():
    plain = load_config(None, {"privacy": PRIVATE})
    assert load_config(None, {"privacy": {**PRIVATE, "final_step_size": None}}).digest() == plain.digest()
    assert load_config(None, {"privacy": {**PRIVATE, "final_step_size": 0.05}}).digest() != plain.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_step_size": 0.06}, "expected at most privacy.step_size"),
        (
            {"final_step_size": 0.01, "schedule": "round", "local_steps": 2},
            "needs --dp patient with --dp-schedule step",
        ),
        ({"final_step_size": 0.01, "mode": "client"}, "needs --dp patient with --dp-schedule step"),
    ],
)
def test_a_last_step_size_that_means_nothing_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, {"privacy": {**PRIVATE, **change}})
