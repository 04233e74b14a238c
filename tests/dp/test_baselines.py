import math

import numpy as np
import pytest

from secfl.dp.accounting import epsilon
from secfl.dp.baselines import PercentileLaplace
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed

SEED = ExperimentSeed(3)


def test_no_epsilon_is_claimed():
    assert epsilon(PercentileLaplace().event, delta=1e-5) == math.inf


def test_it_keeps_clips_and_noises_as_described():
    update = np.linspace(-1, 1, 1001).astype(np.float32)
    made = PercentileLaplace(keep_fraction=0.1, percentile=50.0, stated_epsilon=1e6)
    out = made.apply(update, seed=SEED, label="a")
    assert out.dtype == np.float32
    assert 90 <= np.count_nonzero(out) <= 110
    assert np.abs(out).max() == pytest.approx(0.95, abs=0.01)
    noisy = PercentileLaplace(stated_epsilon=1.0).apply(update, seed=SEED, label="a")
    assert np.std(noisy[noisy != 0] - out[noisy != 0]) > 0.5


def test_it_is_reproducible_and_labels_differ():
    update = np.ones(50, np.float32)
    made = PercentileLaplace(keep_fraction=1.0)
    assert np.array_equal(made.apply(update, seed=SEED, label="a"), made.apply(update, seed=SEED, label="a"))
    assert not np.array_equal(
        made.apply(update, seed=SEED, label="a"), made.apply(update, seed=SEED, label="b")
    )


def test_its_threshold_reveals_the_data():
    """Two neighbouring updates lead to outputs that no noise of this kind confuses: the pattern differs."""
    first, second = np.zeros(100, np.float32), np.zeros(100, np.float32)
    first[:10], second[90:] = 1.0, 1.0
    made = PercentileLaplace(keep_fraction=0.1, stated_epsilon=0.001)
    patterns = [made.apply(x, seed=SEED, label="a") != 0 for x in (first, second)]
    assert not (patterns[0] & patterns[1]).any()


def test_a_zero_update_stays_zero():
    assert not PercentileLaplace().apply(np.zeros(5, np.float32), seed=SEED, label="a").any()


@pytest.mark.parametrize("change", [{"keep_fraction": 0.0}, {"percentile": 101.0}, {"stated_epsilon": 0.0}])
def test_impossible_parameters_are_refused(change):
    with pytest.raises(ConfigError):
        PercentileLaplace(**change)
