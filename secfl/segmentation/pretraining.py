"""Learn an encoder without labels: masked image modelling (He et al. 2022; Xie et al. 2022, "SimMIM").

Three quarters of an image's patches are hidden, and a network of the same family, with one output per image channel
in place of one per class, fills them in from the rest. The loss counts hidden pixels alone. Everything but the last
layer is then where segmentation starts (``model.pretrained``). Labels are never read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from secfl.config import RunConfig, TrainingConfig
from secfl.errors import ConfigError, DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.augmentation import Batch, Sample, augment, crop_batch
from secfl.segmentation.data.cases import Case, Dataset
from secfl.segmentation.digests import code_digest, settings_bytes
from secfl.segmentation.models import ModelSpec, model_spec
from secfl.segmentation.models.checking import check_model
from secfl.segmentation.models.making import ModelMaker
from secfl.segmentation.models.registry import family_code
from secfl.segmentation.models.state import state_of
from secfl.segmentation.task import LocalResult, Preview, SiteMetrics, State
from secfl.segmentation.training import (
    Span,
    crop_shape,
    deterministic,
    optimize_span,
    resolve_device,
)
from secfl.types import join_fields

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PretrainingTask", "hide_patches", "pretrain_span", "read_pretrained", "transfer"]

_TINY = 1e-6


def hide_patches(
    images: Tensor, *, patch: int, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Set a share of every image's patches to zero, the mean of normalised images.

    Args:
        images: Shape ``(batch, channels, *spatial)``.
        patch: Side of a patch, pixels; patches at the border are cut off.
        share: Of the patches of each image, rounded to a whole number of them.
        generator: Draws which.

    Returns:
        The images with hidden patches, and where they are: bool, shape ``(batch, 1, *spatial)``.
    """
    sides = images.shape[2:]
    grid = [math.ceil(side / patch) for side in sides]
    count = math.prod(grid)
    hidden = min(max(round(share * count), 1), count)
    order = torch.rand(images.shape[0], count, generator=generator).argsort(dim=1)
    mask = torch.zeros(images.shape[0], count, dtype=torch.bool)
    mask.scatter_(1, order[:, :hidden], value=True)
    mask = mask.reshape(images.shape[0], 1, *grid)
    for axis in range(2, mask.ndim):
        mask = mask.repeat_interleave(patch, dim=axis)
    mask = mask[(..., *(slice(side) for side in sides))]
    return images.masked_fill(mask, 0.0), mask


