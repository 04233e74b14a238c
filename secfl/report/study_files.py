"""Folders of studies: three kinds of files, read into what a page shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secfl.errors import DataError
from secfl.report.pictures import Picture, picture
from secfl.report.plots import Series

__all__ = ["Panel", "StudyFacts", "StudyTable", "is_study", "read_study"]

_FORMAT_VERSION = 2
_LARGEST = 32 << 20  # bytes
_PANELS = 6
_ARMS = {
    "secure": "secure aggregation",
    "local": "local noise only",
    "pooled": "pooled DP-SGD",
    "pretrained": "secure, public pre-training",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """One table.

    Attributes:
        name: Its heading.
        head: Names of the columns.
        rows: Cells, as many as names.
    """

    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What a plot of markers beside names shows.

    Attributes:
        title: What is compared.
        text: A sentence about it.
        x: The quantity.
        series: One kind of marker each, all over the same names.
    """

    title: str
    text: str
    x: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFacts:
    """What a study's folder shows.

    Attributes:
        document: Content of the study's file.
        title: What was studied.
        source: Whose claim it is; may be empty.
        about: On what, with which seeds.
        conclusions: Sentences, computed from the figures.
        tables: One for each group of rows.
        panels: Plots, drawn from the tables.
        pictures: The figures beside the file.
        runs: Name, status of the ledger, and digest of the final model of every run.
        command: What repeats it; may be empty.
        versions: Of what it ran with.
    """

    document: Mapping[str, Any]
    title: str
    source: str
    about: str
    conclusions: tuple[str, ...]
    tables: tuple[StudyTable, ...]
    panels: tuple[Panel, ...]
    pictures: tuple[Picture, ...]
    runs: tuple[tuple[str, str, str], ...]
    command: str
    versions: Mapping[str, str]


def is_study(folder: Path) -> bool:
    """Whether the folder holds a study's file and is not a run's."""
    return not (folder / "config.toml").exists() and any((folder / name).is_file() for name in _READERS)


