"""One gradient per patient, for patient-level differential privacy.

Three ways, all exact, in physical batches that bound memory. `Method.LAYERS` takes one backward pass over the batch
and multiplies inputs and gradients of each layer, image by image: the fastest, for models of convolutions and
instance or group normalisations that keep images apart. `Method.VMAP` works for every layer that torch's function
transforms know (Opacus' hooks do not cover the U-Net's transposed convolutions). `Method.MICRO_BATCH` runs one image
at a time. `fastest_method` asks the model which of the first two it can trust; the tests compare all.

Images are not augmented here: a row must depend on its patient and the model alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from secfl.errors import ConfigError
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.layer_gradients import LayerGradients
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.padding import padded_shape

__all__ = ["Method", "PatientGradients", "fastest_method", "refuse_mixing_layers"]

_AGREEMENT = 1e-3
"""Of rows in single precision; a model that mixes images misses it by orders of magnitude."""


class Method(StrEnum):
    """How per-image gradients are computed."""

    LAYERS = "layers"
    VMAP = "vmap"
    MICRO_BATCH = "micro_batch"


def refuse_mixing_layers(model: nn.Module) -> None:
    """Refuse layers through which one patient's image changes another's gradient.

    Raises:
        ConfigError: The model has a batch normalisation; the message names it and the remedy.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the common base of all dimensions
            raise ConfigError(
                f"--dp patient: layer {name} ({type(module).__name__}) mixes patients; expected group or instance "
                "normalisation without running statistics (model.normalization)"
            )


def fastest_method(model: nn.Module, *, image: Sequence[int], classes: int) -> Method:
    """`Method.LAYERS` where the model has only layers that it knows and gives the right rows, else `Method.VMAP`.

    The model is shown two random images together and each alone: whatever mixes images, uses weights outside of
    their layer or changes values in place shows as a difference. Nothing here depends on a patient.

    Args:
        model: The network.
        image: ``(channels, *spatial)`` that the model can take.
        classes: Labels including background.
    """
    if not LayerGradients.covers(model):
        return Method.VMAP
    generator = torch.Generator().manual_seed(0)
    kind = next(model.parameters()).dtype
    samples = [
        Sample(
            torch.randn(tuple(image), generator=generator, dtype=kind),
            torch.randint(classes, tuple(image[1:]), generator=generator),
            torch.ones(tuple(image[1:]), dtype=kind),
        )
        for _ in range(2)
    ]

    def rows(method: Method) -> NDArray[np.float32]:
        gradients = PatientGradients(model, multiple=1, physical_batch=2, method=method)
        return np.concatenate(list(gradients.rows([[sample] for sample in samples])))

    alone = rows(Method.MICRO_BATCH)
    try:
        together = rows(Method.LAYERS)
    except RuntimeError:
        return Method.VMAP
    agree = np.linalg.norm(together - alone) <= _AGREEMENT * np.linalg.norm(alone)
    return Method.LAYERS if agree else Method.VMAP


@dataclass(frozen=True, slots=True)
class _Image:
    """One padded image, its share of its patient's row, and whether it is that patient's last."""

    sample: Sample
    share: float
    last: bool


class PatientGradients:
    """Per-patient gradients of the segmentation loss.

    Args:
        model: The network; its parameters are overwritten by the caller's state.
        multiple: Sides of the model's input must be multiples of it; images are padded, and padding counts
            neither in the loss nor in the gradient.
        physical_batch: Images whose gradients are in memory at once.
        method: See `Method`.
    """

    def __init__(
        self, model: nn.Module, *, multiple: int, physical_batch: int, method: Method = Method.VMAP
    ) -> None:
        refuse_mixing_layers(model)
        self._model = model
        self._multiple = multiple
        self._physical_batch = physical_batch
        self._method = method

    def rows(self, patients: Sequence[Sequence[Sample]]) -> Iterator[NDArray[np.float32]]:
        """The mean gradient over each patient's images.

        Args:
            patients: The chosen patients' images.

        Yields:
            float32, shape ``(k, d)``, patients in order; every patient appears in exactly one row.
        """
        images = [
            _Image(self._pad(sample), share=1 / len(samples), last=number + 1 == len(samples))
            for samples in patients
            for number, sample in enumerate(samples)
        ]
        patient: NDArray[np.float32] | None = None  # the sum so far; a patient may span two batches
        for batch in self._batches(images):
            finished: list[NDArray[np.float32]] = []
            for image, gradient in zip(batch, self._gradients([one.sample for one in batch]), strict=True):
                part = gradient * np.float32(image.share)
                patient = part if patient is None else patient + part
                if image.last:
                    finished.append(patient)
                    patient = None
            if finished:
                yield np.stack(finished)

    def _batches(self, images: Sequence[_Image]) -> Iterator[list[_Image]]:
        """Consecutive images of one size, at most a physical batch."""
        batch: list[_Image] = []
        for image in images:
            full = len(batch) == self._physical_batch
            other_size = bool(batch) and batch[0].sample.image.shape != image.sample.image.shape
            if full or other_size:
                yield batch
                batch = []
            batch.append(image)
        if batch:
            yield batch

    def _pad(self, sample: Sample) -> Sample:
        sides = tuple(sample.labels.shape)
        wanted = padded_shape(sides, self._multiple)
        missing = [full - side for full, side in zip(wanted, sides, strict=True)]
        margin = [amount for side in reversed(missing) for amount in (0, side)]
        return Sample(
            functional.pad(sample.image, margin),
            functional.pad(sample.labels, margin),
            functional.pad(sample.valid, margin),
        )

    def _gradients(self, samples: Sequence[Sample]) -> NDArray[np.float32]:
        """One row per image."""
        device = next(self._model.parameters()).device
        image = torch.stack([sample.image for sample in samples]).to(device)
        labels = torch.stack([sample.labels for sample in samples]).to(device)
        valid = torch.stack([sample.valid for sample in samples]).to(device)
        parameters = {name: value.detach() for name, value in self._model.named_parameters()}

        def loss(
            weights: dict[str, torch.Tensor], one: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor
        ) -> torch.Tensor:
            return _loss(functional_call(self._model, weights, (one[None],)), truth, inside)

        self._model.train()
        for module in self._model.modules():
            # Chance inside a network would make a row depend on more than its patient and the model.
            if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - the base of all drop-outs
                module.eval()
        match self._method:
            case Method.LAYERS:
                losses = vmap(lambda out, truth, inside: _loss(out[None], truth, inside))
                found = LayerGradients(self._model).rows(image, lambda out: losses(out, labels, valid))
            case Method.VMAP:
                found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, image, labels, valid)
            case Method.MICRO_BATCH:
                single = [grad(loss)(parameters, image[i], labels[i], valid[i]) for i in range(len(samples))]
                found = {name: torch.stack([row[name] for row in single]) for name in parameters}
        flat = torch.cat([found[name].flatten(1) for name in parameters], dim=1)
        rows: NDArray[np.float32] = flat.cpu().numpy().astype(np.float32, copy=False)
        return rows


def _loss(logits: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The loss of one image; ``logits`` has a batch axis of one."""
    return dice_and_cross_entropy(logits, truth[None], inside[None])
