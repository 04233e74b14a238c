import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.dp.accounting import Accountant, epsilon
from secfl.dp.events import (
    Gaussian,
    IntegerNoise,
    NonPrivate,
    PoissonSampled,
    SelfComposed,
    ZeroConcentrated,
    compose,
)
from secfl.dp.filters import FILTER_ORDERS, RenyiFilter, best_order, zcdp_filter
from secfl.dp.noise import NoiseFamily
from secfl.dp.rdp import rdp_curve
from secfl.errors import BudgetExhausted, ConfigError, UnsupportedEvent


def step(z=1.0, rate=0.04):
    return PoissonSampled(rate, Gaussian(z))


def test_a_plan_fits_its_own_filter_exactly():
    made = RenyiFilter.from_plan(SelfComposed(step(), 50))
    for _ in range(50):
        made.charge(step())
    assert made.releases == 50
    assert made.spent_fraction == pytest.approx(1.0)
    with pytest.raises(BudgetExhausted):
        made.charge(step())
    with pytest.raises(BudgetExhausted):
        made.charge(step(z=100.0))
    assert made.releases == 50


def test_the_guarantee_is_the_cap_and_the_reading_stays_below_it():
    planned = SelfComposed(step(), 50)
    made = RenyiFilter.from_plan(planned)
    cap = made.epsilon(1e-5)
    assert cap == pytest.approx(epsilon(planned, delta=1e-5, accountant=Accountant.RDP), rel=1e-9)
    assert made.reading(1e-5) == 0.0
    made.charge(step())
    assert 0 < made.reading(1e-5) < cap
    assert made.epsilon(1e-5) == cap


multipliers = st.lists(st.floats(0.6, 4.0), min_size=1, max_size=60)


@given(multipliers, st.floats(0.01, 0.3))
@settings(max_examples=25)
def test_whatever_is_chosen_the_spent_curve_stays_within_the_budget(choices, rate):
    """Soundness: for any adaptive sequence, the admitted releases satisfy B(α) at every order."""
    made = RenyiFilter.from_plan(SelfComposed(step(1.5, 0.1), 20))
    admitted = []
    for z in choices:
        event = step(z, rate)
        if made.admits(event):
            made.charge(event)
            admitted.append(event)
        else:
            with pytest.raises(BudgetExhausted):
                made.charge(event)
    curve = rdp_curve(compose(admitted), FILTER_ORDERS)
    assert all(curve[order] <= made.budget[order] * (1 + 1e-9) for order in FILTER_ORDERS)
    spent = epsilon(compose(admitted), delta=1e-5, accountant=Accountant.RDP)
    assert spent <= made.epsilon(1e-5) * (1 + 1e-9)


def test_choosing_the_best_order_afterwards_would_overspend():
    """Why all orders are checked: a rule "some order still fits" admits more than any of them allows."""
    made = RenyiFilter({2: 0.05, 64: 10.0})
    flat, steep = step(3.0, 0.3), step(0.7, 0.002)
    some_order_fits = {2: 0.0, 64: 0.0}
    for event in [flat, steep] * 200:
        curve = rdp_curve(event, (2, 64))
        after = {order: some_order_fits[order] + curve[order] for order in curve}
        if any(after[order] <= made.budget[order] for order in after):
            some_order_fits = after
        if made.admits(event):
            made.charge(event)
    assert any(some_order_fits[order] > made.budget[order] for order in (2, 64))
    assert made.spent_fraction <= 1.0


@pytest.mark.parametrize("order", [4, 8, 32])
def test_one_committed_order_reaches_the_wanted_epsilon(order):
    made = RenyiFilter.from_order(order, epsilon=8.0, delta=1e-5)
    assert 7.9 < made.epsilon(1e-5) <= 8.0
    count = 0
    while made.admits(step()):
        made.charge(step())
        count += 1
    assert epsilon(SelfComposed(step(), count), delta=1e-5) <= 8.0


