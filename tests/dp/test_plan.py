import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.dp.accounting import Accountant, Relation, epsilon
from secfl.dp.calibration import modulus_bits
from secfl.dp.events import Composed, IntegerNoise, PoissonSampled, SelfComposed, leaves
from secfl.dp.noise import NoiseFamily, integer_sampler
from secfl.dp.plan import PrivacyPlan, Rounding, Schedule
from secfl.dp.what_if import plan_table, what_if_plan
from secfl.errors import ConfigError, PrivacyError
from secfl.guarantees import Behaviour, UnitOfPrivacy, View


def plan(**changes):
    values = {
        "unit": UnitOfPrivacy.PATIENT,
        "clip_norm": 1.0,
        "grid_norm": 4096,
        "dimension": 10**6,
        "noise_multiplier": 1.0,
        "releases": 500,
        "cohort_size": 5,
        "threshold": 4,
        "delta": 1e-5,
        "sampling_rate": 0.04,
    }
    return PrivacyPlan(**{**values, **changes})


def client_plan(**changes):
    values = {
        "unit": UnitOfPrivacy.CLIENT,
        "relation": Relation.ZERO_OUT,
        "sampling_rate": 1.0,
        "releases": 50,
        "noise_multiplier": 4.0,
    }
    return plan(**{**values, **changes})


# --- the what-if table

GOLDEN = {
    ("curious", 0): 5.879,
    ("curious", 1): 7.397,
    ("curious", 2): 10.238,
    ("curious", 3): 16.993,
    ("curious", 4): 44.086,
    ("malicious", 0): 7.397,
    ("malicious", 1): 10.238,
    ("malicious", 2): 16.993,
    ("malicious", 3): 44.086,
    ("malicious", 4): 44.086,
}


@pytest.mark.parametrize("family", list(NoiseFamily))
def test_plan_table(family):
    rows = [row.to_dict() for row in plan_table(plan(family=family))]
    seen = {}
    for row in rows:
        assert set(row) == {
            "view",
            "colluders",
            "adversary",
            "z_effective",
            "epsilon_reference",
            "epsilon",
        }
        if row["view"] in ("aggregator", "aggregator_colluders"):
            seen[row["adversary"], row["colluders"]] = row
        if row["epsilon"] is not None:
            assert row["epsilon"] >= row["epsilon_reference"]
        if row["colluders"] <= 3 and row["epsilon_reference"] < 40:
            assert row["epsilon"] <= 1.25 * row["epsilon_reference"]
    assert {key: row["epsilon_reference"] for key, row in seen.items()} == pytest.approx(GOLDEN, abs=0.01)
    by_view = {row["view"]: row for row in rows if row["colluders"] in (0, 1)}
    assert set(by_view) == {str(view) for view in View}
    assert by_view["client"]["epsilon_reference"] == pytest.approx(7.397, abs=0.01)
    assert by_view["final_model"]["epsilon"] == seen["curious", 0]["epsilon"]
    assert by_view["network"]["epsilon"] == seen["curious", 0]["epsilon"]
    assert by_view["crypto_broken"]["epsilon_reference"] == pytest.approx(44.086, abs=0.01)
    json.dumps(rows, allow_nan=False)


def test_own_noise_protects_the_same_in_every_view():
    rows = plan_table(plan(schedule=Schedule.ROUND))
    assert len({row.epsilon for row in rows}) == 1


def test_an_unprovable_epsilon_is_null_in_json():
    rows = plan_table(plan(family=NoiseFamily.SKELLAM, noise_multiplier=0.5))
    assert rows[-1].to_dict()["epsilon"] is None


def test_a_question_gets_the_values_that_a_run_would_choose():
    asked = what_if_plan(clients=5, sampling_rate=0.04, steps=500, noise_multiplier=1.0, delta=1e-5)
    assert (asked.threshold, asked.cohort_size, asked.shares) == (4, 5, 5)
    figures = [row.epsilon_reference for row in plan_table(asked) if row.adversary.colluders == 0]
    assert figures[:3] == pytest.approx([5.879, 5.879, 7.397], abs=0.01)
    assert [
        what_if_plan(clients=n, steps=1, noise_multiplier=1.0, delta=0.1).threshold for n in (3, 4, 10)
    ] == [
        3,
        3,
        7,
    ]
    clinics = what_if_plan(
        clients=5, steps=20, noise_multiplier=0.01, delta=1e-5, unit=UnitOfPrivacy.CLIENT, parameters=10
    )
    assert clinics.calibrated(8.0, behaviour=Behaviour.CURIOUS).noise_multiplier == pytest.approx(
        2.7, abs=0.1
    )
    with pytest.raises(ConfigError, match="noise_multiplier"):
        what_if_plan(clients=5, steps=1, noise_multiplier=-1.0, delta=1e-5)


# --- events, sensitivity, shares


