"""A small data folder that a test may damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SITES = ("north", "south", "west")


@dataclass(frozen=True)
class Folder:
    """Three sites with four images each: ``<site>-0`` to ``<site>-3``."""

    root: Path

    def image(self, site: str, number: int) -> Path:
        return self.root / site / "images" / f"{site}-{number}.png"

    def mask(self, site: str, number: int) -> Path:
        return self.root / site / "masks" / f"{site}-{number}.png"

    def write_splits(self, splits: Mapping[str, Mapping[str, list[str]]]) -> None:
        (self.root / "splits.json").write_text(json.dumps(splits), encoding="utf-8")

    def write_patients(self, patients: Mapping[str, str]) -> None:
        rows = ["stem,patient", *(f"{stem},{patient}" for stem, patient in patients.items())]
        (self.root / "patients.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(tmp_path / "data")
    draw = np.random.default_rng(7)
    for site in SITES:
        for number in range(4):
            mask = np.zeros((32, 40), np.uint8)
            mask[8 + number : 20, 10:24] = 255
            image = draw.integers(0, 120, (32, 40, 3), np.uint8) + (mask[..., None] // 3)
            save(made.image(site, number), image.astype(np.uint8))
            save(made.mask(site, number), mask)
    return made
