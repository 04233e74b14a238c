"""What every data source delivers: cases by site, already checked.

Arrays are channel-first NumPy: ``image`` is float32 of shape ``(channels, *spatial)``, ``labels`` uint8 of
shape ``(*spatial)``, ``valid`` (the field of view) boolean of the same shape or ``None`` for "all".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError

__all__ = ["Case", "Dataset", "SiteData", "Truth", "by_patient"]


class Truth(StrEnum):
    """Where the labels are that a process may look at."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    """No mask is opened, and every label is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image with its truth.

    Attributes:
        name: Stem of the file, or the phantom's number. Stays on the site.
        patient: Whose image it is. Stays on the site.
        image: float32, shape ``(channels, *spatial)``, normalised.
        labels: uint8, shape ``(*spatial)``, 0 is background.
        valid: bool, shape ``(*spatial)``: where loss and metrics count; ``None`` for everywhere.
        spacing: Size of a pixel along each spatial axis in mm; ``None``: distances are in pixels.
    """

    name: str
    patient: str
    image: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    valid: NDArray[np.bool_] | None = field(default=None, repr=False)
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.image.shape[1:] != self.labels.shape:
            raise DataError(f"{self.name}: image and mask differ in size")
        if self.valid is not None and self.valid.shape != self.labels.shape:
            raise DataError(f"{self.name}: mask and field of view differ in size")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteData:
    """One site's cases. No patient is in both parts."""

    name: str
    train: tuple[Case, ...] = field(repr=False)
    test: tuple[Case, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.train or not self.test:
            part = "training" if not self.train else "test"
            raise DataError(
                f"site {self.name}: no {part} image; expected at least one training and one test image"
            )
        shared = {case.patient for case in self.train} & {case.patient for case in self.test}
        if shared:
            raise DataError(f"site {self.name}: {len(shared)} patients are in both training and test images")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All sites that this process may see; in deployment that is one.

    Attributes:
        sites: Site name -> its cases, sorted by name.
        channels: Image channels, the same everywhere.
        classes: Number of labels including background; of the first site, where sites differ.
        class_names: One name per label, ``class_names[0]`` is the background; of the first site, where they differ.
        is_phantom: Whether no image shows a person.
        spatial_dims: 2 for pictures and slices, 3 for volumes.
        names_by_site: ``class_names`` of sites that may differ.
    """

    sites: Mapping[str, SiteData] = field(repr=False)
    channels: int
    classes: int
    class_names: tuple[str, ...]
    is_phantom: bool
    spatial_dims: int = 2
    names_by_site: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def names_at(self, site: str) -> tuple[str, ...]:
        """The classes of one site, the background first."""
        return self.names_by_site.get(site, self.class_names)

    @property
    def classes_are_common(self) -> bool:
        """Whether all sites have the same classes."""
        return all(self.names_at(site) == self.class_names for site in self.sites)


def by_patient(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases grouped by patient, patients in the order of their names."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.patient, []).append(case)
    return [groups[name] for name in sorted(groups)]