def test_event_of_a_plan():
    event = plan().event()
    assert isinstance(event, SelfComposed)
    assert event.count == 500
    assert isinstance(event.event, PoissonSampled)
    noise = event.event.event
    assert isinstance(noise, IntegerNoise)
    assert noise.noise_multiplier == pytest.approx(1.0)
    assert (noise.sensitivity, noise.shares, noise.dimension) == (4096, 5, 10**6)
    assert noise.smallest_share == pytest.approx(4096 / math.sqrt(5))
    tv = integer_sampler(NoiseFamily.DISCRETE_GAUSSIAN, noise.smallest_share).total_variation
    assert noise.sampler_error == pytest.approx(5 * tv)


def test_event_against_colluders_counts_fewer_shares():
    made = plan()
    event = made.event_of_release(made.z_aggregator(Behaviour.MALICIOUS, colluders=1)).event
    assert event.shares == 3
    assert event.sigma == pytest.approx(4096 * math.sqrt(3 / 5))


def test_sensitivity_after_rounding():
    assert plan().sensitivity == 4096
    assert plan(rounding=Rounding.ONCE).sensitivity == 4096 + 1000
    assert plan(rounding=Rounding.ONCE, dimension=10).sensitivity == 4096 + 4
    assert client_plan(relation=Relation.REPLACE_ONE).sensitivity == 2 * 4096


def test_replace_one_costs_twice_the_sensitivity_at_the_same_noise():
    zero_out = client_plan()
    replace_one = client_plan(relation=Relation.REPLACE_ONE, noise_multiplier=2.0)
    assert replace_one.total_sigma() == zero_out.total_sigma()
    assert replace_one.epsilon() > 2 * zero_out.epsilon()


def test_shares_add_up_to_the_planned_noise():
    made = plan(planned_clients=4)
    assert 4 * made.noise_share().sigma ** 2 == pytest.approx(made.total_sigma() ** 2)
    assert plan(schedule=Schedule.ROUND).noise_share().sigma == plan().total_sigma()


def test_announced_decay_composes_release_by_release():
    made = plan(noise_decay=0.9, releases=6, noise_multiplier=2.0)
    event = made.event()
    assert isinstance(event, Composed)
    multipliers = [part.event.noise_multiplier for part in event.events]
    assert multipliers == pytest.approx([2.0 * 0.9**i for i in range(6)])
    assert made.noise_share(3).sigma == pytest.approx(made.noise_share().sigma * 0.9**3)
    constant = plan(releases=6, noise_multiplier=2.0)
    last = plan(releases=6, noise_multiplier=2.0 * 0.9**5)
    assert constant.epsilon() < made.epsilon() < last.epsilon()


# --- calibration and halting


@pytest.mark.parametrize("behaviour", list(Behaviour))
@pytest.mark.parametrize("target", [2.0, 8.0])
@pytest.mark.parametrize("make", [plan, client_plan])
def test_calibration_is_on_the_safe_side_and_tight(behaviour, target, make):
    made = make().calibrated(target, behaviour=behaviour, colluders=1)
    reached = made.epsilon(made.z_aggregator(behaviour, colluders=1))
    assert target * 0.998 < reached <= target


def test_calibration_works_for_skellam_and_renyi():
    made = plan(family=NoiseFamily.SKELLAM).calibrated(8.0)
    assert 7.98 < made.epsilon(made.z_aggregator()) <= 8.0
    by_renyi = plan().calibrated(8.0, accountant=Accountant.RDP)
    assert by_renyi.noise_multiplier > plan().calibrated(8.0).noise_multiplier


def test_impossible_targets_are_refused():
    with pytest.raises(PrivacyError, match="reaches epsilon"):
        client_plan(delta=1e-300).calibrated(1e-4)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="epsilon"):
            plan().calibrated(wrong)


def test_halting_before_the_release_that_would_exceed():
    made = plan()
    allowed = made.releases_within(4.0)
    assert 0 < allowed < 500
    assert epsilon(made.event(releases=allowed), delta=1e-5) <= 4.0
    assert epsilon(made.event(releases=allowed + 1), delta=1e-5) > 4.0
    assert made.releases_within(100.0) == 500
    assert made.releases_within(1e-3) == 0


def test_weak_plans_need_consent_and_the_message_says_the_number():
    weak = plan(noise_multiplier=0.6)
    assert weak.epsilon(0.4) == math.inf
    for z, number in ((0.55, "24.7[12]"), (0.4, "60.(59|60)")):
        with pytest.raises(PrivacyError, match=f"epsilon {number} in"):
            weak.refuse_if_weak(z=z, accept_weak=False)
    weak.refuse_if_weak(z=0.4, accept_weak=True)
    plan().refuse_if_weak(accept_weak=False)


# --- refusals


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"grid_norm": 0}, "grid_norm"),
        ({"grid_norm": 8}, "grid_norm"),  # shares of 3.6 grid units
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"releases": 0}, "releases"),
        ({"threshold": 6}, "threshold"),
        ({"planned_clients": 6}, "planned_clients"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.1}, "sampling_rate"),
        ({"relation": Relation.REPLACE_ONE}, "Poisson"),
        ({"unit": UnitOfPrivacy.CLIENT}, "not sampled"),
        ({"unit": UnitOfPrivacy.CLIENT, "sampling_rate": 1.0}, "zero_out"),
        ({"schedule": Schedule.ROUND, "planned_clients": 5}, "own noise"),
        ({"noise_decay": 2.0, "releases": 2000}, "the last release's noise would be out of range"),
        ({"noise_decay": 0.5, "releases": 2000}, "the last release's noise would be out of range"),
        ({"noise_decay": 0.9}, "grid_norm"),  # the last share would be narrower than 4 grid units
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        plan(**changes)


