"""Folder data: ``DATA/<site>/images/*`` with ``DATA/<site>/masks/*`` of the same stem.

Images are PNG, JPEG, TIFF, NIfTI or DICOM (one file, or a folder that holds one series); masks are pictures, NIfTI
or DICOM SEG; `secfl.segmentation.data.sources` has the rule that pairs them. Optional: ``<site>/fov/*`` (where loss
and metrics count), and beside the sites ``splits.json`` and ``patients.csv``. A ``splits.json`` lists every site; an
image that it does not list is not used. Everything is read and checked at once, before training starts and before
anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secfl.errors import ConfigError, DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cache import CaseCache
from secfl.segmentation.data.cases import Case, Dataset, SiteData
from secfl.segmentation.data.labels import LabelMap
from secfl.segmentation.data.preparation import Recipe
from secfl.segmentation.data.scan import Scan
from secfl.segmentation.data.sources import KINDS, files_by_stem, read_labels, read_scan
from secfl.segmentation.data.splits import Split, SplitRule, draw_split, read_patients, read_splits
from secfl.types import client_id

__all__ = [
    "Masks",
    "Reading",
    "SiteFiles",
    "assign_patients",
    "masks_everywhere",
    "read_folder",
    "read_site",
    "site_folders",
]

_FIELD_OF_VIEW = LabelMap()


class Masks(StrEnum):
    """Whether a site's masks are looked at."""

    READ = "read"
    UNREAD = "unread"
    """There need be none; every label is then 0."""


MasksOf: TypeAlias = Callable[[str], Masks]
"""By the site's name."""


def masks_everywhere(site: str) -> Masks:  # noqa: ARG001 - the same for all sites
    """Masks of all sites."""
    return Masks.READ


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How files become cases.

    Attributes:
        recipe: Orientation, resampling and intensities.
        labels: Which stored values are which class.
        cache: Where prepared cases are kept; ``None`` keeps them in memory only.
        split: How training and test patients are drawn where ``splits.json`` does not tell.
    """

    recipe: Recipe = field(default_factory=Recipe)
    labels: LabelMap = field(default_factory=LabelMap)
    cache: Path | None = None
    split: SplitRule = SplitRule.SHARE


def read_folder(
    root: Path,
    *,
    test_fraction: float,
    seed: ExperimentSeed,
    reading: Reading | None = None,
    masks: MasksOf = masks_everywhere,
) -> Dataset:
    """Read a data folder completely.

    Args:
        root: The folder that holds one folder per site.
        test_fraction: Share of each site's patients kept for the test where ``splits.json`` does not tell.
        seed: Draws the splits that are not given.
        reading: How files become cases.
        masks: Which sites' masks are read.

    Raises:
        DataError: One line that names the file or folder and says what was expected.
    """
    reading = reading or Reading()
    files = site_folders(root, masks=masks)
    patients_of = assign_patients(root, files)
    splits = read_splits(root / "splits.json") if (root / "splits.json").exists() else {}
    if unknown := sorted(set(splits) - set(files)):
        raise DataError(
            f"{root / 'splits.json'}: no folder for site {unknown[0]}; expected {', '.join(files)}"
        )
    sites = {}
    for name, site in files.items():
        patient_of = patients_of[name]
        if splits:
            split = _listed(root / "splits.json", splits, name, patient_of)
        else:
            split = draw_split(
                patient_of, test_fraction=test_fraction, seed=seed, site=name, rule=reading.split
            )
        sites[name] = _cases(name, site, split, patient_of, reading)
    return _dataset(files, sites, reading)


def read_site(
    folder: Path,
    *,
    name: str,
    test_fraction: float,
    seed: ExperimentSeed,
    reading: Reading,
    masks: Masks = Masks.READ,
) -> Dataset:
    """Read the folder of one site, ``images`` and ``masks``, under another name.

    Args:
        folder: The site's own folder. A ``splits.json`` and a ``patients.csv`` beside it count, under its own name.
        name: What the site is called.
        test_fraction: As of `read_folder`.
        seed: Draws the split where none is given.
        reading: How files become cases.
        masks: Whether they are read.

    Raises:
        DataError: As of `read_folder`.
    """
    root, called = folder.parent, folder.name
    files = {called: SiteFiles(folder, masks)}
    patient_of = assign_patients(root, files)[called]
    if (root / "splits.json").exists():
        splits = read_splits(root / "splits.json")
        split = _listed(root / "splits.json", splits, called, patient_of)
    else:
        split = draw_split(patient_of, test_fraction=test_fraction, seed=seed, site=name, rule=reading.split)
    return _dataset(files, {called: _cases(called, files[called], split, patient_of, reading)}, reading)


def _listed(path: Path, splits: Mapping[str, Split], name: str, patient_of: Mapping[str, str]) -> Split:
    if name not in splits:
        raise DataError(f"{path}: site {name} is missing; expected an entry for every site")
    _check_split(path, name, splits[name], patient_of)
    return splits[name]


def _cases(
    name: str, files: SiteFiles, split: Split, patient_of: Mapping[str, str], reading: Reading
) -> SiteData:
    return SiteData(
        name=name,
        train=tuple(files.case(stem, patient_of[stem], reading) for stem in split.train),
        test=tuple(files.case(stem, patient_of[stem], reading) for stem in split.test),
    )


def _dataset(files: Mapping[str, SiteFiles], sites: Mapping[str, SiteData], reading: Reading) -> Dataset:
    dims, channels = _common_shape(files, sites)
    return Dataset(
        sites=sites,
        channels=channels,
        classes=len(reading.labels.names),
        class_names=reading.labels.names,
        is_phantom=False,
        spatial_dims=dims,
    )


def site_folders(root: Path, *, masks: MasksOf = masks_everywhere) -> Mapping[str, SiteFiles]:
    """The files of every site of a data folder, images paired with masks where those are read; nothing read yet.

    Raises:
        DataError: No site, a name that cannot be a client's, or an image or mask without its partner.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one that holds <site>/images and <site>/masks")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: no site in it; expected folders <site>/images and <site>/masks")
    return {_site_name(folder): SiteFiles(folder, masks(folder.name)) for folder in folders}


