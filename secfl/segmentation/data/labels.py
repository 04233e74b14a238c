"""From the values in mask files to classes, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import ConfigError, DataError

__all__ = ["LabelMap"]

_BINARY = ({0}, {0, 1}, {0, 255}, {1}, {255})
_HINT = "for several classes name them under [data.labels]"


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Which stored values make up which class.

    Attributes:
        classes: Foreground class -> stored values (numbers) and DICOM segment labels (texts). Empty: one class
            ``foreground``, stored as 255 or 1. What is 0 is background; every other value has to be named.
    """

    classes: tuple[tuple[str, tuple[int | str, ...]], ...] = ()

    @classmethod
    def of(cls, labels: Mapping[str, tuple[int | str, ...]]) -> LabelMap:
        """From the configuration's table.

        Raises:
            ConfigError: A class without values, a value of two classes, or one outside 1 to 65535.
        """
        seen: dict[int | str, str] = {}
        for name, values in labels.items():
            if not values or not name:
                raise ConfigError(f"data.labels.{name}: no value; expected at least one")
            for value in values:
                if isinstance(value, int) and not 1 <= value <= 65535:
                    raise ConfigError(f"data.labels.{name}: {value}; expected values from 1 to 65535")
                if seen.setdefault(value, name) != name:
                    raise ConfigError(f"data.labels: {value} belongs to {seen[value]} and to {name}")
        if len(labels) > 254:
            raise ConfigError(f"data.labels: {len(labels)} classes; expected at most 254")
        return cls(tuple((name, tuple(values)) for name, values in labels.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, the background first."""
        return ("background", *(name for name, _ in self.classes)) if self.classes else _BINARY_NAMES

    def classes_of(self, path: Path, stored: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Classes of stored values, same shape.

        Raises:
            DataError: A value that no class has.
        """
        found = {int(value) for value in np.unique(stored)}
        if not self.classes:
            if found not in _BINARY:
                raise DataError(
                    f"{path}: expected a binary mask with values 0 and 255, or 0 and 1; found {len(found)} "
                    f"values ({_HINT})"
                )
            return (stored != 0).astype(np.uint8)
        table = {value: index for index, (_, values) in enumerate(self.classes, 1) for value in values}
        if unknown := sorted(found - {0} - {value for value in table if isinstance(value, int)}):
            raise DataError(
                f"{path}: labels out of range: {_some(unknown)} belong to no class; expected 0 and "
                f"{_some(sorted(value for value in table if isinstance(value, int)))} as in [data.labels]"
            )
        result = np.zeros(stored.shape, dtype=np.uint8)
        for value in found - {0}:
            result[stored == value] = table[value]
        return result

    def class_of_segment(self, path: Path, number: int, label: str, *, segments: int) -> int:
        """The class of a DICOM segment, by its number or its label.

        Raises:
            DataError: No class has it.
        """
        if not self.classes:
            if segments == 1:
                return 1
            raise DataError(f"{path}: {segments} segments; expected one ({_HINT})")
        for index, (_, values) in enumerate(self.classes, 1):
            if number in values or label in values:
                return index
        raise DataError(
            f"{path}: labels out of range: segment {number} belongs to no class; expected every segment's "
            "number or label in [data.labels]"
        )

    def stored(self, classes: NDArray[np.uint8], *, foreground: int = 1) -> NDArray[np.uint16]:
        """What is written for predicted classes: each class's first number, so that the file reads back.

        Args:
            classes: The prediction.
            foreground: What stands for the one class where there is no label map (255 in pictures, else 1).
        """
        table = np.zeros(len(self.names), dtype=np.uint16)
        if not self.classes:
            table[1] = foreground
        for index, (_, values) in enumerate(self.classes, 1):
            table[index] = next((value for value in values if isinstance(value, int)), index)
        result: NDArray[np.uint16] = table[classes]
        return result


_BINARY_NAMES = ("background", "foreground")


def _some(values: list[int]) -> str:
    return ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