# --- files

plans = st.builds(
    plan,
    clip_norm=st.floats(1e-3, 1e3),
    noise_multiplier=st.floats(0.5, 50),
    family=st.sampled_from(NoiseFamily),
    rounding=st.sampled_from(Rounding),
    delta=st.floats(1e-9, 1e-3),
    sampling_rate=st.floats(1e-4, 1.0),
    releases=st.integers(1, 10**5),
)


@given(plans)
@settings(max_examples=30)
def test_json_round_trip_keeps_plan_and_digest(made):
    again = PrivacyPlan.from_json(made.to_json())
    assert again == made
    assert again.digest() == made.digest()
    assert again.to_json() == made.to_json()


def test_every_field_is_bound_by_the_digest():
    made = client_plan(planned_clients=4, noise_decay=0.999)
    changes = {
        "clip_norm": 2.0,
        "grid_norm": 5000,
        "dimension": 7,
        "noise_multiplier": 5.0,
        "releases": 51,
        "cohort_size": 6,
        "threshold": 3,
        "delta": 1e-6,
        "relation": Relation.REPLACE_ONE,
        "planned_clients": 5,
        "family": NoiseFamily.SKELLAM,
        "rounding": Rounding.ONCE,
        "noise_decay": 0.998,
    }
    digests = {dataclasses.replace(made, **{name: value}).digest() for name, value in changes.items()}
    patient = plan(sampling_rate=1.0, relation=Relation.ZERO_OUT)
    digests |= {
        made.digest(),
        patient.digest(),
        dataclasses.replace(patient, sampling_rate=0.5).digest(),
        dataclasses.replace(patient, schedule=Schedule.ROUND).digest(),
        dataclasses.replace(patient, levels=(patient.noise_multiplier / 2,)).digest(),
    }
    named = set(changes) | {"unit", "sampling_rate", "schedule", "levels"}
    assert named == {item.name for item in dataclasses.fields(PrivacyPlan)}
    assert len(digests) == len(changes) + 5


def test_levels_survive_the_file_and_plans_without_them_have_no_such_field():
    made = plan(noise_multiplier=2.0, levels=(1.5, 1.0))
    assert PrivacyPlan.from_json(made.to_json()) == made
    assert made.at_level(1.5).noise_multiplier == 1.5
    assert "levels" not in plan().to_dict()
    for levels in ((2.0,), (1.0, 1.5), (1.0, 1.0), (0.0,)):
        with pytest.raises(ConfigError, match="levels"):
            plan(noise_multiplier=2.0, levels=levels)
    with pytest.raises(ConfigError, match="noise_decay"):
        plan(noise_multiplier=2.0, levels=(1.0,), noise_decay=0.999)
    with pytest.raises(ConfigError, match="not one of"):
        made.at_level(1.7)
    for damage in (1, [], [True], ["1"], {}):
        with pytest.raises(ConfigError, match="levels"):
            PrivacyPlan.from_dict(made.to_dict() | {"levels": damage})


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("delta"),
        lambda d: d.update(extra=1),
        lambda d: d.update(family="laplace"),
        lambda d: d.update(family=3),
        lambda d: d.update(releases=1.5),
        lambda d: d.update(releases=True),
        lambda d: d.update(delta="1e-5"),
        lambda d: d.update(releases=None),
        lambda d: d.update(family=["skellam"]),
    ],
)
def test_damaged_plans_are_refused(damage):
    data = plan().to_dict()
    damage(data)
    with pytest.raises(ConfigError):
        PrivacyPlan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000])
def test_files_that_are_no_plans_are_refused(text):
    with pytest.raises(ConfigError):
        PrivacyPlan.from_json(text)


# --- width of the modulus


@pytest.mark.parametrize("family", list(NoiseFamily))
def test_the_modulus_holds_signal_and_noise_and_one_bit_less_would_not(family):
    bits = modulus_bits(
        signal_bound=5 * 4096, family=family, total_sigma=4096.0, coordinates=10**6, releases=500
    )

    def wrap_probability(width):
        room = (2 ** (width - 1) - 1 - 5 * 4096) / 4096  # in standard deviations
        return 500 * 10**6 * math.erfc(room / math.sqrt(2))

    assert wrap_probability(bits) <= 2.0**-40 < wrap_probability(bits - 1)
    assert modulus_bits(signal_bound=127, family=family, total_sigma=0.0, coordinates=1, releases=1) == 8
    assert modulus_bits(signal_bound=128, family=family, total_sigma=0.0, coordinates=1, releases=1) == 9


def test_leaves_of_a_large_plan_are_few():
    assert len(leaves(plan(releases=10**6).event())) == 1
