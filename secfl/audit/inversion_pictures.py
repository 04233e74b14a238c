"""Reconstructions and how near they come: SSIM, PSNR, whose picture it is, and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Reconstruction", "best_match", "draw_rows", "similarity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What came out for one target image.

    Attributes:
        target: Index of the image that was looked for.
        image: float32, shape ``(64, 64)``.
        ssim: Structural similarity to the target, 1 for equal.
        psnr: Peak signal-to-noise ratio in dB.
        match: Index of the image that it resembles most. The target's alone is not much: its mask, which the attacker
            was given, resembles it most as a rule.
    """

    target: int
    image: NDArray[np.float32] = field(repr=False)
    ssim: float
    psnr: float
    match: int

    @classmethod
    def of(cls, image: torch.Tensor, *, target: int, images: torch.Tensor) -> Reconstruction:
        """Judge a reconstruction, shape ``(64, 64)``, against all images, shape ``(count, 1, 64, 64)``."""
        ssim, psnr = similarity(images[target, 0], image)
        return cls(target=target, image=image.numpy(), ssim=ssim, psnr=psnr, match=best_match(image, images))


def similarity(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """SSIM and PSNR (MONAI's) of two images of shape ``(64, 64)``, the second scaled to fit the first best.

    Normalisation layers hide brightness and contrast, which give nobody away: the reconstruction is fitted linearly
    before it is judged.
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


def best_match(image: torch.Tensor, images: torch.Tensor) -> int:
    """Index of the image with the largest SSIM to a reconstruction."""
    return int(np.argmax([similarity(one[0], image)[0] for one in images]))


def draw_rows(rows: Sequence[Sequence[NDArray[np.float32]]], path: Path) -> None:
    """A picture of tiles, each scaled to its own 1st and 99th percentile; no text in it."""
    from PIL import Image

    lines = [np.concatenate([_grey(tile) for tile in row], axis=1) for row in rows]
    pixels = np.concatenate(lines, axis=0)
    Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2), Image.Resampling.NEAREST).save(
        path
    )


def _grey(tile: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(tile, (1, 99))
    scaled = np.clip((tile - low) / max(high - low, 1e-6), 0, 1)
    return np.pad((255 * scaled).astype(np.uint8), 1, constant_values=128)
