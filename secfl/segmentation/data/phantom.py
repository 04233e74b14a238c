"""Deterministic CT cross-sections of the leg with a deep vein thrombosis, in Hounsfield units.

Nobody was scanned for these. A patient has a leg (skin, fat, muscle, cortical bone, marrow, artery, deep vein
and, in some, a thrombus as a filling defect in the vein) and a few slices of it. A site has a scanner and a
clientele: point spread, noise, contrast timing, field of view, habitus and thrombus prevalence differ the way
they do between clinics. CT numbers of the usual size: fat -100, muscle 55, fresh thrombus 40 to 60, enhanced
blood 110 to 220, cortical bone 1000 and more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cases import Case, Dataset, SiteData
from secfl.segmentation.data.splits import draw_split
from secfl.types import client_id

__all__ = [
    "CT_WINDOW",
    "SLICES_PER_PATIENT",
    "Phantom",
    "Scanner",
    "Target",
    "Tissue",
    "class_names_of",
    "class_table",
    "make_phantom",
    "make_phantom_dataset",
    "scanner_of_site",
    "split_site",
]

CT_WINDOW = (-160.0, 240.0)
"""Hounsfield units that are mapped to -1..1 for training: the usual soft tissue window."""

SLICES_PER_PATIENT = 2

Target: TypeAlias = Literal["vein", "thrombus", "tissues"]


class Tissue(IntEnum):
    """Labels of the phantom's truth."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    MARROW = 5
    ARTERY = 6
    VEIN = 7
    THROMBUS = 8


_HOUNSFIELD: Mapping[Tissue, float] = {
    Tissue.AIR: -1000.0,
    Tissue.SKIN: 30.0,
    Tissue.FAT: -100.0,
    Tissue.MUSCLE: 55.0,
    Tissue.BONE: 1100.0,
    Tissue.MARROW: -20.0,
    Tissue.ARTERY: 150.0,
    Tissue.VEIN: 150.0,
    Tissue.THROMBUS: 48.0,
}


