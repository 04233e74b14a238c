"""A phantom task as a data folder: pictures as PNG, CT and MRI as NIfTI, with patients and a configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.phantom_drawing import Drawing
from secfl.segmentation.data.phantom_tasks import PhantomTask, draw_image, site_name
from secfl.segmentation.new_folder import new_folder

__all__ = ["write_phantom"]

_SLICE_THICKNESS = 5.0


def write_phantom(
    task: PhantomTask, out: Path, *, sites: int, images_per_site: int, size: int, seed: ExperimentSeed
) -> None:
    """Write ``OUT/<site>/images``, ``OUT/<site>/masks``, ``patients.csv`` and ``config.toml``, or nothing.

    Args:
        task: What is drawn.
        out: A folder that does not exist yet.
        sites: Number of sites.
        images_per_site: Images per site.
        size: Side of an image, pixels.
        seed: The same seed gives the same images.

    Raises:
        ConfigError: ``out`` exists or cannot be written.
    """
    with new_folder(out) as staging:
        rows = ["stem,patient"]
        for index in range(sites):
            name = site_name(index, sites)
            for kind in ("images", "masks"):
                (staging / name / kind).mkdir(parents=True)
            for number in range(images_per_site):
                drawing = draw_image(task, site=index, number=number, size=size, seed=seed)
                stem = f"{name}-{number:05d}"
                _write(staging / name, stem, drawing, task)
                rows.append(f"{stem},{name}-{number // task.images_per_patient:05d}")
        (staging / "patients.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (staging / "config.toml").write_text(_configuration(task, out), encoding="utf-8")


def _configuration(task: PhantomTask, out: Path) -> str:
    import tomli_w

    data: dict[str, object] = {"source": str(out)}
    if task.recipe.windows:
        data["windows"] = [list(window) for window in task.recipe.windows]
    else:
        data["normalization"] = task.recipe.normalization
    data["labels"] = {name: list(values) for name, values in task.labels.classes}
    return tomli_w.dumps({"data": data})


def _write(folder: Path, stem: str, drawing: Drawing, task: PhantomTask) -> None:
    if task.file == "png":
        from PIL import Image

        pixels = np.moveaxis(drawing.values.astype(np.uint8), 0, -1)
        Image.fromarray(pixels if task.channels > 1 else pixels[..., 0]).save(
            folder / "images" / f"{stem}.png"
        )
        Image.fromarray(drawing.labels).save(folder / "masks" / f"{stem}.png")
        return
    image, affine = _as_volume(np.moveaxis(drawing.values, 0, -1), drawing.spacing)
    labels, _ = _as_volume(drawing.labels, drawing.spacing)
    import nibabel

    stored = image if task.channels > 1 else image[..., 0]
    nibabel.save(
        nibabel.Nifti1Image(np.rint(stored).astype(np.int16), affine), folder / "images" / f"{stem}.nii.gz"
    )
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "masks" / f"{stem}.nii.gz")


def _as_volume(
    values: NDArray[np.generic], spacing: tuple[float, ...]
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """The axes i, j, k, and where they lie: of a slice, columns run to the patient's left and rows to the back."""
    if len(spacing) == 3:
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = [-size * (side - 1) / 2 for size, side in zip(spacing, values.shape, strict=False)]
        return values, affine
    rows, columns = values.shape[:2]
    affine = np.diag([-spacing[1], -spacing[0], _SLICE_THICKNESS, 1.0])
    affine[:2, 3] = [spacing[1] * (columns - 1) / 2, spacing[0] * (rows - 1) / 2]
    return np.swapaxes(values, 0, 1)[:, :, None], affine
