"""Gradient inversion: what can be drawn from one update, from a secure sum, and from a secure sum with noise.

A demonstration on phantoms, not a bound: other attacks may do better, and a sum that resists this one is not thereby
private. The attacker is given the model, the loss and the true masks, and looks for images whose gradients match
(Zhu et al. 2019; the cosine objective of Geiping et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.noise import NoiseFamily, NoiseShare, privatize
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed, Rng
from secfl.segmentation.data.phantom import make_phantom_dataset
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.models.registry import ModelSpec, build_model

__all__ = [
    "InversionScene",
    "Reconstruction",
    "Seen",
    "inversion_figure",
    "inversion_study",
    "invert",
    "similarity",
]

_SIZE: Final = 64
_LEARNING_RATE: Final = 0.1
_SMOOTHNESS: Final = 1e-4


class Seen(StrEnum):
    """What the attacker sees."""

    ONE_UPDATE = "one update"
    SUM_OF_3 = "secure sum of 3"
    SUM_OF_7 = "secure sum of 7"
    SUM_OF_3_WITH_NOISE = "secure sum of 3 with DP"

    @property
    def clients(self) -> int:
        """Updates in the sum."""
        return {Seen.ONE_UPDATE: 1, Seen.SUM_OF_7: 7}.get(self, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionScene:
    """Images, masks and the model that was to be trained on them.

    Attributes:
        model: In evaluation mode, at its initial weights.
        images: float32, shape ``(count, 1, 64, 64)``, each scaled to mean 0 and deviation 1.
        labels: int64, shape ``(count, 64, 64)``.
    """

    model: nn.Module = field(repr=False)
    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)

    @classmethod
    def make(cls, count: int, *, family: str = "cnn", seed: int = 0) -> InversionScene:
        """Phantom slices of one clinic and a model family at 64 pixels."""
        data = make_phantom_dataset(
            sites=1,
            images_per_site=max(8, count + count // 2),
            size=_SIZE,
            test_fraction=0.25,
            seed=ExperimentSeed(seed),
        )
        cases = next(iter(data.sites.values())).train[:count]
        if len(cases) < count:
            raise ConfigError(f"inversion: {len(cases)} images, expected {count}")
        images = torch.stack([torch.from_numpy(case.image) for case in cases])
        mean, deviation = images.mean(dim=(1, 2, 3), keepdim=True), images.std(dim=(1, 2, 3), keepdim=True)
        spec = ModelSpec(
            family=family,
            in_channels=data.channels,
            classes=data.classes,
            channels=(12, 12, 12),
            normalization="instance",
        )
        model = build_model(spec, seed=ExperimentSeed(seed).derive("inversion")).eval()
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
        self, image: torch.Tensor, labels: torch.Tensor, *, keep_graph: bool = False
    ) -> torch.Tensor:
        """The gradient of the loss of one image (batch 1), shape ``(d,)``."""
        loss = dice_and_cross_entropy(self.model(image[None]), labels[None])
        parts = torch.autograd.grad(loss, list(self.model.parameters()), create_graph=keep_graph)
        return torch.cat([part.flatten() for part in parts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What came out for one target image.

    Attributes:
        seen: What the attacker saw.
        image: float32, shape ``(64, 64)``: the reconstruction nearest to the target.
        ssim: Structural similarity to the target, 1 for equal.
        psnr: Peak signal-to-noise ratio in dB.
    """

    seen: Seen
    image: NDArray[np.float32] = field(repr=False)
    ssim: float
    psnr: float


def observed(
    scene: InversionScene, indices: Sequence[int], seen: Seen, *, noise_multiplier: float, rng: Rng
) -> torch.Tensor:
    """What the attacker is given: the sum of the gradients, with DP clipped and noised by the code that runs."""
    gradients = [scene.gradient(scene.images[index], scene.labels[index]) for index in indices]
    if seen is not Seen.SUM_OF_3_WITH_NOISE:
        return torch.stack(gradients).sum(dim=0)
    grid = GridClip.single(dimension=scene.parameters, clip_norm=1.0, grid_norm=4 * scene.parameters)
    accumulator = PatientAccumulator(grid)
    accumulator.add_all(one.numpy() for one in gradients)
    share = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=noise_multiplier * grid.sensitivity)
    bits = 40
    residues = privatize(accumulator.total(), noise=share, bits=bits, rng=rng).vectors["update"]
    signed = residues.astype(np.int64)
    signed[signed >= 1 << (bits - 1)] -= 1 << bits
    return torch.from_numpy(grid.to_real(signed).astype(np.float32))


