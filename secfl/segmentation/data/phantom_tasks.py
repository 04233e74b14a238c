"""The phantom tasks by name: modalities and anatomies that differ, sites that differ within each.

Nothing shows a person. A task, a seed, a site and a number give the same image on every machine of one kind; more
sites or images leave the first ones as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cases import Case, Dataset, SiteData
from secfl.segmentation.data.labels import LabelMap
from secfl.segmentation.data.normalization import apply_windows, normalize
from secfl.segmentation.data.phantom import (
    CT_WINDOW,
    SLICES_PER_PATIENT,
    Target,
    class_names_of,
    class_table,
    make_phantom,
    make_phantom_dataset,
    scanner_of_site,
    split_site,
)
from secfl.segmentation.data.phantom_drawing import Drawing
from secfl.segmentation.data.phantom_pictures import chest_xray, dermoscopy, fundus, retina_oct, ultrasound
from secfl.segmentation.data.phantom_volumes import brain_mri, kidney_ct
from secfl.segmentation.data.preparation import Recipe
from secfl.types import client_id

__all__ = ["TASKS", "PhantomTask", "draw_image", "make_task_dataset", "phantom_task", "site_name"]

Painter = Callable[[np.random.Generator, np.random.Generator, np.random.Generator, int], Drawing]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomTask:
    """One task.

    Attributes:
        name: As in ``phantom_task``.
        modality: How the image is made.
        anatomy: What is seen.
        class_names: Foreground classes in the order of the labels.
        sites_differ_in: What a site draws.
        channels: Channels as drawn.
        spatial_dims: 2 or 3.
        recipe: How the values become a model's input.
        images_per_patient: Images that belong together.
        file: What an image is written as: 8-bit ``png``, or ``nifti``.
        paint: Draws an image; ``None`` for the leg, which has a module of its own.
    """

    name: str
    modality: str
    anatomy: str
    class_names: tuple[str, ...]
    sites_differ_in: str
    channels: int = 1
    spatial_dims: int = 2
    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen, so one object may be shared
    images_per_patient: int = 2
    file: str = "png"
    paint: Painter | None = None

    @property
    def labels(self) -> LabelMap:
        """Classes as they are written: 1, 2, ..."""
        return LabelMap.of({name: (label,) for label, name in enumerate(self.class_names, 1)})


_TASKS = (
    PhantomTask(
        name="leg-ct",
        modality="CT",
        anatomy="thigh with a deep vein thrombosis",
        class_names=("vein",),
        sites_differ_in="point spread, noise and its grain, contrast timing, field of view, habitus, prevalence",
        recipe=Recipe(windows=(CT_WINDOW,)),
        images_per_patient=SLICES_PER_PATIENT,
        file="nifti",
    ),
    PhantomTask(
        name="fundus",
        modality="colour photography",
        anatomy="retina",
        class_names=("vessel", "optic disc"),
        sites_differ_in="pigment, illumination, vessel contrast, blur, noise, field of view",
        channels=3,
        paint=fundus,
    ),
    PhantomTask(
        name="dermoscopy",
        modality="dermoscopy",
        anatomy="pigmented lesion of the skin",
        class_names=("lesion",),
        sites_differ_in="skin, colour cast, vignette, zoom, hair, noise, blur",
        channels=3,
        paint=dermoscopy,
    ),
    PhantomTask(
        name="ultrasound",
        modality="B-mode ultrasound",
        anatomy="lesion of the breast",
        class_names=("lesion",),
        sites_differ_in="speckle size, gain, compression, attenuation, depth",
        paint=ultrasound,
    ),
    PhantomTask(
        name="brain-mri",
        modality="MRI: T1, T1 with contrast agent, T2, FLAIR",
        anatomy="brain with a glioma",
        class_names=("edema", "enhancing tumour", "core"),
        sites_differ_in="coil shading, noise, resolution, field of view, scale and contrast of each sequence",
        channels=4,
        file="nifti",
        paint=brain_mri,
    ),
    PhantomTask(
        name="kidney-ct",
        modality="CT volume",
        anatomy="kidneys with a tumour",
        class_names=("kidney", "tumour"),
        sites_differ_in="noise and its grain, slice thickness, contrast phase, field of view, habitus, prevalence",
        spatial_dims=3,
        recipe=Recipe(windows=((-150.0, 300.0),)),
        images_per_patient=1,
        file="nifti",
        paint=kidney_ct,
    ),
    PhantomTask(
        name="chest-xray",
        modality="radiography",
        anatomy="chest",
        class_names=("lungs", "heart"),
        sites_differ_in="exposure, latitude, noise, blur, field of view, share of effusions",
        paint=chest_xray,
    ),
    PhantomTask(
        name="retina-oct",
        modality="optical coherence tomography",
        anatomy="macula with edema",
        class_names=("retina", "fluid"),
        sites_differ_in="speckle, contrast, averaging, gain, thickness, prevalence",
        paint=retina_oct,
    ),
)
TASKS: Mapping[str, PhantomTask] = MappingProxyType({task.name: task for task in _TASKS})


def phantom_task(name: str, target: Target = "vein") -> PhantomTask:
    """A task by name; the leg has several targets.

    Raises:
        ConfigError: The name is unknown, or a task without targets is given one.
    """
    if name not in TASKS:
        raise ConfigError(f"data.phantom_task: {name!r} is unknown; expected one of {', '.join(TASKS)}")
    task = TASKS[name]
    if name == "leg-ct":
        return replace(task, class_names=class_names_of(target)[1:])
    if target != "vein":
        raise ConfigError(f"data.phantom_target: {target} belongs to leg-ct; expected none with {name}")
    return task


def site_name(index: int, sites: int) -> str:
    """``clinic-1``, zero-padded to the number of sites."""
    return client_id(f"clinic-{index + 1:0{len(str(sites))}d}")


def draw_image(
    task: PhantomTask, *, site: int, number: int, size: int, seed: ExperimentSeed, target: Target = "vein"
) -> Drawing:
    """Image ``number`` of site ``site``, both from 0, in the modality's own units."""
    patient, part = divmod(number, task.images_per_patient)
    if task.paint is None:
        noise = seed.generator(f"phantom/slice/{site}/{number}")
        slice_ = make_phantom(
            scanner_of_site(site, seed),
            size=size,
            anatomy=seed.generator(f"phantom/patient/{site}/{patient}"),
            slice_position=(part + noise.uniform(0.1, 0.9)) / SLICES_PER_PATIENT,
            noise=noise,
        )
        return Drawing(
            values=slice_.hounsfield[None],
            labels=class_table(target)[slice_.labels],
            spacing=(slice_.pixel, slice_.pixel),
        )
    place = f"phantom/{task.name}"
    return task.paint(
        seed.generator(f"{place}/site/{site}"),
        seed.generator(f"{place}/patient/{site}/{patient}"),
        seed.generator(f"{place}/image/{site}/{number}"),
        size,
    )


