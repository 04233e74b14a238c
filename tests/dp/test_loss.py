import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from secfl.dp.loss import _compose, _gaussian_losses, compose_gaussians
from secfl.errors import UnsupportedEvent


def exact_delta(epsilon, z, rate):
    """δ(ε) of one sampled Gaussian by its closed form: both directions."""
    # Removed: the log ratio of the mixture rises with x; added: its negative falls.
    above = (math.exp(epsilon) - (1 - rate)) / rate
    removed = 1 - math.exp(epsilon)
    if above > 0:
        x = 0.5 + z * z * math.log(above)
        mixture = (1 - rate) * stats.norm.sf(x / z) + rate * stats.norm.sf((x - 1) / z)
        removed = mixture - math.exp(epsilon) * stats.norm.sf(x / z)
    below = (math.exp(-epsilon) - (1 - rate)) / rate
    added = 0.0
    if below > 0:
        x = 0.5 + z * z * math.log(below)
        mixture = (1 - rate) * stats.norm.cdf(x / z) + rate * stats.norm.cdf((x - 1) / z)
        added = stats.norm.cdf(x / z) - math.exp(epsilon) * mixture
    return max(removed, added)


@given(st.floats(0.3, 8.0), st.floats(0.001, 1.0), st.floats(0.0, 4.0))
@settings(max_examples=60)
def test_one_release_is_at_least_the_closed_form_and_close_to_it(z, rate, epsilon):
    bound = compose_gaussians(((z, rate, 1),)).delta(epsilon)
    true = exact_delta(epsilon, z, rate)
    assert bound >= true * (1 - 1e-9) - 1e-15
    assert bound <= true * 1.01 + 1e-6


@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_both_measures_keep_their_mass(rate):
    interval = 2.0**-11
    for loss in _gaussian_losses(0.8, rate, interval):
        grid = interval * (loss.first + np.arange(loss.mass.size))
        assert loss.mass.min() >= 0
        assert loss.mass.sum() == pytest.approx(1.0, abs=1e-12)
        assert (loss.mass * np.exp(-grid)).sum() == pytest.approx(1.0, abs=1e-9)


def test_composition_of_two_is_the_convolution():
    """Against a direct convolution of the two discretised losses, without FFT."""
    interval = 2.0**-6
    for index in range(2):
        parts = [_gaussian_losses(z, q, interval)[index] for z, q in ((1.0, 0.3), (1.3, 0.1))]
        mass = np.convolve(parts[0].mass, parts[1].mass)
        losses = interval * (parts[0].first + parts[1].first + np.arange(mass.size))
        found, found_mass, lost = _compose([(parts[0], 1), (parts[1], 1)], interval, narrowest=1.0)
        for epsilon in (0.0, 0.5, 1.5):
            direct = (mass * np.maximum(0.0, -np.expm1(epsilon - losses))).sum()
            value = (found_mass * np.maximum(0.0, -np.expm1(epsilon - found))).sum() + lost
            assert direct <= value <= direct * (1 + 1e-8) + 1e-12


def test_epsilon_is_the_smallest_that_delta_allows():
    composed = compose_gaussians(((1.0, 0.04, 500),))
    found = composed.epsilon(1e-5)
    assert composed.delta(found) <= 1e-5 < composed.delta(found * (1 - 1e-6))
    assert composed.epsilon(0.999) == 0.0
    assert composed.epsilon(1e-14) == math.inf  # below what the FFT's rounding leaves
    assert composed.delta(1e6) > 0


def test_mass_that_a_double_cannot_hold_goes_to_the_larger_loss():
    """At z = 0.02 the Q-mass of likely losses is below 1e-308: the bound must stay above the closed form."""
    z, rate = 0.02, 0.3
    composed = compose_gaussians(((z, rate, 1),))
    for epsilon in (1000.0, 1200.0, 1250.0, 1300.0):
        x = 0.5 + z * z * (epsilon - math.log(rate))
        true = rate * stats.norm.sf((x - 1) / z) - math.exp(
            epsilon / 2 + stats.norm.logsf(x / z) + epsilon / 2
        )
        assert composed.delta(epsilon) >= true * (1 - 1e-9) > 0


def test_far_too_little_noise_is_refused_rather_than_approximated():
    with pytest.raises(UnsupportedEvent, match="too little noise"):
        _gaussian_losses(0.01, 1.0, 2.0**-11)
