"""Unlike models in one federation: what is opened, what is refused, and that schemes and interruptions agree."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest

from secfl.cli.main import main
from secfl.config import load_config
from secfl.errors import ConfigError, RoundAborted
from secfl.federation import multimodel, simulation
from secfl.federation.checkpoint import load
from secfl.federation.contributors import require_contributors, require_survivors
from secfl.federation.multimodel import averaged_families
from secfl.federation.observer import SilentObserver
from secfl.segmentation.family_task import build_family_tasks

THREE = ["cnn", "sequential", "semantic"]


def settings(scheme="masking", *, families=THREE, clients=None, rounds=2, multi=None, **more):
    return load_config(
        None,
        {
            "clients": clients or len(families),
            "threads": 1,
            "data": {"phantom_images": 8, "image_size": 32, "public": ["open"]},
            "model": {"channels": [4, 8, 8]},
            "training": {"rounds": rounds, "local_epochs": 1},
            "secure_agg": {"scheme": scheme},
            "multi_model": {
                "families": families,
                "student": "unet",
                "distill_epochs": 1,
                "student_epochs": 1,
            }
            | (multi or {}),
        }
        | more,
    )


def simulate(path, config, observer=None):
    return simulation.simulate(config, out=path, observer=observer or SilentObserver())


def models(run):
    found = {path.name: load(path).state for path in sorted((run / "sites").glob("*.safetensors"))}
    return found | {"student": load(run / "checkpoints/final.safetensors").state}


def identical(one, two):
    return all(
        np.array_equal(one[owner][name], two[owner][name]) for owner in one for name in one[owner]
    ) and list(one) == list(two)


class Interrupt(SilentObserver):
    def round_finished(self, report):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    return run, simulate(run, settings("plain", references=True))


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_every_scheme_ends_in_the_identical_models(tmp_path, plain, scheme):
    summary = simulate(tmp_path / "run", settings(scheme))
    assert summary["final_model_sha256"] == plain[1]["final_model_sha256"]
    assert identical(models(tmp_path / "run"), models(plain[0]))


def test_an_interruption_changes_nothing(tmp_path, plain):
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "run", settings("plain", references=True), Interrupt())
    summary = simulation.resume(tmp_path / "run", observer=SilentObserver())
    assert summary["final_model_sha256"] == plain[1]["final_model_sha256"]
    assert identical(models(tmp_path / "run"), models(plain[0]))


def test_the_summary_tells_student_clients_and_references_apart(plain):
    run, summary = plain
    assert summary["model"] == "unet"
    assert summary["families"] == dict(zip(["clinic-1", "clinic-2", "clinic-3"], THREE, strict=True))
    union = summary["evaluation_only"]["union"]
    assert set(union) == {"student", "clients", "local", "pooled"}
    assert set(union["local"]) == set(union["clients"]) == set(summary["sites"])
    assert not (run / "cohorts").exists()


def test_the_consensus_is_the_mean_of_the_maps(monkeypatch, tmp_path):
    """By hand: every client's maps after its local training, averaged; to the precision of the grid."""
    opened = []
    original = multimodel._FamilyRun._distill

    def listen(self, consensus, index):
        opened.append((dict(consensus), dict(self.models)))
        original(self, consensus, index)

    monkeypatch.setattr(multimodel._FamilyRun, "_distill", listen)
    config = settings(rounds=1)
    simulate(tmp_path / "run", config)
    (consensus, held), tasks = opened[0], build_family_tasks(config)
    maps = [
        tasks[family].maps(held[site]) for site, family in zip(held, config.multi_model.families, strict=True)
    ]
    for name, tensor in consensus.items():
        exact = sum(one[name].astype(float) for one in maps) / 3
        np.testing.assert_allclose(tensor, exact, atol=0.5 / 2**7)
    assert max(np.ptp(tensor) for tensor in consensus.values()) > 0.05


