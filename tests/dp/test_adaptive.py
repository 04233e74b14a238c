import math

import numpy as np
import pytest

from secfl.dp.accounting import epsilon
from secfl.dp.adaptive import PlateauSpending, QuantileClip, ValidationSource, bit_slot_size
from secfl.dp.clipping import GridClip
from secfl.dp.events import Gaussian, PoissonSampled, SelfComposed, compose
from secfl.dp.filters import RenyiFilter, best_order
from secfl.dp.noise import NoiseFamily, integer_sampler
from secfl.errors import BudgetExhausted, ConfigError
from secfl.randomness import SystemRng

GRID = 2**16


def quantile_clip(start, *, z=1.0, units=100, learning_rate=0.2, quantile=0.5):
    slot = bit_slot_size(grid_norm=GRID, noise_multiplier=z, bit_sigma=units / 20)
    grid = GridClip.single(dimension=8, clip_norm=start, grid_norm=GRID, bit_slot=slot)
    return QuantileClip(
        clip_norm=start,
        expected_units=units,
        grid=grid,
        learning_rate=learning_rate,
        quantile=quantile,
    )


def converge(clip, norms, *, rounds, z=1.0, direction=1):
    """The loop of a run: every unit sends its bit in its vector, noise is added to the integer sum."""
    sampler = integer_sampler(NoiseFamily.DISCRETE_GAUSSIAN, z * GRID)
    history = []
    for _ in range(rounds):
        grid = clip.unit_clip()
        slots = 0
        for norm in norms:
            vector = np.zeros(8, np.float32)
            vector[0] = norm
            slots += int(grid.clip(vector).values[-1])
        noisy = slots + int(sampler.draw(1, SystemRng())[0])
        clip = clip.after(direction * noisy)
        history.append(clip.clip_norm)
    return history


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_converges_to_the_median_from_far_away(start):
    norms = np.exp(np.linspace(-0.5, 0.5, 100))  # median 1
    history = converge(quantile_clip(start), norms, rounds=70)
    reached = next(i for i, c in enumerate(history) if 0.6 < c < 1.6) + 1
    # ln(100) / (0.2 · 0.5) = 46 rounds.
    assert 36 <= reached <= 56
    assert all(0.5 < c < 2.0 for c in history[60:])


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_inverted_sign_runs_away_and_is_caught(start):
    norms = np.exp(np.linspace(-0.5, 0.5, 100))
    history = converge(quantile_clip(start), norms, rounds=30, direction=-1)
    assert abs(math.log(history[-1])) > abs(math.log(start)) + 1


def test_clients_as_units_need_little_noise_or_many_clients():
    with pytest.raises(ConfigError, match=r"below 0\.5"):
        bit_slot_size(grid_norm=GRID, noise_multiplier=0.5, bit_sigma=5 / 20)
    assert bit_slot_size(grid_norm=GRID, noise_multiplier=0.49, bit_sigma=5 / 20) < GRID
    with pytest.raises(ConfigError, match="grid_norm"):
        bit_slot_size(grid_norm=2, noise_multiplier=0.1, bit_sigma=5.0)


def test_five_clients_converge_with_little_noise():
    clip = quantile_clip(100.0, z=0.2, units=5)
    history = converge(clip, [0.8, 0.9, 1.0, 1.1, 1.2], rounds=80, z=0.2)
    assert all(0.6 < c < 1.6 for c in history[70:])


def test_bit_and_update_share_one_sensitivity_as_in_the_paper():
    """z_Δ = (z^-2 - (2σ_b)^-2)^(-1/2): the noise multiplier that is left for the update."""
    z, bit_sigma = 1.0, 5.0
    slot = bit_slot_size(grid_norm=GRID, noise_multiplier=z, bit_sigma=bit_sigma)
    grid = GridClip.single(dimension=8, clip_norm=1.0, grid_norm=GRID, bit_slot=slot)
    left = z * GRID / grid.groups[0].grid_norm
    assert left == pytest.approx((z**-2 - (2 * bit_sigma) ** -2) ** -0.5, rel=1e-3)
    # The noise on the count of bits is the wanted one.
    assert z * GRID / (2 * slot) == pytest.approx(bit_sigma, rel=1e-3)
    # Both releases as separate Gaussians compose to one with multiplier z: nothing is free, nothing is lost.
    separate = compose([Gaussian(left), Gaussian(2 * bit_sigma)])
    assert epsilon(separate, delta=1e-5) == pytest.approx(epsilon(Gaussian(z), delta=1e-5), rel=1e-3)


def test_the_clip_stays_within_its_public_limits():
    clip = quantile_clip(1.0)
    for _ in range(500):
        clip = clip.after(10**9)
    assert clip.clip_norm == clip.smallest
    for _ in range(500):
        clip = clip.after(-(10**9))
    assert clip.clip_norm == clip.largest


