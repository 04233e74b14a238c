"""Splits by patient."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.errors import DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.splits import draw_split

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