def read_study(folder: Path) -> StudyFacts:
    """Read a study's folder.

    Raises:
        DataError: Its file is missing, damaged or newer than this secfl reads.
    """
    name = next((name for name in _READERS if (folder / name).is_file()), next(iter(_READERS)))
    path = folder / name
    expected = f"expected the {name} of a secfl study"
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path}: larger than {_LARGEST >> 20} MiB; {expected}")
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format_version"] > _FORMAT_VERSION:
            raise DataError(
                f"{path}: format_version {document['format_version']} is newer than this secfl reads; upgrade secfl"
            )
        return _READERS[name](
            document,
            tuple(
                picture(
                    file, text=f"{file.stem.replace('-', ' ')}, drawn from the tables below", group=file.stem
                )
                for file in sorted(folder.glob("*.png"))
            ),
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: damaged; {expected}") from None


def _published(document: Mapping[str, Any], pictures: tuple[Picture, ...]) -> StudyFacts:
    """``table.json``: measured beside published."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault(row["group"], []).append(row)
    seeds = ", ".join(map(str, document["seeds"]))
    return StudyFacts(
        document=document,
        title=document["title"],
        source=document["source"],
        about=f"Preset {document['preset']}, seeds {seeds}, data {document['data']}, "
        f"secure aggregation by {document['secure_agg']}.",
        conclusions=_sentences(document["conclusions"]),
        tables=tuple(_group(name or "Figures", rows) for name, rows in groups.items()),
        panels=_beside(document["rows"]),
        pictures=pictures,
        runs=tuple(
            (
                name,
                ", ".join(sorted({str(one["status"]) for one in run.get("ledgers", {}).values()})) or "-",
                str(run.get("final_model_sha256", "-"))[:16],
            )
            for name, run in document["runs"].items()
        ),
        command=document["command"],
        versions=document["versions"],
    )


def _sentences(texts: Sequence[str]) -> tuple[str, ...]:
    """A text may hold several, as a list in Markdown."""
    return tuple(line.removeprefix("- ") for text in texts for line in text.splitlines() if line.strip())


def _group(name: str, rows: Sequence[Mapping[str, Any]]) -> StudyTable:
    labels = list(dict.fromkeys(label for row in rows for label in row["where"]))
    return _without_empty_columns(
        name,
        (*labels, "measured", "mean", "± over seeds", "published", "definition", "note"),
        [
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
        ],
    )


def _without_empty_columns(name: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> StudyTable:
    kept = [at for at in range(len(head)) if any(row[at] not in {"", "-"} for row in rows)]
    return StudyTable(
        name=name,
        head=tuple(head[at] for at in kept),
        rows=tuple(tuple(row[at] for at in kept) for row in rows),
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _beside(rows: Sequence[Mapping[str, Any]]) -> tuple[Panel, ...]:
    """Measured beside published, for every figure that was published for several rows."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["published"] is not None and row["mean"] is not None:
            by_name.setdefault(row["name"], []).append(row)
    found = []
    for name, members in by_name.items():
        places = tuple(", ".join(map(str, row["where"].values())) for row in members)
        if len(set(places)) == len(places) > 1:
            found.append(
                Panel(
                    title=f"{name}: measured beside published",
                    text=f"{len(places)} rows of the tables below for which a figure was published.",
                    x=name,
                    series=tuple(
                        Series(name=label, x=places, y=tuple(float(row[key]) for row in members))
                        for label, key in (("measured", "mean"), ("published", "published"))
                    ),
                )
            )
    return tuple(found[:_PANELS])


def _dp_curve(document: Mapping[str, Any], pictures: tuple[Picture, ...]) -> StudyFacts:
    """``curve.json``: what ε costs in Dice."""
    settings = document["settings"]
    entries = [
        (_ARMS.get(arm, arm), level, entry)
        for arm, levels in document["arms"].items()
        for level, entry in levels.items()
    ]
    classes = tuple(entries[0][2]["dice"])
    rows = [
        (
            arm,
            level,
            _number(entry["epsilon"]["aggregator_malicious"]),
            _number(entry["noise_multiplier"]),
            *(_number(entry["dice"][name]["mean"]) for name in classes),
            _number(entry["mean_dice"]["mean"]),
            _number(entry["mean_dice"]["spread"]),
        )
        for arm, level, entry in entries
    ]
    kept = [
        (arm, level, *(f"{100 * entry['kept'][name]['mean']:.1f}" for name in classes))
        for arm, level, entry in entries
        if level != "no noise"
    ]
    places = tuple(arm if level == "no noise" else f"{arm}, ε = {level}" for arm, level, _ in entries)
    return StudyFacts(
        document=document,
        title="What patient-level privacy costs in Dice",
        source="",
        about=f"Preset {settings['name']}, seeds {', '.join(map(str, settings['seeds']))}, {settings['clinics']} "
        f"phantom clinics of {settings['patients']} patients, {document['parameters']} parameters.",
        conclusions=tuple(document.get("conclusions", ())),
        tables=(
            StudyTable(
                name="Dice",
                head=("arm", "ε asked", "ε proved", "noise multiplier", *classes, "mean", "± over seeds"),
                rows=tuple(rows),
            ),
            StudyTable(
                name="Share of the Dice without noise that is kept, in percent",
                head=("arm", "ε", *classes),
                rows=tuple(kept),
            ),
        ),
        panels=(
            Panel(
                title="Dice of each tissue",
                text="Mean over the seeds, with and without noise.",
                x="Dice",
                series=tuple(
                    Series(
                        name=name, x=places, y=tuple(entry["dice"][name]["mean"] for _, _, entry in entries)
                    )
                    for name in classes
                ),
            ),
        ),
        pictures=pictures,
        runs=tuple(
            (
                f"{arm}, {level}, seed {seed}",
                str(run["ledger"]["status"]) if run.get("ledger") else "-",
                str(run.get("final_model_sha256", "-"))[:16],
            )
            for arm, level, entry in entries
            for seed, run in entry["runs"].items()
        ),
        command=document["command"],
        versions=document["versions"],
    )


def _optimisation(document: Mapping[str, Any], pictures: tuple[Picture, ...]) -> StudyFacts:
    """``optimisation.json``: federated optimisers beside each site alone and the pooled data."""
    rows = document["rows"]
    sites = tuple(rows[0]["per_site"])
    places = tuple(f"{row['model']}, {row['arm']}" for row in rows)
    claims = [row for row in rows if row["claim"] is not None]
    return StudyFacts(
        document=document,
        title="Federated optimisers beside the pooled data",
        source="",
        about=f"Data {document['data']}.",
        conclusions=tuple(
            f"{row['arm']} with {row['model']} is {abs(row['below_pooled']):.3f} "
            f"{'below' if row['below_pooled'] > 0 else 'above'} pooled data in mean Dice: "
            f"the claim {'holds' if row['claim'] else 'does not hold'}."
            for row in claims
        ),
        tables=(
            StudyTable(
                name="Dice",
                head=("model", "arm", *sites, "mean", "± over seeds", "worst site", "below pooled"),
                rows=tuple(
                    (
                        row["model"],
                        row["arm"],
                        *(_number(row["per_site"][site]) for site in sites),
                        _number(row["mean"]),
                        _number(row["spread"]),
                        _number(row["worst"]),
                        _number(row["below_pooled"]),
                    )
                    for row in rows
                ),
            ),
        ),
        panels=(
            Panel(
                title="Dice of each arm",
                text="Mean over sites and seeds, and the worst site.",
                x="Dice",
                series=tuple(
                    Series(name=label, x=places, y=tuple(row[key] for row in rows))
                    for label, key in (("mean", "mean"), ("worst site", "worst"))
                ),
            ),
        ),
        pictures=pictures,
        runs=(),
        command=str(document.get("command", "")),
        versions=document.get("versions", {}),
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any], tuple[Picture, ...]], StudyFacts]] = {
    "table.json": _published,
    "curve.json": _dp_curve,
    "optimisation.json": _optimisation,
}