def assign_patients(root: Path, files: Mapping[str, SiteFiles]) -> Mapping[str, Mapping[str, str]]:
    """Site -> stem -> patient, by ``patients.csv`` where there is one.

    Raises:
        DataError: A damaged table, or a patient at two sites.
    """
    patients = read_patients(root / "patients.csv") if (root / "patients.csv").exists() else {}
    patients_of = {name: _patients_of(name, site, patients) for name, site in files.items()}
    _check_patients(root / "patients.csv", patients_of)
    return patients_of


class SiteFiles:
    """The files of one site, paired by stem.

    Attributes:
        images: Stem -> image, sorted.
        masks: Stem -> mask; empty if masks are not read.
        fields: Stem -> field of view; empty if the site has none.
    """

    def __init__(self, folder: Path, masks: Masks = Masks.READ) -> None:
        self.images = files_by_stem(folder / "images")
        self.masks: Mapping[str, Path] = {}
        if masks is Masks.READ:
            self.masks = files_by_stem(folder / "masks")
            for stem, image in self.images.items():
                if stem not in self.masks:
                    raise DataError(f"{image}: no mask; expected {folder / 'masks' / stem} as {KINDS}")
            for stem, mask in self.masks.items():
                if stem not in self.images:
                    raise DataError(f"{mask}: no image; expected {folder / 'images' / stem} as {KINDS}")
        self.fields: Mapping[str, Path] = {}
        if (folder / "fov").is_dir():
            self.fields = files_by_stem(folder / "fov")
            for stem, image in self.images.items():
                if stem not in self.fields:
                    raise DataError(f"{image}: no field of view; expected {folder / 'fov' / stem} as {KINDS}")

    def paths(self, stem: str) -> tuple[Path, ...]:
        """Image and, where there are any, mask and field of view."""
        more = (files[stem] for files in (self.masks, self.fields) if files)
        return (self.images[stem], *more)

    def case(self, stem: str, patient: str, reading: Reading) -> Case:
        """Read, check and prepare one image with its mask, or take it from the cache."""
        if reading.cache is None:
            return self._read(stem, patient, reading)
        labels = reading.labels if self.masks else None
        cache = CaseCache(reading.cache, settings=repr((reading.recipe, labels)))
        return cache.case(
            self.paths(stem), name=stem, patient=patient, make=lambda: self._read(stem, patient, reading)
        )

    def stored(self, stem: str, labels: LabelMap) -> tuple[Scan, NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Image, classes and field of view on the stored grid.

        Raises:
            DataError: A file that cannot be used, or an empty field of view.
        """
        scan = read_scan(self.images[stem])
        if self.masks:
            classes = read_labels(self.masks[stem], scan, labels)
        else:
            classes = np.zeros(scan.values.shape[1:], dtype=np.uint8)
        valid = None
        if self.fields:
            valid = read_labels(self.fields[stem], scan, _FIELD_OF_VIEW) > 0
            if not valid.any():
                raise DataError(
                    f"{self.fields[stem]}: the field of view is empty; expected some pixels in it"
                )
        return scan, classes, valid

    def _read(self, stem: str, patient: str, reading: Reading) -> Case:
        scan, classes, valid = self.stored(stem, reading.labels)
        prepared = reading.recipe.prepare(scan, labels=classes, valid=valid)
        assert prepared.labels is not None
        return Case(
            name=stem,
            patient=patient,
            image=prepared.image,
            labels=prepared.labels,
            valid=prepared.valid,
            spacing=prepared.spacing,
        )


def _site_name(folder: Path) -> str:
    try:
        return client_id(folder.name)
    except ConfigError as error:
        raise DataError(f"{folder}: the folder's name is the client's name: {error}") from None


def _patients_of(name: str, site: SiteFiles, patients: Mapping[str, str]) -> Mapping[str, str]:
    """Stem -> patient. Without an entry in the table an image is a patient of its own at its site."""
    return {
        stem: patients.get(f"{name}/{stem}", patients.get(stem, f"{name}/{stem}")) for stem in site.images
    }


def _check_patients(path: Path, patients_of: Mapping[str, Mapping[str, str]]) -> None:
    site_of: dict[str, str] = {}
    for name, patient_of in patients_of.items():
        for patient in set(patient_of.values()):
            if site_of.setdefault(patient, name) != name:
                raise DataError(
                    f"{path}: one patient has images in the sites {site_of[patient]} and {name}; expected "
                    "every patient at one site (where two sites use the same stem, write <site>/<stem>)"
                )


def _check_split(path: Path, name: str, split: Split, patient_of: Mapping[str, str]) -> None:
    for part, stems in (("train", split.train), ("test", split.test)):
        if not stems:
            raise DataError(f"{path}: site {name}: {part} is empty; expected at least one image")
        for stem in stems:
            if stem not in patient_of:
                raise DataError(f"{path}: site {name}: {part} names {stem}, which has no image")
    if {patient_of[stem] for stem in split.train} & {patient_of[stem] for stem in split.test}:
        raise DataError(
            f"{path}: site {name}: a patient is in train and in test; expected each in one of them"
        )


def _common_shape(files: Mapping[str, SiteFiles], sites: Mapping[str, SiteData]) -> tuple[int, int]:
    """Dimensions and channels, the same in every image."""
    first: dict[tuple[int, int], Path] = {}
    for name, site in sites.items():
        for case in (*site.train, *site.test):
            first.setdefault((case.labels.ndim, case.image.shape[0]), files[name].images[case.name])
    if len(first) > 1:
        ((dims, one), here), ((others, other), there) = list(first.items())[:2]
        if dims != others:
            raise DataError(
                f"{there}: {_DIMENSIONS[others]}, but {here} is {_DIMENSIONS[dims]}; expected the same in every "
                "image"
            )
        raise DataError(
            f"{there}: {_channels(other)}, but {here} has {one}; expected the same number in every image"
        )
    return next(iter(first))


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


_DIMENSIONS = {2: "a picture or single slice", 3: "a volume"}
