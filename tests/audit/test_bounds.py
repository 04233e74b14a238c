"""Bounds: coverage computed exactly, published figures, and what they must not say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from secfl.audit.bounds import (
    clopper_pearson,
    epsilon_of_rates,
    epsilon_of_separation,
    gaussian_estimate,
    largest_provable_epsilon,
    one_run_epsilon,
    one_run_p_value,
    separation_of_epsilon,
)
from secfl.errors import ConfigError


@pytest.mark.parametrize("chance", [0.001, 0.03, 0.5, 0.97])
@pytest.mark.parametrize("level", [0.05, 1e-3])
def test_limits_are_wrong_no_more_often_than_they_say(chance, level):
    trials = 200
    counts = np.arange(trials + 1)
    low, high = clopper_pearson(counts, trials, level=level)
    weights = binom.pmf(counts, trials, chance)
    assert weights[low > chance].sum() <= level
    assert weights[high < chance].sum() <= level
    assert low[0] == 0
    assert high[-1] == 1


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_exceeds_the_truth_no_more_often_than_its_level(epsilon):
    trials, level = 60, 0.05
    chance = 1 / (1 + math.exp(-epsilon))  # randomized response: exactly epsilon
    counts = np.arange(trials + 1)
    bounds = epsilon_of_rates(counts[:, None], counts[None, :], trials=trials, delta=0.0, level=level)
    weights = np.outer(binom.pmf(counts, trials, chance), binom.pmf(counts, trials, 1 - chance))
    wrong = weights[bounds > epsilon].sum()
    assert wrong <= level
    assert weights[bounds > 0].sum() > 0.3  # and it says something


def test_certain_events_prove_no_more_than_the_draws_allow():
    assert largest_provable_epsilon(1000, delta=0.0, level=0.05) == pytest.approx(5.60, abs=0.01)
    assert largest_provable_epsilon(10**6, delta=0.0, level=0.05) > 12


def test_separation_and_epsilon_are_inverse():
    for epsilon in (0.1, 1.0, 8.0, 30.0):
        separation = separation_of_epsilon(epsilon, delta=1e-5)
        assert epsilon_of_separation(separation, delta=1e-5) == pytest.approx(epsilon, rel=1e-6)
    assert epsilon_of_separation(-1.0, delta=1e-5) == 0


def test_the_gaussian_estimate_lies_below_the_truth_as_often_as_it_says():
    source = np.random.default_rng(5)
    truth, wrong = 1.3, 0
    for _ in range(400):
        found = gaussian_estimate(
            source.normal(truth, 1, 300), source.normal(0, 1, 300), delta=1e-5, confidence=0.95
        )
        wrong += found.lower > truth
    # Binomial(400, 0.05) exceeds 40 with probability 1e-5; an estimate without margin would reach 200.
    assert 4 <= wrong <= 40


@pytest.mark.parametrize(("present", "absent"), [(1, 50), (50, 1)])
def test_the_gaussian_estimate_needs_scores_on_both_sides(present, absent):
    with pytest.raises(ConfigError):
        gaussian_estimate(np.zeros(present), np.zeros(absent), delta=1e-5)


def test_the_one_run_bound_holds_for_randomized_response():
    # Every guess is right with probability e^ε/(1+e^ε): exactly ε. At the level 0.05 the bound may exceed it in 5 %.
    epsilon, guesses, level = 1.0, 150, 0.05
    counts = np.arange(guesses + 1)
    chance = 1 / (1 + math.exp(-epsilon))
    bounds = np.array(
        [
            one_run_epsilon(correct=int(count), guesses=guesses, canaries=guesses, delta=0.0, level=level)
            for count in counts
        ]
    )
    weights = binom.pmf(counts, guesses, chance)
    assert weights[bounds > epsilon + 1e-3].sum() <= level
    assert (weights * bounds).sum() > 0.4


def test_the_one_run_bound_of_perfect_guesses_grows_with_their_number():
    few, many = (
        one_run_epsilon(correct=count, guesses=count, canaries=1000, delta=1e-5) for count in (50, 500)
    )
    assert 2 < few < many
    assert one_run_epsilon(correct=0, guesses=0, canaries=10, delta=1e-5) == 0


def test_delta_weakens_the_one_run_bound():
    values = [
        one_run_p_value(2.0, correct=95, guesses=100, canaries=1000, delta=delta) for delta in (0, 1e-6, 1e-4)
    ]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_impossible_counts_are_refused():
    with pytest.raises(ConfigError):
        one_run_epsilon(correct=11, guesses=10, canaries=10, delta=0)
