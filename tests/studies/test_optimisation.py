"""The comparison of federated optimisers: its runs, its table, and what it refuses."""

from __future__ import annotations

import pytest

from secfl.errors import ConfigError
from secfl.federation.rundir import read_summary
from secfl.studies import optimisation
from secfl.studies.optimisation import ARMS, OptimisationStudy, markdown, run_study

SMALL = {
    "clients": 3,
    "data": {"phantom_images": 8, "image_size": 32},
    "model": {"channels": [4, 8, 8]},
    "training": {"local_epochs": 1},
}


class Quiet:
    def began(self, rounds, runs): ...
    def moved(self, rounds): ...
    def finished(self, job): ...


def in_this_process(jobs, *, processes, listener):
    for job in jobs:
        if not job.result.exists():
            job.work(*job.arguments)


def test_every_arm_is_a_run_and_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(optimisation, "run_jobs", in_this_process)
    study = OptimisationStudy(data="phantom", models=("unet",), seeds=2, rounds=1, more=SMALL)
    document = run_study(study, out=tmp_path, processes=1, listener=Quiet())
    rows = {row["arm"]: row for row in document["rows"]}
    assert set(rows) == {"each site alone, at home", "each site alone, at all sites", "pooled", *ARMS}
    assert rows["pooled"]["below_pooled"] == 0
    for arm in ARMS:
        means = [
            read_summary(tmp_path / "runs" / f"unet-{arm}-{seed}")["evaluation_only"]["dice"]["mean"]
            for seed in (0, 1)
        ]
        assert rows[arm]["mean"] == pytest.approx(sum(means) / 2, abs=1e-3)
        assert rows[arm]["claim"] is (rows["pooled"]["mean"] - rows[arm]["mean"] <= 0.02)
    table = markdown(document)
    assert table.count("\n") == 1 + len(rows)
    assert "FedBN-style" in table
    # Again: nothing is run, the table is the same; other settings in the same folder are refused.
    monkeypatch.setattr(optimisation.simulation, "simulate", lambda *_, **__: pytest.fail("ran again"))
    assert run_study(study, out=tmp_path, processes=1, listener=Quiet()) == document
    other = OptimisationStudy(data="phantom", models=("unet",), seeds=2, rounds=2, more=SMALL)
    with pytest.raises(ConfigError, match="another study"):
        run_study(other, out=tmp_path, processes=1, listener=Quiet())


def test_the_arms_differ_in_their_keys_alone():
    study = OptimisationStudy(data="phantom", more=SMALL)
    trees = {arm: study.settings("unet", arm, 0) for arm in ARMS}
    assert trees["FedProx"]["training"] == trees["FedAvg"]["training"] | ARMS["FedProx"]
    assert [tree["references"] for tree in trees.values()] == [True, False, False]