def invert(
    scene: InversionScene,
    target: torch.Tensor,
    labels: torch.Tensor,
    *,
    iterations: int,
    seed: int,
) -> torch.Tensor:
    """Images whose summed gradients point where the observed one does.

    Args:
        scene: Model and loss.
        target: The observed gradient, shape ``(d,)``.
        labels: The true masks of all images in the sum, shape ``(k, 64, 64)``: given to the attacker.
        iterations: Steps of Adam.
        seed: Of the first guess.

    Returns:
        float32, shape ``(k, 1, 64, 64)``.
    """
    start = ExperimentSeed(seed).generator("inversion").standard_normal((len(labels), 1, _SIZE, _SIZE))
    guess = torch.tensor(start * 0.3, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([guess], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, eta_min=_LEARNING_RATE / 50)
    scale = target.norm()
    for _ in range(iterations):
        optimizer.zero_grad()
        total = torch.stack(
            [scene.gradient(image, mask, keep_graph=True) for image, mask in zip(guess, labels, strict=True)]
        ).sum(dim=0)
        mismatch = 1 - torch.dot(total, target) / (total.norm() * scale + 1e-12)
        rough = guess.diff(dim=-1).abs().mean() + guess.diff(dim=-2).abs().mean()
        (mismatch + _SMOOTHNESS * rough).backward()
        optimizer.step()
        schedule.step()
    return guess.detach()


def similarity(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """SSIM and PSNR (MONAI's) of two images of shape ``(64, 64)``, the second scaled to fit the first best.

    The attacker may know brightness and contrast: the reconstruction is fitted linearly before it is judged.
    """
    from monai.metrics.regression import PSNRMetric, SSIMMetric

    truth, guess = one.flatten(), other.flatten()
    centred = guess - guess.mean()
    slope = torch.dot(centred, truth - truth.mean()) / centred.square().sum().clamp_min(1e-12)
    fitted = (slope * centred + truth.mean()).reshape(one.shape)
    width = float(truth.max() - truth.min())
    pair = (fitted[None, None], one[None, None])
    ssim = SSIMMetric(spatial_dims=2, data_range=torch.tensor(width))(*pair)
    psnr = PSNRMetric(max_val=width)(*pair)
    return float(ssim.mean()), float(psnr.mean())


def attack(
    scene: InversionScene,
    indices: Sequence[int],
    seen: Seen,
    *,
    iterations: int,
    noise_multiplier: float,
    rng: Rng,
    seed: int = 0,
) -> Reconstruction:
    """Invert one observation; the first index is the target, the others are the other clients' images."""
    target = observed(scene, indices, seen, noise_multiplier=noise_multiplier, rng=rng)
    guesses = invert(scene, target, scene.labels[list(indices)], iterations=iterations, seed=seed)
    truth = scene.images[indices[0], 0]
    ssim, psnr = similarity(truth, guesses[0, 0])
    return Reconstruction(seen=seen, image=guesses[0, 0].numpy(), ssim=ssim, psnr=psnr)


def inversion_study(
    *,
    images: int = 20,
    sums: int = 5,
    iterations: int = 500,
    noise_multiplier: float = 1.0,
    rng: Rng,
    figure: Path | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Attack single updates of ``images`` images, and sums around the first ``sums`` of them.

    Args:
        images: Single updates, batch 1.
        sums: Targets within sums of 3, of 7, and of 3 with noise.
        iterations: Of each attack, at most 500.
        noise_multiplier: z of the noise in the sum.
        rng: The noise.
        figure: Where to draw the first targets; nothing is drawn without.
        progress: Told after every attack.

    Raises:
        ConfigError: Fewer images than a sum of seven needs, or more than 500 iterations.
    """
    if not images >= 7 or not 1 <= sums <= images or not 1 <= iterations <= 500:
        raise ConfigError(
            "inversion: expected 7 images or more, at least one sum, and at most 500 iterations"
        )
    scene = InversionScene.make(images)
    plan = [(Seen.ONE_UPDATE, index) for index in range(images)]
    plan += [(seen, index) for seen in Seen if seen is not Seen.ONE_UPDATE for index in range(sums)]
    found: dict[Seen, list[Reconstruction]] = {seen: [] for seen in Seen}
    for number, (seen, index) in enumerate(plan):
        indices = [(index + step) % images for step in range(seen.clients)]
        found[seen].append(
            attack(
                scene,
                indices,
                seen,
                iterations=iterations,
                noise_multiplier=noise_multiplier,
                rng=rng,
                seed=index,
            )
        )
        progress(number + 1, len(plan))
    if figure is not None:
        inversion_figure(scene, found, figure)
    rows = []
    for seen, reconstructions in found.items():
        ssim = np.array([one.ssim for one in reconstructions])
        psnr = np.array([one.psnr for one in reconstructions])
        rows.append(
            {
                "seen": seen.value,
                "images": len(reconstructions),
                "ssim_mean": round(float(ssim.mean()), 4),
                "ssim_min": round(float(ssim.min()), 4),
                "ssim_max": round(float(ssim.max()), 4),
                "psnr_mean_db": round(float(psnr.mean()), 2),
            }
        )
    return {
        "format_version": 1,
        "model": "cnn",
        "parameters": scene.parameters,
        "pixels": _SIZE,
        "iterations": iterations,
        "noise_multiplier": noise_multiplier,
        "rows": rows,
    }


def inversion_figure(
    scene: InversionScene, found: dict[Seen, list[Reconstruction]], path: Path, *, rows: int = 3
) -> None:
    """A picture: a row per target, columns truth and what each view gave; no text in it."""
    from PIL import Image

    lines = []
    for number in range(min(rows, *(len(some) for some in found.values()))):
        truth = scene.images[number, 0].numpy()
        tiles = [truth, *(found[seen][number].image for seen in Seen)]
        lines.append(np.concatenate([_grey(tile) for tile in tiles], axis=1))
    pixels = np.concatenate(lines, axis=0)
    Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2), Image.Resampling.NEAREST).save(
        path
    )


def _grey(tile: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(tile, (1, 99))
    scaled = np.clip((tile - low) / max(high - low, 1e-6), 0, 1)
    return np.pad((255 * scaled).astype(np.uint8), 1, constant_values=128)
