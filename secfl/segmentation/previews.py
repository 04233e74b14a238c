"""Pictures for people: image, truth and prediction side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secfl.segmentation.data.cases import Case

__all__ = ["COLOURS", "axial", "side_by_side"]

_Kind = TypeVar("_Kind", bound=np.generic)

COLOURS = np.array(
    [[0, 0, 0], [230, 60, 50], [60, 140, 240], [70, 190, 90], [240, 190, 40], [170, 90, 220], [60, 200, 200]],
    np.uint8,
)


def side_by_side(case: Case, prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image, the truth and the prediction: uint8, shape ``(height, 3 * width, 3)``.

    Of a volume it is the slice across the body that holds most of the truth, seen from the feet.
    """
    if case.labels.ndim == 3:
        at = int((case.labels > 0).sum(axis=(0, 1)).argmax())
        case, prediction = _slice(case, at), axial(prediction[..., at])
    return np.hstack([_shown(case), _coloured(case, case.labels), _coloured(case, prediction)])


def axial(plane: NDArray[_Kind]) -> NDArray[_Kind]:
    """A slice with the axes x and y as rows and columns: the front is up, the patient's right is left."""
    return np.ascontiguousarray(np.swapaxes(plane, -1, -2)[..., ::-1, ::-1])


def _slice(case: Case, at: int) -> Case:
    return replace(
        case,
        image=axial(case.image[..., at]),
        labels=axial(case.labels[..., at]),
        valid=None if case.valid is None else axial(case.valid[..., at]),
        spacing=None,
    )


def _shown(case: Case) -> NDArray[np.uint8]:
    low, high = np.percentile(case.image, [0.5, 99.5])
    scaled = np.clip((case.image - low) * (255.0 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    planes = scaled if scaled.shape[0] == 3 else np.repeat(scaled[:1], 3, axis=0)
    return np.moveaxis(planes, 0, -1)


def _coloured(case: Case, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    inside = np.ones(labels.shape, dtype=bool) if case.valid is None else case.valid
    colour = COLOURS[1 + (labels.astype(int) - 1) % (len(COLOURS) - 1)] * (labels > 0)[..., None]
    return np.where(inside[..., None], colour, np.uint8(40)).astype(np.uint8)
