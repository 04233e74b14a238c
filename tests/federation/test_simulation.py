"""A whole run in one process, on a task without torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from secfl.config import RunConfig, load_config
from secfl.errors import ConfigError, DataError, LedgerCorrupted, RoundAborted
from secfl.federation import simulation
from secfl.federation.checkpoint import load
from secfl.federation.observer import RoundReport, RunInfo, SilentObserver
from secfl.federation.rundir import RunDirectory, read_summary
from secfl.testing.tasks import LinearTask

SCHEMES = [("plain", None), ("masking", None), ("ckks", "shared"), ("ckks", "sum-key")]


def config(scheme: str = "masking", key: str | None = None, rounds: int = 3, **more) -> RunConfig:
    secure = {"scheme": scheme, "coordinate_bound": 4.0}
    if key:
        secure["ckks_key"] = key
    return load_config(
        None, {"secure_agg": secure, "training": {"rounds": rounds, **more.pop("training", {})}, **more}
    )


@dataclass
class Stop(SilentObserver):
    """Interrupts a run like Ctrl-C, after some rounds or in the middle of one."""

    after: int = 10**9
    in_phase: str = ""
    rounds: list[RoundReport] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    info: RunInfo | None = None

    def run_started(self, info: RunInfo) -> None:
        self.info = info

    def phase(self, name: str, done: int, total: int) -> None:
        if len(self.rounds) == self.after and name == self.in_phase:
            raise KeyboardInterrupt

    def round_finished(self, report: RoundReport) -> None:
        self.rounds.append(report)
        if len(self.rounds) == self.after and not self.in_phase:
            raise KeyboardInterrupt

    def message(self, text: str) -> None:
        self.said.append(text)


def run(tmp_path: Path, name: str, settings: RunConfig, task: LinearTask | None = None) -> dict:
    return simulation.simulate(
        settings, out=tmp_path / name, observer=SilentObserver(), task=task or LinearTask()
    )


def test_every_scheme_ends_in_the_identical_model(tmp_path):
    digests = {
        f"{scheme}-{key}": run(tmp_path, f"{scheme}-{key}", config(scheme, key))["final_model_sha256"]
        for scheme, key in SCHEMES
    }
    assert len(set(digests.values())) == 1, digests


def test_every_scheme_ends_in_the_identical_model_with_weights_and_dropouts(tmp_path):
    digests = set()
    for scheme, key in SCHEMES:
        settings = config(scheme, key, dropout=0.15, seed=4, training={"weighting": "size", "max_weight": 64})
        task = LinearTask(5, examples=[10, 20, 30, 40, 50])
        summary = run(tmp_path, f"{scheme}-{key}", settings, task)
        assert summary["dropouts"]["total"] > 0
        digests.add(summary["final_model_sha256"])
    assert len(digests) == 1


def test_the_federated_model_learns(tmp_path):
    summary = run(tmp_path, "run", config(rounds=12, references=True))
    evaluation = summary["evaluation_only"]
    assert evaluation["dice"]["mean"] > 0.85
    local = [row["mean"] for row in evaluation["references"]["local"].values()]
    assert evaluation["dice"]["mean"] > np.mean(local)
    assert summary["codec"]["relative_error"] < 0.01
    assert summary["codec"]["clipped_fraction"] < 0.05


def test_size_weights_count_examples(tmp_path):
    """The mean is the weighted one: checked against float arithmetic."""
    task = LinearTask(3, examples=[10, 20, 60])
    settings = config(rounds=1, training={"weighting": "size", "max_weight": 60})
    run(tmp_path, "run", settings, task)
    opened = load(tmp_path / "run/checkpoints/final.safetensors").state
    start = task.initial_state()
    trained = [task.train(site, start, round_index=0) for site in task.sites]
    weights = np.array([10, 20, 60]) / 90
    expected = sum(w * t.state["weight"].astype(float) for w, t in zip(weights, trained, strict=True))
    np.testing.assert_allclose(opened["weight"], expected, atol=3e-4)
    unweighted = sum(t.state["weight"].astype(float) / 3 for t in trained)
    assert np.abs(opened["weight"] - unweighted).max() > 3e-3


@pytest.mark.parametrize(
    "stop", [Stop(after=2), Stop(after=1, in_phase="training")], ids=["between", "within"]
)
@pytest.mark.parametrize(
    "noise", [{}, {"mode": "client", "noise_multiplier": 3.0, "insecure_test_noise": 7, "accept_weak": True}]
)
def test_an_interrupted_run_resumes_to_the_identical_model(tmp_path, stop, noise):
    stop = Stop(after=stop.after, in_phase=stop.in_phase)
    settings = config(rounds=4, privacy=noise)
    whole = run(tmp_path, "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(settings, out=tmp_path / "cut", observer=stop, task=LinearTask())
    assert not (tmp_path / "cut/summary.json").exists()
    resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver(), task=LinearTask())
    assert resumed["final_model_sha256"] == whole["final_model_sha256"]
    assert resumed["rounds_completed"] == 4
    rows = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]


def test_a_finished_run_is_not_resumed(tmp_path):
    run(tmp_path, "run", config())
    with pytest.raises(ConfigError, match="finished"):
        simulation.resume(tmp_path / "run", observer=SilentObserver(), task=LinearTask())


def test_a_corrupt_checkpoint_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(config(), out=tmp_path / "run", observer=Stop(after=2), task=LinearTask())
    path = max((tmp_path / "run/checkpoints").glob("round-*"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        simulation.resume(tmp_path / "run", observer=SilentObserver(), task=LinearTask())
    path.unlink()  # as the message says
    assert (
        simulation.resume(tmp_path / "run", observer=SilentObserver(), task=LinearTask())["rounds_completed"]
        == 3
    )


def test_a_changed_ledger_stops_a_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(config(), out=tmp_path / "run", observer=Stop(after=1), task=LinearTask())
    ledger = tmp_path / "run/ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"no noise is added", b"so noise is added"))
    with pytest.raises(LedgerCorrupted):
        simulation.resume(tmp_path / "run", observer=SilentObserver(), task=LinearTask())


def test_nothing_is_written_when_something_is_refused(tmp_path):
    two = LinearTask(2)
    with pytest.raises(ConfigError, match="at least 3"):
        run(tmp_path, "run", config(), two)
    with pytest.raises(ConfigError, match="no drop-out can be tolerated"):
        run(tmp_path, "run", config(dropout=0.2))
    with pytest.raises(ConfigError, match="patient"):
        run(tmp_path, "run", config(privacy={"mode": "patient"}))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_directory_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        run(tmp_path, "run", config())


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        run(tmp_path, "file/run", config())


def test_too_many_dropouts_end_the_run_resumably(tmp_path):
    settings = config(dropout=0.9, seed=1)
    with pytest.raises(RoundAborted, match="nothing was opened"):
        run(tmp_path, "run", settings, LinearTask(4))
    assert list((tmp_path / "run/checkpoints").glob("*.safetensors")) == []


def test_a_nan_in_an_update_is_named(tmp_path):
    class Broken(LinearTask):
        def train(self, site, state, *, round_index):
            result = super().train(site, state, round_index=round_index)
            result.state["bias"][:] = np.nan
            return result

    with pytest.raises(DataError, match="bias"):
        run(tmp_path, "run", config(), Broken())


def test_the_run_directory_is_complete(tmp_path):
    summary = run(tmp_path, "run", config(record=True))
    root = tmp_path / "run"
    names = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    files = {"config.toml", "metrics.jsonl", "summary.json", "ledger.jsonl", "log.txt"}
    assert names >= files | {"checkpoints", "previews", "transcript"}
    assert read_summary(root) == summary
    assert RunDirectory.open(root).config() == config(record=True)
    manifest = [json.loads(line) for line in (root / "transcript/manifest.jsonl").read_text().splitlines()]
    for row in manifest:
        assert (root / "transcript" / row["file"]).stat().st_size == row["bytes"]
    inputs = [row for row in manifest if row["recipient"] == "aggregator"]
    assert sum(row["bytes"] for row in inputs) == round(summary["megabytes"]["up"] * 1e6)
    assert not list(root.glob(".simulated-identities*")), "signing keys outlive the run"


def test_a_newer_format_is_refused(tmp_path):
    run(tmp_path, "run", config())
    path = tmp_path / "run/summary.json"
    document = json.loads(path.read_text()) | {"format_version": 2}
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="newer"):
        read_summary(tmp_path / "run")


def test_without_noise_every_epsilon_is_null(tmp_path):
    stop = Stop()
    summary = simulation.simulate(config(), out=tmp_path / "run", observer=stop, task=LinearTask())
    assert {row["epsilon"] for row in summary["privacy"]["views"]} == {None}
    assert any("no noise is added" in text for text in stop.said)
    assert [report.epsilon for report in stop.rounds] == [None] * 3


def test_client_level_noise_gives_a_view_for_every_adversary(tmp_path):
    settings = config(rounds=2, privacy={"mode": "client", "epsilon": 8.0})
    summary = run(tmp_path, "run", settings, LinearTask(5))
    views = {
        (row["view"], row["adversary"], row["colluders"]): row["epsilon"]
        for row in summary["privacy"]["views"]
    }
    assert views["aggregator", "malicious", 0] <= 8.0
    assert views["aggregator", "curious", 0] < views["aggregator_colluders", "curious", 1]
    assert views["crypto_broken", "curious", 0] >= views["aggregator", "malicious", 0]
    assert summary["privacy"]["unit"] == "client"


def test_seeded_noise_is_never_called_private(tmp_path):
    noise = {"mode": "client", "noise_multiplier": 4.0, "insecure_test_noise": 1, "accept_weak": True}
    summary = run(tmp_path, "run", config(privacy=noise))
    again = run(tmp_path, "again", config(privacy=noise))
    assert summary["final_model_sha256"] == again["final_model_sha256"]
    assert {row["epsilon"] for row in summary["privacy"]["views"]} == {None}
    assert "NonPrivate" in summary["privacy"]["statement"]


def test_secret_noise_differs_between_runs(tmp_path):
    noise = {"mode": "client", "noise_multiplier": 4.0, "accept_weak": True}
    first = run(tmp_path, "first", config(privacy=noise))
    second = run(tmp_path, "second", config(privacy=noise))
    assert first["final_model_sha256"] != second["final_model_sha256"]
