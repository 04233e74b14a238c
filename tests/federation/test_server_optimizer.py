"""FedAvg, FedAvgM and FedAdam on the server's side of the sum: the same steps as torch's, kept between rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secfl.config import ServerOptimizerName, load_config
from secfl.errors import DataError
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver
from secfl.federation.server_optimizer import server_optimizer
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
