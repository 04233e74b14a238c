"""What the study takes from a finished run, beyond its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from secfl.federation import checkpoint
from secfl.federation.rundir import RunDirectory
from secfl.segmentation.data.public import split_public
from secfl.segmentation.segmentation_task import SegmentationTask, load_dataset

__all__ = ["collect"]


def collect(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Validation loss and Tversky index of the student, heterogeneity, and the bytes that plain numbers would take.

    A secure sum carries the same residues as a plain one; whatever else is sent is what the cryptography costs.
    """
    from secfl.segmentation.validation import validate

    run = RunDirectory.open(folder)
    config = run.config()
    dataset, public = split_public(load_dataset(config), config.data.public)
    own = config.model.model_copy(update={"name": config.multi_model.student})
    student = SegmentationTask(config.model_copy(update={"model": own}), dataset)
    model, multiple = student.module(checkpoint.load(run.checkpoints / "final.safetensors").state)
    found = {name: validate(model, site.test, multiple=multiple) for name, site in dataset.sites.items()}
    # Where maps are weighted, a weight for every image goes with them.
    weights = 0 if config.multi_model.weights == "equal" else len(public)
    coordinates = (dataset.classes - 1) * sum(case.labels.size for case in public) + weights
    one = math.ceil(coordinates * summary["codec"]["bits"] / 8)
    return {
        "validation_loss": {name: one.loss for name, one in found.items()},
        "tversky": {name: one.tversky for name, one in found.items()},
        "heterogeneity": dict(student.heterogeneity()),
        "families": dict(summary["families"]),
        "images": {
            "training": sum(len(site.train) for site in dataset.sites.values()),
            "test": sum(len(site.test) for site in dataset.sites.values()),
            "proxy": len(public),
        },
        "foreground": fmean(
            float((case.labels > 0).mean()) for site in dataset.sites.values() for case in site.test
        ),
        "coordinates": coordinates,
        "plain_megabytes_up": summary["rounds_completed"] * len(dataset.sites) * one / 1e6,
    }
