"""Draw the picture of the phantom tasks: ``python docs/draw_phantoms.py docs/figures/phantoms.png``."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.phantom_drawing import Drawing
from secfl.segmentation.data.phantom_tasks import TASKS, PhantomTask, draw_image
from secfl.segmentation.previews import COLOURS, axial

SIZE = 128
SITES = 4


def planes(drawing: Drawing) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels; of a volume the slice with most foreground."""
    if drawing.labels.ndim == 2:
        return drawing.values, drawing.labels
    at = int((drawing.labels > 0).sum(axis=(0, 1)).argmax())
    return axial(drawing.values[..., at]), axial(drawing.labels[..., at])


def shown(values: np.ndarray, task: PhantomTask) -> np.ndarray:
    """Eight bits: through the task's window, as stored, or up to the brightest signal; of MRI the last channel."""
    low, high = task.recipe.windows[0] if task.recipe.windows else (0.0, 255.0)
    if task.file == "nifti" and not task.recipe.windows:
        high = float(np.percentile(values[-1], 99.5))
    grey = np.clip((values - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    return np.moveaxis(grey if len(grey) == 3 else np.repeat(grey[-1:], 3, axis=0), 0, -1)


def row(task: PhantomTask, seed: ExperimentSeed) -> np.ndarray:
    """One image of every site, and the truth of the first."""
    parts = []
    for site in range(SITES):
        values, labels = planes(draw_image(task, site=site, number=2 * site, size=SIZE, seed=seed))
        parts.append(shown(values, task))
        if site == 0:
            parts.append(COLOURS[labels])
    return np.hstack(parts)


def main() -> None:
    """Write the picture."""
    seed = ExperimentSeed(0)
    Image.fromarray(np.vstack([row(task, seed) for task in TASKS.values()])).save(sys.argv[1], optimize=True)
    print(f"wrote {sys.argv[1]}: {', '.join(TASKS)}")


if __name__ == "__main__":
    main()
