import itertools
import math

import numpy as np
import pytest

from secfl.crypto.hazmat import ring_noise
from secfl.crypto.hazmat.ring_noise import REACH, SIGMA, TOTAL_VARIATION_LOG2, RingNoise
from secfl.errors import LocalProtocolError

KEY = bytes(range(32))


def ideal():
    weights = [math.exp(-x * x / (2 * SIGMA**2)) for x in range(-REACH, REACH + 1)]
    return np.array(weights) / sum(weights)


def table_probabilities():
    """The table's own distribution, as exact integers over 2^128."""
    thresholds, _ = ring_noise._table()
    bounds = [0, *thresholds, 2**128]
    return [high - low for low, high in itertools.pairwise(bounds)]


def test_the_table_is_the_discrete_gaussian():
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(80):
        weights = [mpmath.e ** (-mpmath.mpf(x * x) / (2 * mpmath.mpf(81) / 4)) for x in range(-200, 201)]
        total = sum(weights)
        exact = {x: weight / total for x, weight in zip(range(-200, 201), weights, strict=True)}
        table = dict(zip(range(-REACH, REACH + 1), table_probabilities(), strict=True))
        distance = sum(abs(exact[x] - mpmath.mpf(table.get(x, 0)) / 2**128) for x in exact) / 2
        assert distance < mpmath.mpf(2) ** TOTAL_VARIATION_LOG2


def test_the_table_is_symmetric_and_complete():
    probabilities = table_probabilities()
    assert len(probabilities) == 2 * REACH + 1
    assert min(probabilities) >= 1
    difference = [abs(a - b) for a, b in zip(probabilities, reversed(probabilities), strict=True)]
    assert max(difference) <= 2  # rounding of the two thresholds


def test_every_prefix_decides_what_the_thresholds_say():
    thresholds, guide = ring_noise._table()
    undecided = 0
    for prefix in range(0, 2**16, 7):
        low, high = prefix << 112, ((prefix + 1) << 112) - 1
        values = {sum(t <= u for t in thresholds) - REACH for u in (low, high)}
        if len(values) == 1:
            assert guide[prefix] == values.pop()
        else:
            assert guide[prefix] == ring_noise._UNDECIDED
            undecided += 1
    assert undecided >= 1
    assert np.count_nonzero(guide == ring_noise._UNDECIDED) < 100


def chi_square(draws, probabilities):
    counts = np.bincount(draws.astype(np.int64) + REACH, minlength=2 * REACH + 1)
    keep = probabilities * draws.size >= 20
    seen = np.append(counts[keep], counts[~keep].sum())
    expected = np.append(probabilities[keep], probabilities[~keep].sum()) * draws.size
    return float(((seen - expected) ** 2 / expected).sum()), int(keep.sum())


def test_draws_follow_the_distribution():
    # Level 1e-6 by the chi-square quantile with 5 normal deviations: k + 5 sqrt(2k) + 20 bounds it for k < 60.
    draws = RingNoise(KEY).draw(1 << 20)
    statistic, freedom = chi_square(draws, ideal())
    limit = freedom + 5 * math.sqrt(2 * freedom) + 20
    assert statistic < limit
    wrong = np.exp(-(np.arange(-REACH, REACH + 1) ** 2) / (2 * 4.6**2))
    statistic, _ = chi_square(draws, wrong / wrong.sum())
    assert statistic > limit  # a width wrong by 2 % is seen


def test_undecided_prefixes_are_drawn_from_their_remainder(monkeypatch):
    # With every prefix undecided, each draw uses all 128 bits; the distribution must stay the same.
    thresholds, guide = ring_noise._table()
    monkeypatch.setattr(
        ring_noise, "_table", lambda: (thresholds, np.full_like(guide, ring_noise._UNDECIDED))
    )
    statistic, freedom = chi_square(RingNoise(KEY).draw(1 << 15), ideal())
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 20


def test_portions_do_not_change_the_stream(monkeypatch):
    whole = RingNoise(KEY).draw(5000)
    parts = RingNoise(KEY)
    np.testing.assert_array_equal(np.concatenate([parts.draw(n) for n in (1, 999, 0, 4000)]), whole)
    monkeypatch.setattr(ring_noise, "_BLOCK", 64)
    np.testing.assert_array_equal(RingNoise(KEY).draw(5000), whole)


def test_keys_give_unrelated_draws():
    first, second = RingNoise(KEY).draw(1 << 16), RingNoise(bytes(32)).draw(1 << 16)
    correlation = np.corrcoef(first, second)[0, 1]
    assert abs(correlation) < 6 / math.sqrt(first.size)  # 6 deviations: false alarm 2e-9
    assert np.corrcoef(first, RingNoise(KEY).draw(1 << 16))[0, 1] == pytest.approx(1)


def test_short_keys_are_refused_and_nothing_is_printed():
    with pytest.raises(LocalProtocolError):
        RingNoise(bytes(16))
    assert repr(RingNoise(KEY)) == "RingNoise(<redacted>)"
