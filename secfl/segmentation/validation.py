"""What a model's probabilities say beyond its labels: the validation loss and the soft Tversky index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.losses.tversky import TverskyLoss
from torch import nn
from torch.nn import functional

from secfl.segmentation.data.cases import Case
from secfl.segmentation.inference import probabilities
from secfl.segmentation.losses import dice_and_cross_entropy

__all__ = ["FALSE_NEGATIVES", "FALSE_POSITIVES", "Validation", "validate"]

FALSE_POSITIVES, FALSE_NEGATIVES = 0.3, 0.7
"""Weights of the Tversky index; missed foreground counts more (Salehi et al. 2017)."""
_SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True, slots=True)
class Validation:
    """Means over cases.

    Attributes:
        loss: Cross-entropy plus soft Dice loss, the loss of training.
        tversky: Soft Tversky index, mean over the foreground classes, 0..1.
    """

    loss: float
    tversky: float


@torch.no_grad()
def validate(model: nn.Module, cases: Sequence[Case], *, multiple: int) -> Validation:
    """Measure a model on whole images, inside their fields of view.

    Args:
        model: Returns logits of shape ``(batch, classes, *spatial)``; stays as it is.
        cases: At least one.
        multiple: Sides of the model's input must be multiples of it.
    """
    tversky_loss = TverskyLoss(include_background=False, alpha=FALSE_POSITIVES, beta=FALSE_NEGATIVES)
    losses, indices = [], []
    for case in cases:
        batch = torch.from_numpy(np.ascontiguousarray(case.image))[None]
        found = probabilities(model, batch, multiple=multiple).float().cpu()
        labels = torch.from_numpy(case.labels.astype(np.int64))[None]
        valid = torch.ones(labels.shape) if case.valid is None else torch.from_numpy(case.valid)[None].float()
        truth = functional.one_hot(labels, found.shape[1]).movedim(-1, 1).float()
        logits = found.clamp_min(_SMALLEST_PROBABILITY).log()
        losses.append(float(dice_and_cross_entropy(logits, labels, valid)))
        inside = valid[:, None]
        indices.append(1.0 - float(tversky_loss(found * inside, truth * inside)))
    return Validation(loss=float(np.mean(losses)), tversky=float(np.mean(indices)))
