"""Train a model towards given class probabilities instead of labels (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfl.config import TrainingConfig
from secfl.segmentation.augmentation import Batch, Sample, augment_with_maps
from secfl.segmentation.losses import soft_dice_and_cross_entropy
from secfl.segmentation.training import Span, optimize_span

__all__ = ["ProxyImage", "distill"]


@dataclass(frozen=True, slots=True)
class ProxyImage:
    """An image and its target, joined along the channels so that both are cropped and turned alike."""

    sample: Sample
    channels: int

    @classmethod
    def of(
        cls, image: NDArray[np.float32], maps: NDArray[np.float32], valid: NDArray[np.bool_] | None
    ) -> ProxyImage:
        """Image ``(channels, *spatial)``, foreground probabilities ``(classes - 1, *spatial)``."""
        both = np.concatenate([image, np.clip(maps, 0.0, 1.0)]).astype(np.float32)
        inside = np.ones(image.shape[1:], np.float32) if valid is None else valid.astype(np.float32)
        labels = torch.zeros(image.shape[1:], dtype=torch.int64)
        return cls(Sample(torch.from_numpy(both), labels, torch.from_numpy(inside)), image.shape[0])


def distill(
    model: nn.Module,
    images: Sequence[ProxyImage],
    *,
    settings: TrainingConfig,
    span: Span,
    multiple: int,
    seed: int,
) -> float:
    """Train a model in place; returns the mean loss over the last epoch.

    Args:
        model: On its device.
        images: Images and their targets.
        settings: Batch size, learning rate, schedule, crop. Flips, turns and changes of intensity are used unless
            ``augmentation`` is ``none``.
        span: Which epochs of the run these are.
        multiple: Sides of the model's input must be multiples of it.
        seed: Orders, crops and augments the images.
    """
    device = next(model.parameters()).device
    channels = images[0].channels

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if settings.augmentation != "none":
            batch = augment_with_maps(batch, channels=channels, generator=generator)
        image, maps = batch.image[:, :channels], batch.image[:, channels:].to(device)
        target = torch.cat([(1 - maps.sum(dim=1, keepdim=True)).clamp_min(0.0), maps], dim=1)
        return soft_dice_and_cross_entropy(model(image.to(device)), target, batch.valid.to(device))

    return optimize_span(
        model,
        [image.sample for image in images],
        loss,
        settings=settings.model_copy(update={"proximal": 0.0}),
        span=span,
        multiple=multiple,
        seed=seed,
    )
