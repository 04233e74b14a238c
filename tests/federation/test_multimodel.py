"""Unlike models in one federation: what is opened, what is refused, and that schemes and interruptions agree."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from secfl.cli.main import main
from secfl.config import load_config
from secfl.errors import ConfigError, DataError, RoundAborted
from secfl.federation import family_sums, multimodel, simulation
from secfl.federation.checkpoint import load
from secfl.federation.contributors import require_contributors, require_survivors
from secfl.federation.family_sums import averaged_families
from secfl.federation.observer import SilentObserver
from secfl.federation.prediction import predictor_of_run
from secfl.segmentation.family_task import build_family_tasks
from secfl.segmentation.models.state import state_of

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
        tasks[family].maps(held[site], site=site)
        for site, family in zip(held, config.multi_model.families, strict=True)
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


class TestWeights:
    """Maps that count by how typical an image is of a client's own."""

    def test_the_consensus_is_the_weighted_mean_of_the_maps(self, monkeypatch, tmp_path):
        opened = []
        original = multimodel._FamilyRun._distill

        def listen(self, consensus, index):
            opened.append((dict(consensus), dict(self.models)))
            original(self, consensus, index)

        monkeypatch.setattr(multimodel._FamilyRun, "_distill", listen)
        config = settings(rounds=1, multi={"weights": "typical"})
        simulate(tmp_path / "run", config)
        (consensus, held), tasks = opened[0], build_family_tasks(config)
        unweighted = build_family_tasks(settings())
        families = dict(zip(held, config.multi_model.families, strict=True))
        maps = {site: unweighted[families[site]].maps(held[site], site=site) for site in held}
        weights = {site: tasks[families[site]].weights(site, held[site]) for site in held}
        assert len({round(float(weight), 3) for one in weights.values() for weight in one}) > 3
        for number, (name, tensor) in enumerate(consensus.items()):
            total = sum(float(weights[site][number]) for site in held)
            exact = (
                sum(float(weights[site][number]) * maps[site][name].astype(float) for site in held) / total
            )
            # Rounding of three clients' values and weights, each by half a step of 1/128, over the total weight.
            np.testing.assert_allclose(tensor, exact, atol=2 * 3 * 0.5 / 2**7 / total)

    def test_schemes_agree_and_the_ledger_declares_the_weights(self, tmp_path):
        digests = set()
        for scheme in ("plain", "masking", "ckks"):
            config = settings(scheme, rounds=1, multi={"weights": "typical", "sharpen": 2.0})
            digests.add(simulate(tmp_path / scheme, config)["final_model_sha256"])
            header = (tmp_path / scheme / "ledger.jsonl").read_text().splitlines()[0]
            assert "how typical each proxy image is" in header
            assert "at most 0.67 with 3 clients" in header
            assert "survivors differ by one client tell the weights of that client" in header
        assert len(digests) == 1

    def test_no_client_counts_more_than_the_declared_share(self):
        """It plays three clients of which one alone knows the images."""
        config = settings(multi={"weights": "typical", "weight_ratio": 4.0})
        tasks = build_family_tasks(config)
        task = tasks["cnn"]
        found = np.stack([task.weights(site, task.task.initial_state()) for site in task.task.sites])
        assert found.min() >= 1 / 4
        assert found.max() <= 1
        share = found / found.sum(axis=0)
        assert share.max() <= 4 / (4 + 2) + 1e-6

    def test_skill_is_what_the_model_shows_on_the_clients_own_training_images(self, monkeypatch):
        """A model that has learnt nothing counts the least that is allowed; all images count alike."""
        training = {"rounds": 1, "local_epochs": 30, "learning_rate": 1e-2}
        config = settings(multi={"weights": "skill", "weight_ratio": 8.0}, training=training)
        task = build_family_tasks(config)["cnn"]
        site = task.task.sites[0]
        untrained = task.task.initial_state()
        trained = task.task.train_reference([site], rounds=1)
        assert set(task.weights(site, untrained).tolist()) == {1 / 8}
        assert task.task.training_dice(site, trained) > task.task.training_dice(site, untrained)
        monkeypatch.setattr(task.task, "training_dice", lambda *_: 0.97)
        np.testing.assert_allclose(task.weights(site, trained), 0.97**8, rtol=1e-6)

    def test_a_client_that_has_nothing_to_find_shows_no_skill(self, monkeypatch):
        """Nothing found where nothing is would be a Dice of 1."""
        task = build_family_tasks(settings(multi={"weights": "skill"}))["cnn"].task
        site = task.sites[0]
        empty = [replace(case, labels=np.zeros_like(case.labels)) for case in task._dataset.sites[site].train]
        data = replace(task._dataset.sites[site], train=tuple(empty))
        monkeypatch.setattr(task, "_dataset", replace(task._dataset, sites={site: data}))
        monkeypatch.setattr(
            task, "_predict", lambda cases, *_: [np.zeros_like(case.labels) for case in cases]
        )
        assert task.training_dice(site, task.initial_state()) == 0

    def test_the_ledger_declares_that_skill_is_opened(self, tmp_path):
        digests = set()
        for scheme in ("plain", "masking"):
            config = settings(scheme, rounds=1, multi={"weights": "skill"})
            digests.add(simulate(tmp_path / scheme, config)["final_model_sha256"])
            header = (tmp_path / scheme / "ledger.jsonl").read_text().splitlines()[0]
            assert "how well their models segment their own training images" in header
            assert "at most 0.67 with 3 clients" in header
        assert len(digests) == 1

    def test_a_sharper_consensus_keeps_the_most_probable_class(self):
        task = build_family_tasks(settings(multi={"sharpen": 3.0}))["cnn"]
        maps = {
            name: np.random.default_rng(0).random(tensor.shape, np.float32)
            for name, tensor in task.undecided().items()
        }
        for name, sharper in task.consensus(maps).items():
            assert ((sharper > 0.5) == (maps[name] > 0.5)).all()
            assert (np.abs(sharper - 0.5) >= np.abs(maps[name] - 0.5) - 1e-6).all()
            np.testing.assert_allclose(
                sharper, maps[name] ** 3 / (maps[name] ** 3 + (1 - maps[name]) ** 3), rtol=1e-4
            )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    run = tmp_path_factory.mktemp("mixed") / "run"
    families = ["cnn", "cnn", "semantic", "cnn", "sequential", "sequential"]
    simulate(run, settings("plain", families=families, rounds=1))
    return run