_CLASSES: Mapping[Target, Mapping[str, tuple[Tissue, ...]]] = {
    "vein": {"vein": (Tissue.VEIN, Tissue.THROMBUS)},
    "thrombus": {"thrombus": (Tissue.THROMBUS,)},
    "tissues": {
        "skin and fat": (Tissue.SKIN, Tissue.FAT),
        "muscle": (Tissue.MUSCLE,),
        "bone": (Tissue.BONE, Tissue.MARROW),
        "artery": (Tissue.ARTERY,),
        "vein": (Tissue.VEIN, Tissue.THROMBUS),
    },
}
"""Foreground classes of a target and the tissues that belong to them. All else is background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """How a site's images look.

    Attributes:
        point_spread: Standard deviation of the point spread function, mm.
        noise: Standard deviation of the noise, HU.
        noise_grain: Correlation length of the noise (reconstruction kernel), pixels.
        artery: CT number of enhanced arterial blood, HU.
        vein: CT number of enhanced venous blood, HU.
        field_of_view: Side of the image, mm.
        leg_radius: Mean radius of the leg, mm (habitus).
        fat_share: Mean share of the radius that is subcutaneous fat.
        prevalence: Share of patients with a thrombus.
    """

    point_spread: float
    noise: float
    noise_grain: float
    artery: float
    vein: float
    field_of_view: float
    leg_radius: float
    fat_share: float
    prevalence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """One slice: ``hounsfield`` float32 and ``labels`` uint8 (`Tissue`), both of shape ``(size, size)``."""

    hounsfield: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    pixel: float


def scanner_of_site(index: int, seed: ExperimentSeed) -> Scanner:
    """The scanner and clientele of site ``index``, counted from 0."""
    draw = seed.generator(f"phantom/site/{index}").uniform
    return Scanner(
        point_spread=draw(0.5, 1.3),
        noise=draw(8.0, 22.0),
        noise_grain=draw(0.4, 1.0),
        artery=draw(120.0, 220.0),
        vein=draw(110.0, 190.0),
        field_of_view=draw(145.0, 180.0),
        leg_radius=draw(56.0, 68.0),
        fat_share=draw(0.14, 0.30),
        prevalence=draw(0.2, 0.7),
    )


def make_phantom(
    scanner: Scanner,
    *,
    size: int,
    anatomy: np.random.Generator,
    slice_position: float,
    noise: np.random.Generator,
) -> Phantom:
    """Draw one slice.

    Args:
        scanner: The site.
        size: Side of the image, pixels.
        anatomy: Generator of the patient, in the same state for each of the patient's slices.
        slice_position: 0 (middle of the thigh) to 1 (above the knee); moves and scales the structures.
        noise: Generator of the slice.
    """
    pixel = scanner.field_of_view / size
    leg = _Leg(scanner, anatomy, slice_position, noise)
    labels = leg.paint(size, pixel)
    table = np.array([_HOUNSFIELD[tissue] for tissue in Tissue], dtype=np.float32)
    table[Tissue.ARTERY] = leg.artery_hounsfield
    table[Tissue.VEIN] = leg.vein_hounsfield
    table[Tissue.THROMBUS] = leg.thrombus_hounsfield
    image = gaussian_filter(table[labels], scanner.point_spread / pixel, mode="nearest", truncate=3.0)
    grain = gaussian_filter(
        noise.standard_normal((size, size), dtype=np.float32), scanner.noise_grain, mode="wrap", truncate=3.0
    )
    image += grain * (scanner.noise / float(grain.std()))
    return Phantom(hounsfield=image, labels=labels, pixel=pixel)


class _Leg:
    """One patient's leg at one position; lengths in mm, the origin in the middle of the leg."""

    def __init__(
        self, scanner: Scanner, anatomy: np.random.Generator, position: float, slice_draw: np.random.Generator
    ) -> None:
        draw = anatomy.uniform
        taper = 1.0 - 0.18 * position
        self.radius = scanner.leg_radius * draw(0.88, 1.10) * taper
        self.shape = (draw(0.92, 1.08), draw(0.0, np.pi), draw(0.0, 0.04), draw(0.0, 2 * np.pi))
        self.muscle = self.radius * (1.0 - scanner.fat_share * draw(0.7, 1.3))
        self.skin = draw(1.4, 2.4)
        self.side = 1.0 if draw() < 0.5 else -1.0
        self.bone_centre = (draw(-4.0, 4.0), draw(-2.0, 6.0))
        self.bone_radius = draw(11.0, 13.5) * (1.0 + 0.2 * position)
        # Room for the vessels between bone and fat, however thin the leg.
        self.muscle = max(self.muscle, self.bone_radius + 31.0)
        self.radius = max(self.radius, self.muscle + 5.0)
        self.cortex = draw(4.0, 6.5) * (1.0 - 0.3 * position)
        self.septa = (draw(0.0, 2 * np.pi), draw(1.0, 1.8))
        # The vessels lie beside the bone; the vein is the larger one, behind the artery and next to it.
        self.artery_radius = draw(3.6, 5.0)
        major, ratio = draw(6.5, 8.5), draw(0.72, 1.0)
        gap = self.artery_radius + major + draw(0.6, 2.0)
        angle = np.deg2rad(draw(-20.0, 60.0) - 35.0 * position)
        artery, vein = self.bone_radius + draw(10.0, 15.0), self.bone_radius + draw(12.0, 16.0)
        between = np.arccos(np.clip((artery**2 + vein**2 - gap**2) / (2 * artery * vein), -1.0, 1.0))
        self.artery_centre = self._beside_bone(artery, angle)
        self.vein_centre = self._beside_bone(vein, angle - between)
        self.artery_hounsfield = scanner.artery * draw(0.9, 1.1)
        self.vein_hounsfield = scanner.vein * draw(0.9, 1.1)
        self.thrombus_hounsfield = _HOUNSFIELD[Tissue.THROMBUS] + draw(-8.0, 12.0)
        self.has_thrombus = bool(draw() < scanner.prevalence)
        self.thrombus = (draw(0.45, 0.85), draw(0.0, 0.3), draw(0.0, 2 * np.pi))
        # An acute thrombus makes the vein round and tense.
        self.vein_axes = (major, 1.0 if self.has_thrombus else ratio, draw(0.0, np.pi))
        self.shift = slice_draw.uniform(-6.0, 6.0, size=2)

    def _beside_bone(self, distance: float, angle: float) -> tuple[float, float]:
        x, y = self.bone_centre
        return x + self.side * distance * np.cos(angle), y + distance * np.sin(angle)

    def paint(self, size: int, pixel: float) -> NDArray[np.uint8]:
        """The labels, from the outside inwards."""
        x, y = _grid(size)
        x = x * pixel - self.shift[0]
        y = y * pixel - self.shift[1]
        labels = np.zeros((size, size), dtype=np.uint8)
        stretch, tilt, lobe, phase = self.shape
        angle = np.arctan2(y, x)
        outline = np.hypot(x, y) / (
            1.0 + lobe * np.cos(3 * angle + phase) + (stretch - 1) * np.cos(2 * (angle - tilt))
        )
        labels[outline < self.radius] = Tissue.SKIN
        labels[outline < self.radius - self.skin] = Tissue.FAT
        labels[outline < self.muscle] = Tissue.MUSCLE
        first, width = self.septa
        for step in range(3):
            direction = first + step * 2 * np.pi / 3
            across = np.abs(x * np.sin(direction) - y * np.cos(direction))
            along = x * np.cos(direction) + y * np.sin(direction)
            labels[(across < width) & (along > 0) & (outline < self.muscle)] = Tissue.FAT
        bone = np.hypot(x - self.bone_centre[0], y - self.bone_centre[1])
        labels[bone < self.bone_radius] = Tissue.BONE
        labels[bone < self.bone_radius - self.cortex] = Tissue.MARROW
        artery = np.hypot(x - self.artery_centre[0], y - self.artery_centre[1])
        vein, along, across = self._vein_coordinates(x, y)
        # Fat around the vessels, as in the adductor canal.
        labels[((artery < self.artery_radius + 2.5) | (vein < 1.35)) & (labels == Tissue.MUSCLE)] = Tissue.FAT
        labels[vein < 1.0] = Tissue.VEIN
        labels[artery < self.artery_radius] = Tissue.ARTERY
        if self.has_thrombus:
            extent, offset, direction = self.thrombus
            defect = np.hypot(along - offset * np.cos(direction), across - offset * np.sin(direction))
            labels[(defect < extent) & (vein < 0.92) & (labels == Tissue.VEIN)] = Tissue.THROMBUS
        return labels

    def _vein_coordinates(
        self, x: NDArray[np.float32], y: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Distance from the vein's centre and its two components, all in units of the vein's half axes."""
        major, ratio, tilt = self.vein_axes
        dx, dy = x - self.vein_centre[0], y - self.vein_centre[1]
        along = (dx * np.cos(tilt) + dy * np.sin(tilt)) / major
        across = (dy * np.cos(tilt) - dx * np.sin(tilt)) / (major * ratio)
        return np.hypot(along, across), along, across


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    axis = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    return np.meshgrid(axis, axis, indexing="xy")


def make_phantom_dataset(
    *,
    sites: int,
    images_per_site: int,
    size: int,
    test_fraction: float,
    seed: ExperimentSeed,
    target: Target = "vein",
    slices_per_patient: int = SLICES_PER_PATIENT,
    scanners: Sequence[Scanner] | None = None,
) -> Dataset:
    """The embedded default task: find the deep vein, thrombus included, or another target.

    Args:
        sites: Number of sites, named ``clinic-1``, ``clinic-2``, … (zero-padded).
        images_per_site: Training and test images together.
        size: Side of the images, pixels.
        test_fraction: Share of each site's patients kept for the test.
        seed: Draws sites, patients and noise.
        target: Which tissues make up the classes.
        slices_per_patient: Consecutive images of one patient.
        scanners: One per site; by default drawn from the seed.
    """
    class_of = class_table(target)
    digits = len(str(sites))
    made: dict[str, SiteData] = {}
    for index in range(sites):
        name = client_id(f"clinic-{index + 1:0{digits}d}")
        scanner = scanner_of_site(index, seed) if scanners is None else scanners[index]
        cases = {}
        for number in range(images_per_site):
            case = _case(
                scanner,
                index=index,
                number=number,
                slices=slices_per_patient,
                size=size,
                seed=seed,
                class_of=class_of,
            )
            cases[case.name] = case
        made[name] = split_site(name, cases, test_fraction=test_fraction, seed=seed)
    names = class_names_of(target)
    return Dataset(sites=made, channels=1, classes=len(names), class_names=names, is_phantom=True)


def split_site(
    name: str, cases: Mapping[str, Case], *, test_fraction: float, seed: ExperimentSeed
) -> SiteData:
    """A site whose drawn images are split by patient; see `draw_split`.

    Raises:
        DataError: Fewer than two patients.
    """
    patient_of = {case.name: case.patient for case in cases.values()}
    split = draw_split(patient_of, test_fraction=test_fraction, seed=seed, site=name)
    return SiteData(
        name=name,
        train=tuple(cases[stem] for stem in split.train),
        test=tuple(cases[stem] for stem in split.test),
    )


def class_names_of(target: Target) -> tuple[str, ...]:
    """Names of a target's classes, the background first."""
    return ("background", *_CLASSES[target])


def class_table(target: Target) -> NDArray[np.uint8]:
    """The class of every `Tissue`."""
    table = np.zeros(len(Tissue), dtype=np.uint8)
    for label, tissues in enumerate(_CLASSES[target].values(), start=1):
        table[list(tissues)] = label
    return table


def _case(
    scanner: Scanner,
    *,
    index: int,
    number: int,
    slices: int,
    size: int,
    seed: ExperimentSeed,
    class_of: NDArray[np.uint8],
) -> Case:
    patient, part = divmod(number, slices)
    noise = seed.generator(f"phantom/slice/{index}/{number}")
    phantom = make_phantom(
        scanner,
        size=size,
        anatomy=seed.generator(f"phantom/patient/{index}/{patient}"),
        slice_position=(part + noise.uniform(0.1, 0.9)) / slices,
        noise=noise,
    )
    low, high = CT_WINDOW
    image = np.clip((phantom.hounsfield - low) * (2.0 / (high - low)) - 1.0, -1.0, 1.0)
    return Case(
        name=f"{number:05d}",
        patient=f"{patient:05d}",
        image=image[None].astype(np.float32),
        labels=class_of[phantom.labels],
        spacing=(phantom.pixel, phantom.pixel),
    )
