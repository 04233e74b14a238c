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


def test_a_run_with_canaries(tmp_path, capsys):
    out = tmp_path / "audited"
    small = ["--canaries", "40", "--parameters", "200", "--steps", "3", "--clients", "3"]
    assert main(["audit", "run", "--out", str(out), *small, "--noise-multiplier", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["views"][0]["view"] == "aggregator"
    assert document["verdict"] in {"NOT REFUTED", "SUSPECT"}
    assert main(["audit", "verify", str(out)]) == 0
    capsys.readouterr()
    assert main(["audit", "run", "--out", str(out), *small]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["run", "--canaries", "400", "--parameters", "200"],
        ["run", "--scheme", "plain"],
        ["inversion", "--images", "7", "--out", "."],
        ["membership", "."],
        ["verify", "."],
        ["peer", "no-such-framework"],
    ],
)
def test_what_cannot_be_done_is_one_line(wrong, tmp_path, capsys):
    extra = ["--out", str(tmp_path / "out")] if wrong[0] == "run" else []
    assert main(["audit", *wrong, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_membership_of_a_small_run(tmp_path, capsys):
    from secfl.federation.simulation import simulate as run_simulation

    settings = load_config(
        None,
        {
            "data": {"image_size": 32, "phantom_images": 12},
            "model": {"channels": (4, 8, 8)},
            "training": {"rounds": 1, "local_epochs": 1},
        },
    )
    run_simulation(settings, out=tmp_path / "run", observer=SilentObserver())
    assert main(["audit", "membership", str(tmp_path / "run"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert 0 <= document["interval"][0] <= document["true_positive_rate"] <= document["interval"][1] <= 1
