"""A small drawn data folder with a split and two images of every patient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def drawn_folder(root: Path) -> Path:
    """Three sites of seven patients with two images each, p0-a and p0-b …; the last two patients are test."""
    random = np.random.default_rng(0)
    splits, rows = {}, ["stem,patient"]
    for site in ("north", "south", "west"):
        for kind in ("images", "masks"):
            (root / site / kind).mkdir(parents=True)
        stems = [f"{site[0]}{patient}-{image}" for patient in range(7) for image in "ab"]
        for stem in stems:
            mask = np.zeros((32, 32), dtype=np.uint8)
            row, column = random.integers(4, 20, size=2)
            mask[row : row + 8, column : column + 8] = 255
            noise = random.integers(0, 60, size=(32, 32))
            picture = (mask // 2 + noise).astype(np.uint8)
            Image.fromarray(picture).save(root / site / "images" / f"{stem}.png")
            Image.fromarray(mask).save(root / site / "masks" / f"{stem}.png")
            rows.append(f"{stem},{stem.split('-')[0]}")
        splits[site] = {"train": stems[:10], "test": stems[10:]}
    (root / "splits.json").write_text(json.dumps(splits))
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    return root