@pytest.mark.parametrize("change", [{"quantile": 0.0}, {"learning_rate": 0.0}, {"units": 0}])
def test_impossible_quantile_clips_are_refused(change):
    grid = GridClip.single(dimension=8, clip_norm=1.0, grid_norm=GRID, bit_slot=5)
    values = {"quantile": 0.5, "learning_rate": 0.2, "units": 10, **change}
    with pytest.raises(ConfigError):
        QuantileClip(
            clip_norm=1.0,
            expected_units=values["units"],
            grid=grid,
            quantile=values["quantile"],
            learning_rate=values["learning_rate"],
        )


@pytest.mark.parametrize("limits", [{"smallest": 2.0}, {"largest": 0.5}, {"smallest": 0.0}])
def test_a_quantile_clip_starts_within_its_limits(limits):
    grid = GridClip.single(dimension=8, clip_norm=1.0, grid_norm=GRID, bit_slot=5)
    with pytest.raises(ConfigError, match="outside its limits"):
        QuantileClip(clip_norm=1.0, expected_units=10, grid=grid, **limits)


def test_a_grid_without_a_slot_is_refused():
    grid = GridClip.single(dimension=8, clip_norm=1.0, grid_norm=GRID)
    with pytest.raises(ConfigError, match="bit slot"):
        QuantileClip(clip_norm=1.0, expected_units=5, grid=grid)


# --- spending on a plateau


def step(z):
    return PoissonSampled(0.04, Gaussian(z))


def spending(budget, **changes):
    values = {
        "multipliers": (2.0, 1.4, 1.0),
        "validation": ValidationSource.PUBLIC,
        "patience": 2,
        "least_gain": 0.01,
    }
    return PlateauSpending(budget=budget, **{**values, **changes})


def test_a_plateau_spends_more_and_progress_does_not():
    made = spending(RenyiFilter.from_plan(SelfComposed(step(1.0), 100)))
    scores = iter([0.1, 0.2, 0.3, 0.305, 0.302, 0.4, 0.4, 0.4])
    levels = []
    for score in scores:
        made.observe(lambda score=score: score)
        levels.append(made.level)
    assert levels == [0, 0, 0, 0, 1, 1, 1, 2]
    assert made.next_multiplier(step) == 1.0


def test_adaptive_spending_never_exceeds_the_cap_and_ends_with_an_error():
    order = best_order(SelfComposed(step(1.0), 60), delta=1e-5)
    budget = RenyiFilter.from_order(order, epsilon=2.5, delta=1e-5)
    made = spending(budget)
    used = []

    def train():
        while True:
            used.append(made.next_multiplier(step))
            made.observe(lambda: 0.5)

    with pytest.raises(BudgetExhausted):
        train()
    assert set(used) == {2.0, 1.4, 1.0}
    assert epsilon(compose(map(step, used)), delta=1e-5) <= budget.epsilon(1e-5)
    # What no longer fits falls back to a noisier release before training ends.
    assert used[-1] == 2.0
    assert not budget.admits(step(2.0))


def test_paid_validation_is_charged_before_the_score_is_computed():
    event = Gaussian(20.0)
    budget = RenyiFilter.from_plan(SelfComposed(event, 2))
    made = spending(budget, validation=ValidationSource.PAID, validation_event=event)
    seen = []
    made.observe(lambda: seen.append(1) or 0.1)
    made.observe(lambda: seen.append(2) or 0.2)
    with pytest.raises(BudgetExhausted):
        made.observe(lambda: seen.append(3) or 0.3)
    assert seen == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"multipliers": ()},
        {"multipliers": (1.0, 2.0)},
        {"multipliers": (1.0, 1.0)},
        {"multipliers": (1.0, 0.0)},
        {"patience": 0},
        {"least_gain": -1.0},
        {"validation": ValidationSource.PAID},
        {"validation_event": Gaussian(1.0)},
    ],
)
def test_impossible_spending_is_refused(change):
    with pytest.raises(ConfigError):
        spending(RenyiFilter.from_plan(step(1.0)), **change)


@pytest.mark.parametrize("progress", [(3, 0.5, 0), (-1, 0.5, 0), (0, 0.5, -1)])
def test_progress_under_other_multipliers_is_refused(progress):
    """A negative level would count from the end: the least noise, before anything reached a plateau."""
    made = spending(RenyiFilter.from_plan(SelfComposed(step(1.0), 100)))
    with pytest.raises(ConfigError, match="belongs to other multipliers"):
        made.go_on_from(progress)
    assert made.progress == (0, -math.inf, 0)
    made.go_on_from((2, 0.5, 1))
    assert made.progress == (2, 0.5, 1)
