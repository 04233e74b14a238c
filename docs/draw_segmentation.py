"""Writes the tables of ``docs/results/segmentation.md`` from the JSON that ``benchmarks/test_segmentation.py`` made.

Usage: ``python docs/draw_segmentation.py segmentation.json docs/results/segmentation.md``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """# What segmentation costs

Written by `docs/draw_segmentation.py` from one run of `benchmarks/test_segmentation.py` on {machine}, Python {python}:
one thread, processor time, the median of the repetitions. `references` is the same time in products of two 512x512
float32 matrices timed in that run, by which machines can be compared. Networks have the channels 16, 16, 32, 64, 128.
"""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in report["benchmarks"]:
        name = one["name"].partition("[")[0]
        case = one["name"].partition("[")[2].rstrip("]")
        found.setdefault(name, {})[case] = one["extra_info"]
    machine = report["machine_info"]
    text = HEAD.format(
        machine=f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cpu'].get('count', '?')} cores",
        python=machine["python_version"],
    )
    pictures = found["test_picture"]
    text += "\n## Training and prediction\n\n" + table(
        (
            "family",
            "step, 4 images of 96x96 (s)",
            "references",
            "peak (10^6 bytes)",
            "pictures of 256x256 a second",
        ),
        [
            (
                case,
                f"{row['seconds_per_step']:.3f}",
                f"{row['references']:.0f}",
                f"{row['peak_megabytes']:.0f}",
                f"{pictures[case]['images_per_second']:.1f}",
            )
            for case, row in found["test_training_step"].items()
        ],
    )
    text += "\nA volume of 96x96x48 voxels by overlapping boxes of 64: " + ", ".join(
        f"{case} {row['seconds_per_volume']:.1f} s" for case, row in found["test_volume"].items()
    )
    text += ".\n\n## Gradients of single patients, images of 48x48\n\n" + table(
        ("family", "method", "seconds a patient"),
        [
            (case.split("-")[0], row["method"], f"{row['seconds_per_patient']:.4f}")
            for case, row in found["test_patient_gradients"].items()
        ],
    )
    text += "\n## Phantoms, images of 128x128\n\n" + table(
        ("task", "images a second (target 200)"),
        [(case, f"{row['images_per_second']:.0f}") for case, row in found["test_phantom"].items()],
    )
    loading = {
        **found["test_loading"],
        "local normalisation, PNG": found["test_loading_with_local_normalisation"][""],
    }
    text += "\n## Loading, images or slices a second\n\n" + table(
        ("files", "a second"), [(case, f"{row['images_per_second']:.0f}") for case, row in loading.items()]
    )
    return text


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(page(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