class TestPrediction:
    """Which of all models segments new images."""

    @pytest.mark.parametrize(
        ("keys", "owner"),
        [
            ({}, "student"),
            ({"family": "unet"}, "student"),
            ({"family": "cnn"}, "clinic-4"),
            ({"family": "semantic"}, "clinic-3"),
            ({"site": "clinic-5"}, "clinic-5"),
            ({"family": "sequential", "site": "clinic-6"}, "clinic-6"),
        ],
    )
    def test_the_student_or_the_model_of_a_family_or_client(self, mixed, keys, owner):
        found = state_of(predictor_of_run(mixed, **keys)._model)
        expected = models(mixed)["student" if owner == "student" else f"{owner}.safetensors"]
        assert identical({"a": found}, {"a": expected})

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"family": "vgg19"}, "no model of it; expected one of cnn, semantic, sequential, unet"),
            ({"family": "sequential"}, "differ; expected --site with one of clinic-5, clinic-6"),
            ({"family": "cnn", "site": "clinic-3"}, "clinic-3 has semantic"),
            ({"site": "clinic-9"}, "no such client"),
        ],
    )
    def test_a_choice_that_names_no_one_model_is_refused(self, mixed, keys, message):
        with pytest.raises(ConfigError, match=message):
            predictor_of_run(mixed, **keys)

    def test_a_run_of_one_family_has_no_other(self, tmp_path):
        config = settings("plain", multi={"families": []}, clients=3, rounds=1)
        simulate(tmp_path / "run", config)
        with pytest.raises(ConfigError, match="the run has one family, unet"):
            predictor_of_run(tmp_path / "run", family="cnn")

    def test_by_the_command_line(self, mixed, tmp_path):
        from PIL import Image

        image = tmp_path / "leg.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8)).save(image)
        for number, flags in enumerate([[], ["--family", "semantic"], ["--family", "cnn"]]):
            out = tmp_path / str(number)
            assert main(["predict", str(mixed), str(image), "--out", str(out), *flags]) == 0
            assert Image.open(out / "masks/leg.png").size == (48, 40)


def test_the_proxy_images_need_no_masks(tmp_path):
    """Neither are any there, nor does it matter what lies in their place."""
    from PIL import Image

    rng = np.random.default_rng(1)
    for site in ("a", "b", "c", "proxy"):
        for number in range(4):
            for kind in ("images", "masks"):
                place = tmp_path / "data" / site / kind / f"{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 200, (32, 32)).astype(np.uint8)
                pixels[8:20, 8:20] = 255
                Image.fromarray(pixels if kind == "images" else (pixels == 255).astype(np.uint8) * 255).save(
                    place
                )
    data = {"source": str(tmp_path / "data"), "public": ["proxy"]}
    digests = []
    for name in ("with", "without"):
        if name == "without":
            shutil.rmtree(tmp_path / "data/proxy/masks")
        config = settings("plain", rounds=1, data=data)
        digests.append(simulate(tmp_path / name, config)["final_model_sha256"])
    assert digests[0] == digests[1]
    shutil.rmtree(tmp_path / "data/a/masks")
    with pytest.raises(DataError, match="a/masks"):
        simulate(tmp_path / "third", config)


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
        monkeypatch.setattr(family_sums, "require_contributors", lambda *_, **__: None)
        monkeypatch.setattr(multimodel, "require_survivors", lambda *_, **__: None)
        monkeypatch.setattr(family_sums, "_threshold", lambda *_, **__: 1)
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
