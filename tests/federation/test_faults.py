"""Every fault of the table ends as it says, with the right sum, and with nothing spent twice."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("fault_stage", _HERE / "fault_stage.py")
stage = sys.modules["fault_stage"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stage)

QUICK = {"every request comes twice", "all earlier replies come again in every phase"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.done, marks=() if fault.done in QUICK else pytest.mark.slow)
        for fault in stage.FAULTS
    ],
)
def test_a_fault_ends_as_the_table_says(tmp_path, monkeypatch, fault):
    if fault.disk and os.geteuid() != 0:
        pytest.skip("mounts a small file system: needs root")
    monkeypatch.setenv("FAULTY_SITE", stage.ONE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_HERE), os.environ.get("PYTHONPATH", "")]))
    observed = stage.play(fault, tmp_path)
    assert observed.findings == []
    assert observed.outcome == fault.expected, observed.words


def test_the_table_in_the_pages_has_every_fault(project):
    text = (project / "docs/faults.md").read_text(encoding="utf-8")
    table = text.split("<!-- faults -->")[1].split("<!-- end of faults -->")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", table, flags=re.MULTILINE)[1:]
    assert [(fault.done, fault.expected) for fault in stage.FAULTS] == rows
