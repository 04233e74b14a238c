"""The study of one backbone for unlike tasks: its tests of significance, and a whole study of the smallest size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secfl.config import Scheme
from secfl.errors import ConfigError
from secfl.ledger.verify import Status, verify_file
from secfl.studies.published import runner
from secfl.studies.published.interface import Preset, Request
from secfl.studies.published.runner import run_published
from secfl.studies.published.universal import STUDY
from secfl.studies.published.universal.comparison import compare, holm
from secfl.studies.published.universal.sizes import SIZES, tasks_of


class Quiet:
    def began(self, rounds, runs): ...
    def moved(self, rounds): ...
    def finished(self, job): ...


def in_this_process(jobs, *, processes, listener):
    for job in jobs:
        if not job.result.exists():
            job.work(*job.arguments)


def arms(differences):
    first = {("task", seed): 0.5 + value for seed, value in enumerate(differences)}
    return first, dict.fromkeys(first, 0.5)


class TestComparison:
    def test_a_textbook_example(self):
        # Ranks 1, 2, 3, 4, 5, 6 of differences that are all positive: p = 2 / 2^6.
        one = compare(*arms([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]))
        assert one.p == pytest.approx(2 / 2**6)
        assert (one.effect, one.better, one.pairs) == (1.0, 6, 6)
        assert one.verdict == "better"

    def test_the_effect_has_a_sign(self):
        assert compare(*arms([-0.01, -0.02, 0.03])).effect == pytest.approx(0.0)
        assert compare(*arms([-0.01] * 9)).effect == -1.0
        assert compare(*arms([-0.01 * place for place in range(1, 9)])).verdict == "worse"

    def test_no_difference_is_no_finding(self):
        one = compare(*arms([0.0, 0.0]))
        assert (one.p, one.effect, one.verdict) == (1.0, 0.0, "no significant difference")

    def test_under_the_null_few_are_found_and_a_shift_is(self):
        draw = np.random.default_rng(5)
        null = [compare(*arms(draw.normal(0, 0.05, 24))).p < 0.05 for _ in range(400)]
        # 20 expected of 400; more than 40 in fewer than 1 of 20,000 test runs.
        assert sum(null) <= 40
        shifted = [compare(*arms(draw.normal(0.05, 0.05, 24))).p < 0.05 for _ in range(50)]
        assert sum(shifted) > 45

    def test_different_pairs_are_refused(self):
        with pytest.raises(ValueError, match="same tasks"):
            compare({("a", 0): 1.0}, {("b", 0): 1.0})

    def test_holm(self):
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert holm([0.9, 0.8]) == [1.0, 1.0]


class TestSizes:
    @pytest.mark.parametrize("preset", list(Preset))
    def test_both_arms_take_the_same_steps(self, preset, tmp_path):
        request = Request(preset=preset, seeds=(0,))
        size = SIZES[preset]
        jobs = {job.name: job for stage in STUDY.stages(request, tmp_path) for job in stage}
        settings, newcomers, epochs, _ = jobs["alone-0"].arguments[1]
        training = settings["training"]
        assert epochs == training["rounds"] * training["local_epochs"] + size.final_epochs
        assert set(newcomers) == set(settings["data"]["sites"])
        assert len(jobs) == 3 + size.tasks
        assert all(STUDY.expected_seconds(request, job) > 0 for job in jobs.values())

    def test_the_eight_tasks_are_unlike(self):
        tasks = tasks_of(Request(preset=Preset.SMALL, seeds=(0,)))
        assert len({own["phantom_task"] for own in tasks.values()}) == 8

    def test_adding_in_the_clear_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="expected masking or ckks"):
            STUDY.stages(Request(preset=Preset.SMOKE, seeds=(0,), scheme=Scheme.PLAIN), tmp_path)

    def test_folders_of_ones_own(self, tmp_path):
        request = Request(preset=Preset.SMOKE, seeds=(0,), data=str(tmp_path))
        with pytest.raises(ConfigError, match="0 tasks; expected at least 4 folders"):
            tasks_of(request)
        for name in "abcd":
            (tmp_path / "clients" / name).mkdir(parents=True)
        (tmp_path / "tasks.toml").write_text("[b]\nlabels = {vessel = 1}\n")
        tasks = tasks_of(request)
        assert tasks["b"]["labels"] == {"vessel": 1}
        assert tasks["a"]["source"] == str(tmp_path / "clients" / "a")
        jobs = STUDY.stages(request, tmp_path / "runs")
        server = jobs[0][0].arguments[1][0]["data"]["sites"]["server-a"]
        assert server["source"] == str(tmp_path / "server" / "a")
        (tmp_path / "tasks.toml").write_text("[e]\n")
        with pytest.raises(ConfigError, match="expected tables of tasks"):
            tasks_of(request)


def test_a_whole_study(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_jobs", in_this_process)
    request = Request(preset=Preset.SMOKE, seeds=(3,))
    document = run_published(STUDY, request, out=tmp_path, processes=1, listener=Quiet(), say=lambda _: None)
    names = list(tasks_of(request))
    runs = ["all-3", *(f"without-{name}-3" for name in names)]
    for run in runs:
        assert verify_file(tmp_path / "runs" / run / "ledger.jsonl").status is Status.CLOSED
    rows = document["rows"]
    dice = [row for row in rows if row["name"] == "Dice"]
    assert len(dice) == 3 * 2 * (len(names) + 1)
    gains = [row for row in rows if row["name"] == "gain in Dice"]
    assert all("Wilcoxon p = " in row["note"] for row in gains)
    found = {
        (row["where"]["task"], row["where"]["backbone"]): row["mean"]
        for row in dice
        if row["group"] == gains[0]["group"]
    }
    assert gains[0]["mean"] == pytest.approx(
        found["mean", "federated"] - found["mean", "without federation"], abs=1e-5
    )
    # No head is in what a federation exchanged, and a run has never seen the task that it leaves out.
    for name in names:
        summary = json.loads((tmp_path / "runs" / f"without-{name}-3" / "summary.json").read_text())
        assert name not in summary["sites"]
        assert len(summary["sites"]) == len(names) - 1
    assert {path.name for path in tmp_path.iterdir()} >= {
        "table.md",
        "table.json",
        "README.md",
        "universal.png",
    }
    assert "does not hold" in (tmp_path / "README.md").read_text()
