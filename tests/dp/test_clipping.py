import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.dp.clipping import ClipGroup, GridClip, PatientAccumulator, group_noise_multiplier
from secfl.errors import ConfigError, LocalProtocolError
from secfl.types import exact_square_norm

vectors = st.lists(
    st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-2, 2, width=32), min_size=1, max_size=60
).map(lambda values: np.array(values, np.float32))


@given(vectors, st.floats(1e-3, 1e3), st.integers(5, 2**20), st.integers(0, 4))
def test_the_integer_norm_never_exceeds_the_sensitivity(vector, clip_norm, grid_norm, bit_slot):
    grid = GridClip.single(dimension=vector.size, clip_norm=clip_norm, grid_norm=grid_norm, bit_slot=bit_slot)
    clipped = grid.clip(vector)
    assert exact_square_norm(clipped.values) <= grid_norm**2
    assert clipped.norm_bound == grid.sensitivity <= grid_norm
    assert clipped.values.shape == (vector.size + (bit_slot > 0),)


@given(vectors)
def test_short_vectors_are_only_rounded(vector):
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    grid = GridClip.single(dimension=vector.size, clip_norm=max(1e-3, 2 * norm), grid_norm=2**20)
    real = grid.to_real(grid.clip(vector).values.astype(np.int64))
    step = grid.groups[0].step
    assert np.abs(real - vector).max() <= 0.5 * step * (1 + 1e-9)


def test_long_vectors_keep_their_direction():
    vector = np.linspace(-3, 5, 40).astype(np.float32)
    grid = GridClip.single(dimension=40, clip_norm=1.0, grid_norm=2**16)
    clipped = grid.clip(vector)
    real = grid.to_real(clipped.values.astype(np.int64))
    assert clipped.clipped_fraction == 1.0
    assert np.linalg.norm(real) == pytest.approx(1.0, abs=1e-3)
    assert real @ vector / np.linalg.norm(real) / np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)


def test_rounding_alone_would_exceed_the_bound_without_the_margin():
    """The naive clip to C then rounding violates ||y|| <= G for this vector; the margin prevents it."""
    dimension, grid_norm = 100, 15
    vector = np.full(dimension, 1 / math.sqrt(dimension), np.float32)  # norm 1, coordinates 1.5 grid steps
    naive = np.rint(vector.astype(np.float64) * grid_norm * (1 + 1e-6))
    assert exact_square_norm(naive.astype(np.int64)) > grid_norm**2
    grid = GridClip.single(dimension=dimension, clip_norm=1.0, grid_norm=grid_norm)
    assert exact_square_norm(grid.clip(vector).values) <= grid_norm**2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_patient_with_a_non_finite_gradient_counts_as_zero(bad):
    grid = GridClip.single(dimension=3, clip_norm=1.0, grid_norm=100)
    clipped = grid.clip(np.array([1.0, bad, 2.0], np.float32))
    assert not clipped.values.any()
    assert clipped.clipped_fraction == 0.0


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-45, 0.0], [1e-300, 1e-310], [1e308, 1e308]])
def test_extreme_magnitudes_neither_overflow_nor_divide_by_zero(values):
    grid = GridClip.single(dimension=2, clip_norm=1.0, grid_norm=1000)
    with np.errstate(all="raise", under="ignore"):
        clipped = grid.clip(np.array(values))
    assert exact_square_norm(clipped.values) <= 1000**2


def test_groups_have_clips_of_their_own():
    groups = (
        ClipGroup(size=2, clip_norm=1.0, grid_norm=300),
        ClipGroup(size=3, clip_norm=10.0, grid_norm=400),
    )
    grid = GridClip(groups=groups)
    assert grid.sensitivity == 500
    clipped = grid.clip(np.array([0.3, 0.4, 30.0, 40.0, 0.0], np.float32))
    real = grid.to_real(clipped.values.astype(np.int64))
    assert real[:2] == pytest.approx([0.3, 0.4], abs=2e-3)
    assert real[2:] == pytest.approx([6.0, 8.0, 0.0], abs=0.05)
    assert clipped.clipped_fraction == 0.5


