"""Whether an image is of the kind that a site has."""

from __future__ import annotations

import numpy as np
import pytest

from secfl.segmentation.typicality import describe_image, typicality


def blobs(rng, *, bright=True):
    """Soft spots on an even ground, brighter or darker than it."""
    y, x = np.mgrid[:48, :48]
    image = np.zeros((48, 48))
    for _ in range(8):
        middle = rng.uniform(4, 44, 2)
        image += np.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 18)
    image += rng.normal(0, 0.05, image.shape)
    image = (image - image.mean()) / image.std()
    return (image if bright else -image)[None].astype(np.float32)


@pytest.fixture(scope="module")
def own():
    rng = np.random.default_rng(0)
    return [describe_image(blobs(rng), None) for _ in range(15)]


def test_own_kind_counts_fully_and_another_kind_least(own):
    rng = np.random.default_rng(1)
    same = typicality([describe_image(blobs(rng), None) for _ in range(10)], own, ratio=4)
    other = typicality([describe_image(blobs(rng, bright=False), None) for _ in range(10)], own, ratio=4)
    assert np.median(same) > 0.7
    assert (other == 0.25).all()


def test_a_lone_image_tells_nothing(own):
    assert typicality(own, own[:1], ratio=4).tolist() == [1.0] * len(own)


def test_equal_images_are_no_division_by_zero(own):
    found = typicality([own[0], own[1]], [own[0]] * 3, ratio=4)
    assert found.tolist() == [1.0, 0.25]


def test_only_the_field_of_view_is_described():
    image = blobs(np.random.default_rng(2))
    valid = np.zeros(image.shape[1:], dtype=bool)
    valid[:, :24] = True
    changed = image.copy()
    changed[:, :, 26:] += 5  # the gradient at the border looks one pixel beyond it
    assert np.array_equal(describe_image(image, valid), describe_image(changed, valid))
    assert not np.array_equal(describe_image(image, None), describe_image(changed, None))


def test_volumes_and_flat_ones_have_descriptions_too():
    rng = np.random.default_rng(3)
    assert describe_image(rng.normal(size=(2, 8, 9, 4)).astype(np.float32), None).shape == (100,)
    assert np.isfinite(describe_image(rng.normal(size=(1, 8, 9, 1)).astype(np.float32), None)).all()
