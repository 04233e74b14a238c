"""What the phantoms are drawn with: coordinates, outlines, smooth fields. Fast, and from explicit generators."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["Drawing", "Field", "blob", "blurred", "coordinates", "grainy", "smooth_field", "to_bytes"]

Field = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One image in its modality's own units.

    Attributes:
        values: float32, shape ``(channels, *spatial)``: Hounsfield units, grey values 0..255, or signal.
        labels: uint8, shape ``(*spatial)``.
        spacing: mm along each spatial axis.
    """

    values: Field = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    spacing: tuple[float, ...]


@lru_cache(maxsize=8)
def coordinates(size: int) -> tuple[Field, Field]:
    """X and y of every pixel from -1 to 1, y downwards; shape ``(size, size)`` each."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    x, y = np.meshgrid(axis, axis, indexing="xy")
    return x, y


@lru_cache(maxsize=32)
def _interpolation(size: int, knots: int) -> Field:
    """Linear interpolation from ``knots`` to ``size`` points, smoothed to look like no grid."""
    place = np.linspace(0, knots - 1, size)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots)))
    smooth = weights**2 * (3 - 2 * weights)
    return np.asarray(smooth / smooth.sum(axis=1, keepdims=True), dtype=np.float32)


def smooth_field(draw: np.random.Generator, size: int, knots: int) -> Field:
    """A random field that varies over ``1/knots`` of the image, about -1 to 1; shape ``(size, size)``."""
    weights = _interpolation(size, knots)
    low = draw.uniform(-1, 1, (knots, knots)).astype(np.float32)
    return weights @ low @ weights.T


def grainy(draw: np.random.Generator, shape: tuple[int, ...], grain: float) -> Field:
    """Gaussian noise of deviation 1 with a correlation length of ``grain`` pixels."""
    noise = draw.standard_normal(shape, dtype=np.float32)
    if grain > 0.3:
        noise = gaussian_filter(noise, grain, mode="wrap", truncate=3.0)
        noise /= noise.std()
    return noise


def blurred(image: Field, width: float) -> Field:
    """Smoothed over ``width`` pixels along the last two axes."""
    if width < 0.2:
        return image
    axes = (0,) * (image.ndim - 2) + (width, width)
    return np.asarray(gaussian_filter(image, axes, mode="nearest", truncate=3.0), dtype=np.float32)


def blob(
    draw: np.random.Generator,
    x: Field,
    y: Field,
    *,
    centre: tuple[float, float],
    axes: tuple[float, float],
    roughness: float = 0.1,
    tilt: float | None = None,
) -> Field:
    """How deep in an irregular round outline each point lies: 0 in the middle, 1 on the outline, more outside."""
    tilt = draw.uniform(0, np.pi) if tilt is None else tilt
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    along = (dx * np.float32(np.cos(tilt)) + dy * np.float32(np.sin(tilt))) / np.float32(axes[0])
    across = (dy * np.float32(np.cos(tilt)) - dx * np.float32(np.sin(tilt))) / np.float32(axes[1])
    angle = np.arctan2(across, along)
    outline = np.ones_like(angle)
    for waves in (2, 3, 5):
        height = np.float32(roughness * draw.uniform(0.2, 1.0) / np.sqrt(waves))
        outline += height * np.cos(waves * angle + np.float32(draw.uniform(0, 2 * np.pi)))
    return np.hypot(along, across) / outline


def to_bytes(image: Field) -> Field:
    """Rounded and clipped to what eight bits hold, still as float32."""
    return np.clip(np.rint(image), 0, 255).astype(np.float32)
