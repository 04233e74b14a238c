"""The comparison of federated optimisers: its runs, its table, and what it refuses."""

from __future__ import annotations

import pytest

from secfl.config import load_config
from secfl.errors import ConfigError
from secfl.federation.rundir import read_summary
from secfl.studies import optimisation
from secfl.studies.optimisation import ARMS, OptimisationStudy, markdown, run_study
from tests.studies.drawn import drawn_folder

SMALL = {
    "clients": 3,
    "data": {"phantom_images": 8, "image_size": 32},
    "model": {"channels": [4, 8, 8]},
    "training": {"local_epochs": 1},
}


FOLDER = {"model": {"channels": [4, 8, 8]}, "training": {"local_epochs": 1, "crop": 0, "batch_size": 4}}


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
    assert table.count("\n") == 3 + len(rows)
    assert table.endswith("- FedProx of unet: μ = 0.01")
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


def test_of_several_strengths_the_best_on_held_out_training_images_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(optimisation, "run_jobs", in_this_process)
    data = drawn_folder(tmp_path / "data")
    study = OptimisationStudy(
        data=str(data), models=("unet",), seeds=1, rounds=1, proximal=(1000.0, 0.001), more=FOLDER
    )
    out = tmp_path / "out"
    document = run_study(study, out=out, processes=1, listener=Quiet())
    tried = document["held_out_dice"]["unet"]
    for name, dice in tried.items():
        run = read_summary(out / "runs" / f"held-out-unet-{name}")
        assert dice == pytest.approx(run["evaluation_only"]["dice"]["mean"], abs=1e-3)
    best = max(tried, key=tried.__getitem__)
    assert document["proximal"] == {"unet": float(best)}
    reported = load_config(out / "runs" / "unet-FedProx-0" / "config.toml", {})
    assert (reported.training.proximal, reported.seed) == (float(best), 0)
    assert load_config(out / "runs" / f"held-out-unet-{best}" / "config.toml", {}).seed == 1
    assert f"μ = {best}; Dice on training images held out: " in markdown(document)


def test_several_strengths_need_images_that_train_in_every_run(tmp_path):
    with pytest.raises(ConfigError, match="several candidates need a data folder"):
        run_study(
            OptimisationStudy(data="phantom", proximal=(0.1, 0.2), more=SMALL),
            out=tmp_path,
            processes=1,
            listener=Quiet(),
        )


@pytest.mark.parametrize("proximal", [(), (0.1, 0.1)])
def test_candidates_are_there_and_differ(proximal):
    with pytest.raises(ConfigError, match="proximal"):
        OptimisationStudy(data="phantom", proximal=proximal)
