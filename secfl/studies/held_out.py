"""A part of the training images held out, so that a study can choose a setting without the images that it reports.

The folder written here holds links to the sites of the given one and a ``splits.json`` of its own, which lists
training images alone: an image that it does not list is not used (`secfl.segmentation.data.folder`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from secfl.errors import ConfigError
from secfl.federation.checkpoint import write_atomically
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.folder import assign_patients, site_folders
from secfl.segmentation.data.splits import draw_split, read_splits

__all__ = ["hold_out"]

SHARE = 0.3
"""Of each site's training patients, how many score a setting instead of training."""


def hold_out(data: Path, out: Path, *, seed: int) -> Path:
    """A data folder of the training images alone, some of them held out as its test images.

    Args:
        data: A data folder with a ``splits.json``, which says what the training images are.
        out: Becomes the new folder; one that holds out the same images may be there already.
        seed: Draws who is held out, by patient.

    Returns:
        ``out``.

    Raises:
        ConfigError: No ``splits.json``: a split drawn anew for each seed leaves no image that every seed trains on.
            Or ``out`` holds out other images.
        DataError: A damaged folder, or a site with fewer than two training patients.
    """
    if not (data / "splits.json").is_file():
        raise ConfigError(
            f"{data}: no splits.json; expected one that says which images train, so that some of them can be held "
            "out to choose a setting"
        )
    files = site_folders(data)
    patients_of = assign_patients(data, files)
    splits = {}
    for site, given in read_splits(data / "splits.json").items():
        splits[site] = draw_split(
            {stem: patients_of[site][stem] for stem in given.train},
            test_fraction=SHARE,
            seed=ExperimentSeed(seed),
            site=site,
        )
    if out.exists():
        if any(read_splits(out / "splits.json").get(site) != split for site, split in splits.items()):
            raise ConfigError(f"{out}: holds out other images; expected a new folder")
        return out
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for site in splits:
        (part / site).symlink_to((data / site).resolve(), target_is_directory=True)
    if (data / "patients.csv").exists():
        shutil.copyfile(data / "patients.csv", part / "patients.csv")
    listed = {site: {"train": split.train, "test": split.test} for site, split in splits.items()}
    write_atomically(part / "splits.json", (json.dumps(listed, indent=2) + "\n").encode())
    part.rename(out)
    return out
