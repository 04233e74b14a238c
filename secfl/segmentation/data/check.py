"""A data folder looked at before training: every file is read, and what is found is counted.

Problems that would stop a run are collected, one line each, instead of stopping at the first. Nothing of a DICOM
header besides geometry is in the report; image and site names are those of the files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.folder import Reading, SiteFiles, assign_patients, site_folders
from secfl.segmentation.data.scan import Scan, shape_text
from secfl.segmentation.data.splits import SplitRule, draw_split, read_splits

__all__ = ["DataReport", "Duplicate", "SiteReport", "check_folder"]

FORMAT_VERSION = 1

THUMBNAIL = 96
THUMBNAILS_PER_SITE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Images with the same pixels: ``<site>/<stem>`` each, and whether they are on both sides of a border."""

    images: tuple[str, ...]
    crosses: str


@dataclass(slots=True, kw_only=True)
class SiteReport:
    """One site.

    Attributes:
        images: Images.
        patients: Patients, by ``patients.csv``; without it every image is one.
        train: Training images.
        test: Test images.
        sizes: ``256x256`` -> images.
        spacings: ``0.7x0.7x3 mm`` -> images; pictures have none.
        channels: Channels -> images.
        formats: Format -> images.
        voxels: Class -> voxels.
        empty_masks: Stems of images whose mask is background only.
        problems: What would stop a run, one line each.
        thumbnails: Pictures of the first images with their masks; uint8, ``(side, side, 3)``.
    """

    images: int = 0
    patients: int = 0
    train: int = 0
    test: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    spacings: Counter[str] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    voxels: dict[str, int] = field(default_factory=dict)
    empty_masks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    thumbnails: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """A whole folder. ``problems`` hold what stands between sites."""

    root: Path
    sites: Mapping[str, SiteReport]
    duplicates: tuple[Duplicate, ...]
    problems: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether a run would start, and no image would be trained and tested on."""
        return not (self.all_problems or any(one.crosses for one in self.duplicates))

    @property
    def all_problems(self) -> tuple[str, ...]:
        """Of the folder and of every site."""
        return (*self.problems, *(line for site in self.sites.values() for line in site.problems))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the thumbnails."""
        return {
            "format_version": FORMAT_VERSION,
            "folder": str(self.root),
            "usable": self.is_usable,
            "sites": {
                name: {
                    "images": site.images,
                    "patients": site.patients,
                    "train": site.train,
                    "test": site.test,
                    "sizes": dict(sorted(site.sizes.items())),
                    "spacings": dict(sorted(site.spacings.items())),
                    "channels": {str(key): count for key, count in sorted(site.channels.items())},
                    "formats": dict(sorted(site.formats.items())),
                    "voxels": dict(site.voxels),
                    "empty_masks": list(site.empty_masks),
                    "problems": list(site.problems),
                }
                for name, site in self.sites.items()
            },
            "duplicates": [{"images": list(one.images), "crosses": one.crosses} for one in self.duplicates],
            "problems": list(self.problems),
        }


def check_folder(
    root: Path,
    *,
    reading: Reading,
    test_fraction: float,
    seed: ExperimentSeed,
    tell: Callable[[str], None] = lambda _: None,
) -> DataReport:
    """Read every image and mask of a folder.

    Args:
        root: The folder.
        reading: How files become cases, as in a run.
        test_fraction: As in a run, where ``splits.json`` does not tell.
        seed: As in a run.
        tell: Told every site's name before it is read.

    Raises:
        DataError: The folder has no sites that could be looked at.
    """
    files = site_folders(root)
    problems: list[str] = []
    patients: Mapping[str, Mapping[str, str]] = {
        name: {stem: f"{name}/{stem}" for stem in site.images} for name, site in files.items()
    }
    try:
        patients = assign_patients(root, files)
    except DataError as error:
        problems.append(str(error))
    parts = _parts(
        root, files, patients, problems, test_fraction=test_fraction, seed=seed, rule=reading.split
    )
    found: dict[str, list[str]] = {}
    kinds: dict[str, list[str]] = {}
    sites = {}
    for name, site in files.items():
        tell(name)
        sites[name] = _check_site(name, site, reading, found, kinds)
        sites[name].patients = len(set(patients[name].values()))
        used = Counter(parts.get(f"{name}/{stem}", "") for stem in site.images)
        sites[name].train, sites[name].test = used["train"], used["test"]
    problems += _unlike(kinds)
    duplicates = tuple(_duplicate(images, parts) for images in found.values() if len(images) > 1)
    return DataReport(root=root, sites=sites, duplicates=duplicates, problems=tuple(problems))


