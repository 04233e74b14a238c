"""Put the figures that commands wrote as JSON into the pages; ``make paste`` does it for all of them.

Usage: ``python docs/paste_figures.py [PAGE.md ...] [--figures DIR]``. A block names a file of that folder, which is
``docs/figures`` unless told, and how it is shown, one of ``VIEWS``; everything between its two comments is replaced::

    <!-- figures of secagg-10m.json: secagg -->
    <!-- end of figures -->

How each file is measured stands in ``MEASURED``. A file, a view or an end that is missing is an error, and no page
changes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGES = [DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(
    r"(<!-- figures of (?P<file>\S+): (?P<view>\S+) -->\n).*?(?P<end><!-- end of figures -->)", re.DOTALL
)
MEASURED: Mapping[str, str] = MappingProxyType(
    {
        "secagg-10m.json": "make figures",
        "secagg-1m.json": "make figures",
        "secagg-64.json": "make figures",
        "engines.json": "python benchmarks/engines.py --json docs/figures/engines.json",
        "guards.json": "python tests/mutation/guards.py --counts docs/figures/guards.json",
        "inversion.json": "secfl audit inversion --out DIR, which writes DIR/inversion.json",
        "membership.json": "secfl audit membership RUN --json, RUN made with examples/audit_membership.toml",
        "optimisation.json": "secfl study optimisation --json",
        "steps.json": "python docs/time_steps.py",
    }
)


def paste(page: str, figures: Path) -> tuple[str, int]:
    """A page with every block filled from its file, and the number of blocks."""
    opened = re.findall(r"^<!-- figures of (.*) -->$", page, re.MULTILINE)
    blocks = [f"{match['file']}: {match['view']}" for match in BLOCK.finditer(page)]
    if opened != blocks:
        sys.exit(f"the blocks of {opened} begin, those of {blocks} also end")
    return BLOCK.subn(
        lambda match: match[1] + _shown(figures / match["file"], match["view"]) + match["end"], page
    )


def _shown(path: Path, view: str) -> str:
    if view not in VIEWS:
        sys.exit(f"{view}: no such view; there are {', '.join(VIEWS)}")
    if not path.is_file():
        sys.exit(
            f"{path}: no such file; measured by: {MEASURED.get(path.name, 'nothing that is known here')}"
        )
    return VIEWS[view](json.loads(path.read_text(encoding="utf-8"))).rstrip("\n") + "\n"


def secagg(document: dict[str, Any]) -> str:
    """``secfl bench secagg --json``: a table, with what it was run on and its ratios."""
    workload, machine, limits = document["workload"], document["machine"], document["limits"]
    lines = [
        "| | client ns | encode, protect, pack | server ns | open ns | up B | down B | setup kB | peak MB | exact |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["results"]:
        parts = (row["encode_ns_per_param"], row["protect_ns_per_param"], row["pack_ns_per_param"])
        lines.append(
            f"| {name_of(row)} | {row['client_ns_per_param']:.1f} "
            f"| {' + '.join('-' if part is None else f'{part:.1f}' for part in parts)} "
            f"| {row['server_ns_per_param']:.1f} | {row['open_ns_per_param']:.1f} "
            f"| {row['bytes_up_per_param']:.2f} | {row['bytes_down_per_param']:.2f} "
            f"| {row['setup_bytes_per_client'] / 1e3:.0f} | {row['peak_mb']:.0f} "
            f"| {'yes' if row['exact'] else 'no'} |"
        )
    summary = (
        f"{workload['parameters']:,} parameters, {workload['clients']} clients, "
        f"{workload['value_bits']}-bit values, {workload['threads']} thread a party; {machine['processor']}, "
        f"Python {machine['python']}. Per parameter. Limits of the machine: {limits['aes_ctr_ns_per_param']:.2f} ns "
        f"a mask, {limits['add_ns_per_param']:.2f} ns an addition. {document['statistic']}"
    )
    lines += ["", summary, ""]
    lines += [f"- {sentence}" for sentence in sentences(document)]
    return "\n".join(lines)


def sentences(document: dict[str, Any]) -> list[str]:
    """The ratios of `secagg` in words."""
    found = []
    for entry in document["ratios"]:
        if entry.get("times_limit") is not None:
            found.append(
                f"{name_of(entry)}: a client takes {entry['times_limit']:.1f} times what its {entry['masks']} masks "
                "take at the machine's limit"
            )
        for peer, ratio in entry["peers"].items():
            found.append(
                f"{name_of(entry)} against {peer}: client {ratio['client_faster']:.1f} and server "
                f"{ratio['server_faster']:.1f} times as fast, upload {ratio['upload_smaller']:.1f} times smaller"
            )
    found += [f"{one['scheme']} was not measured: {one['reason']}" for one in document["skipped"]]
    return found


def name_of(row: dict[str, Any]) -> str:
    """The scheme in words."""
    return f"ckks {row['key_mode']}" if row["scheme"] == "ckks" else str(row["scheme"])


def engines(document: dict[str, Any]) -> str:
    """``benchmarks/engines.py --json``: what that command prints."""
    path = DOCS.parent / "benchmarks" / "engine_tables.py"
    spec = importlib.util.spec_from_file_location("engine_tables", path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return str(tables.report(document))


def optimisation(document: dict[str, Any]) -> str:
    """``secfl study optimisation --json``: what that command prints without ``--json``."""
    from secfl.studies.optimisation import markdown

    return markdown(document)


def inversion(document: dict[str, Any]) -> str:
    """``inversion.json`` of ``secfl audit inversion``."""
    lines = [
        "| what the attacker has | images | matched | recognised | SSIM mean (range) | PSNR |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        guess = row["seen"].startswith("no update") or "weights" in row["seen"]
        name = row["seen"] if guess else f"{row['seen']}, weights {row['weights']}"
        cells = [
            name,
            str(row["images"]),
            str(row["matched"]),
            str(row["recognised"]),
            f"{row['ssim_mean']:.2f} ({row['ssim_min']:.2f} to {row['ssim_max']:.2f})",
            f"{row['psnr_mean_db']:.1f} dB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def guards(document: dict[str, Any]) -> str:
    """``tests/mutation/guards.py --counts``."""
    lines = [
        "| part | guards | a test needs it | equivalent, with the reason | left |",
        "|---|---|---|---|---|",
    ]
    for name, of in document.items():
        left = of["guards"] - of["needed"] - of["equivalent"]
        lines.append(f"| {name} | {of['guards']} | {of['needed']} | {of['equivalent']} | {left} |")
    return "\n".join(lines)


def membership(document: dict[str, Any]) -> str:
    """``secfl audit membership RUN --json``."""
    rates = [document[name] for name in ("true_positive_rate", "measured_false_positive_rate")]
    low, high = document["interval"]
    cells = [
        str(document["members"]),
        str(document["others"]),
        f"{100 * rates[0]:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f} %)",
        f"{100 * document['false_positive_rate']:.0f} %",
        f"{100 * rates[1]:.1f} %",
        f"{document['auc']:.2f}",
    ]
    return (
        "| training images | test images | true positives | at false positives | measured on the other half | AUC |\n"
        f"|---|---|---|---|---|---|\n| {' | '.join(cells)} |"
    )


def steps(document: dict[str, Any]) -> str:
    """``docs/time_steps.py``."""
    machine = document["machine"]
    rows = [f"| `{row['command']}` | {row['processor_seconds']:.1f} |" for row in document["steps"]]
    told = (
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; one thread, no GPU."
    )
    return "\n".join(["| step | processor seconds |", "|---|---|", *rows, "", told])


VIEWS: Mapping[str, Callable[[dict[str, Any]], str]] = MappingProxyType(
    {
        "secagg": secagg,
        "engines": engines,
        "optimisation": optimisation,
        "inversion": inversion,
        "guards": guards,
        "membership": membership,
        "steps": steps,
    }
)


def main() -> int:
    """Fill the blocks of some pages, or of all that have any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", nargs="*", type=Path, help="without any, all that the project has")
    parser.add_argument("--figures", type=Path, default=DOCS / "figures")
    given = parser.parse_args()
    filled = {}
    for page in given.page or PAGES:
        text, count = paste(page.read_text(encoding="utf-8"), given.figures)
        if count:
            filled[page] = text
            print(f"{page}: {count} blocks")
    for page, text in filled.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
