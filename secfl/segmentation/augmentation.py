"""Random crops and augmentation of a whole batch at once, from one explicit generator.

Vectorised over the batch, because per-image transforms take longer than a small U-Net's training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

__all__ = ["Augmentation", "Batch", "Sample", "augment", "crop_batch"]

Augmentation: TypeAlias = Literal["none", "standard", "strong"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training image: ``(channels, h, w)`` float, labels ``(h, w)`` int64, valid ``(h, w)`` float."""

    image: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """The same with a leading batch axis."""

    image: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor


def crop_batch(samples: Sequence[Sample], *, side: int, generator: torch.Generator) -> Batch:
    """Cut a random square of ``side`` pixels out of every sample; smaller ones are padded, invalid there."""
    parts = [_crop(sample, side, generator) for sample in samples]
    return Batch(
        *(torch.stack([getattr(part, key) for part in parts]) for key in ("image", "labels", "valid"))
    )


def _crop(sample: Sample, side: int, generator: torch.Generator) -> Sample:
    height, width = sample.labels.shape
    if height < side or width < side:
        pad = (0, max(0, side - width), 0, max(0, side - height))
        sample = Sample(*(functional.pad(part, pad) for part in (sample.image, sample.labels, sample.valid)))
        height, width = sample.labels.shape
    top = int(torch.randint(height - side + 1, (1,), generator=generator))
    left = int(torch.randint(width - side + 1, (1,), generator=generator))
    window = (..., slice(top, top + side), slice(left, left + side))
    return Sample(sample.image[window], sample.labels[window], sample.valid[window])


def augment(batch: Batch, *, strength: Augmentation, generator: torch.Generator) -> Batch:
    """Change a batch at random.

    ``standard``: flips and quarter turns; brightness, contrast and gamma per image. ``strong``: also rotation
    by any angle, zoom by up to a quarter, brightness and contrast per channel, and noise.
    """
    if strength == "none":
        return batch
    if strength == "strong":
        batch = _rotate_and_zoom(batch, generator)
    batch = _flip_and_turn(batch, generator)
    return Batch(_change_intensity(batch.image, strength, generator), batch.labels, batch.valid)


def _flip_and_turn(batch: Batch, generator: torch.Generator) -> Batch:
    choices = torch.randint(8, (batch.image.shape[0],), generator=generator).tolist()
    square = batch.image.shape[-1] == batch.image.shape[-2]

    def move(part: torch.Tensor, choice: int) -> torch.Tensor:
        if choice & 1:
            part = part.flip(-1)
        if choice & 2:
            part = part.flip(-2)
        return part.transpose(-1, -2) if choice & 4 and square else part

    return Batch(
        *(
            torch.stack([move(part, choice) for part, choice in zip(parts, choices, strict=True)])
            for parts in (batch.image, batch.labels, batch.valid)
        )
    )


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _change_intensity(
    image: torch.Tensor, strength: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    count, channels = image.shape[:2]
    per = channels if strength == "strong" else 1
    shape = (count, per, *(1,) * (image.ndim - 2))
    contrast = _uniform(shape, 0.75, 1.33, generator)
    brightness = _uniform(shape, -0.3, 0.3, generator)
    exponent = _uniform((count, 1, *shape[2:]), -0.35, 0.35, generator).exp()
    # Gamma needs values in 0..1: the image's own range, put back afterwards.
    axes = tuple(range(1, image.ndim))
    low = image.amin(dim=axes, keepdim=True)
    spread = (image.amax(dim=axes, keepdim=True) - low).clamp_min(1e-6)
    bent = ((image - low) / spread).pow(exponent) * spread + low
    result = bent * contrast + brightness
    if strength == "strong":
        level = _uniform((count, 1, *shape[2:]), 0.0, 0.15, generator)
        result = result + level * torch.randn(image.shape, generator=generator)
    return result


def _rotate_and_zoom(batch: Batch, generator: torch.Generator) -> Batch:
    count = batch.image.shape[0]
    angle = _uniform((count,), -torch.pi, torch.pi, generator)
    zoom = _uniform((count,), -0.22, 0.22, generator).exp()
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    zero = torch.zeros(count)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = functional.affine_grid(matrix, [count, 1, *batch.labels.shape[1:]], align_corners=False)
    image = functional.grid_sample(batch.image, grid, padding_mode="reflection", align_corners=False)
    masks = torch.stack([batch.labels, batch.valid.to(batch.labels.dtype)], 1).float()
    moved = functional.grid_sample(
        masks, grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    return Batch(image, moved[:, 0].round().long(), moved[:, 1])
