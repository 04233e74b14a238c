"""Which published systems there are; a study is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from secfl.studies.published.interface import PublishedStudy

__all__ = ["STUDIES", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a study is.

    Attributes:
        place: ``module:object``.
        text: One line of help.
    """

    place: str
    text: str

    def load(self) -> PublishedStudy:
        """The study."""
        module, _, attribute = self.place.partition(":")
        return cast("PublishedStudy", getattr(import_module(module), attribute))


STUDIES: Mapping[str, Entry] = MappingProxyType(
    {
        "dvt": Entry(
            "secfl.studies.published.dvt:STUDY",
            "Veins of the leg by unlike models: phases of 3, 5 and 7 clients, one global student.",
        ),
        "universal": Entry(
            "secfl.studies.published.universal:STUDY",
            "One backbone for eight unlike tasks, heads at home: MedUniverse, against no federation.",
        ),
        "adaptive-dp": Entry(
            "secfl.studies.published.adaptive_dp:STUDY",
            "ADP-FL: static and adaptive DP at equal ε in dermoscopy, kidney CT and brain MRI.",
        ),
    }
)
"""Word on the command line -> study."""
