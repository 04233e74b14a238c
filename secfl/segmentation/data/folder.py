"""Folder data: ``DATA/<site>/images/*`` with ``DATA/<site>/masks/*`` of the same stem.

Optional: ``<site>/fov/*`` (where loss and metrics count), and beside the sites ``splits.json`` and
``patients.csv``. A ``splits.json`` lists every site; an image that it does not list is not used.
Everything is read and checked at once, before training starts and before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import ConfigError, DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cases import Case, Dataset, SiteData
from secfl.segmentation.data.normalization import Normalization, normalize
from secfl.segmentation.data.reading import IMAGE_SUFFIXES, read_binary_mask, read_image
from secfl.segmentation.data.splits import Split, draw_split, read_patients, read_splits
from secfl.types import client_id

__all__ = ["read_folder"]

_SUFFIXES = "PNG, JPEG or TIFF"


def read_folder(
    root: Path, *, test_fraction: float, seed: ExperimentSeed, normalization: Normalization
) -> Dataset:
    """Read a data folder completely.

    Args:
        root: The folder that holds one folder per site.
        test_fraction: Share of each site's patients kept for the test where ``splits.json`` does not tell.
        seed: Draws the splits that are not given.
        normalization: How intensities are brought to one scale, see `normalize`.

    Raises:
        DataError: One line that names the file or folder and says what was expected.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one that holds <site>/images and <site>/masks")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: no site in it; expected folders <site>/images and <site>/masks")
    files = {_site_name(folder): _SiteFiles(folder) for folder in folders}
    patients = read_patients(root / "patients.csv") if (root / "patients.csv").exists() else {}
    patients_of = {name: _patients_of(name, site, patients) for name, site in files.items()}
    _check_patients(root / "patients.csv", patients_of)
    splits = read_splits(root / "splits.json") if (root / "splits.json").exists() else {}
    if unknown := sorted(set(splits) - set(files)):
        raise DataError(
            f"{root / 'splits.json'}: no folder for site {unknown[0]}; expected {', '.join(files)}"
        )
    sites = {}
    for name, site in files.items():
        patient_of = patients_of[name]
        if name in splits:
            split = splits[name]
            _check_split(root / "splits.json", name, split, patient_of)
        elif splits:
            raise DataError(
                f"{root / 'splits.json'}: site {name} is missing; expected an entry for every site"
            )
        else:
            split = draw_split(patient_of, test_fraction=test_fraction, seed=seed, site=name)
        sites[name] = SiteData(
            name=name,
            train=tuple(site.case(stem, patient_of[stem], normalization) for stem in split.train),
            test=tuple(site.case(stem, patient_of[stem], normalization) for stem in split.test),
        )
    return Dataset(
        sites=sites,
        channels=_common_channels(files, sites),
        classes=2,
        class_names=("background", "foreground"),
        is_phantom=False,
    )


class _SiteFiles:
    """The files of one site, paired by stem."""

    def __init__(self, folder: Path) -> None:
        self.images = _by_stem(folder / "images")
        masks = _by_stem(folder / "masks")
        for stem, image in self.images.items():
            if stem not in masks:
                raise DataError(f"{image}: no mask; expected {folder / 'masks' / stem} as {_SUFFIXES}")
        for stem, mask in masks.items():
            if stem not in self.images:
                raise DataError(f"{mask}: no image; expected {folder / 'images' / stem} as {_SUFFIXES}")
        self._masks = masks
        self._fields: Mapping[str, Path] = {}
        if (folder / "fov").is_dir():
            self._fields = _by_stem(folder / "fov")
            for stem, image in self.images.items():
                if stem not in self._fields:
                    raise DataError(
                        f"{image}: no field of view; expected {folder / 'fov' / stem} as {_SUFFIXES}"
                    )

    def case(self, stem: str, patient: str, normalization: Normalization) -> Case:
        """Read, check and normalise one image with its mask."""
        image = read_image(self.images[stem])
        mask = read_binary_mask(self._masks[stem])
        _check_size(self._masks[stem], mask, self.images[stem], image)
        valid = None
        if stem in self._fields:
            valid = read_binary_mask(self._fields[stem])
            _check_size(self._fields[stem], valid, self.images[stem], image)
            if not valid.any():
                raise DataError(
                    f"{self._fields[stem]}: the field of view is empty; expected some pixels in it"
                )
        return Case(
            name=stem,
            patient=patient,
            image=normalize(image, valid=valid, method=normalization),
            labels=mask.astype(np.uint8),
            valid=valid,
        )


def _site_name(folder: Path) -> str:
    try:
        return client_id(folder.name)
    except ConfigError as error:
        raise DataError(f"{folder}: the folder's name is the client's name: {error}") from None


def _by_stem(folder: Path) -> Mapping[str, Path]:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected <site>/images and <site>/masks with {_SUFFIXES} files"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{path}: unknown kind of file; expected {_SUFFIXES}")
        if path.stem in found:
            raise DataError(f"{path}: same stem as {found[path.stem].name}; expected one file per stem")
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder}: no image in it; expected {_SUFFIXES} files")
    return found


def _check_size(path: Path, mask: NDArray[np.bool_], image_path: Path, image: NDArray[np.float32]) -> None:
    if mask.shape != image.shape[1:]:
        raise DataError(
            f"{path}: {_size(mask.shape)} pixels, but {image_path} has {_size(image.shape[1:])}; "
            "expected the same size"
        )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in reversed(shape))


def _patients_of(name: str, site: _SiteFiles, patients: Mapping[str, str]) -> Mapping[str, str]:
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


def _common_channels(files: Mapping[str, _SiteFiles], sites: Mapping[str, SiteData]) -> int:
    first: dict[int, Path] = {}
    for name, site in sites.items():
        for case in (*site.train, *site.test):
            first.setdefault(case.image.shape[0], files[name].images[case.name])
    if len(first) > 1:
        (one, here), (other, there) = list(first.items())[:2]
        raise DataError(
            f"{there}: {_channels(other)}, but {here} has {one}; expected the same number in every image"
        )
    return next(iter(first))


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"
