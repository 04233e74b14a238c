"""How unlike the sites are before anything is learned: two numbers between 0 (alike) and 1 (nothing in common).

Generalised Jensen-Shannon divergence of the sites' histograms, every site with the same weight, divided by its
largest value ``ln K`` for K sites (Lin 1991). Intensities are taken as the model sees them, normalised and inside
the field of view; the foreground is the share of foreground pixels in an image. Histograms of few images differ by
chance alone: with n images a site and b bins the expected divergence of equal sites is about ``(K-1)(b-1)/(2Kn)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secfl.segmentation.data.cases import Case, Dataset

__all__ = ["foreground_heterogeneity", "intensity_heterogeneity", "jensen_shannon"]

_INTENSITY_BINS = 64
_FOREGROUND_BINS = 8
_TAIL = 0.005


def jensen_shannon(histograms: NDArray[np.float64]) -> float:
    """Normalised divergence of non-negative rows, shape ``(sites, bins)``; 0 for a single row.

    Every row must have a positive sum.
    """
    rows = histograms / histograms.sum(axis=1, keepdims=True)
    if len(rows) < 2:
        return 0.0
    found = (_entropy(rows.mean(axis=0)) - float(np.mean([_entropy(row) for row in rows]))) / math.log(
        len(rows)
    )
    return min(max(found, 0.0), 1.0)


def _entropy(row: NDArray[np.float64]) -> float:
    present = row[row > 0]
    return float(-(present * np.log(present)).sum())


def intensity_heterogeneity(dataset: Dataset) -> float:
    """Of the training images' intensities: the mean over the image channels."""
    found = []
    for channel in range(dataset.channels):
        values = [
            np.concatenate([_inside(case, channel) for case in site.train]) for site in dataset.sites.values()
        ]
        pooled = np.concatenate(values)
        low, high = np.quantile(pooled, [_TAIL, 1 - _TAIL])
        edges = np.linspace(low, max(high, low + 1e-6), _INTENSITY_BINS + 1)
        found.append(jensen_shannon(_rows([np.clip(part, edges[0], edges[-1]) for part in values], edges)))
    return float(np.mean(found))


def foreground_heterogeneity(dataset: Dataset) -> float:
    """Of the share of foreground pixels in the training images."""
    values = [
        np.array([np.mean(_labels(case) > 0) for case in site.train]) for site in dataset.sites.values()
    ]
    largest = max(float(part.max()) for part in values)
    return jensen_shannon(_rows(values, np.linspace(0, max(largest, 1e-6), _FOREGROUND_BINS + 1)))


def _inside(case: Case, channel: int) -> NDArray[np.float32]:
    image = case.image[channel]
    return image.ravel() if case.valid is None else image[case.valid]


def _labels(case: Case) -> NDArray[np.uint8]:
    return case.labels if case.valid is None else case.labels[case.valid]


def _rows(values: Sequence[NDArray[np.generic]], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.histogram(part, edges)[0] for part in values]).astype(np.float64)
