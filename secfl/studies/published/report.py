"""A study's files for people and machines: ``table.md``, ``table.json``, ``README.md`` and pictures."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secfl._version import __version__
from secfl.benchmarking.suite import describe_machine
from secfl.federation.checkpoint import write_atomically
from secfl.studies.jobs import store_result
from secfl.studies.published.interface import Drawing, Prose, PublishedStudy, Request, Results, Row

__all__ = ["FORMAT_VERSION", "markdown", "write_report"]

FORMAT_VERSION = 2
_KEPT_FACTS = ("config_sha256", "final_model_sha256", "rounds", "scheme", "seconds", "ledgers")


def write_report(
    study: PublishedStudy, request: Request, results: Results, *, out: Path, command: str
) -> dict[str, Any]:
    """Write everything but the runs; returns the content of ``table.json``."""
    rows = study.rows(request, results)
    prose = study.prose(request, rows, results)
    runs, statements = _without_repeats(results)
    document = {
        "format_version": FORMAT_VERSION,
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "command": command,
        "preset": request.preset.value,
        "seeds": list(request.seeds),
        "data": request.data,
        "secure_agg": request.scheme.value,
        "rows": [row.as_dict() for row in rows],
        "conclusions": list(prose.conclusions),
        "runs": runs,
        "statements": statements,
        "versions": {"secfl": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in study.libraries},
        "machine": describe_machine(),
    }
    table = markdown(rows)
    pictures = study.figures(request, rows, results)
    for stem, drawing in pictures.items():
        _draw(drawing, out, stem)
    store_result(out / "table.json", document)
    write_atomically(out / "table.md", f"# {study.title}\n\n{table}\n".encode())
    write_atomically(out / "README.md", _readme(study, document, prose, table, tuple(pictures)).encode())
    return document


def _without_repeats(results: Results) -> tuple[dict[str, Any], list[Any]]:
    """Facts of every run, whose ledgers name their statements by their places in the list beside them.

    All runs of a kind prove the same, and a statement for each adversary would be nearly all of the file.
    """
    places: dict[str, int] = {}
    statements: list[Any] = []
    runs: dict[str, Any] = {}
    for name, result in results.items():
        runs[name] = {fact: result[fact] for fact in _KEPT_FACTS if fact in result}
        ledgers = runs[name].get("ledgers", {})
        for ledger in ledgers.values():
            for statement in ledger["statements"]:
                if _key(statement) not in places:
                    places[_key(statement)] = len(statements)
                    statements.append(statement)
        if ledgers:
            runs[name]["ledgers"] = {
                path: {**ledger, "statements": [places[_key(one)] for one in ledger["statements"]]}
                for path, ledger in ledgers.items()
            }
    return runs, statements


def _key(statement: Mapping[str, Any]) -> str:
    return json.dumps(statement, sort_keys=True)


def markdown(rows: Sequence[Row]) -> str:
    """One table for each group of rows, in the order in which they come."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return "\n\n".join(_group(name, members) for name, members in groups.items())


def _group(name: str, rows: Sequence[Row]) -> str:
    labels = list(dict.fromkeys(label for row in rows for label in row.where))
    header = [*labels, "measured", "figure", "± over seeds", "published", "definition", "note"]
    lines = [f"### {name}\n"] if name else []
    lines += [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        unit = f" ({row.unit})" if row.unit else ""
        lines.append(
            _line(
                [
                    *(row.where.get(label, "") for label in labels),
                    f"{row.name}{unit}",
                    _number(row.mean, row.decimals),
                    _number(row.spread, row.decimals),
                    "-" if row.published is None else f"{row.published:g}",
                    row.definition.value,
                    row.note,
                ]
            )
        )
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _readme(
    study: PublishedStudy, document: Mapping[str, Any], prose: Prose, table: str, pictures: Sequence[str]
) -> str:
    sources = sorted({row["source"] for row in document["rows"] if row["source"]})
    count = sum(len(run.get("ledgers", {})) for run in document["runs"].values())
    seeds = len(document["seeds"])
    parts = [
        f"# {study.title}",
        f"Published as: {study.source}.",
        (
            f"Written by `{document['command']}` with secfl {__version__}: preset `{document['preset']}`, {seeds} "
            f"{'seeds' if seeds > 1 else 'seed'}, data `{document['data']}`. {_again(document)}"
        ),
        "## What the figures show",
        *prose.conclusions,
        "## What was run",
        *prose.run,
        (
            f"Every run is an ordinary run directory under `runs/`. {count} ledgers of {len(document['runs'])} jobs "
            "verify from their files alone; `secfl ledger verify RUN` does it again."
        ),
        "## What is known of the publication",
        *prose.known,
        "## What is our definition",
        *prose.ours,
        "## Table",
        (
            "`figure` is the mean over seeds, `±` the sample standard deviation; `definition` says whose definition "
            "a row follows, theirs or ours."
        ),
        table,
    ]
    if sources:
        parts.append("Published figures: " + "; ".join(sources) + ".")
    parts += [f"![{stem.replace('-', ' ')}]({stem}.png)" for stem in pictures]
    return "\n\n".join(parts) + "\n"


def _again(document: Mapping[str, Any]) -> str:
    """What the same command gives; whoever could repeat private noise could take it away."""
    private = any(statement["epsilon"] is not None for statement in document["statements"])
    if private:
        return (
            "Noise and samples of private runs are secret and never the same, so the same command gives these "
            "figures within the spread."
        )
    return "The same command gives the same figures, times excepted."


def _draw(drawing: Drawing, out: Path, stem: str) -> None:
    """The same figures give the same bytes of SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "secfl", "svg.fonttype": "path", "font.size": 9}):
        figure = plt.figure(layout="constrained")
        drawing(figure)
        figure.savefig(out / f"{stem}.png", dpi=110)
        figure.savefig(out / f"{stem}.svg", metadata={"Date": None})
        plt.close(figure)