def test_noise_multiplier_of_groups_is_that_of_the_joint_vector():
    """Σ (C_l/σ_l)² = 1/z² with σ_l the common grid noise in each group's units."""
    groups = (
        ClipGroup(size=2, clip_norm=1.0, grid_norm=300),
        ClipGroup(size=3, clip_norm=10.0, grid_norm=400),
    )
    sigma = 750.0
    z = group_noise_multiplier([1.0, 10.0], [sigma * group.step for group in groups])
    assert z == pytest.approx(sigma / GridClip(groups=groups).sensitivity)


@given(
    st.lists(vectors.filter(lambda v: v.size >= 4).map(lambda v: v[:4]), min_size=1, max_size=8), st.data()
)
@settings(max_examples=40)
def test_one_patient_more_or_less_moves_the_sum_by_at_most_the_sensitivity(gradients, data):
    grid = GridClip.single(dimension=4, clip_norm=1.0, grid_norm=997, bit_slot=13)
    left_out = data.draw(st.integers(0, len(gradients) - 1))

    def total(patients):
        accumulator = PatientAccumulator(grid)
        accumulator.add_all(patients)
        return accumulator.total()

    everybody = total(gradients)
    without = total(gradients[:left_out] + gradients[left_out + 1 :])
    assert exact_square_norm(everybody.values - without.values) <= 997**2
    assert everybody.sensitivity == grid.sensitivity <= 997


def test_an_empty_batch_is_all_zeros_of_the_right_length():
    grid = GridClip.single(dimension=6, clip_norm=1.0, grid_norm=50, bit_slot=5)
    total = PatientAccumulator(grid).total()
    assert total.values.tolist() == [0] * 7


def test_the_clip_bit_says_whether_the_norm_was_within_the_clip():
    grid = GridClip.single(dimension=2, clip_norm=1.0, grid_norm=1000, bit_slot=30)
    assert grid.clip(np.array([0.6, 0.7], np.float32)).values[-1] == 30
    assert grid.clip(np.array([0.8, 0.7], np.float32)).values[-1] == -30
    # Within C, but above the rounding margin: scaled a little, and still counted as not clipped.
    assert grid.clip(np.array([0.99999, 0.0], np.float32)).values[-1] == 30


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClipGroup(size=0, clip_norm=1.0, grid_norm=10),
        lambda: ClipGroup(size=4, clip_norm=0.0, grid_norm=10),
        lambda: ClipGroup(size=4, clip_norm=math.inf, grid_norm=10),
        lambda: ClipGroup(size=400, clip_norm=1.0, grid_norm=10),
        lambda: GridClip(groups=()),
        lambda: GridClip(groups=(ClipGroup(size=4, clip_norm=1.0, grid_norm=10),), bit_slot=-1),
        lambda: GridClip.single(dimension=4, clip_norm=1.0, grid_norm=10, bit_slot=10),
    ],
)
def test_impossible_grids_are_refused(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("bit_slot", [10, 11])
def test_a_slot_as_large_as_the_whole_bound_is_refused(bit_slot):
    """Nothing, or less than nothing, would be left for the vector."""
    with pytest.raises(ConfigError, match=f"bit_slot {bit_slot}: expected below grid_norm 10"):
        GridClip.single(dimension=4, clip_norm=1.0, grid_norm=10, bit_slot=bit_slot)


def test_wrong_lengths_are_refused():
    grid = GridClip.single(dimension=3, clip_norm=1.0, grid_norm=10)
    with pytest.raises(LocalProtocolError, match="3 coordinates"):
        grid.clip(np.zeros(4, np.float32))
    with pytest.raises(LocalProtocolError, match="3 coordinates"):
        grid.to_real(np.zeros(4, np.int64))
