"""Train a model towards given class probabilities instead of labels (Hinton et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfl.config import TrainingConfig
from secfl.segmentation.augmentation import Sample, augment_with_maps, crop_batch
from secfl.segmentation.losses import soft_dice_and_cross_entropy
from secfl.segmentation.training import Span, crop_shape, learning_rate_factor

__all__ = ["ProxyImage", "distill"]

_GRADIENT_NORM = 1.0


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
    generator = torch.Generator().manual_seed(seed)
    samples = [image.sample for image in images]
    channels = images[0].channels
    shape = crop_shape(samples, crop=settings.crop, multiple=multiple)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = math.ceil(len(samples) / settings.batch_size)
    model.train()
    torch.manual_seed(seed)  # for drop-out inside a network; put back by `deterministic`
    loss_of_epoch = 0.0
    for epoch in range(span.epochs):
        order = torch.randperm(len(samples), generator=generator).tolist()
        loss_of_epoch = 0.0
        for step in range(steps):
            progress = (span.first + epoch + step / steps) / span.total
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(progress, settings.schedule)
            chosen = [samples[index] for index in order[step::steps]]
            batch = crop_batch(chosen, shape=shape, generator=generator)
            if settings.augmentation != "none":
                batch = augment_with_maps(batch, channels=channels, generator=generator)
            image, maps = batch.image[:, :channels], batch.image[:, channels:].to(device)
            target = torch.cat([(1 - maps.sum(dim=1, keepdim=True)).clamp_min(0.0), maps], dim=1)
            loss = soft_dice_and_cross_entropy(model(image.to(device)), target, batch.valid.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
            optimizer.step()
            loss_of_epoch += float(loss.detach()) * len(chosen) / len(samples)
    return loss_of_epoch
