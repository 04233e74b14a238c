"""One set of images dealt out to sites, the way clinics differ; by patient, seeded.

``size``: sites get Dirichlet-distributed shares of the patients. ``appearance`` and ``prevalence``: patients are
sorted into groups by how bright their images are, or by how much of them is foreground, and every group is dealt
out by its own Dirichlet draw (Hsu et al. 2019, arXiv:1909.06335, with groups in place of classes). A small
concentration makes sites unlike, a large one alike. Every site gets at least two patients.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import numpy as np

from secfl.errors import ConfigError, DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.folder import Reading, SiteFiles, assign_patients, site_folders
from secfl.segmentation.new_folder import new_folder, refuse_existing

__all__ = ["Skew", "deal_patients", "write_partition"]

_GROUPS = 4
_FEWEST = 2


class Skew(Enum):
    """What sites differ in."""

    SIZE = "size"
    APPEARANCE = "appearance"
    PREVALENCE = "prevalence"


def deal_patients(
    trait: Mapping[str, float], *, sites: int, skew: Skew, concentration: float, seed: ExperimentSeed
) -> Mapping[str, int]:
    """Patient -> site, from 0.

    Args:
        trait: Patient -> brightness or foreground share; not looked at under ``size``.
        sites: Number of sites.
        skew: What sites differ in.
        concentration: Of the Dirichlet distribution.
        seed: Draws everything.

    Raises:
        ConfigError: Fewer than two patients per site.
    """
    if len(trait) < _FEWEST * sites:
        raise ConfigError(f"{len(trait)} patients for {sites} sites; expected at least {_FEWEST * sites}")
    draw = seed.generator(f"partition/{skew.value}/{sites}")
    names = sorted(trait)
    names = [names[index] for index in draw.permutation(len(names))]
    groups = [names]
    if skew is not Skew.SIZE:
        ranked = sorted(names, key=lambda name: trait[name])
        groups = [[str(name) for name in part] for part in np.array_split(np.array(ranked), _GROUPS)]
    site_of: dict[str, int] = {}
    for group in groups:
        shares = draw.dirichlet(np.full(sites, concentration))
        borders = np.rint(np.cumsum(shares)[:-1] * len(group)).astype(int)
        order = [group[index] for index in draw.permutation(len(group))]
        for site, part in enumerate(np.split(np.array(order), borders)):
            site_of |= {str(name): site for name in part}
    return _at_least_two(site_of, sites)


def _at_least_two(site_of: dict[str, int], sites: int) -> Mapping[str, int]:
    """Take from the largest site what the smallest lacks."""
    while True:
        counts = np.bincount(list(site_of.values()), minlength=sites)
        if counts.min() >= _FEWEST:
            return site_of
        giver, taker = int(counts.argmax()), int(counts.argmin())
        moved = next(name for name in sorted(site_of) if site_of[name] == giver)
        site_of[moved] = taker


def write_partition(
    root: Path,
    out: Path,
    *,
    reading: Reading,
    sites: int,
    skew: Skew,
    concentration: float,
    seed: ExperimentSeed,
) -> Mapping[str, int]:
    """Copy the images of a data folder into new sites, all of it at once or nothing.

    Args:
        root: A data folder; the sites it has are put together first.
        out: A folder that does not exist yet.
        reading: How files are read, to measure brightness and foreground.
        sites: Number of new sites.
        skew: What they differ in.
        concentration: Of the Dirichlet distribution.
        seed: Draws everything.

    Returns:
        Site -> images.

    Raises:
        ConfigError: ``out`` exists or cannot be written, or too few patients.
        DataError: A file that cannot be used.
    """
    refuse_existing(out)
    files = site_folders(root)
    patients = assign_patients(root, files)
    fields = {bool(site.fields) for site in files.values()}
    if len(fields) > 1:
        raise DataError(f"{root}: some sites have fields of view and some have none; expected all or none")
    trait = _traits(files, patients, reading, skew)
    site_of = deal_patients(trait, sites=sites, skew=skew, concentration=concentration, seed=seed)
    counts: dict[str, int] = {}
    with new_folder(out) as staging:
        rows = ["stem,patient"]
        for old, site in files.items():
            for stem in site.images:
                patient = patients[old][stem]
                new = f"site-{site_of[patient] + 1:0{len(str(sites))}d}"
                counts[new] = counts.get(new, 0) + 1
                for kind, path in zip(("images", "masks", "fov"), site.paths(stem), strict=False):
                    _copy(path, staging / new / kind / f"{old}-{path.name}")
                rows.append(f"{new}/{old}-{stem},{_quoted(patient)}")
        (staging / "patients.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return dict(sorted(counts.items()))


def _traits(
    files: Mapping[str, SiteFiles],
    patients: Mapping[str, Mapping[str, str]],
    reading: Reading,
    skew: Skew,
) -> Mapping[str, float]:
    values: dict[str, list[float]] = {}
    for name, site in files.items():
        for stem in site.images:
            value = 0.0
            if skew is not Skew.SIZE:
                scan, classes, valid = site.stored(stem, reading.labels)
                inside = np.ones(classes.shape, dtype=bool) if valid is None else valid
                value = float((classes[inside] > 0).mean())
                if skew is Skew.APPEARANCE:
                    value = float(scan.values[:, inside].mean())
            values.setdefault(patients[name][stem], []).append(value)
    return {patient: float(np.mean(found)) for patient, found in values.items()}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
