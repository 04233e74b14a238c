"""Gradient inversion: what can be drawn from one update, from a secure sum, and from a secure sum with noise.

A demonstration on phantoms, not a bound: other attacks may do better, and a sum that resists this one is not thereby
private. The attacker knows the model, the loss and all true masks, and looks for images whose gradients match (Zhu et
al. 2019) by L-BFGS. It is tried at fresh weights and at weights that the aggregator chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from secfl.audit.inversion_pictures import Reconstruction, draw_rows
from secfl.audit.inversion_scene import PIXELS, InversionScene, Weights
from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.noise import NoiseFamily, NoiseShare, privatize
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed, Rng

__all__ = ["Seen", "attack", "inversion_study", "invert", "observed"]

_FORMAT_VERSION: Final = 1
_SMOOTHNESS: Final = 3e-3
_HISTORY: Final = 20
_COARSE: Final = 6
_BITS: Final = 40


class Seen(StrEnum):
    """What the attacker has."""

    NOTHING = "no update: the average of the other images"
    MASK = "no update: the mask"
    FRESH_UPDATE = "one update, fresh weights"
    ONE_UPDATE = "one update"
    SUM_OF_3 = "secure sum of 3"
    SUM_OF_7 = "secure sum of 7"
    SUM_OF_3_WITH_NOISE = "secure sum of 3 with DP"

    @property
    def update(self) -> bool:
        """Whether anything was sent."""
        return self not in {Seen.NOTHING, Seen.MASK}

    @property
    def clients(self) -> int:
        """Updates in the sum."""
        return {Seen.SUM_OF_3: 3, Seen.SUM_OF_7: 7, Seen.SUM_OF_3_WITH_NOISE: 3}.get(self, 1)

    @property
    def weights(self) -> Weights:
        """Where the gradients were taken."""
        return Weights.FRESH if self is Seen.FRESH_UPDATE else Weights.CHOSEN


def observed(
    scene: InversionScene, indices: Sequence[int], seen: Seen, *, noise_multiplier: float, rng: Rng
) -> list[torch.Tensor]:
    """What the attacker is given: the sum of the gradients, with DP clipped and noised by the code that runs."""
    chosen = list(indices)
    if seen is not Seen.SUM_OF_3_WITH_NOISE:
        return [part.detach() for part in scene.gradient(scene.images[chosen], scene.labels[chosen])]
    grid = GridClip.single(dimension=scene.parameters, clip_norm=1.0, grid_norm=4 * scene.parameters)
    accumulator = PatientAccumulator(grid)
    for index in chosen:
        parts = scene.gradient(scene.images[index : index + 1], scene.labels[index : index + 1])
        accumulator.add(torch.cat([part.flatten() for part in parts]).numpy())
    share = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=noise_multiplier * grid.sensitivity)
    residues = privatize(accumulator.total(), noise=share, bits=_BITS, rng=rng).vectors["update"]
    signed = residues.astype(np.int64)
    signed[signed >= 1 << (_BITS - 1)] -= 1 << _BITS
    flat = torch.from_numpy(grid.to_real(signed).astype(np.float32))
    shapes = [parameter.shape for parameter in scene.model.parameters()]
    pieces = flat.split([shape.numel() for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def invert(
    scene: InversionScene,
    target: Sequence[torch.Tensor],
    labels: torch.Tensor,
    *,
    iterations: int,
    seed: int,
) -> torch.Tensor:
    """Images whose summed gradients equal the observed one, kernel by kernel.

    The mismatch is the squared distance of every kernel between the first and the last, relative to its norm, plus
    a little total variation.

    Args:
        scene: Model and loss.
        target: The observed gradient, tensor by tensor.
        labels: The true masks of all images in the sum, shape ``(k, 64, 64)``: given to the attacker.
        iterations: Steps of L-BFGS.
        seed: Of the first guess, smooth clouds.

    Returns:
        float32, shape ``(k, 1, 64, 64)``.
    """
    source = ExperimentSeed(seed).generator("inversion")
    clouds = source.standard_normal((len(labels), 1, _COARSE, _COARSE)).astype(np.float32)
    guess = functional.interpolate(torch.from_numpy(clouds), size=PIXELS, mode="bicubic", align_corners=False)
    guess = guess.detach().requires_grad_()
    kernels = [index for index, tensor in enumerate(target) if tensor.dim() == 4][1:-1]
    scales = {index: target[index].square().sum() + 1e-30 for index in kernels}
    optimizer = torch.optim.LBFGS(
        [guess],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def mismatch() -> torch.Tensor:
        found = scene.gradient(guess, labels, keep_graph=True)
        apart = [(found[index] - target[index]).square().sum() / scales[index] for index in kernels]
        rough = guess.diff(dim=-1).abs().mean() + guess.diff(dim=-2).abs().mean()
        loss = torch.stack(apart).mean() + _SMOOTHNESS * rough
        (guess.grad,) = torch.autograd.grad(loss, guess)
        return loss.detach()

    optimizer.step(mismatch)
    return guess.detach()


def attack(
    scene: InversionScene,
    indices: Sequence[int],
    seen: Seen,
    *,
    iterations: int,
    noise_multiplier: float,
    rng: Rng,
) -> Reconstruction:
    """Invert one observation; the first index is the target, the others are the other clients' images."""
    first = indices[0]
    if seen is Seen.NOTHING:
        others = [index for index in range(len(scene.images)) if index != first]
        picture = scene.images[others, 0].mean(dim=0)
    elif seen is Seen.MASK:
        picture = scene.labels[first].float()
    else:
        target = observed(scene, indices, seen, noise_multiplier=noise_multiplier, rng=rng)
        picture = invert(scene, target, scene.labels[list(indices)], iterations=iterations, seed=first)[0, 0]
    return Reconstruction.of(picture, target=first, images=scene.images)


