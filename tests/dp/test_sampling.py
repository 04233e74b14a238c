"""The statistical tests have a level of 1e-6 each: a false alarm in fewer than 5 of a million runs."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from secfl.dp.sampling import PoissonSampler, batch_tail
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng, SystemRng

LEVEL = 1e-6


class Scripted:
    """An `Rng` that hands out given bytes."""

    is_secret = True

    def __init__(self, data):
        self.data = data

    def bytes(self, count):
        part, self.data = self.data[:count], self.data[count:]
        assert len(part) == count
        return part

    def fork(self, label):
        return self


@given(st.floats(1e-12, 1.0), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_comparison_is_exact_also_at_the_edge(rate, words):
    threshold = math.floor(Fraction(rate) * 2**128)
    high = min(threshold >> 64, 2**64 - 1)
    words = [*words, max(0, high - 1), high, high, min(high + 1, 2**64 - 1)]
    seconds = [max(0, (threshold & (2**64 - 1)) - 1), threshold & (2**64 - 1)] * len(words)
    script = b"".join(word.to_bytes(8, "little") for word in words + seconds)
    drawn = set(PoissonSampler(population=len(words), rate=rate).draw(Scripted(script)).tolist())
    pending = iter(seconds)
    for index, word in enumerate(words):
        if threshold == 2**128:
            inside = True
        else:
            second = next(pending) if word == threshold >> 64 else 0
            inside = (word << 64 | second) < threshold
        assert (index in drawn) == inside


def test_everybody_takes_part_at_rate_one_and_nobody_in_an_empty_site():
    assert PoissonSampler(population=7, rate=1.0).draw(SystemRng()).tolist() == list(range(7))
    assert PoissonSampler(population=0, rate=0.3).draw(SystemRng()).size == 0


def batch_sizes(draw, steps):
    return np.array([draw().size for _ in range(steps)])


def sizes_rejected(sizes, population, rate):
    """Mean and variance of batch sizes against the binomial (normal and chi-square, level 1e-6 each)."""
    variance = population * rate * (1 - rate)
    score = (sizes.mean() - population * rate) / math.sqrt(variance / sizes.size)
    statistic = ((sizes - population * rate) ** 2).sum() / variance
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], sizes.size)
    return abs(score) > stats.norm.isf(LEVEL / 2) or not low <= statistic <= high


def test_batch_sizes_are_binomial_and_shuffled_batches_are_caught():
    population, rate, steps = 500, 0.04, 400
    sampler = PoissonSampler(population=population, rate=rate)
    assert not sizes_rejected(batch_sizes(lambda: sampler.draw(SystemRng()), steps), population, rate)
    # Shuffling into batches of q·N has the right mean and no variance.
    order = np.random.default_rng(0)
    assert sizes_rejected(batch_sizes(lambda: order.permutation(population)[:20], steps), population, rate)
    # A rate that is ten per cent too high is caught as well.
    wrong = PoissonSampler(population=population, rate=0.044)
    assert sizes_rejected(batch_sizes(lambda: wrong.draw(SystemRng()), steps), population, rate)


def gaps_rejected(gaps, rate):
    """Whether two consecutive steps share a patient as often as independence says; level 1e-6."""
    expected = rate
    return stats.binomtest(sum(gaps), len(gaps), expected).pvalue < LEVEL


def test_steps_are_independent_and_epochs_without_replacement_are_caught():
    population, rate = 1000, 0.1
    sampler = PoissonSampler(population=population, rate=rate)

    def repeats(draw):
        first, second = draw(), draw()
        return np.isin(first, second).tolist()

    assert not gaps_rejected(
        [hit for _ in range(20) for hit in repeats(lambda: sampler.draw(SystemRng()))], rate
    )
    order = np.random.default_rng(0)

    def epoch():
        batches = iter(np.split(order.permutation(population), 10))
        return repeats(lambda: next(batches))

    assert gaps_rejected([hit for _ in range(20) for hit in epoch()], rate)


def test_the_sampler_takes_a_source_and_never_a_seed():
    parameters = inspect.signature(PoissonSampler.draw).parameters
    assert list(parameters) == ["self", "rng"]
    sampler = PoissonSampler(population=1000, rate=0.5)
    assert not np.array_equal(sampler.draw(SystemRng()), sampler.draw(SystemRng()))
    assert np.array_equal(sampler.draw(InsecureSeededRng(1)), sampler.draw(InsecureSeededRng(1)))


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": 1.5}, {"rate": math.nan}, {"population": -1}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError):
        PoissonSampler(**{"population": 10, "rate": 0.5, **wrong})


@given(st.integers(1, 5000), st.floats(1e-4, 1.0), st.integers(1, 80))
def test_batch_tail_bounds_the_binomial(patients, rate, bits):
    bound = batch_tail(patients, rate, log2_probability=-bits)
    assert patients * rate <= bound + 1
    assert stats.binom.sf(bound, patients, rate) <= 2.0**-bits * (1 + 1e-9)


def test_batch_tail_is_not_idle():
    bound = batch_tail(1000, 0.04, log2_probability=-40)
    assert stats.binom.sf(0.9 * bound, 1000, 0.04) > 2.0**-40
    assert batch_tail(0, 0.5, log2_probability=-40) == 0
    with pytest.raises(ConfigError):
        batch_tail(-1, 0.5, log2_probability=-40)
