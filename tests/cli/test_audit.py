"""``secfl audit`` from the outside."""

from __future__ import annotations

import json

import pytest

from secfl.cli.main import main
from secfl.config import load_config
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.testing.tasks import LinearTask


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    settings = load_config(None, {"record": True, "training": {"rounds": 4}})
    simulate(settings, out=path, observer=SilentObserver(), task=LinearTask(features=300))
    return path


def test_a_transcript_is_audited(recorded, capsys):
    assert main(["audit", "transcript", str(recorded)]) == 0
    assert "NOT REFUTED" in capsys.readouterr().out


def test_a_transcript_as_json(recorded, capsys):
    assert main(["audit", "transcript", str(recorded), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "NOT REFUTED"
    assert all({"name", "flagged", "level", "p_value"} <= set(one) for one in document["findings"])


def test_a_tampered_transcript_is_refuted(recorded, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(recorded, copy)
    manifest = copy / "transcript" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    inputs = [row for row in rows if (copy / "transcript" / row["file"]).read_bytes()[4] == 5]
    head = 39 + 64 + 64  # frame, header, signature
    path = copy / "transcript" / inputs[0]["file"]
    path.write_bytes(path.read_bytes()[:head] + bytes(inputs[0]["bytes"] - head))
    assert main(["audit", "transcript", str(copy)]) == 5
    assert "REFUTED" in capsys.readouterr().out


def test_what_is_no_recording_is_one_line(tmp_path, capsys):
    assert main(["audit", "transcript", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
