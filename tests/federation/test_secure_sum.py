"""The one-line door."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import secfl
from secfl.errors import ConfigError, DataError
from secfl.federation import secure_sum as module

SCHEMES = [("plain", "sum-key"), ("masking", "sum-key"), ("ckks", "sum-key"), ("ckks", "shared")]


def test_the_docstring_is_true():
    assert doctest.testmod(module, verbose=False).failed == 0


@pytest.mark.parametrize(("scheme", "key_mode"), SCHEMES)
def test_integers_are_summed_exactly(scheme, key_mode):
    source = np.random.default_rng(0)
    inputs = {name: source.integers(-(2**40), 2**40, size=(7, 5)) for name in "abcd"}
    total = secfl.secure_sum(inputs, scheme=scheme, key_mode=key_mode)
    np.testing.assert_array_equal(total, sum(inputs.values()))


@given(st.integers(3, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_reals_are_summed_within_the_stated_error(clients, length, seed):
    source = np.random.default_rng(seed)
    inputs = {f"c{index}": source.normal(size=length).astype(np.float32) for index in range(clients)}
    bound = max(float(np.abs(values).max()) for values in inputs.values())
    total = secfl.secure_sum(inputs)
    exact = sum(values.astype(float) for values in inputs.values())
    assert np.abs(total - exact).max() <= clients * bound / 2**24 * 1.01


def test_what_cannot_be_summed_is_refused():
    two = {"a": np.ones(2), "b": np.ones(2)}
    with pytest.raises(ConfigError, match="at least 3"):
        secfl.secure_sum(two)
    with pytest.raises(ConfigError, match="one shape"):
        secfl.secure_sum({**two, "c": np.ones(3)})
    with pytest.raises(DataError, match="c: NaN"):
        secfl.secure_sum({**two, "c": np.array([1, np.nan])})
    with pytest.raises(ConfigError, match="scheme"):
        secfl.secure_sum({**two, "c": np.ones(2)}, scheme="magic")
    with pytest.raises(ConfigError, match="client name"):
        secfl.secure_sum({**two, "aggregator": np.ones(2)})
