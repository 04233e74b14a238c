"""Metrics against their definitions, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.segmentation.data import Case
from secfl.segmentation.metrics import measure


def case(labels, valid=None, spacing=None):
    return Case(
        name="c",
        patient="p",
        image=np.zeros((1, *labels.shape), np.float32),
        labels=labels.astype(np.uint8),
        valid=valid,
        spacing=spacing,
    )


def square(top, left, side=6, shape=(24, 24)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_overlap_and_counts_follow_their_definitions(seed, limited):
    draw = np.random.default_rng(seed)
    truths, predictions = (draw.random((2, 3, 16, 20)) < draw.uniform(0.1, 0.9, (2, 1, 1, 1))).astype(
        np.uint8
    )
    valid = draw.random((3, 16, 20)) < 0.7 if limited else np.ones((3, 16, 20), bool)
    cases = [case(truth, valid=view if limited else None) for truth, view in zip(truths, valid, strict=True)]
    found = measure(cases, list(predictions))
    dice, iou = [], []
    for truth, prediction, view in zip(truths > 0, predictions > 0, valid, strict=True):
        both, either = (truth & prediction & view).sum(), ((truth | prediction) & view).sum()
        dice.append(2 * both / (both + either))
        iou.append(both / either)
    right = (truths == predictions)[valid]
    positive = truths[valid] > 0
    assert found.dice == pytest.approx(np.mean(dice), abs=1e-6)
    assert found.iou == pytest.approx(np.mean(iou), abs=1e-6)
    assert found.accuracy == pytest.approx(right.mean())
    assert found.balanced_accuracy == pytest.approx((right[positive].mean() + right[~positive].mean()) / 2)
    assert found.foreground_fraction == pytest.approx(positive.mean())
    assert (found.cases, found.empty_cases) == (3, 0)


@pytest.mark.parametrize(("spacing", "expected"), [(None, 3.0), ((1.0, 1.0), 3.0), ((0.5, 2.0), 1.5)])
def test_distance_of_a_shifted_square(spacing, expected):
    found = measure([case(square(4, 8), spacing=spacing)], [square(7, 8)])
    assert found.hd95 == pytest.approx(expected)


def test_one_stray_pixel_in_a_hundred_does_not_count_for_the_distance():
    truth = square(2, 2, side=40, shape=(64, 64))
    prediction = truth.copy()
    prediction[60, 60] = 1
    assert measure([case(truth)], [prediction]).hd95 == pytest.approx(0)


def test_perfect():
    found = measure([case(square(3, 3))], [square(3, 3)])
    assert (found.dice, found.iou, found.accuracy, found.balanced_accuracy, found.hd95) == (1, 1, 1, 1, 0)


def test_empty_masks():
    empty = np.zeros((24, 24), np.uint8)
    cases = [case(empty), case(empty), case(square(3, 3)), case(square(3, 3))]
    found = measure(cases, [empty, square(1, 1), empty, square(3, 3)])
    assert found.dice == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found.iou == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found.hd95 == 0
    assert (found.empty_cases, found.cases) == (3, 4)


def test_nothing_but_background():
    empty = np.zeros((24, 24), np.uint8)
    found = measure([case(empty)], [empty])
    assert (found.dice, found.accuracy, found.balanced_accuracy, found.hd95) == (1, 1, 1, None)


def test_outside_the_field_of_view_nothing_counts():
    valid = np.zeros((24, 24), bool)
    valid[:, :12] = True
    truth, prediction = square(3, 3), square(3, 3) | square(3, 15)
    found = measure([case(truth, valid=valid)], [prediction])
    assert (found.dice, found.accuracy, found.hd95) == (1, 1, 0)
    assert measure([case(truth)], [prediction]).dice < 1


def test_several_classes_are_averaged():
    truth = square(2, 2) + 2 * square(12, 12)
    prediction = square(2, 2)
    found = measure([case(truth)], [prediction], class_names=("background", "first", "second"))
    assert found.dice == pytest.approx(0.5)
    assert found.empty_cases == 1
    assert found.foreground_fraction == pytest.approx(72 / 576)


def test_each_class_has_its_own_dice():
    truth = square(2, 2) + 2 * square(12, 12)
    prediction = square(2, 2) + 2 * square(15, 12)
    found = measure([case(truth)], [prediction], class_names=("background", "bone", "vein"))
    assert found.dice_by_class == {"bone": pytest.approx(1.0), "vein": pytest.approx(0.5)}
    two = measure([case(truth), case(truth)], [prediction, truth], class_names=("background", "bone", "vein"))
    assert two.dice_by_class["vein"] == pytest.approx(0.75)