def _error(found: Tensor, image: Tensor, hidden: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over hidden pixels inside the field of view."""
    weight = hidden * valid[:, None]
    return ((found - image).square() * weight).sum() / (weight.sum() * image.shape[1]).clamp_min(1.0)


def pretrain_span(
    model: nn.Module,
    samples: Sequence[Sample],
    *,
    settings: TrainingConfig,
    span: Span,
    multiple: int,
    seed: int,
) -> float:
    """Train a model in place to fill in hidden patches; returns the mean loss over the last epoch.

    Args:
        model: On its device, with one output per image channel.
        samples: Training images; their labels are not looked at.
        settings: As in `secfl.segmentation.training.train_span`, with ``mask_patch`` and ``mask_share``.
        span: Which epochs of the run these are.
        multiple: Sides of the model's input must be multiples of it.
        seed: Orders, crops, augments and hides.
    """
    device = next(model.parameters()).device

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        batch = augment(batch, strength=settings.augmentation, generator=generator)
        seen, hidden = hide_patches(
            batch.image, patch=settings.mask_patch, share=settings.mask_share, generator=generator
        )
        image, valid = batch.image.to(device), batch.valid.to(device)
        return _error(model(seen.to(device)), image, hidden.to(device), valid)

    return optimize_span(model, samples, loss, settings=settings, span=span, multiple=multiple, seed=seed)


def transfer(pretrained: State, state: State, *, head: frozenset[str]) -> State:
    """A state that starts from a pre-trained one wherever names and shapes agree, except for the head.

    Raises:
        ConfigError: Nothing agrees, so it is the state of another model.
    """
    taken = {
        name
        for name, tensor in state.items()
        if name not in head and name in pretrained and pretrained[name].shape == tensor.shape
    }
    if not taken:
        raise ConfigError("model.pretrained: no tensor fits this model; expected a model of the same family")
    return {name: pretrained[name] if name in taken else tensor for name, tensor in state.items()}


def read_pretrained(path: Path) -> State:
    """The model of a checkpoint or of any safetensors file.

    Raises:
        DataError: The file is missing, damaged, or holds something else than float32 tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name.removeprefix("model/"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (model.pretrained)") from None
    except (SafetensorError, OSError):
        raise DataError(f"{path}: cannot be read; expected a safetensors file (model.pretrained)") from None
    state = {name: tensor for name, tensor in found.items() if tensor.dtype == np.float32}
    if not state:
        raise DataError(f"{path}: no float32 tensor in it (model.pretrained)")
    return state


class PretrainingTask:
    """A `Task` that learns to fill in hidden patches; chosen by ``training.objective = "masked-images"``.

    Where a summary says Dice, and for every other metric, stands the share of the hidden pixels' variance that the
    model explains, from 0.

    Args:
        config: The run.
        dataset: Every site's cases; labels are not looked at.
    """

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self._config = config
        self._dataset = dataset
        self._seed = ExperimentSeed(config.seed)
        self._device = resolve_device(config.training.device)
        self._spec: ModelSpec = model_spec(
            config.model,
            in_channels=dataset.channels,
            classes=dataset.channels,
            spatial_dims=dataset.spatial_dims,
        )
        self._models = ModelMaker(self._spec, seed=self._seed, device=self._device)
        check_model(self._models.fresh(), self._spec)

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, sorted."""
        return tuple(sorted(self._dataset.sites))

    @property
    def is_phantom(self) -> bool:
        """Whether no image shows a person."""
        return self._dataset.is_phantom

    def digest(self) -> bytes:
        """SHA-256 of the settings and of this package's code."""
        settings = settings_bytes(self._config, {"channels": self._dataset.channels})
        own = family_code(self._config.model.name)
        return hashlib.sha256(join_fields(b"secfl/v1/masked-images", settings, code_digest(), own)).digest()

    def examples(self, site: str) -> int:
        """Training images of a site."""
        return len(self._dataset.sites[site].train)

    def initial_state(self) -> State:
        """The first global model; the same for the same seed."""
        return self._models.first_state()

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """``local_epochs`` passes over one site's training images."""
        settings = self._config.training
        span = Span(
            first=round_index * settings.local_epochs,
            epochs=settings.local_epochs,
            total=settings.rounds * settings.local_epochs,
        )
        trained, loss = self._train([site], state, span=span, label=f"pretrain/{site}/{round_index}")
        return LocalResult(state=trained, examples=self.examples(site), loss=loss)

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:
        """The same without a federation."""
        epochs = rounds * self._config.training.local_epochs
        label = "pretrain-reference/" + "/".join(sorted(sites))
        span = Span(first=0, epochs=epochs, total=epochs)
        return self._train(sorted(sites), self.initial_state(), span=span, label=label)[0]

    def evaluate(self, site: str, state: State) -> SiteMetrics:
        """Explained share of the variance of hidden pixels of the test images; the hidden patches are fixed."""
        score = self._score(self._dataset.sites[site].test, state, label=f"pretrain-test/{site}")
        return SiteMetrics.of_score(score, cases=len(self._dataset.sites[site].test))

    def previews(self, site: str, state: State) -> Sequence[Preview]:  # noqa: ARG002 - see the protocol
        """None: there is no truth to compare with."""
        return []

    def _samples(self, cases: Sequence[Case]) -> list[Sample]:
        """Images without their labels."""
        return [
            Sample(
                torch.from_numpy(np.ascontiguousarray(case.image)),
                torch.zeros(case.image.shape[1:], dtype=torch.int64),
                torch.ones(case.image.shape[1:])
                if case.valid is None
                else torch.from_numpy(np.ascontiguousarray(case.valid)).float(),
            )
            for case in cases
        ]

    def _train(self, sites: Sequence[str], state: State, *, span: Span, label: str) -> tuple[State, float]:
        samples = [sample for site in sites for sample in self._samples(self._dataset.sites[site].train)]
        with deterministic(self._config.threads):
            model = self._models.loaded(state)
            loss = pretrain_span(
                model,
                samples,
                settings=self._config.training,
                span=span,
                multiple=self._spec.multiple,
                seed=self._seed.derive(label),
            )
            return state_of(model), loss

    def _score(self, cases: Sequence[Case], state: State, *, label: str) -> float:
        settings = self._config.training
        generator = torch.Generator().manual_seed(self._seed.derive(label))
        samples = self._samples(cases)
        shape = crop_shape(samples, crop=0, multiple=self._spec.multiple)
        with deterministic(self._config.threads), torch.inference_mode():
            model = self._models.loaded(state).eval()
            batch = crop_batch(samples, shape=shape, generator=generator)
            seen, hidden = hide_patches(
                batch.image, patch=settings.mask_patch, share=settings.mask_share, generator=generator
            )
            hidden = hidden.to(self._device)
            image, valid = batch.image.to(self._device), batch.valid.to(self._device)
            found = torch.cat([model(one[None].to(self._device)) for one in seen])
            error = float(_error(found, image, hidden, valid))
            variance = float(_error(torch.zeros_like(image), image, hidden, valid))
        return min(max(1.0 - error / max(variance, _TINY), 0.0), 1.0)