def inversion_study(
    *,
    images: int = 20,
    sums: int = 5,
    iterations: int = 60,
    noise_multiplier: float = 1.0,
    rng: Rng,
    figure: Path | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Attack single updates of ``images`` images, and sums around the first ``sums`` of them.

    Args:
        images: Single updates, batch 1.
        sums: Targets within sums of 3, of 7, and of 3 with noise; and single updates at fresh weights.
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
    scenes = {weights: InversionScene.make(images, weights=weights) for weights in Weights}
    plan = [
        (seen, index)
        for seen in Seen
        for index in range(images if seen is Seen.ONE_UPDATE or not seen.update else sums)
    ]
    found: dict[Seen, list[Reconstruction]] = {seen: [] for seen in Seen}
    for number, (seen, index) in enumerate(plan):
        found[seen].append(
            attack(
                scenes[seen.weights],
                [(index + step) % images for step in range(seen.clients)],
                seen,
                iterations=iterations,
                noise_multiplier=noise_multiplier,
                rng=rng,
            )
        )
        progress(number + 1, len(plan))
    scene = scenes[Weights.CHOSEN]
    if figure is not None:
        shown = range(min(3, sums))
        draw_rows(
            [
                [scene.images[number, 0].numpy(), *(found[seen][number].image for seen in Seen)]
                for number in shown
            ],
            figure,
        )
    return {
        "format_version": _FORMAT_VERSION,
        "model": "cnn",
        "parameters": scene.parameters,
        "pixels": PIXELS,
        "iterations": iterations,
        "noise_multiplier": noise_multiplier,
        "columns_of_the_figure": ["truth", *(seen.value for seen in Seen)],
        "rows": [
            _summary(seen, reconstructions, bars=_bars(found)) for seen, reconstructions in found.items()
        ],
    }


def _bars(found: Mapping[Seen, Sequence[Reconstruction]]) -> dict[int, float]:
    """By target, the SSIM that needs no update: the better of the average picture and the mask."""
    pairs = zip(found[Seen.NOTHING], found[Seen.MASK], strict=True)
    return {average.target: max(average.ssim, mask.ssim) for average, mask in pairs}


def _summary(seen: Seen, found: Sequence[Reconstruction], *, bars: Mapping[int, float]) -> dict[str, Any]:
    """One row; recognised is what resembles the right image most and more than what needs no update."""
    matched = [one.match == one.target for one in found]
    recognised = [match and one.ssim > bars[one.target] for match, one in zip(matched, found, strict=True)]
    ssim = np.array([one.ssim for one in found])
    psnr = np.array([one.psnr for one in found])
    return {
        "seen": seen.value,
        "weights": seen.weights.value,
        "images": len(found),
        "matched": sum(matched),
        "recognised": sum(recognised),
        "ssim_mean": round(float(ssim.mean()), 4),
        "ssim_min": round(float(ssim.min()), 4),
        "ssim_max": round(float(ssim.max()), 4),
        "psnr_mean_db": round(float(psnr.mean()), 2),
        "each": [
            {
                "target": one.target,
                "match": one.match,
                "ssim": round(one.ssim, 4),
                "psnr_db": round(one.psnr, 2),
            }
            for one in found
        ],
    }
