"""Real images, where SECFL_TEST_DATA names them: three sites of retinal photographs with vessels."""

from __future__ import annotations

import numpy as np
import pytest

from secfl.config import load_config
from secfl.segmentation import build_task, load_dataset

pytestmark = pytest.mark.real_data

COUNTS = {"CHASE_DB1": (20, 8), "HRF": (15, 27), "STARE": (10, 10)}


@pytest.fixture(scope="module")
def source(real_data):
    folder = real_data if (real_data / "STARE").is_dir() else real_data / "fundus_vessels_256"
    if not folder.is_dir():
        pytest.skip(f"{real_data} holds no fundus_vessels_256")
    return str(folder)


def test_they_are_read_with_their_splits_and_fields_of_view(source):
    data = load_dataset(load_config(None, {"data": {"source": source}}))
    assert {name: (len(site.train), len(site.test)) for name, site in data.sites.items()} == COUNTS
    for site in data.sites.values():
        for case in (*site.train, *site.test):
            assert case.image.shape == (3, 256, 256)
            assert 0.5 < case.valid.mean() < 0.9
            assert 0.03 < case.labels[case.valid].mean() < 0.2
            np.testing.assert_allclose(case.image[:, case.valid].std(axis=1), 1, atol=0.1)


@pytest.mark.slow
def test_a_tenth_of_the_usual_training_finds_the_vessels_at_every_site(source):
    task = build_task(load_config(None, {"data": {"source": source}, "training": {"rounds": 2}}))
    state = task.train_reference(task.sites, rounds=2)
    dice = {site: task.evaluate(site, state).dice for site in task.sites}
    # The full recipe reaches .78 in the mean; an untrained model is below .25.
    assert min(dice.values()) > 0.6, dice