def test_labels_of_the_proxy_images_are_never_looked_at(monkeypatch, tmp_path, plain):
    """With every label of the public site destroyed, the models come out the same."""
    from dataclasses import replace

    from secfl.segmentation import family_task

    original = family_task.split_public

    def without_labels(dataset, names):
        left, public = original(dataset, names)
        return left, tuple(replace(case, labels=np.zeros_like(case.labels)) for case in public)

    monkeypatch.setattr(family_task, "split_public", without_labels)
    summary = simulate(tmp_path / "run", settings("plain"))
    assert summary["final_model_sha256"] == plain[1]["final_model_sha256"]


def test_nothing_that_is_opened_comes_from_fewer_than_three(tmp_path, capsys):
    """Four clients of one family average; the fifth, alone in its family, never shows a weight."""
    config = settings(families=["cnn", "cnn", "semantic", "cnn", "cnn"], rounds=1, record=True)
    simulate(tmp_path / "run", config)
    cohort = tmp_path / "run/cohorts/cnn"
    for place, members in ((tmp_path / "run", 5), (cohort, 4)):
        entries = [json.loads(line) for line in (place / "ledger.jsonl").read_text().splitlines()]
        header = entries[0]["body"]
        assert len(header["cohort"]) == members
        assert header["threshold"] >= 3
        commits = [entry["body"] for entry in entries if entry["type"] == "commit"]
        assert commits
        assert all(len(commit["survivors"]) >= 3 for commit in commits)
        assert main(["ledger", "verify", str(place)]) == 0
    text = (tmp_path / "run/ledger.jsonl").read_text().splitlines()[0]
    assert "mean class probabilities of all models on the proxy images" in text
    held = models(tmp_path / "run")
    averaged = [held[f"clinic-{number}.safetensors"] for number in (1, 2, 4, 5)]
    assert all(identical({"a": averaged[0]}, {"a": other}) for other in averaged[1:])
    # What the lone client sent in the whole run is as long as its maps, and no byte longer than the others'.
    rows = [
        json.loads(line) for line in (tmp_path / "run/transcript/manifest.jsonl").read_text().splitlines()
    ]
    sent = defaultdict(int)
    for row in rows:
        sent[row["sender"]] += row["bytes"]
    assert sent["clinic-3"] < min(sent[f"clinic-{number}"] for number in (1, 2, 4, 5))


