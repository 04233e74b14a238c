"""Random crops and augmentation of a whole batch at once, from one explicit generator.

Vectorised over the batch, because per-image transforms take longer than a small U-Net's training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

__all__ = ["Augmentation", "Batch", "Sample", "augment", "augment_with_maps", "crop_batch"]

Augmentation: TypeAlias = Literal["none", "standard", "strong"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training image: ``(channels, *spatial)`` float, labels ``(*spatial)`` int64, valid ``(*spatial)`` float."""

    image: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """The same with a leading batch axis."""

    image: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor


def crop_batch(
    samples: Sequence[Sample],
    *,
    shape: Sequence[int],
    generator: torch.Generator,
    foreground: float = 0.0,
) -> Batch:
    """Cut a random box out of every sample; smaller ones are padded, invalid there.

    Args:
        samples: Images of any size.
        shape: Pixels of the box along each axis.
        generator: Draws the places.
        foreground: Share of boxes whose middle is a labelled pixel, as far as the border allows (MONAI's
            ``RandCropByPosNegLabel`` with the generator that training has).
    """
    parts = [_crop(sample, shape, generator, foreground) for sample in samples]
    return Batch(
        *(torch.stack([getattr(part, key) for part in parts]) for key in ("image", "labels", "valid"))
    )


def _crop(sample: Sample, shape: Sequence[int], generator: torch.Generator, foreground: float) -> Sample:
    sides = sample.labels.shape
    missing = [max(0, wanted - side) for wanted, side in zip(shape, sides, strict=True)]
    if any(missing):
        pad = [amount for side in reversed(missing) for amount in (0, side)]
        sample = Sample(*(functional.pad(part, pad) for part in (sample.image, sample.labels, sample.valid)))
        sides = sample.labels.shape
    middle = _labelled_pixel(sample, generator) if foreground and _chance(generator) < foreground else None
    window: list[slice] = []
    for axis, (wanted, side) in enumerate(zip(shape, sides, strict=True)):
        if middle is None:
            start = int(torch.randint(side - wanted + 1, (1,), generator=generator))
        else:
            start = min(max(0, middle[axis] - wanted // 2), side - wanted)
        window.append(slice(start, start + wanted))
    chosen = (..., *window)
    return Sample(sample.image[chosen], sample.labels[chosen], sample.valid[chosen])


def _chance(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _labelled_pixel(sample: Sample, generator: torch.Generator) -> list[int] | None:
    labelled = torch.nonzero(sample.labels.flatten(), as_tuple=True)[0]
    if not len(labelled):
        return None
    chosen = int(labelled[torch.randint(len(labelled), (1,), generator=generator)])
    found: list[int] = []
    for side in reversed(sample.labels.shape):
        found.append(chosen % side)
        chosen //= side
    return found[::-1]


def augment(batch: Batch, *, strength: Augmentation, generator: torch.Generator) -> Batch:
    """Change a batch at random.

    ``standard``: flips and (pictures) quarter turns; brightness, contrast and gamma per image. ``strong``: also
    rotation by any angle (volumes: about the axis to the head), zoom by up to a quarter, brightness and contrast
    per channel, and noise.
    """
    if strength == "none":
        return batch
    if strength == "strong":
        batch = _rotate_and_zoom(batch, generator)
    batch = _flip_and_turn(batch, generator)
    return Batch(_change_intensity(batch.image, strength, generator), batch.labels, batch.valid)


def augment_with_maps(batch: Batch, *, channels: int, generator: torch.Generator) -> Batch:
    """``standard`` for images whose channels after the first ``channels`` are maps: turned along, never brightened."""
    batch = _flip_and_turn(batch, generator)
    image = _change_intensity(batch.image[:, :channels], "standard", generator)
    return Batch(torch.cat([image, batch.image[:, channels:]], dim=1), batch.labels, batch.valid)


def _flip_and_turn(batch: Batch, generator: torch.Generator) -> Batch:
    choices = torch.randint(8, (batch.image.shape[0],), generator=generator).tolist()
    volume = batch.labels.ndim == 4
    square = batch.image.shape[-1] == batch.image.shape[-2]

    def move(part: torch.Tensor, choice: int) -> torch.Tensor:
        if choice & 1:
            part = part.flip(-1)
        if choice & 2:
            part = part.flip(-2)
        if choice & 4 and volume:
            return part.flip(-3)
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
    turn = _turn_of_volume if batch.labels.ndim == 4 else _turn_of_picture
    matrix = turn(angle.cos() * zoom, angle.sin() * zoom, batch.labels.shape[1:])
    grid = functional.affine_grid(matrix, [count, 1, *batch.labels.shape[1:]], align_corners=False)
    image = functional.grid_sample(batch.image, grid, padding_mode="reflection", align_corners=False)
    masks = torch.stack([batch.labels, batch.valid.to(batch.labels.dtype)], 1).float()
    moved = functional.grid_sample(
        masks, grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    return Batch(image, moved[:, 0].round().long(), moved[:, 1])


def _turn_of_picture(cos: torch.Tensor, sin: torch.Tensor, _: Sequence[int]) -> torch.Tensor:
    zero = torch.zeros_like(cos)
    return torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)


def _turn_of_volume(cos: torch.Tensor, sin: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """About z, whose coordinate comes first in torch's grids; x and y may have unlike sides."""
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    ratio = sides[0] / sides[1]
    rows = ([one, zero, zero, zero], [zero, cos, -sin * ratio, zero], [zero, sin / ratio, cos, zero])
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
