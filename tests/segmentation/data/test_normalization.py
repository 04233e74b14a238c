"""Intensity normalisation of one image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.segmentation.data.normalization import normalize


@pytest.fixture
def image():
    return np.random.default_rng(1).gamma(2.0, 30.0, (2, 40, 50)).astype(np.float32)


@pytest.fixture
def valid():
    rows, columns = np.mgrid[:40, :50]
    return np.hypot(rows - 20, columns - 25) < 18


@pytest.mark.parametrize("method", ["zscore", "local"])
class TestBoth:
    def test_mean_and_deviation_inside_the_field_of_view(self, image, valid, method):
        result = normalize(image, valid=valid, method=method)
        assert result.dtype == np.float32
        assert not result[:, ~valid].any()
        np.testing.assert_allclose(result[:, valid].mean(axis=1), 0, atol=0.15)
        np.testing.assert_allclose(result[:, valid].std(axis=1), 1, atol=0.1)

    def test_what_lies_outside_has_no_influence(self, image, valid, method):
        changed = image.copy()
        changed[:, ~valid] = 1e4
        np.testing.assert_allclose(
            normalize(changed, valid=valid, method=method),
            normalize(image, valid=valid, method=method),
            atol=1e-5,
        )

    def test_a_constant_channel_becomes_zero(self, image, valid, method):
        image[1] = 77.0
        result = normalize(image, valid=valid, method=method)
        assert not result[1].any()
        assert result[0].any()

    @given(gain=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
    def test_gain_and_offset_do_not_matter(self, method, gain, offset):
        image = np.random.default_rng(2).normal(0, 1, (1, 24, 24)).astype(np.float32)
        changed = (image.astype(np.float64) * gain + offset).astype(np.float32)
        np.testing.assert_allclose(
            normalize(changed, method=method), normalize(image, method=method), atol=0.05
        )


def test_local_removes_uneven_illumination():
    draw = np.random.default_rng(3).normal(0, 1, (1, 128, 128)).astype(np.float32)
    shading = np.linspace(0, 40, 128, dtype=np.float32)[None, None]
    plain = np.corrcoef(normalize(draw + shading)[0, :, 20:-20].mean(0), np.arange(88))[0, 1]
    local = normalize(draw + shading, method="local")[0, :, 20:-20]
    assert plain > 0.99
    assert abs(local.mean(0)).max() < 0.5
    assert np.corrcoef(local.ravel(), draw[0, :, 20:-20].ravel())[0, 1] > 0.95


def test_an_outlier_is_bounded():
    image = np.zeros((1, 64, 64), np.float32)
    image[0, 5, 5] = 1e9
    assert abs(normalize(image)).max() <= 8.0
