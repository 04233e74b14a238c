"""The page of a study: its conclusions, its tables beside the published figures, its pictures, its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.errors import DataError
from secfl.report.page import render
from secfl.report.pictures import Picture, picture
from secfl.report.plots import Plot, Series, lines

__all__ = ["StudyFacts", "StudyTable", "read_study", "study_page"]

_FORMAT_VERSION = 1
_LARGEST = 32 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """One table.

    Attributes:
        name: Its heading; may be empty.
        head: Names of the columns.
        rows: Cells, as many as names.
    """

    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFacts:
    """What a study's folder shows.

    Attributes:
        document: Content of ``table.json``.
        tables: One for each group of rows.
        pictures: The figures beside it.
        runs: Name, status of the ledger, and digest of the final model of every run.
    """

    document: Mapping[str, Any]
    tables: tuple[StudyTable, ...]
    pictures: tuple[Picture, ...]
    runs: tuple[tuple[str, str, str], ...]


def read_study(folder: Path) -> StudyFacts:
    """Read a study's folder.

    Raises:
        DataError: ``table.json`` is missing, damaged or newer than this secfl reads.
    """
    path = folder / "table.json"
    expected = "expected the table.json of a secfl study"
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path}: larger than {_LARGEST >> 20} MiB; {expected}")
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format_version"] > _FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version {document['format_version']} is newer than this secfl reads; upgrade secfl"
            )
        return StudyFacts(
            document=document,
            tables=tuple(_table(name, rows) for name, rows in _groups(document["rows"]).items()),
            pictures=tuple(
                picture(
                    file, text=f"{file.stem.replace('-', ' ')}, drawn from the table below", group=file.stem
                )
                for file in sorted(folder.glob("*.png"))
            ),
            runs=tuple(_run(name, facts) for name, facts in document["runs"].items()),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: damaged; {expected}") from None


def study_page(facts: StudyFacts) -> str:
    """The page, self-contained."""
    return render(
        "study.html.j2", title=f"{facts.document['title']}: secfl study", plots=_plots(facts), facts=facts
    )


def _groups(rows: list[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return found


def _table(name: str, rows: list[Mapping[str, Any]]) -> StudyTable:
    labels = list(dict.fromkeys(label for row in rows for label in row["where"]))
    return StudyTable(
        name=name,
        head=(*labels, "measured", "mean", "± over seeds", "published", "definition", "note"),
        rows=tuple(
            (
                *(str(row["where"].get(label, "")) for label in labels),
                row["name"] + (f" ({row['unit']})" if row["unit"] else ""),
                _number(row["mean"]),
                _number(row["spread"]),
                _number(row["published"]),
                str(row["definition"]),
                str(row["note"]),
            )
            for row in rows
        ),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _run(name: str, facts: Mapping[str, Any]) -> tuple[str, str, str]:
    ledgers = facts.get("ledgers", {})
    status = ", ".join(sorted({str(one["status"]) for one in ledgers.values()})) or "-"
    return name, status, str(facts.get("final_model_sha256", "-"))[:16]


def _plots(facts: StudyFacts) -> list[Plot]:
    """Measured beside published, for the first figure that was published for several rows."""
    known = [
        row for row in facts.document["rows"] if row["published"] is not None and row["mean"] is not None
    ]
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in known:
        by_name.setdefault(row["name"], []).append(row)
    return [
        lines(
            f"published-{number}",
            title=f"{name}: measured beside published",
            text="In the order of the table: "
            + "; ".join(
                f"{place}, {' '.join(map(str, row['where'].values()))}" for place, row in enumerate(rows, 1)
            ),
            x="row",
            y=name,
            series=[
                Series(
                    name="measured",
                    x=tuple(range(1, len(rows) + 1)),
                    y=tuple(float(row["mean"]) for row in rows),
                ),
                Series(
                    name="published",
                    x=tuple(range(1, len(rows) + 1)),
                    y=tuple(float(row["published"]) for row in rows),
                ),
            ],
        )
        for number, (name, rows) in enumerate(by_name.items())
        if len(rows) > 1
    ][:6]
