import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto import codec
from secfl.crypto.codec import (
    Grid,
    centre,
    check_capacity,
    dequantise,
    quantise,
    relative_error,
    required_bits,
    to_residues,
)
from secfl.crypto.weights import WEIGHT_VECTOR, Weighting, weighted_mean
from secfl.errors import CapacityError, ConfigError, DataError, LocalProtocolError, RemoteProtocolError
from secfl.types import Update


def update_of(values, *, names=None, sizes=None):
    values = np.asarray(values, np.float32)
    return Update(values=values, names=names or ("weight",), sizes=sizes or (values.size,))


finite = st.floats(-1e3, 1e3, width=32)


@settings(deadline=None, max_examples=150)
@given(st.lists(finite, min_size=1, max_size=60), st.floats(0.01, 100), st.integers(1, 10**6))
def test_the_grid_norm_bounds_every_quantised_update_exactly(values, clip_norm, extra):
    update = update_of(values)
    grid = Grid.for_clip(len(values), clip_norm=clip_norm, grid_norm=math.isqrt(len(values)) + extra)
    result = quantise(update, grid)
    assert sum(int(v) ** 2 for v in result.values) <= grid.grid_norm**2
    assert max(abs(int(v)) for v in result.values) <= grid.largest_value


@settings(deadline=None, max_examples=100)
@given(st.lists(finite, min_size=1, max_size=40), st.floats(0.01, 100), st.integers(2, 32))
def test_coordinate_grids_never_clip_the_norm(values, bound, bits):
    grid = Grid.for_coordinates(len(values), coordinate_bound=bound, value_bits=bits)
    assert grid.largest_value == 2 ** (bits - 1) - 1
    result = quantise(update_of(values), grid)
    real = np.float32(values).astype(np.float64)
    expected = np.rint(np.clip(real, -bound, bound) * grid.scale)
    np.testing.assert_array_equal(result.values, expected)
    assert result.clipped_fraction == np.count_nonzero(np.abs(real) > bound) / len(values)


def test_a_vector_at_the_bound_everywhere_keeps_its_values():
    grid = Grid.for_coordinates(100_003, coordinate_bound=0.25)
    result = quantise(update_of(np.full(100_003, 0.25)), grid)
    assert result.clipped_fraction == 0
    assert set(result.values.tolist()) == {2**15 - 1}


@pytest.mark.parametrize("length", [1, 5, 1000])
@pytest.mark.parametrize("norm", [0.1, 1.0, 37.0, 1e6])
def test_the_norm_clip_keeps_the_direction(length, norm):
    generator = np.random.default_rng(length)
    values = generator.normal(size=length)
    values *= norm / np.linalg.norm(values)
    grid = Grid.for_clip(length, clip_norm=1.0, relative_precision=1e-5)
    result = quantise(update_of(values), grid)
    back = result.values / grid.scale
    expected = values * min(1.0, 1 / norm)
    assert np.linalg.norm(back - expected) <= 3.6e-5  # sqrt(3) precisions each for margin and rounding
    assert result.clipped_fraction == (1.0 if norm >= 1.0 else 0.0)


def test_the_norm_clip_makes_room_for_rounding(monkeypatch):
    # Every coordinate lies just above a rounding tie, so rounding moves the vector outwards by sqrt(d)/2.
    length = 10_000
    grid = Grid.for_clip(length, clip_norm=1.0, grid_norm=151)
    values = np.full(length, 1.5001 / grid.scale)
    assert np.linalg.norm(values) <= 1.0
    assert sum(round(float(v) * grid.scale) ** 2 for v in values) > grid.grid_norm**2
    quantise(update_of(values), grid)  # constructing the result checks the norm in exact integers
    monkeypatch.setattr(Grid, "real_norm_limit", 1.0)
    with pytest.raises(LocalProtocolError):
        quantise(update_of(values), grid)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 4, 5, 11])
def test_not_finite_is_refused_with_the_tensor_name(bad, position):
    values = np.zeros(12)
    values[position] = bad
    update = update_of(values, names=("encoder.weight", "head.bias"), sizes=(5, 7))
    name = "encoder.weight" if position < 5 else "head.bias"
    with pytest.raises(DataError, match=name) as error:
        quantise(update, Grid.for_coordinates(12, coordinate_bound=1.0))
    assert error.value.exit_code == 2


def test_not_finite_is_found_in_a_later_block(monkeypatch):
    monkeypatch.setattr(codec, "_BLOCK", 4)
    values = np.zeros(11)
    values[9] = np.nan
    with pytest.raises(DataError, match="second"):
        quantise(
            update_of(values, names=("first", "second"), sizes=(8, 3)),
            Grid.for_coordinates(11, coordinate_bound=1.0),
        )


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_blocks_do_not_change_the_result(bound, monkeypatch):
    values = np.random.default_rng(2).normal(size=101)
    grid = Grid.for_clip(101, clip_norm=8.0, relative_precision=1e-4, coordinate_bound=bound)
    whole = quantise(update_of(values), grid)
    monkeypatch.setattr(codec, "_BLOCK", 7)
    parts = quantise(update_of(values), grid)
    np.testing.assert_array_equal(whole.values, parts.values)
    assert whole.clipped_fraction == parts.clipped_fraction