class TestGuard:
    """It plays the operator who would open one clinic's block."""

    def test_averaging_a_family_of_one_is_refused_by_the_tensor(self, tmp_path):
        config = settings(families=["cnn", "cnn", "cnn", "unet"], multi={"average": ["cnn", "unet"]})
        with pytest.raises(ConfigError, match=r"tensor unet/\S+ would be opened from 1 client \(clinic-4\)"):
            simulate(tmp_path / "run", config)
        assert not (tmp_path / "run").exists()

    def test_two_are_too_few_as_well(self, tmp_path):
        config = settings(families=["cnn", "cnn", "unet"], multi={"average": ["cnn"]})
        with pytest.raises(ConfigError, match=r"tensor cnn/\S+ would be opened from 2 clients"):
            simulate(tmp_path / "run", config)

    def test_the_maps_of_two_clients_are_refused(self, tmp_path):
        config = settings("plain", families=["cnn", "unet"])
        with pytest.raises(ConfigError, match=r"tensor consensus/maps\.00000 would be opened from 2"):
            simulate(tmp_path / "run", config)

    def test_a_threshold_below_it_is_refused(self, tmp_path):
        config = settings(
            "plain", multi={"min_contributors": 3}, secure_agg={"scheme": "plain", "threshold": 2}
        )
        with pytest.raises(ConfigError, match="at least min_contributors"):
            simulate(tmp_path / "run", config)

    def test_a_larger_wish_raises_the_threshold(self, tmp_path):
        config = settings("plain", families=["cnn"] * 5, multi={"min_contributors": 5}, rounds=1)
        simulate(tmp_path / "run", config)
        for ledger in (tmp_path / "run").rglob("ledger.jsonl"):
            assert json.loads(ledger.read_text().splitlines()[0])["body"]["threshold"] == 5

    def test_without_the_guard_the_sum_of_one_is_its_weights(self, tmp_path, monkeypatch):
        """Why it is there: under `plain` and with the guard off, the opened tensor is the client's own."""
        monkeypatch.setattr(multimodel, "require_contributors", lambda *_, **__: None)
        monkeypatch.setattr(multimodel, "require_survivors", lambda *_, **__: None)
        monkeypatch.setattr(multimodel, "_threshold", lambda *_, **__: 1)
        seen = {}
        original = multimodel.RepeatedSum.open

        def listen(self, state, *, round_index):
            outcome = original(self, state, round_index=round_index)
            seen[self.name] = outcome[0].state
            return outcome

        monkeypatch.setattr(multimodel.RepeatedSum, "open", listen)
        config = settings("plain", families=["cnn", "cnn", "unet"], multi={"average": ["unet"]}, rounds=1)
        simulate(tmp_path / "run", config)
        task = build_family_tasks(config)["unet"].task
        own = task.train("clinic-3", task.initial_state(), round_index=0).state
        assert all(np.allclose(seen["unet"][name], own[name], atol=1e-4) for name in own)

    def test_the_functions_themselves(self):
        require_contributors({"a": ["x", "y", "z"]}, least=3)
        with pytest.raises(ConfigError, match="tensor b would be opened from 0 clients"):
            require_contributors({"a": ["x", "y", "z"], "b": []}, least=3)
        with pytest.raises(RoundAborted, match="fewer than min_contributors 3"):
            require_survivors("cnn", ["x", "y"], least=3)

    def test_which_families_average_by_default(self):
        config = settings(families=["cnn", "unet", "cnn", "cnn", "unet"])
        family_of = dict(zip("abcde", config.multi_model.families, strict=True))
        assert averaged_families(config, family_of) == {"cnn": ("a", "c", "d")}


def test_drop_outs_leave_enough_contributors(tmp_path):
    config = settings("masking", families=["cnn"] * 5, dropout=0.15, rounds=3)
    summary = simulate(tmp_path / "run", config)
    assert summary["dropouts"]["total"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(len(row["survivors"]) >= 4 for row in rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": {"phantom_images": 8}}, "needs public images"),
        ({"privacy": {"mode": "client", "epsilon": 8}}, "needs --dp off"),
        ({"training": {"weighting": "size"}}, "equal weights"),
        ({"training": {"local_parameters": "head"}}, "local_parameters"),
        ({"engine": "multiprocess"}, "--engine inprocess"),
        ({"multi_model": {"families": ["cnn"] * 3, "average": ["unet"]}}, "unet: no client has"),
        ({"multi_model": {"families": ["cnn"] * 3, "min_contributors": 2}}, "min_contributors"),
    ],
)
def test_what_cannot_be_done_is_named(more, message):
    with pytest.raises(ConfigError, match=message):
        settings(**more)


def test_as_many_families_as_sites(tmp_path):
    config = settings(families=THREE, clients=4)
    with pytest.raises(ConfigError, match="3 families for 4 sites"):
        simulate(tmp_path / "run", config)
    with pytest.raises(ConfigError, match="'vnet' is unknown"):
        simulate(tmp_path / "run", settings(families=["cnn", "vnet", "cnn"]))


def test_by_the_command_line(tmp_path, capsys):
    config = tmp_path / "small.toml"
    config.write_text(
        'threads = 1\n[data]\nphantom_images = 8\nimage_size = 32\npublic = ["open"]\n'
        "[model]\nchannels = [4, 8, 8]\n[training]\nlocal_epochs = 1\n"
        "[multi_model]\ndistill_epochs = 1\nstudent_epochs = 1\n"
    )
    flags = ["--families", "cnn,semantic,unet", "--student", "sequential", "--rounds", "1"]
    assert main(["simulate", "--config", str(config), *flags, "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "student" in text
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["model"] == "sequential"
    assert main(["ledger", "verify", str(tmp_path / "run")]) == 0
