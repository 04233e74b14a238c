import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.dp.noise import NoiseFamily, integer_sampler
from secfl.dp.tables import Table, discrete_gaussian_thresholds, skellam_thresholds

TOP = 2**128


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0, 3.7, 20.0])
def test_discrete_gaussian_thresholds_are_within_their_stated_distance(exact, sigma):
    thresholds = discrete_gaussian_thresholds(Fraction(sigma) ** 2)
    distance = exact.total_variation(
        exact.pmf_of(thresholds), exact.discrete_gaussian(Fraction(sigma) ** 2, thresholds.reach)
    )
    assert distance <= thresholds.total_variation < 2.0**-118
    # The statement is not idle: a hundredth of it is exceeded.
    assert distance > thresholds.total_variation / 100


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(1), Fraction(137, 10), Fraction(300)])
def test_skellam_thresholds_are_within_their_stated_distance(exact, variance):
    thresholds = skellam_thresholds(variance)
    distance = exact.total_variation(exact.pmf_of(thresholds), exact.skellam(variance, thresholds.reach))
    assert thresholds.total_variation / 100 < distance <= thresholds.total_variation < 2.0**-118


def test_conditioned_skellam_matches_the_series(exact):
    stride, variance = 3, Fraction(60 * 60)
    thresholds = skellam_thresholds(variance, stride)
    ideal = exact.conditioned(exact.skellam(variance, stride * thresholds.reach), stride)
    assert exact.total_variation(exact.pmf_of(thresholds), ideal) <= thresholds.total_variation


def test_too_coarse_a_stride_is_refused():
    with pytest.raises(ValueError, match="too coarse"):
        skellam_thresholds(Fraction(100), 5)


def two_table_distribution(exact, family, stride, fine_ratio, sigma):
    """Exact distribution (integers over 2**256) of X1 + stride * X2 with s1 = fine_ratio * stride."""
    variance = Fraction(sigma) ** 2
    fine_variance = Fraction(fine_ratio) ** 2 * stride**2
    if family is NoiseFamily.DISCRETE_GAUSSIAN:
        fine = discrete_gaussian_thresholds(fine_variance)
        coarse = discrete_gaussian_thresholds((variance - fine_variance) / stride**2)
    else:
        fine = skellam_thresholds(fine_variance)
        coarse = skellam_thresholds(variance - fine_variance, stride)
    spread = [0] * (2 * stride * coarse.reach + 1)
    spread[::stride] = exact.pmf_of(coarse)
    fine_pmf = exact.pmf_of(fine)
    out = [0] * (len(spread) + len(fine_pmf) - 1)
    for j in range(0, len(spread), stride):
        weight = spread[j]
        for i, p in enumerate(fine_pmf):
            out[i + j] += p * weight
    return out, fine.reach + stride * coarse.reach


@pytest.mark.parametrize("family", list(NoiseFamily))
def test_two_tables_are_within_the_stated_distance_and_a_narrow_fine_table_is_not(exact, family):
    sigma = 250.0
    sampler = integer_sampler(family, sigma)
    stride = sampler._stride
    assert stride > 1
    thresholds = (
        discrete_gaussian_thresholds(Fraction(sigma) ** 2)
        if family is NoiseFamily.DISCRETE_GAUSSIAN
        else skellam_thresholds(Fraction(sigma) ** 2)
    )

    def distance(fine_ratio):
        drawn, reach = two_table_distribution(exact, family, stride, fine_ratio, sigma)
        ideal = [0] * (reach - thresholds.reach) + exact.pmf_of(thresholds)
        ideal += [0] * (len(drawn) - len(ideal))
        return float(Fraction(sum(abs(a - (b << 128)) for a, b in zip(drawn, ideal, strict=True)), 2 << 256))

    assert distance(Fraction(5, 2)) <= sampler.total_variation + thresholds.total_variation
    assert distance(Fraction(1)) > 1e-10  # the same construction with s1 = k


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.sampled_from([0.5, 2.0, 90.0]))
@settings(max_examples=40)
def test_lookup_equals_a_plain_search_in_the_thresholds(words, sigma):
    thresholds = discrete_gaussian_thresholds(Fraction(sigma) ** 2)
    # Add words around thresholds and the edges of guide cells, where mistakes would hide.
    near = [int(h) + d for h in thresholds.high[:: max(1, thresholds.reach // 4)] for d in (-1, 0, 1)]
    edges = [(cell << 48) + d for cell in (1, 32767, 32768, 65535) for d in (-1, 0)]
    words = [word for word in [*words, *near, *edges] if 0 <= word < 2**64]
    second = 2**63
    out = np.empty(len(words), np.int32)
    Table(thresholds).invert(
        np.array(words, np.uint64), lambda count: np.full(count, second, np.uint64), out=out
    )
    full = [(int(h) << 64) | int(low) for h, low in zip(thresholds.high, thresholds.low, strict=True)]
    expected = [sum(t <= (word << 64 | second) for t in full) - thresholds.reach for word in words]
    assert out.tolist() == expected


def test_a_tie_is_decided_by_the_second_word():
    thresholds = discrete_gaussian_thresholds(Fraction(4))
    index = thresholds.reach  # the threshold just below the value 0 ends the value 0 - 1 + 1
    tied = np.array([thresholds.high[index]], np.uint64)
    low = int(thresholds.low[index])
    asked = []

    def draw(second):
        out = np.empty(1, np.int32)

        def more(count):
            asked.append(count)
            return np.array([second], np.uint64)

        Table(thresholds).invert(tied, more, out=out)
        return int(out[0])

    assert draw(low - 1) == index - thresholds.reach
    assert draw(low) == index - thresholds.reach + 1
    assert asked == [1, 1]


def test_thresholds_are_increasing_and_centred(exact):
    thresholds = discrete_gaussian_thresholds(Fraction(100))
    pmf = exact.pmf_of(thresholds)
    assert min(pmf) > 0
    assert sum(pmf) == TOP
    assert max(abs(a - b) for a, b in zip(pmf, reversed(pmf), strict=True)) <= 2
    assert math.isclose(
        sum(p * (x - thresholds.reach) ** 2 for x, p in enumerate(pmf)) / TOP, 100.0, rel_tol=1e-9
    )
