"""Dice and cross-entropy inside the field of view."""

from __future__ import annotations

import pytest
import torch
from monai.losses.dice import DiceCELoss

from secfl.segmentation.losses import dice_and_cross_entropy


@pytest.fixture
def problem():
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, 12, 10, generator=draw)
    labels = torch.randint(4, (3, 12, 10), generator=draw)
    return logits, labels


@pytest.mark.parametrize("classes", [2, 4])
def test_it_is_monais_loss_where_everything_counts(problem, classes):
    logits, labels = problem
    logits, labels = logits[:, :classes], labels % classes
    reference = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    expected = reference(logits, labels[:, None])
    torch.testing.assert_close(dice_and_cross_entropy(logits, labels), expected, rtol=1e-4, atol=1e-5)


def test_only_the_field_of_view_counts(problem):
    logits, labels = problem
    valid = torch.zeros(3, 12, 10)
    valid[:, :8, 3:] = 1
    expected = dice_and_cross_entropy(logits[:, :, :8, 3:], labels[:, :8, 3:])
    torch.testing.assert_close(dice_and_cross_entropy(logits, labels, valid), expected)
    logits.requires_grad_()
    dice_and_cross_entropy(logits, labels, valid).backward()
    assert not logits.grad[:, :, 8:].any()
    assert not logits.grad[..., :3].any()
    assert logits.grad[:, :, :8, 3:].any()


def test_a_perfect_prediction_costs_nothing(problem):
    _, labels = problem
    logits = 60.0 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    assert float(dice_and_cross_entropy(logits, labels)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("valid", [None, torch.zeros(1, 8, 8)])
def test_no_foreground_and_no_field_of_view_stay_finite(valid):
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    loss = dice_and_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.int64), valid)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
