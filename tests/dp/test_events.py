import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.dp.events import (
    Composed,
    Gaussian,
    IntegerNoise,
    Leaf,
    NonPrivate,
    NoOp,
    PoissonSampled,
    SelfComposed,
    ZeroConcentrated,
    compose,
    event_from_json,
    event_to_json,
    leaves,
    unless_seeded,
)
from secfl.dp.noise import NoiseFamily
from secfl.errors import UnsupportedEvent
from secfl.randomness import InsecureSeededRng, SystemRng

numbers = st.floats(0.01, 1e6)
integers = st.builds(
    IntegerNoise,
    family=st.sampled_from(NoiseFamily),
    sigma=st.floats(10.0, 1e5),
    sensitivity=st.integers(1, 2**30),
    dimension=st.integers(1, 2**31),
    shares=st.just(2),
    smallest_share=st.floats(0.5, 7.0),
    sampler_error=st.floats(0, 1e-20),
)
mechanisms = st.one_of(st.builds(Gaussian, numbers), integers, st.builds(NonPrivate, st.text(max_size=9)))
sampled = st.builds(PoissonSampled, st.floats(1e-6, 1.0), mechanisms)
events = st.recursive(
    st.one_of(mechanisms, sampled, st.builds(ZeroConcentrated, numbers), st.just(NoOp())),
    lambda inner: st.one_of(
        st.builds(SelfComposed, inner, st.integers(0, 10**6)),
        st.builds(Composed, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@given(events)
def test_json_round_trip(event):
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["event", "inner", "count", "events", "noise_multiplier"]), inner),
    ),
    max_leaves=10,
)


@given(json_values)
def test_hostile_json_is_refused_and_nothing_else_escapes(data):
    try:
        event_from_json(data)
    except UnsupportedEvent:
        return
    # Only well-formed events get here.
    assert isinstance(data, dict)


GOOD = {"event": "Gaussian", "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    "data",
    [
        {"event": "Laplace", "noise_multiplier": 1.0},
        {"event": "Gaussian"},
        {**GOOD, "extra": 1},
        {**GOOD, "noise_multiplier": "1"},
        {**GOOD, "noise_multiplier": True},
        {**GOOD, "noise_multiplier": 0.0},
        {**GOOD, "noise_multiplier": -1.0},
        {**GOOD, "noise_multiplier": float("nan")},
        {**GOOD, "noise_multiplier": float("inf")},
        {"event": "PoissonSampled", "sampling_probability": 1.5, "inner": GOOD},
        {"event": "PoissonSampled", "sampling_probability": 0.0, "inner": GOOD},
        {"event": "SelfComposed", "count": -1, "inner": GOOD},
        {"event": "SelfComposed", "count": 1.5, "inner": GOOD},
        {"event": "Composed", "events": GOOD},
        {"event": "__class__"},
        {"event": ["Gaussian"]},
    ],
)
def test_wrong_events_are_refused(data):
    with pytest.raises(UnsupportedEvent):
        event_from_json(data)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_width_that_is_no_width_is_called_so(value):
    """The message says what was expected, not that an accountant is too weak."""
    with pytest.raises(UnsupportedEvent, match="noise_multiplier: expected a positive number"):
        Gaussian(value)


@pytest.mark.parametrize("value", [1e-10, 1e10])
def test_what_no_accountant_can_hold_is_refused(value):
    """Squares and divergences of such widths leave the range of doubles: an ε of 0 could come of it."""
    with pytest.raises(UnsupportedEvent, match="beyond what can be accounted for"):
        Gaussian(value)


def test_deep_nesting_is_refused():
    data = GOOD
    for _ in range(40):
        data = {"event": "SelfComposed", "count": 1, "inner": data}
    with pytest.raises(UnsupportedEvent, match="deep"):
        event_from_json(data)


def integer(**changes):
    values = {
        "family": NoiseFamily.SKELLAM,
        "sigma": 10.0,
        "sensitivity": 3,
        "dimension": 4,
        "shares": 1,
        "smallest_share": 10.0,
        "sampler_error": 0.0,
    }
    return IntegerNoise(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"sigma": 0.0},
        {"smallest_share": 0.0},
        {"sensitivity": 0},
        {"dimension": 0},
        {"shares": 0},
        {"sampler_error": -1e-9},
        {"sampler_error": 1.0},
        {"shares": 2},  # two shares of 10 are more than 10
    ],
)
def test_inconsistent_integer_noise_is_refused(changes):
    assert integer().noise_multiplier == pytest.approx(10 / 3)
    with pytest.raises(UnsupportedEvent):
        integer(**changes)


def test_leaves_count_mechanisms_whatever_the_tree():
    one, other = PoissonSampled(0.1, Gaussian(1.0)), Gaussian(2.0)
    tree = Composed((SelfComposed(Composed((one, other)), 3), one, NoOp(), SelfComposed(other, 0)))
    assert leaves(tree) == {Leaf(Gaussian(1.0), 0.1): 4, Leaf(Gaussian(2.0), 1.0): 3}


@pytest.mark.parametrize(
    "inner",
    [ZeroConcentrated(0.1), SelfComposed(Gaussian(1.0), 2), PoissonSampled(0.5, Gaussian(1.0)), NoOp()],
)
def test_only_a_single_mechanism_can_be_sampled(inner):
    with pytest.raises(UnsupportedEvent, match="sampled"):
        leaves(PoissonSampled(0.1, inner))


def test_unknown_events_are_refused():
    with pytest.raises(UnsupportedEvent, match="unknown"):
        leaves(Composed((Gaussian(1.0), "Gaussian(2.0)")))


def test_compose_merges_equal_neighbours():
    a, b = Gaussian(1.0), Gaussian(2.0)
    assert compose([a, a, SelfComposed(a, 3), b]) == Composed((SelfComposed(a, 5), b))
    assert compose([]) == NoOp()
    assert compose([a]) == a


def test_a_seed_anywhere_makes_the_event_non_private():
    event = Gaussian(1.0)
    assert unless_seeded(event, SystemRng(), SystemRng()) == event
    assert isinstance(unless_seeded(event, SystemRng(), InsecureSeededRng(1)), NonPrivate)
