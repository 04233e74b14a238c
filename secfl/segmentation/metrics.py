"""Metrics of predictions on one site's test cases, by MONAI's implementations.

Conventions: everything counts only inside the field of view. Dice, IoU and HD95 are means over cases. Dice and
IoU of a case are 1 where truth and prediction are both empty and 0 where one of them is. HD95 is taken over the
cases in which neither is empty, in mm with a known spacing, else in pixels; the number of other cases is
reported. Accuracy and balanced accuracy are over all pixels of the site. With more than two classes Dice, IoU
and HD95 are also means over the foreground classes; accuracy, balanced accuracy and foreground fraction are then
of "any foreground".
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from secfl.segmentation.data.cases import Case
from secfl.segmentation.task import SiteMetrics

__all__ = ["measure"]


def measure(
    cases: Sequence[Case],
    predictions: Sequence[NDArray[np.uint8]],
    *,
    class_names: Sequence[str] = ("background", "foreground"),
) -> SiteMetrics:
    """Compare predicted with true labels.

    Args:
        cases: The test cases, at least one.
        predictions: uint8, one per case, of the shape of its labels.
        class_names: One name per label, the background's first.
    """
    classes = len(class_names)
    dice: list[NDArray[np.float64]] = []
    iou: list[float] = []
    hd95: list[float] = []
    empty = 0
    counts = np.zeros(4)
    for case, prediction in zip(cases, predictions, strict=True):
        predicted, truth, outside = _one_hot(case, prediction, classes)
        dice.append(_dice(predicted, truth))
        iou.append(_iou(predicted, truth))
        distances = _hd95(predicted, truth, case.spacing)
        hd95 += distances
        empty += len(distances) < classes - 1
        counts += _confusion(predicted, truth, outside)
    true_positive, false_positive, true_negative, false_negative = counts
    positive, negative = true_positive + false_negative, true_negative + false_positive
    rates = [hit / total for hit, total in ((true_positive, positive), (true_negative, negative)) if total]
    return SiteMetrics(
        dice=float(np.mean(dice)),
        iou=float(np.mean(iou)),
        accuracy=float((true_positive + true_negative) / counts.sum()),
        balanced_accuracy=float(np.mean(rates)),
        foreground_fraction=float(positive / counts.sum()),
        hd95=float(np.mean(hd95)) if hd95 else None,
        empty_cases=empty,
        cases=len(cases),
        dice_by_class=dict(zip(class_names[1:], map(float, np.mean(dice, axis=0)), strict=True)),
    )


def _one_hot(
    case: Case, prediction: NDArray[np.uint8], classes: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Foreground masks ``(1, classes - 1, *spatial)``, 0 outside the field of view; pixels outside it."""
    inside = np.ones(case.labels.shape, dtype=bool) if case.valid is None else case.valid
    labels = np.arange(1, classes).reshape(-1, *(1,) * case.labels.ndim)
    predicted = (prediction == labels) & inside
    truth = (case.labels == labels) & inside
    return (
        torch.from_numpy(predicted[None].astype(np.float32)),
        torch.from_numpy(truth[None].astype(np.float32)),
        int((~inside).sum()),
    )


def _dice(predicted: torch.Tensor, truth: torch.Tensor) -> NDArray[np.float64]:
    """Dice of one case, shape ``(classes - 1,)``."""
    from monai.metrics.meandice import compute_dice

    found = compute_dice(predicted, truth, include_background=True, ignore_empty=False)
    values: NDArray[np.float64] = found[0].numpy().astype(np.float64)
    return values


def _iou(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    from monai.metrics.meaniou import compute_iou

    value = compute_iou(predicted, truth, include_background=True, ignore_empty=False)
    return float(value.mean())


def _hd95(predicted: torch.Tensor, truth: torch.Tensor, spacing: tuple[float, ...] | None) -> list[float]:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    found = []
    for label in range(truth.shape[1]):
        if predicted[:, label].any() and truth[:, label].any():
            with warnings.catch_warnings():
                # MONAI 1.5 and 1.6 warn about an argument that they pass to themselves.
                warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
                distance = compute_hausdorff_distance(
                    predicted[:, label : label + 1],
                    truth[:, label : label + 1],
                    include_background=True,
                    percentile=95,
                    spacing=None if spacing is None else list(spacing),
                )
            found.append(float(distance))
    return found


def _confusion(predicted: torch.Tensor, truth: torch.Tensor, outside: int) -> NDArray[np.float64]:
    from monai.metrics.confusion_matrix import get_confusion_matrix

    matrix = get_confusion_matrix(predicted.amax(1, keepdim=True), truth.amax(1, keepdim=True))
    counts: NDArray[np.float64] = matrix[0, 0].numpy().astype(np.float64)
    counts[2] -= outside
    return counts
