"""Figures in pages come from the benchmark's JSON, and from nowhere else."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from secfl.benchmarking.suite import run_suite
from secfl.benchmarking.workload import Workload


def paste(project, page, *files):
    return subprocess.run(
        [sys.executable, project / "docs" / "paste_benchmarks.py", page, *files],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_marked_block_is_replaced_and_nothing_else(project, tmp_path):
    workload = Workload(parameters=1000, clients=3, repeats=1)
    report = run_suite(workload, ["masking"], peers=tmp_path, progress=lambda _: None).to_json()
    figures = tmp_path / "small.json"
    figures.write_text(json.dumps(report), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark: small -->\nold 123\n<!-- end of benchmark -->\nafter\n")
    for _ in range(2):
        done = paste(project, page, figures)
        assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- benchmark: small -->\n| |")
    assert text.endswith("<!-- end of benchmark -->\nafter\n")
    assert "old 123" not in text
    (row,) = report["results"]
    assert f"| masking | {row['client_ns_per_param']:.1f} |" in text
    assert f"| {row['bytes_up_per_param']:.2f} |" in text
    assert f"{report['limits']['aes_ctr_ns_per_param']:.2f} ns a mask" in text
    assert "flower-secagg-plus was not measured: not installed" in text
    assert "1,000 parameters, 3 clients" in text


def test_blocks_and_files_must_match(project, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark: large -->\n<!-- end of benchmark -->\n")
    done = paste(project, page)
    assert done.returncode == 1
    assert "the page has blocks ['large'], the files are []" in done.stderr


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_no_figure_in_a_page_was_typed_by_hand(project, tmp_path, name):
    text = (project / name).read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- benchmark: (\S+) -->", text)
    assert blocks
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = paste(project, page, *(project / "docs" / "figures" / f"{block}.json" for block in blocks))
    assert done.returncode == 0, done.stderr
    assert page.read_text(encoding="utf-8") == text
