"""What an inversion attack is tried on: phantom images of different patients, and a model under attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
import torch
from torch import nn

from secfl.config import ModelConfig
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.phantom import make_phantom_dataset
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.models.registry import build_model, model_spec

__all__ = ["PIXELS", "InversionScene", "Weights"]

PIXELS: Final = 64
_SITES: Final = 8
_ALWAYS_ON: Final = 2.0
_FAINT: Final = 1e-3


class Weights(StrEnum):
    """Whose weights the client computes its gradient at.

    FRESH: drawn at random, as training begins. CHOSEN: what an aggregator sends that wants to see the images; a
    client cannot tell by looking whether a model came out of training.
    """

    FRESH = "fresh"
    CHOSEN = "chosen by the aggregator"


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionScene:
    """Images, masks and the model that was to be trained on them.

    Attributes:
        model: The family `cnn` as it is configured by default.
        images: float32, shape ``(count, 1, 64, 64)``, each scaled to mean 0 and deviation 1; every one of another
            patient, taken in turn from eight clinics with a scanner each.
        labels: int64, shape ``(count, 64, 64)``.
    """

    model: nn.Module = field(repr=False)
    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)

    @classmethod
    def make(cls, count: int, *, weights: Weights, seed: int = 0) -> InversionScene:
        """Phantom slices, and the default `cnn` with the given weights.

        Raises:
            ConfigError: No image.
        """
        if count < 1:
            raise ConfigError(f"inversion: {count} images, expected 1 or more")
        per_site = -(-count // _SITES)
        data = make_phantom_dataset(
            sites=_SITES,
            images_per_site=per_site + 1,
            size=PIXELS,
            test_fraction=1 / (per_site + 1),
            seed=ExperimentSeed(seed),
            slices_per_patient=1,
        )
        cases = [site.train[number] for number in range(per_site) for site in data.sites.values()][:count]
        images = torch.stack([torch.from_numpy(case.image) for case in cases])
        mean, deviation = images.mean(dim=(1, 2, 3), keepdim=True), images.std(dim=(1, 2, 3), keepdim=True)
        spec = model_spec(ModelConfig(), in_channels=1, classes=data.classes, family="cnn")
        model = build_model(spec, seed=ExperimentSeed(seed).derive("inversion")).eval()
        if weights is Weights.CHOSEN:
            choose_weights(model, seed=seed)
        return cls(
            model=model,
            images=(images - mean) / deviation,
            labels=torch.stack([torch.from_numpy(case.labels.astype(np.int64)) for case in cases]),
        )

    @property
    def parameters(self) -> int:
        """D."""
        return sum(one.numel() for one in self.model.parameters())

    def gradient(
        self, images: torch.Tensor, labels: torch.Tensor, *, keep_graph: bool = False
    ) -> list[torch.Tensor]:
        """The sum over images of the gradient of each one's loss (batch 1), tensor by tensor."""
        logits = self.model(images)
        loss = torch.stack(
            [
                dice_and_cross_entropy(logits[index : index + 1], labels[index : index + 1])
                for index in range(len(images))
            ]
        ).sum()
        return list(torch.autograd.grad(loss, list(self.model.parameters()), create_graph=keep_graph))


def choose_weights(model: nn.Module, *, seed: int) -> None:
    """Weights in which the gradient holds the picture, in a network of ordinary shape.

    Every kernel moves one channel by one tap, drawn at random; the shift of every normalisation keeps all
    activations on; the head is faint. The network is then nearly linear, the error at its output is nearly the mask
    alone, and the gradient of a kernel between channels i and o is the correlation of that error with the picture
    at the displacement that lies on the way from i to o: thousands of displacements, more than there are pixels.
    (The aggregator as an active attacker: Fowl et al. 2022, Boenisch et al. 2023.)

    Args:
        model: Changed in place.
        seed: Draws channels and taps.
    """
    source = ExperimentSeed(seed).generator("inversion/chosen weights")
    *kernels, head = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        for kernel in kernels:
            outputs, inputs, *taps = kernel.weight.shape
            kernel.weight.zero_()
            order = source.permutation(outputs)
            for output in range(outputs):
                place = [int(source.integers(size)) for size in taps]
                kernel.weight[output, int(order[output]) % inputs, *place] = 1.0
        for module in model.modules():
            if isinstance(module, nn.InstanceNorm2d | nn.GroupNorm):
                module.bias.fill_(_ALWAYS_ON)
        signs = torch.tensor([-1.0, *([1.0] * (head.weight.shape[0] - 1))])
        head.weight.copy_(_FAINT * signs[:, None, None, None].expand_as(head.weight))
        if head.bias is not None:
            head.bias.zero_()
