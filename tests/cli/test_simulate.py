"""``secfl simulate`` as a person uses it: flags, bad input, results, interruption."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from secfl.cli import simulate
from secfl.cli.main import main
from secfl.config import PRIVATE_PHANTOM, DpMode, KeyMode, Scheme
from secfl.errors import ConfigError
from secfl.federation.rundir import summary_schema

TINY = """
clients = 3
threads = 1
[data]
phantom_images = 8
image_size = 32
[model]
channels = [4, 8, 16]
[training]
rounds = 6
local_epochs = 1
augmentation = "none"
[secure_agg]
scheme = "plain"
"""


def refusal(capsys, *arguments: object, code: int = 2) -> str:
    assert main(["simulate", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert captured.err.splitlines()[-1:] == errors
    return errors[0]


@pytest.fixture
def tiny(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


class TestFlags:
    def test_flags_win_over_the_file_and_what_is_not_given_stays(self, tiny):
        given = {"rounds": 9, "secure_agg": Scheme.CKKS, "ckks_key": KeyMode.SUM_KEY, "references": False}
        settings = simulate._configuration(tiny, given)
        assert settings.training.rounds == 9
        assert settings.training.local_epochs == 1
        assert settings.data.image_size == 32
        assert settings.secure_agg.scheme is Scheme.CKKS
        assert settings.references is False

    def test_every_flag_reaches_its_key(self):
        values = {
            "data": "somewhere",
            "phantom_task": "fundus",
            "model": "net",
            "clients": 7,
            "rounds": 3,
            "local_epochs": 4,
            "secure_agg": "ckks",
            "ckks_key": "sum-key",
            "threshold": 6,
            "dp": "client",
            "epsilon": 5.0,
            "delta": 1e-6,
            "clip": 0.5,
            "ledger_dir": "accounts",
            "account_epsilon": 20.0,
            "policy": "policy.toml",
            "accept_weak": True,
            "dp_schedule": "round",
            "sampling_rate": 0.2,
            "steps": 11,
            "local_steps": 6,
            "insecure_test_noise": 8,
            "dropout": 0.1,
            "engine": "inprocess",
            "device": "cpu",
            "seed": 9,
            "references": True,
            "record": True,
            "include_images": True,
        }
        # The last two have tests of their own, because they need public images.
        assert set(values) == set(simulate._KEYS) - {"noise_multiplier", "families", "student"}
        for given in (values, {"dp": "client", "noise_multiplier": 3.0}):
            tree = simulate._configuration(None, given).model_dump(mode="json")
            for name, value in given.items():
                found = tree
                for key in simulate._KEYS[name]:
                    found = found[key]
                assert found == value, name

    def test_a_wrong_flag_is_named_as_a_flag_even_beside_a_file(self, tiny):
        with pytest.raises(ConfigError, match=r"^--rounds: .* \(got 0\)$"):
            simulate._configuration(tiny, {"rounds": 0})

    def test_a_wrong_key_is_named_with_its_file(self, tiny):
        tiny.write_text(TINY.replace("rounds = 6", "rounds = 0"), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"^.*tiny\.toml: training\.rounds: "):
            simulate._configuration(tiny, {"seed": 1})

    def test_patient_level_flags_reach_their_keys(self):
        flags = {"dp": DpMode.PATIENT, "noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 7}
        privacy = simulate._configuration(None, flags).privacy
        assert (privacy.mode, privacy.sampling_rate, privacy.steps) == (DpMode.PATIENT, 0.1, 7)

    @pytest.mark.parametrize("given", [{}, {"secure_agg": Scheme.CKKS, "seed": 3}, {"data": "phantom"}])
    def test_where_nothing_is_asked_patients_are_protected(self, given):
        assert simulate._asks_for_nothing(given)
        settings = simulate._configuration(None, given, usual=PRIVATE_PHANTOM)
        assert (settings.privacy.mode, settings.privacy.epsilon) == (DpMode.PATIENT, 8.0)
        assert settings.data.is_phantom

    @pytest.mark.parametrize(
        "given", [{"dp": DpMode.OFF}, {"rounds": 3}, {"model": "unet"}, {"data": "folder"}]
    )
    def test_where_something_is_asked_nothing_else_changes(self, given):
        assert not simulate._asks_for_nothing(given)

    def test_one_line_says_so(self, capsys, tmp_path):
        taken = tmp_path / "run"
        taken.mkdir()
        assert main(["simulate", "--out", str(taken)]) == 2
        notice, error = capsys.readouterr().err.splitlines()
        assert notice.startswith("--dp patient at ε = 8 on the phantom")
        assert error.startswith("error: ")
        for more in (["--dp", "off"], ["--quiet"]):
            assert main(["simulate", "--out", str(taken), *more]) == 2
            assert len(capsys.readouterr().err.splitlines()) == 1

    def test_the_default_run_directory_names_time_and_scheme_and_is_new(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        settings = simulate._configuration(None, {"secure_agg": Scheme.CKKS})
        first = simulate._new_run(settings)
        assert re.fullmatch(r"runs/\d{8}-\d{6}-ckks", first.as_posix())
        first.mkdir(parents=True)
        assert simulate._new_run(settings) != first


BAD_FLAGS = [
    (["--threshold", 7, "--clients", 5], "--threshold 7"),
    (["--threshold", 2, "--clients", 5], "--threshold 2"),
    (["--clients", 2], "each would learn the other's update"),
    (["--clients", 3, "--dropout", 0.2], "no drop-out can be tolerated"),
    (["--dropout", 1.5], "--dropout: "),
    (["--epsilon", 8], "--dp client"),
    (["--dp", "client", "--epsilon", 0], "--epsilon: "),
    (["--dp", "client", "--epsilon", "nan"], "--epsilon: "),
    (["--dp", "client", "--epsilon", 8, "--delta", 1], "--delta: "),
    (["--dp", "client"], "exactly one of --epsilon and --noise-multiplier"),
    (["--dp", "patient"], "--dp patient: give exactly one of --epsilon and --noise-multiplier"),
    (["--dp", "patient", "--epsilon", 8, "--sampling-rate", 1.5], "--sampling-rate: "),
    (["--dp", "patient", "--epsilon", 8, "--steps", 0], "--steps: "),
    (["--seed", -1], "--seed: "),
    (["--config", "absent.toml"], "absent.toml"),
    (["--data", "absent"], "absent"),
    (["--model", "nonsense"], "nonsense"),
    (["--resume", "absent"], "absent"),
    (["--resume", "run", "--rounds", 3], "remove --rounds"),
    (["--resume", "run", "--out", "other"], "remove --out"),
    (["--resume", "run", "--config", "x.toml"], "remove --config"),
]


class TestBadFlags:
    @pytest.mark.parametrize(("arguments", "named"), BAD_FLAGS, ids=lambda value: " ".join(map(str, value)))
    def test_one_line_names_it_and_nothing_is_written(self, capsys, tmp_path, monkeypatch, arguments, named):
        monkeypatch.chdir(tmp_path)
        assert named in refusal(capsys, *arguments)
        assert list(tmp_path.iterdir()) == []


def write_data(root: Path) -> Path:
    """Three sites of four small images with masks."""
    generator = np.random.default_rng(0)
    for site in ("north", "south", "west"):
        for kind in ("images", "masks"):
            (root / site / kind).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(root / site / "images" / f"{number}.png")
            Image.fromarray(np.where(pixels > 128, 255, 0).astype(np.uint8)).save(
                root / site / "masks" / f"{number}.png"
            )
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


SPOILED = {
    "missing mask": (lambda south: (south / "masks/2.png").unlink(), "south/images/2.png"),
    "mask without image": (lambda south: (south / "images/2.png").unlink(), "south/masks/2.png"),
    "sizes differ": (
        lambda south: save(south / "masks/1.png", np.zeros((16, 32), np.uint8)),
        "south/masks/1",
    ),
    "mask with labels": (
        lambda south: save(south / "masks/1.png", np.arange(1024, dtype=np.uint8).reshape(32, 32)),
        "south/masks/1.png",
    ),
    "empty site": (lambda south: [shutil.rmtree(path) for path in south.iterdir()], "south"),
    "no images": (lambda south: [path.unlink() for path in (south / "images").iterdir()], "south/images"),
    "broken image": (lambda south: (south / "images/3.png").write_bytes(b"\x89PNG no"), "south/images/3.png"),
    "one patient": (
        lambda south: [path.unlink() for path in south.glob("*/[123].png")],
        "south",
    ),
}


class TestBadData:
    @pytest.mark.parametrize("flaw", sorted(SPOILED))
    def test_one_line_names_the_file_and_nothing_is_written(self, capsys, tmp_path, flaw):
        spoil, named = SPOILED[flaw]
        data = write_data(tmp_path / "data")
        spoil(data / "south")
        assert named in refusal(capsys, "--data", data, "--out", tmp_path / "run")
        assert [path.name for path in tmp_path.iterdir()] == ["data"]

    def test_a_folder_of_two_sites_is_refused_by_number(self, capsys, tmp_path):
        data = write_data(tmp_path / "data")
        shutil.rmtree(data / "west")
        assert "expected at least 3" in refusal(capsys, "--data", data, "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestBadOutput:
    def test_an_existing_run_is_not_touched(self, capsys, tiny, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / "summary.json").write_text("mine")
        line = refusal(capsys, "--config", tiny, "--out", run)
        assert f"--out {run}" in line
        assert "exists" in line
        assert [path.name for path in run.iterdir()] == ["summary.json"]

    def test_a_place_that_cannot_be_written_is_named(self, capsys, tiny, tmp_path):
        (tmp_path / "file").write_text("")
        run = tmp_path / "file" / "run"
        assert f"--out {run}: cannot be written" in refusal(capsys, "--config", tiny, "--out", run)


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "secfl.cli", "simulate", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[dict, str, Path]:
    """A whole run with ``--json``: the summary, what was said, and the run directory."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    out, err = (process := start("--config", "tiny.toml", "--json", "--out", "run", cwd=folder)).communicate()
    assert process.returncode == 0, err
    return json.loads(out), err, folder / "run"


