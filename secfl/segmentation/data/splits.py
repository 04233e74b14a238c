"""Which patients are for training and which for testing: from files where given, else drawn from the seed."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from secfl.errors import DataError
from secfl.randomness import ExperimentSeed

__all__ = ["Split", "SplitRule", "draw_split", "read_patients", "read_splits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Stems of one site's images by use; sorted."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def read_splits(path: Path) -> Mapping[str, Split]:
    """Read ``{"<site>": {"train": [stem, …], "test": [stem, …]}, …}``.

    Raises:
        DataError: Not JSON of that shape, or a stem that is listed twice.
    """
    expected = 'expected JSON {"<site>": {"train": ["<stem>", ...], "test": ["<stem>", ...]}, ...}'
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise DataError(f"{path}: {expected}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: {expected}")
    splits = {}
    for site, parts in tree.items():
        if not isinstance(parts, dict) or set(parts) != {"train", "test"}:
            raise DataError(f"{path}: site {site}: {expected}")
        for stems in parts.values():
            if not isinstance(stems, list) or not all(isinstance(stem, str) for stem in stems):
                raise DataError(f"{path}: site {site}: {expected}")
        together = [*parts["train"], *parts["test"]]
        if len(set(together)) != len(together):
            raise DataError(
                f"{path}: site {site}: an image is listed twice; expected every stem at most once"
            )
        splits[site] = Split(train=tuple(sorted(parts["train"])), test=tuple(sorted(parts["test"])))
    return splits


def read_patients(path: Path) -> Mapping[str, str]:
    """Read a table ``stem,patient``, where a stem is ``<stem>`` or ``<site>/<stem>``.

    Raises:
        DataError: The columns are missing, a field is empty, or a stem has two patients.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"stem", "patient"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: expected a CSV table with the columns stem,patient")
            rows = [(row["stem"], row["patient"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise DataError(
            f"{path}: cannot be read; expected a CSV table with the columns stem,patient"
        ) from None
    patients: dict[str, str] = {}
    for line, (stem, patient) in enumerate(rows, start=2):
        if not stem or not patient:
            raise DataError(f"{path}: line {line}: expected a stem and a patient")
        if patients.setdefault(stem, patient) != patient:
            raise DataError(f"{path}: line {line}: this stem already has another patient")
    return patients


class SplitRule(StrEnum):
    """How a split is drawn where none is written down."""

    SHARE = "share"
    """Exactly the wanted share of the patients who are there; who is in which part depends on who else is there."""
    EACH = "each"
    """Every patient by a draw of their own, so that one patient more or less moves nobody else."""


def draw_split(
    patient_of: Mapping[str, str],
    *,
    test_fraction: float,
    seed: ExperimentSeed,
    site: str,
    rule: SplitRule = SplitRule.SHARE,
) -> Split:
    """Draw a split by patient; the same for the same seed, site and patients, whatever the file order.

    Args:
        patient_of: Stem -> patient of one site.
        test_fraction: Wanted share of patients in the test part; at least one patient lands in each part.
        seed: The experiment seed.
        site: The site's name, so that sites are drawn independently.
        rule: How. Under `SplitRule.EACH`, data sets that differ in one patient differ in one patient's training
            images: what differential privacy for patients (add or remove one) presupposes.

    Raises:
        DataError: Fewer than two patients, or everybody in one part.
    """
    patients = sorted(set(patient_of.values()))
    if len(patients) < 2:
        raise DataError(
            f"site {site}: images of {len(patients)} patient; "
            "expected at least 2, one to train and one to test"
        )
    if rule is SplitRule.EACH:
        chosen = {
            patient
            for patient in patients
            if seed.derive(f"split/{site}/{patient}") < test_fraction * (1 << 63)
        }
        if not 0 < len(chosen) < len(patients):
            raise DataError(
                f"site {site}: all {len(patients)} patients were drawn into one part; expected more patients, "
                "another data.test_fraction, or a splits.json"
            )
    else:
        order = seed.generator(f"split/{site}").permutation(len(patients))
        tests = min(max(1, round(test_fraction * len(patients))), len(patients) - 1)
        chosen = {patients[index] for index in order[:tests]}
    return Split(
        train=_stems(patient_of, [patient for patient in patients if patient not in chosen]),
        test=_stems(patient_of, sorted(chosen)),
    )


def _stems(patient_of: Mapping[str, str], patients: Sequence[str]) -> tuple[str, ...]:
    wanted = set(patients)
    return tuple(sorted(stem for stem, patient in patient_of.items() if patient in wanted))