def test_wide_grids_use_wide_integers():
    grid = Grid.for_clip(3, clip_norm=1.0, grid_norm=2**40)
    result = quantise(update_of([0.5, -0.5, 0.5]), grid)
    assert result.values.dtype == np.int64
    assert int(result.values[1]) == -(2**39)


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 62), st.lists(st.integers(-(2**61), 2**61 - 1), max_size=20))
def test_residues_and_centre_are_inverse(bits, numbers):
    half = 2 ** (bits - 1)
    inside = [(n + half) % (2 * half) - half for n in numbers]
    values = np.array(inside, np.int64)
    residues = to_residues(values, bits=bits)
    assert residues.dtype == (np.uint32 if bits <= 32 else np.uint64)
    assert residues.tolist() == [n % (2 * half) for n in inside]
    assert centre(residues, bits=bits).tolist() == inside


@pytest.mark.parametrize("bits", [2, 20, 31, 32, 33, 62])
def test_residues_of_narrow_words(bits):
    values = np.array([0, 1, -1, 2**31 - 1, -(2**31)], np.int32)
    assert to_residues(values, bits=bits).tolist() == [int(v) % 2**bits for v in values]


def test_sums_of_residues_are_the_sums_of_values():
    generator = np.random.default_rng(1)
    grid = Grid.for_coordinates(500, coordinate_bound=1.0)
    bits = required_bits(grid, clients=7)
    total = np.zeros(500, np.uint32)
    exact = np.zeros(500, np.int64)
    for _ in range(7):
        y = quantise(update_of(generator.normal(size=500)), grid).values
        exact += y
        total += to_residues(y, bits=bits)
    total &= np.uint32(2**bits - 1)
    np.testing.assert_array_equal(centre(total, bits=bits), exact)
    np.testing.assert_allclose(
        dequantise(total, grid, bits=bits, divisor=7), exact / grid.scale / 7, rtol=1e-15
    )
    np.testing.assert_array_equal(
        dequantise(total, grid, bits=bits), dequantise(centre(total, bits=bits), grid, bits=bits)
    )


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 64), st.integers(0, 2**40), st.integers(1, 50), st.integers(2, 24))
def test_required_bits_is_the_least_that_holds_the_extremes(clients, noise, factor, value_bits):
    grid = Grid.for_coordinates(10, coordinate_bound=1.0, value_bits=value_bits)
    bits = required_bits(grid, clients=clients, noise_bound=noise, weight_factor=factor)
    largest = clients * factor * grid.largest_value + noise
    extremes = np.array([largest, -largest], np.int64)
    np.testing.assert_array_equal(centre(to_residues(extremes, bits=bits), bits=bits), extremes)
    check_capacity(grid, bits=bits, clients=clients, noise_bound=noise, weight_factor=factor)
    if bits > 2:
        assert centre(to_residues(extremes, bits=bits - 1), bits=bits - 1).tolist() != extremes.tolist()
        with pytest.raises(CapacityError):
            check_capacity(grid, bits=bits - 1, clients=clients, noise_bound=noise, weight_factor=factor)


def test_sixteen_bit_values_of_64_clients_need_22_bits():
    assert required_bits(Grid.for_coordinates(10, coordinate_bound=1.0), clients=64) == 22


def test_too_much_noise_is_a_capacity_error():
    with pytest.raises(CapacityError):
        required_bits(Grid.for_coordinates(1, coordinate_bound=1.0), clients=3, noise_bound=2**62)


@pytest.mark.parametrize(
    "arguments",
    [
        {"length": 0},
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"grid_norm": 5},
        {"grid_norm": 2**52},
        {"coordinate_bound": -1.0},
        {"coordinate_bound": math.nan},
        {"clip_norm": 1e-320},
    ],
    ids=str,
)
def test_impossible_grids_are_refused(arguments):
    good = {"length": 100, "clip_norm": 1.0, "grid_norm": 6, "coordinate_bound": 1.0}
    Grid(**good)
    with pytest.raises(ConfigError):
        Grid(**(good | arguments))


@pytest.mark.parametrize(
    "arguments", [{}, {"relative_precision": 0.1, "grid_norm": 10}, {"relative_precision": 0.0}], ids=str
)
def test_for_clip_wants_one_precision(arguments):
    with pytest.raises(ConfigError):
        Grid.for_clip(10, clip_norm=1.0, **arguments)


def test_relative_precision_is_what_rounding_costs():
    generator = np.random.default_rng(5)
    values = generator.normal(size=20_000)
    values *= 0.9 / np.linalg.norm(values)
    grid = Grid.for_clip(20_000, clip_norm=1.0, relative_precision=1e-3)
    update = update_of(values)
    error = relative_error(update, quantise(update, grid), grid) * 0.9
    # The squared error is a mean of 20,000 terms of relative spread 0.9: 1 % is 3 standard deviations of its
    # root.
    assert error == pytest.approx(1e-3, rel=0.02)
    assert (
        relative_error(
            update_of([0.0]),
            quantise(update_of([0.0]), Grid.for_clip(1, clip_norm=1, grid_norm=9)),
            Grid.for_clip(1, clip_norm=1, grid_norm=9),
        )
        == 0.0
    )


