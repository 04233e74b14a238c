"""Losses that count only inside the field of view."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["dice_and_cross_entropy", "soft_dice_and_cross_entropy"]

_SMOOTHING = 1e-5


def dice_and_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy plus soft Dice loss, as in nnU-Net (Isensee et al. 2021), equal parts.

    Without ``valid`` it equals MONAI's ``DiceCELoss(softmax=True, to_onehot_y=True, include_background=False,
    batch=True)``. The Dice term is taken over the whole batch, so a crop without foreground does no harm.

    Args:
        logits: float, shape ``(batch, classes, *spatial)``.
        labels: int64, shape ``(batch, *spatial)``, values 0 to classes - 1.
        valid: float or bool, shape ``(batch, *spatial)``; pixels where it is 0 count in neither term.

    Returns:
        A scalar.
    """
    classes = logits.shape[1]
    pixelwise = functional.cross_entropy(logits, labels, reduction="none")
    weight = torch.ones_like(pixelwise) if valid is None else valid.to(pixelwise.dtype)
    cross_entropy = (pixelwise * weight).sum() / weight.sum().clamp_min(1.0)
    probability = logits.softmax(dim=1)
    dice = logits.new_zeros(())
    for label in range(1, classes):
        truth = (labels == label) * weight
        predicted = probability[:, label] * weight
        overlap = (predicted * truth).sum()
        dice = dice + 1.0 - (2.0 * overlap + _SMOOTHING) / (predicted.sum() + truth.sum() + _SMOOTHING)
    return cross_entropy + dice / (classes - 1)


def soft_dice_and_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """The same towards class probabilities; with probabilities of 0 and 1 it equals `dice_and_cross_entropy`.

    Args:
        logits: float, shape ``(batch, classes, *spatial)``.
        target: float, the same shape, summing to 1 over the classes.
        valid: float, shape ``(batch, *spatial)``; pixels where it is 0 count in neither term.

    Returns:
        A scalar.
    """
    classes = logits.shape[1]
    pixelwise = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    cross_entropy = (pixelwise * valid).sum() / valid.sum().clamp_min(1.0)
    probability = logits.softmax(dim=1)
    dice = logits.new_zeros(())
    for label in range(1, classes):
        truth, predicted = target[:, label] * valid, probability[:, label] * valid
        overlap = (predicted * truth).sum()
        dice = dice + 1.0 - (2.0 * overlap + _SMOOTHING) / (predicted.sum() + truth.sum() + _SMOOTHING)
    return cross_entropy + dice / (classes - 1)
