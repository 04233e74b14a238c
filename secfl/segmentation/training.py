"""Local training: one pass of AdamW from a given state, the same bits for the same inputs.

Nothing is carried from call to call: the optimiser starts anew, the generator is seeded by experiment, sites
and round, and the learning rate follows from the position in the whole run: a resumed run repeats bit for bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from secfl.config import Device, TrainingConfig
from secfl.errors import ConfigError
from secfl.segmentation.augmentation import Batch, Sample, augment, crop_batch
from secfl.segmentation.data.cases import Case
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.padding import padded_shape

__all__ = [
    "Span",
    "crop_shape",
    "deterministic",
    "learning_rate_factor",
    "optimize_span",
    "resolve_device",
    "samples_of",
    "train_span",
]

_WARM_UP = 0.05
_FINAL_FACTOR = 0.01
_GRADIENT_NORM = 1.0
_FOREGROUND_IN_VOLUMES = 0.5
_POLY = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Epochs ``first`` to ``first + epochs`` of a run of ``total``: its place in the schedule."""

    first: int
    epochs: int
    total: int


def learning_rate_factor(progress: float, schedule: str) -> float:
    """Share of the peak learning rate at ``progress`` 0..1 of the run.

    ``constant``; ``cosine``: 5 % warm-up, then a cosine to 1 %; ``poly``: ``(1 - progress)^0.9`` as in nnU-Net.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "poly":
        return float(max(1.0 - progress, 0.0) ** _POLY)
    if progress < _WARM_UP:
        return max(progress / _WARM_UP, 0.1)
    angle = math.pi * (progress - _WARM_UP) / (1.0 - _WARM_UP)
    return _FINAL_FACTOR + (1.0 - _FINAL_FACTOR) * 0.5 * (1.0 + math.cos(angle))


def resolve_device(device: Device, precision: str = "float32") -> torch.device:
    """The device to train on.

    Raises:
        ConfigError: CUDA is asked for, or mixed precision, which only CUDA gains from, and there is none.
    """
    if precision != "float32" and (device is Device.CPU or not torch.cuda.is_available()):
        raise ConfigError(
            f"training.precision: {precision} needs a CUDA device; expected float32 on this machine"
        )
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
    """Train a model in place towards the samples' labels.

    Args:
        model: On its device. Its parameters as they are given are what the proximal term pulls back to; those that
            need no gradient stay as they are.
        samples: Training images.
        settings: Batch size, learning rate, crop, augmentation, proximal term, accumulation, precision.
        span: Which epochs of the run these are.
        multiple: Sides of the model's input must be multiples of it.
        seed: Orders, crops and augments the images.

    Returns:
        Mean loss over the last epoch, without the proximal term.
    """
    device = next(model.parameters()).device
    foreground = settings.foreground_crops
    if foreground is None:
        foreground = _FOREGROUND_IN_VOLUMES if samples[0].labels.ndim == 3 else 0.0

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        batch = augment(batch, strength=settings.augmentation, generator=generator)
        return _loss(model, batch, device, settings.precision)

    return optimize_span(
        model,
        samples,
        loss,
        settings=settings,
        span=span,
        multiple=multiple,
        seed=seed,
        foreground=foreground,
    )


def optimize_span(
    model: nn.Module,
    samples: Sequence[Sample],
    loss_of: Callable[[Batch, torch.Generator], torch.Tensor],
    *,
    settings: TrainingConfig,
    span: Span,
    multiple: int,
    seed: int,
    foreground: float = 0.0,
) -> float:
    """Bring down any loss of cropped batches; what training, distillation and pre-training have in common.

    Args:
        model: As of `train_span`.
        samples: What is cropped and put into batches.
        loss_of: The loss of a batch, which it may augment with the generator.
        settings: Batch size, learning rate and its schedule, crop, proximal term, accumulation.
        span: As of `train_span`.
        multiple: As of `train_span`.
        seed: Orders and crops the samples.
        foreground: Share of crops with a labelled pixel in the middle.

    Returns:
        Mean loss over the last epoch, without the proximal term.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = crop_shape(samples, crop=settings.crop, multiple=multiple)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    anchor = [parameter.detach().clone() for parameter in learned] if settings.proximal else []
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = math.ceil(len(samples) / settings.batch_size)
    model.train()
    loss_of_epoch = 0.0
    torch.manual_seed(seed)  # for drop-out inside a network; put back by `deterministic`
    for epoch in range(span.epochs):
        order = torch.randperm(len(samples), generator=generator).tolist()
        loss_of_epoch = 0.0
        for step in range(steps):
            chosen = [samples[index] for index in order[step::steps]]
            batch = crop_batch(chosen, shape=shape, generator=generator, foreground=foreground)
            first = step - step % settings.accumulate
            together = min(settings.accumulate, steps - first)
            if step == first:
                optimizer.zero_grad(set_to_none=True)
            loss = loss_of(batch, generator)
            (loss / together).backward()
            loss_of_epoch += float(loss.detach()) * len(chosen) / len(samples)
            if step + 1 < first + together:
                continue
            progress = (span.first + epoch + first / steps) / span.total
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(progress, settings.schedule)
            _pull_back(learned, anchor, settings.proximal)
            nn.utils.clip_grad_norm_(learned, _GRADIENT_NORM)
            optimizer.step()
    return loss_of_epoch


def _loss(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> torch.Tensor:
    """Loss of one batch; in mixed precision the network computes in bfloat16, and the loss in float32."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(batch.image.to(device))
    return dice_and_cross_entropy(logits.float(), batch.labels.to(device), batch.valid.to(device))


def _pull_back(learned: Sequence[nn.Parameter], anchor: Sequence[torch.Tensor], strength: float) -> None:
    """Add the gradient of ``strength / 2 * ||w - w_global||²`` (Li et al. 2020, FedProx)."""
    with torch.no_grad():
        for parameter, start in zip(learned, anchor, strict=bool(anchor)):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=strength)


def crop_shape(samples: Sequence[Sample], *, crop: int, multiple: int) -> tuple[int, ...]:
    """Size of the training crops: as configured, or the largest image; rounded up to what the model can take.

    Pictures get squares, because they are turned by quarters; volumes boxes, because most are flat.
    """
    sides = [max(sizes) for sizes in zip(*(sample.labels.shape for sample in samples), strict=True)]
    if len(sides) == 2:
        sides = [max(sides)] * 2
    return padded_shape([min(crop, side) if crop else side for side in sides], multiple)
