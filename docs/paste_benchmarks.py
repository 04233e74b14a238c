"""Put the figures of ``secfl bench secagg --json`` into a Markdown page.

Usage: ``python docs/paste_benchmarks.py PAGE.md FIGURES.json ...``; each FIGURES.json fills one block, in order::

    <!-- benchmark: NAME -->
    <!-- end of benchmark -->

NAME is the JSON file's name without its ending. A block without a file, and a file without a block, are errors.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(<!-- benchmark: (?P<name>\S+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL)


def paste(page: str, documents: dict[str, dict[str, Any]]) -> str:
    """The page with every block filled from the document of its name."""
    names = [match["name"] for match in BLOCK.finditer(page)]
    if sorted(names) != sorted(documents):
        sys.exit(f"the page has blocks {sorted(names)}, the files are {sorted(documents)}")
    return BLOCK.sub(lambda match: match[1] + table(documents[match["name"]]) + match[3], page)


def table(document: dict[str, Any]) -> str:
    """One run as a Markdown table, with what it was run on and its ratios."""
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
    return "\n".join(lines) + "\n"


def sentences(document: dict[str, Any]) -> list[str]:
    """The ratios in words."""
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


if __name__ == "__main__":
    target = Path(sys.argv[1])
    given = {Path(name).stem: json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[2:]}
    target.write_text(paste(target.read_text(encoding="utf-8"), given), encoding="utf-8")