def test_the_best_order_is_committed_beforehand_and_admits_the_most():
    planned = SelfComposed(step(), 500)
    order = best_order(planned, delta=1e-5)
    allowed = {}
    for candidate in (2, order, 48):
        made = RenyiFilter.from_order(candidate, epsilon=6.6, delta=1e-5) if candidate > 2 else None
        allowed[candidate] = 0
        while made is not None and made.admits(SelfComposed(step(), 10)):
            made.charge(SelfComposed(step(), 10))
            allowed[candidate] += 10
    assert allowed[order] == max(allowed.values()) >= 490


def test_a_sampler_error_above_delta_is_refused():
    with pytest.raises(ConfigError, match="sampler"):
        RenyiFilter.from_order(8, epsilon=60.0, delta=1e-5, sampler_budget=1e-20)


def test_an_order_that_cannot_reach_epsilon_is_refused():
    with pytest.raises(ConfigError, match="order 2 cannot reach epsilon 1 at this delta"):
        RenyiFilter.from_order(2, epsilon=1.0, delta=1e-5)


def integer(error):
    return IntegerNoise(
        family=NoiseFamily.SKELLAM,
        sigma=1000.0,
        sensitivity=1000,
        dimension=10,
        shares=1,
        smallest_share=1000.0,
        sampler_error=error,
    )


def test_the_sampler_error_has_a_budget_too():
    made = RenyiFilter.from_order(8, epsilon=20.0, delta=1e-5, sampler_budget=3e-20)
    made.charge(integer(1e-21))
    made.charge(integer(1e-21))
    assert not made.admits(integer(2e-21))
    made.charge(integer(1e-21))
    with pytest.raises(BudgetExhausted):
        made.charge(integer(1e-21))


def test_zcdp_filter_refuses_sampling():
    made = zcdp_filter(0.5)
    made.charge(ZeroConcentrated(0.1))
    made.charge(Gaussian(2.0))  # rho 1/8
    assert made.spent_fraction == pytest.approx((0.1 + 0.125) / 0.5)
    with pytest.raises(UnsupportedEvent, match="amplification"):
        made.charge(step())
    with pytest.raises(BudgetExhausted):
        made.charge(ZeroConcentrated(0.3))
    restored = RenyiFilter.from_json(made.to_json())
    with pytest.raises(UnsupportedEvent, match="amplification"):
        restored.admits(step())


def test_non_private_releases_never_fit():
    made = RenyiFilter.from_plan(SelfComposed(step(), 5))
    assert not made.admits(NonPrivate("x"))


def test_a_resumed_filter_equals_the_uninterrupted_one():
    made = RenyiFilter.from_plan(SelfComposed(step(), 20))
    for z in (1.0, 1.5, 0.9):
        made.charge(step(z))
    again = RenyiFilter.from_json(made.to_json())
    assert again == made
    again.charge(step())
    made.charge(step())
    assert again.to_json() == made.to_json()
    assert again.epsilon(1e-5) == made.epsilon(1e-5)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.update(format_version=2),
        lambda s: s.pop("spent"),
        lambda s: s["spent"].pop("2"),
        lambda s: s["spent"].update({"2": -1.0}),
        lambda s: s["spent"].update({"2": float("nan")}),
        lambda s: s.update(sampler_spent=-1.0),
        lambda s: s.update(budget={}),
        lambda s: s.update(budget=[1]),
        lambda s: s.update(budget={"2": float("inf")}),
        lambda s: s.update(sampled_releases="maybe"),
    ],
)
def test_a_damaged_file_is_refused(damage):
    made = RenyiFilter.from_plan(SelfComposed(step(), 3))
    state = json.loads(made.to_json())
    damage(state)
    with pytest.raises(ConfigError):
        RenyiFilter.from_json(json.dumps(state))


@pytest.mark.parametrize("text", ["", "null", "{", "[" * 100_000])
def test_other_files_are_refused(text):
    with pytest.raises(ConfigError):
        RenyiFilter.from_json(text)


@pytest.mark.parametrize("budget", [{}, {1: 1.0}, {2000: 1.0}, {4: float("inf")}, {4: -1.0}])
def test_impossible_budgets_are_refused(budget):
    with pytest.raises(ConfigError):
        RenyiFilter(budget)


def test_impossible_zcdp_budgets_are_refused():
    with pytest.raises(ConfigError):
        zcdp_filter(0.0)
