"""Run directories of every released format version stay readable, and newer ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from secfl.cli.main import main
from secfl.config import DpMode, Scheme, load_config
from secfl.errors import DataError, SecflError
from secfl.federation.checkpoint import load
from secfl.federation.rundir import read_summary
from secfl.federation.state import state_digest

RUNS = sorted((Path(__file__).parent / "fixtures").glob("run-v*"))


@pytest.fixture(params=RUNS, ids=lambda run: run.name)
def run(request, tmp_path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "run"))


def test_there_is_one_for_every_version():
    assert [run.name for run in RUNS] == ["run-v1"]


def test_its_configuration_is_read(run):
    config = load_config(run / "config.toml", {})
    assert config.secure_agg.scheme is Scheme.MASKING
    assert config.privacy.mode is DpMode.CLIENT
    assert config.clients == 3


def test_later_keys_do_not_change_its_digest(run):
    """Keys that were added since count only where they differ from their default."""
    config = load_config(run / "config.toml", {})
    assert config.digest().hex() == read_summary(run)["config_sha256"]
    for changed in (
        {"data": {"phantom_target": "tissues"}},
        {"privacy": {"local_steps": 7}},
        {"seed": 2},
        {"privacy": {"clip": 2.0}},
    ):
        assert load_config(run / "config.toml", changed).digest() != config.digest()


def test_its_summary_and_model_are_read_and_agree(run):
    summary = read_summary(run)
    assert summary["rounds_completed"] == 2
    model = load(run / "checkpoints" / "final.safetensors")
    assert state_digest(model.state).hex() == summary["final_model_sha256"]


def test_its_ledger_verifies_and_shows_the_summary_s_epsilon(run, capsys):
    assert main(["ledger", "verify", str(run)]) == 0
    capsys.readouterr()
    assert main(["ledger", "show", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    recorded = {
        (row["view"], row["adversary"], row["colluders"]): row["epsilon"]
        for row in read_summary(run)["privacy"]["views"]
    }
    again = {(row["view"], row["adversary"], row["colluders"]): row["epsilon"] for row in shown["views"]}
    assert again == pytest.approx(recorded, rel=1e-6)
    assert min(again.values()) > 0


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("summary.json", read_summary),
        ("config.toml", lambda run: load_config(run / "config.toml", {})),
    ],
)
def test_a_newer_one_is_refused(run, name, reader):
    path = run / name
    text = path.read_text(encoding="utf-8")
    newer = text.replace('"format_version": 1', '"format_version": 99').replace(
        "format_version = 1", "format_version = 99"
    )
    assert newer != text
    path.write_text(newer, encoding="utf-8")
    with pytest.raises(SecflError, match="newer"):
        reader(run)


def test_a_damaged_model_is_refused(run):
    path = run / "checkpoints" / "final.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"final\.safetensors"):
        load(path)
