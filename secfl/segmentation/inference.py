"""Whole images through a model: padding to the model's multiple, batches of equal shape, optional flips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from secfl.segmentation.padding import padded_shape

__all__ = ["TestTimeAugmentation", "predict", "probabilities"]

TestTimeAugmentation: TypeAlias = Literal["none", "flips"]

_WHOLE_IMAGE_SIDE = 1024
_WHOLE_VOLUME = 128**3
_WINDOW_OF_VOLUMES = 96
_BATCH_PIXELS = 256 * 256
"""Per batch. Larger ones leave the processor's cache and take 1.6 times as long for the same images."""


def predict(
    model: nn.Module,
    images: Sequence[NDArray[np.float32]],
    *,
    multiple: int,
    augmentation: TestTimeAugmentation = "none",
    window: int = 0,
) -> list[NDArray[np.uint8]]:
    """The most probable label of every pixel; with two classes that is a threshold of one half.

    Args:
        model: Returns logits of shape ``(batch, classes, *spatial)``.
        images: float32, shape ``(channels, *spatial)`` each, any size.
        multiple: Sides of the model's input must be multiples of it.
        augmentation: ``flips`` averages the probabilities over the mirror images.
        window: Volumes go through the model in overlapping boxes with at most this side, as it was trained; 0:
            whole, if they are not large. Pictures are cut only beyond 1024 pixels.

    Returns:
        uint8, shape ``(*spatial)``, in the order of ``images``.
    """
    found: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(images)
    for chosen in _batches(images):
        batch = torch.from_numpy(np.stack([images[index] for index in chosen]))
        found_here = probabilities(model, batch, multiple=multiple, augmentation=augmentation, window=window)
        labels = found_here.argmax(dim=1)
        for index, result in zip(chosen, labels.to(torch.uint8).cpu().numpy(), strict=True):
            found[index] = result
    return found


def probabilities(
    model: nn.Module,
    batch: torch.Tensor,
    *,
    multiple: int,
    augmentation: TestTimeAugmentation = "none",
    window: int = 0,
) -> torch.Tensor:
    """Class probabilities of a batch of whole images, shape ``(batch, classes, *spatial)``."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    sides = batch.shape[2:]
    missing = [full - side for full, side in zip(padded_shape(sides, multiple), sides, strict=True)]
    pad = [amount for side in reversed(missing) for amount in (0, side)]
    padded = functional.pad(batch, pad)
    flips: list[tuple[int, ...]] = [()]
    if augmentation == "flips":
        for axis in range(2, batch.ndim):
            flips += [(*flip, axis) for flip in flips]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            total = sum(_forward(model, padded.flip(flip), multiple, window).flip(flip) for flip in flips)
    finally:
        model.train(was_training)
    assert isinstance(total, torch.Tensor)
    return (total / len(flips))[(..., *(slice(side) for side in sides))]


def _forward(model: nn.Module, batch: torch.Tensor, multiple: int, window: int) -> torch.Tensor:
    box = _window(tuple(batch.shape[2:]), multiple, window)
    if box is None:
        return model(batch).softmax(dim=1)
    from monai.inferers.utils import sliding_window_inference

    return sliding_window_inference(
        batch, box, 4, lambda part: model(part).softmax(dim=1), overlap=0.25, mode="gaussian"
    )


def _window(sides: tuple[int, ...], multiple: int, window: int) -> tuple[int, ...] | None:
    """The box that slides over an image, or ``None`` for the whole image at once; sides are the padded ones."""
    if len(sides) == 2:
        if max(sides) <= _WHOLE_IMAGE_SIDE:
            return None
        return tuple(min(side, _WHOLE_IMAGE_SIDE // 2 // multiple * multiple) for side in sides)
    if not window and math.prod(sides) <= _WHOLE_VOLUME:
        return None
    box = padded_shape([min(side, window or _WINDOW_OF_VOLUMES) for side in sides], multiple)
    return None if box == sides else tuple(min(side, most) for side, most in zip(box, sides, strict=True))


def _batches(images: Sequence[NDArray[np.float32]]) -> Iterator[list[int]]:
    """Indices of consecutive images of one shape, as many as memory allows."""
    chosen: list[int] = []
    for index, image in enumerate(images):
        full = chosen and (len(chosen) + 1) * int(np.prod(image.shape[1:])) > _BATCH_PIXELS
        if chosen and (full or images[chosen[0]].shape != image.shape):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen
