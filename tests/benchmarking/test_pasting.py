"""Figures in pages come from what a command wrote as JSON, and from nowhere else."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from secfl.benchmarking.suite import run_suite
from secfl.benchmarking.workload import Workload

OTHERWISE_SHOWN = {"inversion.png", "phantoms.png", "report-dark.png", "report-light.png", "report-phone.png"}


@pytest.fixture(scope="module")
def paste_figures(project):
    spec = importlib.util.spec_from_file_location("paste_figures", project / "docs" / "paste_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paste(project, page, figures):
    return subprocess.run(
        [sys.executable, project / "docs" / "paste_figures.py", page, "--figures", figures],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_marked_block_is_replaced_and_nothing_else(project, tmp_path):
    workload = Workload(parameters=1000, clients=3, repeats=1)
    report = run_suite(workload, ["masking"], peers=tmp_path, progress=lambda _: None).to_json()
    (tmp_path / "small.json").write_text(json.dumps(report), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- figures of small.json: secagg -->\nold 123\n<!-- end of figures -->\nafter\n"
    )
    for _ in range(2):
        done = paste(project, page, tmp_path)
        assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- figures of small.json: secagg -->\n| |")
    assert text.endswith("<!-- end of figures -->\nafter\n")
    assert "old 123" not in text
    (row,) = report["results"]
    assert f"| masking | {row['client_ns_per_param']:.1f} |" in text
    assert f"| {row['bytes_up_per_param']:.2f} |" in text
    assert f"{report['limits']['aes_ctr_ns_per_param']:.2f} ns a mask" in text
    assert "flower-secagg-plus was not measured: not installed" in text
    assert "1,000 parameters, 3 clients" in text


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("<!-- figures of large.json: secagg -->\n<!-- end of figures -->\n", "large.json: no such file"),
        (
            "<!-- figures of here.json: pie -->\n<!-- end of figures -->\n",
            "pie: no such view; there are secagg",
        ),
        ("<!-- figures of here.json: steps -->\n| 1 |\n", "['here.json: steps'] begin, those of [] also end"),
        (
            "<!-- figures of here.json -->\n<!-- end of figures -->\n",
            "['here.json'] begin, those of [] also end",
        ),
    ],
)
def test_a_block_that_cannot_be_filled_changes_nothing(project, tmp_path, block, complaint):
    (tmp_path / "here.json").write_text("{}")
    page = tmp_path / "page.md"
    page.write_text(block)
    done = paste(project, page, tmp_path)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert page.read_text() == block


def test_no_figure_in_a_page_was_typed_by_hand(project, paste_figures):
    shown = set()
    for page in paste_figures.PAGES:
        text = page.read_text(encoding="utf-8")
        again, _ = paste_figures.paste(text, project / "docs" / "figures")
        assert again == text, f"{page.relative_to(project)}: run make paste"
        shown |= set(re.findall(r"<!-- figures of (\S+): ", text))
    assert shown == {path.name for path in (project / "docs" / "figures").iterdir()} - OTHERWISE_SHOWN
    assert shown == set(paste_figures.MEASURED), "the table of commands names what is pasted"


def test_the_comparison_of_engines_is_computed_from_its_rows(paste_figures):
    def row(scheme, engine, milliseconds):
        times = {"advertise": 1.0, "round": milliseconds}
        return {
            "scheme": scheme,
            "engine": engine,
            "milliseconds": times,
            "bytes_up_per_param": 2.0,
            "bytes_down_per_param": 4.0,
        }

    rows = [
        row("masking", "inprocess", 100.0),
        row("masking", "flower", 450.0),
        row("SecAgg+ (Flower's own)", "flower", 300.0),
    ]
    document = {
        "parameters": 10,
        "clients": 3,
        "rounds": 2,
        "repeats": 1,
        "load": 0.4,
        "cores": 2,
        "rows": rows,
    }
    told = paste_figures.engines(document | {"steps": []})
    assert "| masking | Flower's simulation | 450 | advertise 1 | 2.00 | 4.00 |" in told
    assert "- masking: a round over Flower takes 4.5 times as long as in one process and 1.5 times" in told
    assert "messages to each site" not in told
    steps = [{"engine": "inprocess", "step_ms": 27.4, "messages_per_site_and_step": None}]
    assert "| in process | 27 | - |" in paste_figures.engines(document | {"steps": steps})


def test_the_steps_that_are_timed_are_those_of_the_readme(project):
    spec = importlib.util.spec_from_file_location("time_steps", project / "docs" / "time_steps.py")
    time_steps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(time_steps)
    commands = time_steps.steps((project / "README.md").read_text(encoding="utf-8"))
    figures = json.loads((project / "docs" / "figures" / "steps.json").read_bytes())
    assert [row["command"] for row in figures["steps"]] == commands
    assert len(commands) == 7
    (timed,) = time_steps.measure(["python -c 'sum(range(3_000_000))'"])
    assert timed["processor_seconds"] > 0
    with pytest.raises(SystemExit, match="exit code 3"):
        time_steps.measure(["exit 3"])