def make_task_dataset(
    task: PhantomTask,
    *,
    sites: int,
    images_per_site: int,
    size: int,
    test_fraction: float,
    seed: ExperimentSeed,
    target: Target = "vein",
) -> Dataset:
    """Every site's images as cases; arguments as of `make_phantom_dataset`."""
    if task.paint is None:
        return make_phantom_dataset(
            sites=sites,
            images_per_site=images_per_site,
            size=size,
            test_fraction=test_fraction,
            seed=seed,
            target=target,
        )
    made: dict[str, SiteData] = {}
    for index in range(sites):
        name = site_name(index, sites)
        cases = {}
        for number in range(images_per_site):
            case = _case(task, draw_image(task, site=index, number=number, size=size, seed=seed), number)
            cases[case.name] = case
        made[name] = split_site(name, cases, test_fraction=test_fraction, seed=seed)
    names = ("background", *task.class_names)
    return Dataset(
        sites=made,
        channels=task.channels,
        classes=len(names),
        class_names=names,
        is_phantom=True,
        spatial_dims=task.spatial_dims,
    )


def _case(task: PhantomTask, drawing: Drawing, number: int) -> Case:
    recipe = task.recipe
    if recipe.windows:
        image = apply_windows(drawing.values[0], recipe.windows)
    else:
        image = normalize(drawing.values, method=recipe.normalization)
    return Case(
        name=f"{number:05d}",
        patient=f"{number // task.images_per_patient:05d}",
        image=image,
        labels=drawing.labels,
        spacing=drawing.spacing,
    )
