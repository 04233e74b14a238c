"""Whole images through a model: padding to the model's multiple, batches of equal shape, optional flips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

__all__ = ["TestTimeAugmentation", "predict", "probabilities"]

TestTimeAugmentation: TypeAlias = Literal["none", "flips"]

_WHOLE_IMAGE_SIDE = 1024
_BATCH_PIXELS = 256 * 256
"""Per batch. Larger ones leave the processor's cache and take 1.6 times as long for the same images."""


def predict(
    model: nn.Module,
    images: Sequence[NDArray[np.float32]],
    *,
    multiple: int,
    augmentation: TestTimeAugmentation = "none",
) -> list[NDArray[np.uint8]]:
    """The most probable label of every pixel; with two classes that is a threshold of one half.

    Args:
        model: Returns logits of shape ``(batch, classes, *spatial)``.
        images: float32, shape ``(channels, *spatial)`` each, any size.
        multiple: Sides of the model's input must be multiples of it.
        augmentation: ``flips`` averages the probabilities over the mirror images.

    Returns:
        uint8, shape ``(*spatial)``, in the order of ``images``.
    """
    found: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(images)
    for chosen in _batches(images):
        batch = torch.from_numpy(np.stack([images[index] for index in chosen]))
        labels = probabilities(model, batch, multiple=multiple, augmentation=augmentation).argmax(dim=1)
        for index, result in zip(chosen, labels.to(torch.uint8).cpu().numpy(), strict=True):
            found[index] = result
    return found


def probabilities(
    model: nn.Module, batch: torch.Tensor, *, multiple: int, augmentation: TestTimeAugmentation = "none"
) -> torch.Tensor:
    """Class probabilities of a batch of whole images, shape ``(batch, classes, *spatial)``."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    sides = batch.shape[2:]
    pad = [amount for side in reversed(sides) for amount in (0, -side % multiple)]
    padded = functional.pad(batch, pad)
    flips: list[tuple[int, ...]] = [()]
    if augmentation == "flips":
        for axis in range(2, batch.ndim):
            flips += [(*flip, axis) for flip in flips]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            total = sum(_forward(model, padded.flip(flip), multiple).flip(flip) for flip in flips)
    finally:
        model.train(was_training)
    assert isinstance(total, torch.Tensor)
    return (total / len(flips))[(..., *(slice(side) for side in sides))]


def _forward(model: nn.Module, batch: torch.Tensor, multiple: int) -> torch.Tensor:
    if max(batch.shape[2:]) <= _WHOLE_IMAGE_SIDE:
        return model(batch).softmax(dim=1)
    from monai.inferers.utils import sliding_window_inference

    window = [min(side, _WHOLE_IMAGE_SIDE // 2 // multiple * multiple) for side in batch.shape[2:]]
    return sliding_window_inference(
        batch, window, 4, lambda part: model(part).softmax(dim=1), overlap=0.25, mode="gaussian"
    )


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