def _parts(
    root: Path,
    files: Mapping[str, SiteFiles],
    patients: Mapping[str, Mapping[str, str]],
    problems: list[str],
    *,
    test_fraction: float,
    seed: ExperimentSeed,
    rule: SplitRule,
) -> Mapping[str, str]:
    """``<site>/<stem>`` -> ``train`` or ``test``."""
    parts: dict[str, str] = {}
    given = {}
    try:
        given = read_splits(root / "splits.json") if (root / "splits.json").exists() else {}
    except DataError as error:
        problems.append(str(error))
    for name in files:
        try:
            split = given.get(name) or draw_split(
                patients[name], test_fraction=test_fraction, seed=seed, site=name, rule=rule
            )
        except DataError as error:
            problems.append(str(error))
            continue
        crossing = {patients[name].get(stem) for stem in split.train} & {
            patients[name].get(stem) for stem in split.test
        }
        if crossing - {None}:
            problems.append(f"site {name}: {len(crossing)} patients are in train and in test")
        parts |= {f"{name}/{stem}": "train" for stem in split.train}
        parts |= {f"{name}/{stem}": "test" for stem in split.test}
    return parts


def _check_site(
    name: str, site: SiteFiles, reading: Reading, found: dict[str, list[str]], kinds: dict[str, list[str]]
) -> SiteReport:
    report = SiteReport(images=len(site.images))
    report.voxels = dict.fromkeys(reading.labels.names, 0)
    for stem in site.images:
        try:
            scan, classes, valid = site.stored(stem, reading.labels)
            reading.recipe.prepare(scan, labels=classes, valid=valid)
        except DataError as error:
            report.problems.append(str(error))
            continue
        shape = scan.values.shape[1:] if scan.geometry else scan.values.shape[:0:-1]
        report.sizes[shape_text(shape)] += 1
        if scan.geometry is not None:
            report.spacings["x".join(f"{size:.3g}" for size in scan.geometry.spacing) + " mm"] += 1
        report.channels[scan.channels] += 1
        flat = "picture or single slice" if scan.spatial_dims == 2 else "volume"
        kinds.setdefault(f"{flat}, {scan.channels} channels", []).append(f"{name}/{stem}")
        report.formats[scan.format.value] += 1
        counts = np.bincount(classes.ravel(), minlength=len(reading.labels.names))
        for label, count in zip(reading.labels.names, counts.tolist(), strict=True):
            report.voxels[label] += count
        if not classes.any():
            report.empty_masks.append(stem)
        digest = hashlib.sha256(repr(scan.values.shape).encode() + scan.values.tobytes()).hexdigest()
        found.setdefault(digest, []).append(f"{name}/{stem}")
        if len(report.thumbnails) < THUMBNAILS_PER_SITE:
            report.thumbnails.append(_thumbnail(scan, classes))
    return report


def _unlike(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """What a run would not take together, by name: everything that is not of the commonest kind."""
    if len(kinds) < 2:
        return []
    common = max(kinds, key=lambda kind: len(kinds[kind]))
    return [
        f"{images[0]}{f' and {len(images) - 1} more' if len(images) > 1 else ''}: {kind}; expected what "
        f"{kinds[common][0]} is: {common}"
        for kind, images in kinds.items()
        if kind != common
    ]


def _duplicate(images: list[str], parts: Mapping[str, str]) -> Duplicate:
    sites = {image.split("/")[0] for image in images}
    uses = {parts.get(image, "") for image in images}
    crosses = "sites" if len(sites) > 1 else "train and test" if {"train", "test"} <= uses else ""
    return Duplicate(images=tuple(images), crosses=crosses)


def _thumbnail(scan: Scan, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    from secfl.segmentation.overlays import overlay_of

    picture = Image.fromarray(overlay_of(scan, classes))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    canvas = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
    canvas.paste(picture, ((THUMBNAIL - picture.width) // 2, (THUMBNAIL - picture.height) // 2))
    return np.asarray(canvas)
