"""RMS drift through the secure sum equals the formula on the updates themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secfl.config import load_config
from secfl.crypto.codec import Grid, required_bits, to_residues
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.federation import simulation
from secfl.federation.drift import DriftMeter
from secfl.federation.observer import SilentObserver
from secfl.testing.tasks import LinearTask


def settings(scheme, **more):
    tree = {"training": {"rounds": 2, "drift": "measured"}, "secure_agg": {"scheme": scheme}}
    return load_config(None, tree | more)


def formula(updates):
    mean = np.mean(updates, axis=0)
    squares = np.mean([np.square(update).sum() for update in updates])
    return np.sqrt(squares - np.square(mean).sum()) / np.linalg.norm(mean)


@pytest.mark.parametrize("scheme", ["plain", "masking", "ckks"])
def test_it_is_what_the_updates_say(tmp_path, scheme):
    task = LinearTask()
    start = task.initial_state()
    updates = []
    for site in task.sites:
        trained = task.train(site, start, round_index=0).state
        updates.append(np.concatenate([(trained[name] - start[name]).ravel() for name in start]))
    config = settings(scheme)
    simulation.simulate(config, out=tmp_path / "run", observer=SilentObserver(), task=task)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["drift"] == pytest.approx(
        formula([np.clip(update, -0.25, 0.25) for update in updates]), rel=1e-3
    )
    assert rows[0]["drift"] > 0.1
    ledger = (tmp_path / "run/ledger.jsonl").read_text()
    assert "squared norms" in ledger.splitlines()[0]


def test_equal_updates_do_not_drift_and_opposite_ones_have_no_mean():
    grid = Grid.for_coordinates(100, coordinate_bound=1.0, value_bits=12)
    meter, bits = DriftMeter(grid=grid), required_bits(grid, clients=4)
    values = np.arange(100) - 50

    def measured(clients):
        summed = sum(int(meter.vector(part)[0]) for part in clients)
        total = to_residues(sum(clients), bits=bits)
        width = meter.vector_spec(clients=len(clients)).modulus_bits
        return meter.drift(np.array([summed], np.uint64), width, total, bits=bits, survivors=len(clients))

    assert measured([values] * 4) == pytest.approx(0, abs=1e-3)
    assert measured([values, -values]) is None
    assert measured([values, 0 * values]) == pytest.approx(1.0, abs=1e-3)


def test_an_impossible_sum_is_refused():
    grid = Grid.for_coordinates(4, coordinate_bound=1.0, value_bits=12)
    meter = DriftMeter(grid=grid)
    spec = meter.vector_spec(clients=3)
    too_much = np.array([4 << 38], np.uint64)
    total = to_residues(np.ones(4, np.int64), bits=16)
    with pytest.raises(RemoteProtocolError, match="squared norms"):
        meter.drift(too_much, spec.modulus_bits, total, bits=16, survivors=3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"privacy": {"mode": "client", "epsilon": 8}}, "not protected by --dp"),
        ({"training": {"drift": "measured", "weighting": "size"}}, "equal weights"),
    ],
)
def test_it_is_never_opened_beside_a_promise(more, message):
    with pytest.raises(ConfigError, match=message):
        settings("masking", **more)