def test_grids_have_distinct_bytes():
    grids = [
        Grid.for_coordinates(10, coordinate_bound=1.0),
        Grid.for_coordinates(11, coordinate_bound=1.0),
        Grid.for_coordinates(10, coordinate_bound=2.0),
        Grid.for_coordinates(10, coordinate_bound=1.0, value_bits=17),
    ]
    assert len({grid.encode() for grid in grids}) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda: quantise(update_of([1.0]), Grid.for_coordinates(2, coordinate_bound=1.0)),
        lambda: quantise(update_of([1.0]), Grid.for_coordinates(1, coordinate_bound=1.0), share=0.0),
        lambda: quantise(update_of([1.0]), Grid.for_coordinates(1, coordinate_bound=1.0), share=1.5),
        lambda: to_residues(np.zeros(2, np.uint32), bits=8),
        lambda: to_residues(np.zeros(2, np.int32), bits=1),
        lambda: centre(np.zeros(2, np.int64), bits=8),
        lambda: centre(np.zeros(2, np.uint32), bits=63),
        lambda: dequantise(np.zeros(2, np.uint32), Grid.for_coordinates(1, coordinate_bound=1.0), bits=8),
        lambda: dequantise(
            np.zeros(1, np.uint32), Grid.for_coordinates(1, coordinate_bound=1.0), bits=8, divisor=0
        ),
        lambda: required_bits(Grid.for_coordinates(1, coordinate_bound=1.0), clients=0),
    ],
)
def test_misuse_is_a_local_error(call):
    with pytest.raises(LocalProtocolError):
        call()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value_bits": 1}, "value_bits 1"),
        ({"value_bits": 33}, "value_bits 33"),
        ({"coordinate_bound": 0.0}, "coordinate_bound 0.0"),
        ({"coordinate_bound": math.inf}, "coordinate_bound inf"),
        ({"coordinate_bound": math.nan}, "coordinate_bound nan"),
    ],
)
def test_grids_for_no_coordinates_are_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        Grid.for_coordinates(10, **({"coordinate_bound": 1.0, "value_bits": 16} | changes))


def test_vectors_of_other_lengths_have_no_error_and_no_total():
    grid = Grid.for_coordinates(3, coordinate_bound=1.0)
    with pytest.raises(LocalProtocolError, match="differ in length"):
        relative_error(update_of([1.0, 2.0]), quantise(update_of([1.0, 2.0, 3.0]), grid), grid)
    weighting = Weighting(largest=10)
    spec = weighting.vector_spec(clients=3)
    with pytest.raises(LocalProtocolError, match=r"sum of shape \(2,\)"):
        weighting.total(np.array([4, 5], np.uint32), spec, survivors=3)


def test_the_weighted_mean_is_the_weighted_mean():
    generator = np.random.default_rng(9)
    weighting = Weighting(largest=100)
    weights = [3, 100, 41, 250]  # the last is clipped to 100
    grid = Grid.for_coordinates(50, coordinate_bound=1.0, value_bits=20)
    bits = required_bits(grid, clients=4)
    spec = weighting.vector_spec(clients=4)
    assert (spec.name, spec.length) == (WEIGHT_VECTOR, 1)
    total, weight_sum = np.zeros(50, np.uint32), np.zeros(1, np.uint32)
    real = generator.uniform(-1, 1, (4, 50)).astype(np.float32)
    for values, weight in zip(real, weights, strict=True):
        total += to_residues(
            quantise(update_of(values), grid, share=weighting.share(weight)).values, bits=bits
        )
        weight_sum += weighting.vector(weight, spec)
    sum_of_weights = weighting.total(weight_sum, spec, survivors=4)
    assert sum_of_weights == 244
    mean = weighted_mean(
        total & np.uint32(2**bits - 1), grid, bits=bits, weighting=weighting, total_weight=sum_of_weights
    )
    np.testing.assert_allclose(mean, np.average(real, axis=0, weights=[3, 100, 41, 100]), atol=4e-6)


@pytest.mark.parametrize("summed", [0, 2, 301, 2**10 - 1])
def test_a_summed_weight_out_of_range_is_refused(summed):
    weighting = Weighting(largest=100)
    spec = weighting.vector_spec(clients=3)
    with pytest.raises(RemoteProtocolError):
        weighting.total(np.array([summed], np.uint32), spec, survivors=3)


def test_the_weight_vector_holds_every_clients_largest_weight():
    for largest in (1, 2, 100, 2**31 - 1):
        weighting = Weighting(largest=largest)
        spec = weighting.vector_spec(clients=64)
        summed = np.array([64 * largest], spec.dtype)
        assert weighting.total(summed, spec, survivors=64) == 64 * largest
    with pytest.raises(ConfigError):
        Weighting(largest=0)
    with pytest.raises(LocalProtocolError):
        Weighting(largest=1).vector_spec(clients=0)
