"""Sites with tasks and classes of their own in one federation: a shared backbone, a head at every site."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from secfl.cli.summary import print_summary
from secfl.config import load_config
from secfl.errors import ConfigError, DataError
from secfl.federation import simulation
from secfl.federation.checkpoint import load
from secfl.federation.observer import SilentObserver
from secfl.federation.prediction import predictor_of_run
from secfl.segmentation.segmentation_task import build_task, load_dataset

LEG = {"phantom_task": "leg-ct", "phantom_target": "tissues"}
EYE = {"phantom_task": "fundus"}
BREAST = {"phantom_task": "ultrasound", "phantom_images": 10}


def tree(sites=None, *, training=None, **data):
    return {
        "threads": 1,
        "data": {
            "phantom_images": 8,
            "image_size": 32,
            "channels": 3,
            "sites": sites or {"leg": LEG, "eye": EYE, "breast": BREAST},
            **data,
        },
        "model": {"channels": [4, 8, 8]},
        "training": {"rounds": 2, "local_epochs": 1, "local_parameters": "head", **(training or {})},
    }


def settings(*given, **keys):
    return load_config(None, tree(*given, **keys))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "run"
    config = load_config(None, {**tree(), "references": True})
    return root, simulation.simulate(config, out=root, observer=SilentObserver())


class TestData:
    def test_every_site_has_its_own_task_classes_and_size(self):
        data = load_dataset(settings())
        assert list(data.sites) == ["breast", "eye", "leg"]
        assert [len(data.names_at(site)) for site in data.sites] == [2, 3, 6]
        assert [len(site.train) + len(site.test) for site in data.sites.values()] == [10, 8, 8]
        assert {case.image.shape for site in data.sites.values() for case in site.train} == {(3, 32, 32)}
        assert data.is_phantom
        assert not data.classes_are_common

    def test_a_site_does_not_depend_on_the_others(self):
        both, alone = load_dataset(settings()), load_dataset(settings({"eye": EYE}))
        assert np.array_equal(both.sites["eye"].train[0].image, alone.sites["eye"].train[0].image)
        twins = load_dataset(settings({"eye": EYE, "eye-2": EYE}))
        one, other = (site.train[0].image for site in twins.sites.values())
        assert not np.array_equal(one, other)

    def test_grey_images_are_repeated_and_colours_averaged(self):
        grey = load_dataset(settings({"leg": LEG})).sites["leg"].train[0].image
        assert np.array_equal(grey[0], grey[1])
        colours = load_dataset(settings({"eye": EYE})).sites["eye"].train[0].image
        one = load_dataset(settings({"eye": EYE}, channels=1)).sites["eye"].train[0].image
        assert np.allclose(one[0], colours.mean(axis=0))
        four = load_dataset(settings({"eye": EYE}, channels=4)).sites["eye"].train[0].image
        assert np.array_equal(four[3], four[0])

    def test_volumes_become_slices_of_the_same_patient(self):
        whole = load_dataset(settings({"kidney": {"phantom_task": "kidney-ct"}}, channels=None))
        data = load_dataset(settings({"kidney": {"phantom_task": "kidney-ct"}}, slices=3))
        volume = whole.sites["kidney"].train[0]
        slices = [case for case in data.sites["kidney"].train if case.patient == volume.patient]
        assert data.spatial_dims == 2
        assert len(slices) == 3
        middle = round((volume.image.shape[-1] - 1) / 2)
        assert np.array_equal(slices[1].image[0], volume.image[0, :, :, middle].T)
        assert np.array_equal(slices[1].labels, volume.labels[:, :, middle].T)
        assert slices[1].spacing == volume.spacing[1::-1]

    @pytest.mark.parametrize(
        ("sites", "keys", "message"),
        [
            ({"leg": LEG, "eye": EYE}, {"channels": None}, "data.channels makes them equal"),
            ({"leg": LEG, "k": {"phantom_task": "kidney-ct"}}, {}, "data.slices makes pictures"),
            ({"mri": {"phantom_task": "brain-mri"}}, {}, "expected at most 3, or 1"),
            ({"leg": {"source": "nowhere/at-all"}}, {}, "nowhere/at-all/images: no such folder"),
        ],
    )
    def test_images_that_one_model_cannot_take_are_refused(self, sites, keys, message):
        with pytest.raises(DataError, match=message):
            load_dataset(settings(sites, **keys))

    def test_a_site_has_its_own_folder_labels_and_split(self, tmp_path):
        for number in range(4):
            for part, value in (("images", 40 * number), ("masks", 0)):
                place = tmp_path / "north" / part / f"{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((32, 32), value, dtype=np.uint8)
                pixels[8:16, 8:16] = 7
                Image.fromarray(pixels).save(place)
        lists = {"north": {"train": ["0", "2"], "test": ["3"]}}
        (tmp_path / "splits.json").write_text(json.dumps(lists), encoding="utf-8")
        own = {"source": str(tmp_path / "north"), "labels": {"spot": 7}}
        config = settings({"skin": own, "leg": LEG})
        data = load_dataset(config)
        assert data.names_at("skin") == ("background", "spot")
        assert [case.name for case in data.sites["skin"].train] == ["0", "2"]
        assert data.sites["skin"].name == "skin"
        assert not config.data.is_phantom
        assert not build_task(config).is_phantom


class TestConfiguration:
    @pytest.mark.parametrize(
        ("sites", "message"),
        [
            ({"a/b": LEG}, "client name 'a/b'"),
            ({"leg": {"phantom_images": 1}}, "sites.leg.phantom_images: .*greater than or equal to 8"),
            ({"leg": {"nonsense": 1}}, "data.sites.leg.nonsense: unknown key; allowed here: .*phantom_task"),
            ({"eye": {"phantom_task": "fundus", "phantom_target": "tissues"}}, "sites.eye: phantom_target"),
        ],
    )
    def test_impossible_sites_are_refused_by_name(self, sites, message):
        with pytest.raises(ConfigError, match=message):
            settings(sites)

    def test_classes_may_only_differ_with_local_heads(self):
        with pytest.raises(ConfigError, match="classes differ"):
            build_task(settings(training={"local_parameters": "none"}))
        common = {"left": BREAST, "right": {"phantom_task": "dermoscopy"}}
        assert build_task(settings(common, training={"local_parameters": "none"})).classes_are_common

    def test_a_configuration_reads_back_and_where_a_folder_lies_is_not_in_the_digest(self, tmp_path):
        config = settings()
        (tmp_path / "run.toml").write_text(config.to_toml(), encoding="utf-8")
        assert load_config(tmp_path / "run.toml", {}) == config
        other = settings({"leg": LEG, "eye": EYE, "breast": {**BREAST, "phantom_images": 11}})
        assert build_task(config).digest() != build_task(other).digest()

    def test_the_number_of_clients_must_fit(self):
        with pytest.raises(ConfigError, match=r"--clients 4: data.sites has 3 sites"):
            load_dataset(load_config(None, {**tree(), "clients": 4}))

    def test_a_pooled_model_of_unlike_classes_is_refused(self):
        task = build_task(settings())
        with pytest.raises(ConfigError, match="classes of several sites"):
            task.train_reference(task.sites, rounds=1)


class TestRun:
    def test_only_the_backbone_is_summed(self, finished):
        root, summary = finished
        opened = load(root / "checkpoints/final.safetensors").state
        task = build_task(settings())
        assert set(opened) == set(task.initial_state())
        heads = {site: load(root / f"sites/{site}-round-00002.safetensors").state for site in task.sites}
        assert not any(set(head) & set(opened) for head in heads.values())
        assert [max(tensor.shape[0] for tensor in heads[site].values()) for site in task.sites] == [2, 3, 6]
        assert summary["parameters"] == sum(tensor.size for tensor in opened.values())

    def test_all_sites_start_from_the_same_backbone(self):
        task = build_task(settings(training={"learning_rate": 1e-12, "weight_decay": 0.0}))
        shared = task.initial_state()
        for site in task.sites:
            nearly_untrained = task.train_reference([site], rounds=1)
            assert all(np.allclose(nearly_untrained[name], shared[name], atol=1e-6) for name in shared)

    def test_local_references_are_measured_at_their_own_site(self, finished, capsys):
        root, summary = finished
        references = summary["evaluation_only"]["references"]
        assert {site: list(row["per_site"]) for site, row in references["local"].items()} == {
            site: [site] for site in ("breast", "eye", "leg")
        }
        assert "pooled" not in references
        print_summary(summary, root)
        assert "leg alone" in capsys.readouterr().out

    def test_a_cut_run_goes_on_with_every_head(self, finished, tmp_path):
        class Interrupt(SilentObserver):
            def round_finished(self, report):
                if report.round_index == 0:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            simulation.simulate(settings(), out=tmp_path / "cut", observer=Interrupt())
        resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver())
        assert resumed["final_model_sha256"] == finished[1]["final_model_sha256"]
        assert resumed["evaluation_only"]["dice"] == finished[1]["evaluation_only"]["dice"]

    def test_predictions_have_the_classes_of_the_site(self, finished):
        assert predictor_of_run(finished[0], site="eye").class_names == ("background", "vessel", "optic disc")
        assert len(predictor_of_run(finished[0], site="leg").class_names) == 6

    def test_pretraining_needs_no_common_classes(self):
        config = settings(training={"objective": "masked-images", "local_parameters": "none"})
        task = build_task(config)
        assert set(task.train("eye", task.initial_state(), round_index=0).state) == set(task.initial_state())
