"""How unlike sites are: bounds, known values, and phantoms that differ by scanner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.heterogeneity import (
    foreground_heterogeneity,
    intensity_heterogeneity,
    jensen_shannon,
)
from secfl.segmentation.data.phantom import make_phantom_dataset


@pytest.mark.parametrize("sites", [2, 3, 7])
def test_the_ends_of_the_scale(sites):
    assert jensen_shannon(np.ones((sites, 5))) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(np.eye(sites)) == pytest.approx(1)


def test_a_value_by_hand():
    """Half in common: H((.5, .25, .25)) - ln 2 = .5 ln 2 of ln 2."""
    assert jensen_shannon(np.array([[1.0, 1, 0], [1, 0, 1]])) == pytest.approx(0.5)


def test_scale_does_not_matter_and_one_site_is_like_itself():
    rows = np.array([[1.0, 2, 3], [3, 2, 1]])
    assert jensen_shannon(rows) == pytest.approx(jensen_shannon(rows * [[10], [0.1]]))
    assert jensen_shannon(rows[:1]) == 0


def test_it_grows_with_a_shift_of_intensity_or_size():
    data = make_phantom_dataset(
        sites=3, images_per_site=12, size=48, test_fraction=0.3, seed=ExperimentSeed(0)
    )
    first, *others = data.sites
    intensity, foreground = intensity_heterogeneity(data), foreground_heterogeneity(data)
    assert 0 < intensity < 0.3

    def changed(change):
        site = data.sites[first]
        return replace(data, sites={**data.sites, first: replace(site, train=tuple(map(change, site.train)))})

    brighter = changed(lambda case: replace(case, image=case.image + 0.7))
    assert intensity_heterogeneity(brighter) > 1.5 * intensity
    assert foreground_heterogeneity(brighter) == foreground
    empty = changed(lambda case: replace(case, labels=np.zeros_like(case.labels)))
    assert foreground_heterogeneity(empty) > foreground
    assert intensity_heterogeneity(empty) == intensity
    alike = replace(data, sites={name: replace(data.sites[first], name=name) for name in (first, *others)})
    assert intensity_heterogeneity(alike) == pytest.approx(0, abs=1e-9)