class TestRun:
    def test_json_is_alone_on_standard_output_and_is_the_summary(self, finished):
        summary, _, run = finished
        jsonschema.validate(summary, summary_schema())
        assert json.loads((run / "summary.json").read_text()) == summary
        assert summary["rounds_completed"] == 6
        assert all(row["epsilon"] is None for row in summary["privacy"]["views"])

    def test_each_round_is_a_line_elsewhere_than_in_a_terminal(self, finished):
        _, said, _ = finished
        rounds = re.findall(r"^round (\d)/6  Dice 0\.\d{3}  \d+\.\d MB up  ε -", said, re.MULTILINE)
        assert rounds == ["1", "2", "3", "4", "5", "6"]
        assert "\x1b" not in said

    def test_the_run_directory_is_complete(self, finished):
        _, _, run = finished
        names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
        assert names >= {
            *("config.toml", "metrics.jsonl", "summary.json", "ledger.jsonl"),
            *("checkpoints", "previews", "log.txt"),
        }

    def test_its_ledger_verifies_without_torch(self, finished):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "secfl.cli", "ledger", "verify", str(finished[2])],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "simulated: one process held all keys" in done.stdout
        loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert "cryptography" in loaded
        assert loaded.isdisjoint({"torch", "monai", "opacus", "tenseal"})

    def test_its_configuration_starts_the_same_run_again(self, finished, capsys, tmp_path):
        summary, _, run = finished
        again = tmp_path / "again"
        assert main(["simulate", "--config", str(run / "config.toml"), "--out", str(again), "--quiet"]) == 0
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "")
        repeated = json.loads((again / "summary.json").read_text())
        assert repeated["final_model_sha256"] == summary["final_model_sha256"]

    def test_a_finished_run_is_not_resumed(self, finished, capsys):
        assert "finished" in refusal(capsys, "--resume", finished[2])

    def test_an_interrupted_run_says_how_to_go_on_and_ends_in_the_same_model(self, tmp_path):
        # Enough rounds that the signal arrives in time on a fast machine.
        (tmp_path / "tiny.toml").write_text(TINY.replace("rounds = 6", "rounds = 20"), encoding="utf-8")
        whole = start("--config", "tiny.toml", "--out", "whole", "--json", "--quiet", cwd=tmp_path)
        expected = json.loads(whole.communicate()[0])["final_model_sha256"]
        process = start("--config", "tiny.toml", "--out", "my run", cwd=tmp_path)
        for line in process.stderr:
            if line.startswith("round 1/"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate()
        assert process.returncode == 130
        assert out == ""
        assert err.splitlines()[-1] == "interrupted; go on with: secfl simulate --resume 'my run'"
        assert not (tmp_path / "my run" / "summary.json").exists()
        resumed = start("--resume", "my run", "--json", cwd=tmp_path)
        out, err = resumed.communicate()
        assert resumed.returncode == 0, err
        assert "going on after round" in err
        assert json.loads(out)["final_model_sha256"] == expected

    def test_people_get_a_table_and_the_next_step(self, finished, capsys, tiny, tmp_path):
        run = tmp_path / "shown"
        arguments = ["--config", tiny, "--rounds", 1, "--secure-agg", "masking", "--out", run]
        assert main(["simulate", *map(str, arguments)]) == 0
        shown = capsys.readouterr().out
        assert "Dice on each site's test images (simulation only)" in shown
        assert "masking, threshold 3" in shown
        assert "secfl ledger verify" in shown
