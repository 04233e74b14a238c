"""Splits by patient."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.errors import DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.splits import SplitRule, draw_split

patients = st.dictionaries(
    st.integers(0, 200).map(lambda number: f"image-{number}"),
    st.integers(0, 12).map(lambda number: f"patient-{number}"),
    min_size=2,
).filter(lambda table: len(set(table.values())) >= 2)


@given(patients, st.floats(0.01, 0.99), st.integers(0, 2**62))
def test_no_patient_crosses_and_no_image_is_lost(table, fraction, seed):
    split = draw_split(table, test_fraction=fraction, seed=ExperimentSeed(seed), site="a")
    assert split.train
    assert split.test
    assert sorted((*split.train, *split.test)) == sorted(table)
    assert {table[stem] for stem in split.train}.isdisjoint(table[stem] for stem in split.test)


@given(patients, st.integers(0, 2**62), st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(table, seed, random):
    shuffled = list(table.items())
    random.shuffle(shuffled)
    first = draw_split(table, test_fraction=0.3, seed=ExperimentSeed(seed), site="a")
    assert first == draw_split(dict(shuffled), test_fraction=0.3, seed=ExperimentSeed(seed), site="a")


def test_the_fraction_counts_patients():
    table = {f"{patient}-{part}": str(patient) for patient in range(20) for part in range(1 + patient % 3)}
    split = draw_split(table, test_fraction=0.25, seed=ExperimentSeed(1), site="a")
    assert len({table[stem] for stem in split.test}) == 5


def test_sites_are_drawn_independently():
    table = {str(number): str(number) for number in range(30)}
    splits = {site: draw_split(table, test_fraction=0.5, seed=ExperimentSeed(0), site=site) for site in "ab"}
    assert splits["a"] != splits["b"]


def test_two_patients_are_needed():
    with pytest.raises(DataError, match="site a: images of 1 patient"):
        draw_split({"x": "p", "y": "p"}, test_fraction=0.5, seed=ExperimentSeed(0), site="a")


def training_patients(table, rule, seed) -> set[str]:
    split = draw_split(table, test_fraction=0.25, seed=ExperimentSeed(seed), site="a", rule=rule)
    return {table[stem] for stem in split.train}


@pytest.mark.parametrize("seed", range(5))
def test_one_patient_less_moves_nobody_else(seed):
    """What differential privacy for patients presupposes; without the rule, other patients change sides."""
    table = {f"image-{number}": f"patient-{number}" for number in range(100)}
    moved = {}
    for rule in SplitRule:
        everybody = training_patients(table, rule, seed)
        moved[rule] = max(
            len(
                (everybody ^ training_patients({k: v for k, v in table.items() if v != left}, rule, seed))
                - {left}
            )
            for left in [f"patient-{number}" for number in range(0, 100, 9)]
        )
    assert moved[SplitRule.EACH] == 0
    assert moved[SplitRule.SHARE] > 5


def test_each_patient_is_drawn_with_the_wanted_share():
    """Bounds of 6 standard deviations: a false alarm once in 10^8."""
    table = {str(number): str(number) for number in range(4000)}
    split = draw_split(table, test_fraction=0.25, seed=ExperimentSeed(3), site="a", rule=SplitRule.EACH)
    assert abs(len(split.test) - 1000) < 6 * (4000 * 0.25 * 0.75) ** 0.5


def test_everybody_in_one_part_is_refused():
    table, seed = {"x": "p", "y": "q"}, ExperimentSeed(0)
    with pytest.raises(DataError, match="all 2 patients were drawn into one part"):
        draw_split(table, test_fraction=1e-9, seed=seed, site="a", rule=SplitRule.EACH)


def test_private_runs_draw_each_patient_alone():
    from secfl.config import DpMode, load_config
    from secfl.segmentation.data.loading import reading_of

    data = load_config(None, {"data": {"source": "somewhere"}}).data
    assert reading_of(data, DpMode.PATIENT).split is SplitRule.EACH
    assert reading_of(data).split is SplitRule.SHARE
