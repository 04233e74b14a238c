"""Local training: one pass of AdamW from a given state, the same bits for the same inputs.

Nothing is carried from call to call: the optimiser starts anew, the generator is seeded by experiment, sites
and round, and the learning rate follows from the position in the whole run: a resumed run repeats bit for bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from secfl.config import Device, TrainingConfig
from secfl.errors import ConfigError
from secfl.segmentation.augmentation import Sample, augment, crop_batch
from secfl.segmentation.data.cases import Case
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.padding import padded_shape

__all__ = ["Span", "deterministic", "learning_rate_factor", "resolve_device", "samples_of", "train_span"]

_WARM_UP = 0.05
_FINAL_FACTOR = 0.01
_GRADIENT_NORM = 1.0
_FOREGROUND_IN_VOLUMES = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Epochs ``first`` to ``first + epochs`` of a run of ``total``: its place in the schedule."""

    first: int
    epochs: int
    total: int


def learning_rate_factor(progress: float, schedule: str) -> float:
    """Share of the peak learning rate at ``progress`` 0..1 of the run: 5 % warm-up, then a cosine to 1 %."""
    if schedule == "constant":
        return 1.0
    if progress < _WARM_UP:
        return max(progress / _WARM_UP, 0.1)
    angle = math.pi * (progress - _WARM_UP) / (1.0 - _WARM_UP)
    return _FINAL_FACTOR + (1.0 - _FINAL_FACTOR) * 0.5 * (1.0 + math.cos(angle))


def resolve_device(device: Device) -> torch.device:
    """The device to train on.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if device is Device.CUDA and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device; expected auto or cpu on this machine")
    if device is Device.CPU or not torch.cuda.is_available():
        return torch.device("cpu")
    # cuBLAS repeats its sums only with a fixed workspace, and reads this before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda")


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Fix what torch's sums depend on, threads and choice of algorithms, and put them back afterwards."""
    chance_before = torch.get_rng_state()
    threads_before = torch.get_num_threads()
    mode_before = torch.are_deterministic_algorithms_enabled()
    fill_before = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    # Filling every new tensor guards code that reads memory it never wrote; it costs a sixth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_rng_state(chance_before)
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(mode=mode_before)
        torch.utils.deterministic.fill_uninitialized_memory = fill_before


def samples_of(cases: Sequence[Case]) -> list[Sample]:
    """Cases as tensors."""
    return [
        Sample(
            torch.from_numpy(case.image),
            torch.from_numpy(case.labels).long(),
            torch.ones(case.labels.shape) if case.valid is None else torch.from_numpy(case.valid).float(),
        )
        for case in cases
    ]


def train_span(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    settings: TrainingConfig,
    span: Span,
    multiple: int,
    seed: int,
) -> float:
    """Train a model in place.

    Args:
        model: On its device.
        samples: Training images.
        settings: Batch size, learning rate, crop, augmentation.
        span: Which epochs of the run these are.
        multiple: Sides of the model's input must be multiples of it.
        seed: Orders, crops and augments the images.

    Returns:
        Mean loss over the last epoch.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    shape = crop_shape(samples, crop=settings.crop, multiple=multiple)
    foreground = settings.foreground_crops
    if foreground is None:
        foreground = _FOREGROUND_IN_VOLUMES if len(shape) == 3 else 0.0
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = math.ceil(len(samples) / settings.batch_size)
    model.train()
    loss_of_epoch = 0.0
    torch.manual_seed(seed)  # for drop-out inside a network; put back by `deterministic`
    for epoch in range(span.epochs):
        order = torch.randperm(len(samples), generator=generator).tolist()
        loss_of_epoch = 0.0
        for step in range(steps):
            progress = (span.first + epoch + step / steps) / span.total
            rate = settings.learning_rate * learning_rate_factor(progress, settings.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = [samples[index] for index in order[step::steps]]
            batch = crop_batch(chosen, shape=shape, generator=generator, foreground=foreground)
            batch = augment(batch, strength=settings.augmentation, generator=generator)
            logits = model(batch.image.to(device))
            loss = dice_and_cross_entropy(logits, batch.labels.to(device), batch.valid.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
            optimizer.step()
            loss_of_epoch += float(loss.detach()) * len(chosen) / len(samples)
    return loss_of_epoch


def crop_shape(samples: Sequence[Sample], *, crop: int, multiple: int) -> tuple[int, ...]:
    """Size of the training crops: as configured, or the largest image; rounded up to what the model can take.

    Pictures get squares, because they are turned by quarters; volumes boxes, because most are flat.
    """
    sides = [max(sizes) for sizes in zip(*(sample.labels.shape for sample in samples), strict=True)]
    if len(sides) == 2:
        sides = [max(sides)] * 2
    return padded_shape([min(crop, side) if crop else side for side in sides], multiple)
