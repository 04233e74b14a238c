"""Eight phantom tasks: deterministic, unlike between sites, and the same from files."""

from __future__ import annotations

import typing

import numpy as np
import pytest

from secfl.config import load_config
from secfl.config.data import PhantomTaskName
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.folder import Reading, read_folder
from secfl.segmentation.data.phantom_files import write_phantom
from secfl.segmentation.data.phantom_tasks import TASKS, draw_image, make_task_dataset, phantom_task
from secfl.segmentation.segmentation_task import load_dataset, reading_of

SEED = ExperimentSeed(5)


def test_the_configuration_knows_the_same_tasks():
    assert typing.get_args(PhantomTaskName) == tuple(TASKS)
    assert len(TASKS) >= 8


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_the_same_seed_gives_the_same_image(self, name):
        task = TASKS[name]
        first, again = (draw_image(task, site=1, number=3, size=64, seed=SEED) for _ in range(2))
        np.testing.assert_array_equal(first.values, again.values)
        np.testing.assert_array_equal(first.labels, again.labels)
        other = draw_image(task, site=1, number=3, size=64, seed=ExperimentSeed(6))
        assert (other.values != first.values).mean() > 0.2
        assert (draw_image(task, site=1, number=4, size=64, seed=SEED).values != first.values).mean() > 0.1

    def test_shapes_and_classes(self, name):
        task = TASKS[name]
        found = np.zeros(len(task.class_names) + 1)
        for number in range(16):
            drawing = draw_image(task, site=number % 4, number=number, size=64, seed=SEED)
            assert drawing.values.dtype == np.float32
            assert drawing.values.shape == (task.channels, *drawing.labels.shape)
            assert drawing.labels.ndim == task.spatial_dims == len(drawing.spacing)
            assert np.isfinite(drawing.values).all()
            found += np.bincount(drawing.labels.ravel(), minlength=len(found)) > 0
            share = (drawing.labels > 0).mean()
            assert share < 0.7
            if task.file == "png":
                assert set(np.unique(drawing.values)) <= set(range(256))
        assert found.min() >= 3

    def test_the_foreground_can_be_seen(self, name):
        """Inside and outside of the rarest class differ by more than half a deviation in some channel."""
        task = TASKS[name]
        label = len(task.class_names)
        gaps = []
        for number in range(12):
            drawing = draw_image(task, site=number % 3, number=number, size=96, seed=SEED)
            inside = drawing.labels == label
            around = drawing.labels == (label - 1 if label > 1 else 0)
            if inside.sum() > 10 and around.any():
                for_each = [
                    abs(np.median(plane[inside]) - np.median(plane[around])) / (plane[inside].std() + 1e-6)
                    for plane in drawing.values
                ]
                gaps.append(max(for_each))
        assert len(gaps) >= 3
        assert np.median(gaps) > 0.5

    def test_a_probe_tells_the_sites_apart_and_not_patients_of_one_site(self, name):
        """The nearest site in eight simple statistics is the right one more often than chance allows.

        Chance is 1/4; of 32 images 18 or more are right with probability below 1e-4. Where the labels of one
        site's own images are dealt at random, the same probe finds no more than chance.
        """
        task = TASKS[name]
        size = 96 if task.spatial_dims == 2 else 64

        def probe(site, number):
            values = draw_image(task, site=site, number=number, size=size, seed=SEED).values
            if values.ndim == 4:
                values = values[..., values.shape[3] // 2]
            inside = values[:, 8:-8, 8:-8]
            detail = np.abs(np.diff(inside, axis=-1))
            further = np.abs(inside[..., 3:] - inside[..., :-3])
            rows = [inside.mean(axis=(1, 2)), inside.std(axis=(1, 2)), np.median(detail, axis=(1, 2))]
            rows += [detail.mean(axis=(1, 2)), np.median(further, axis=(1, 2))]
            rows += [np.percentile(inside, share, axis=(1, 2)) for share in (5, 60, 99)]
            return np.concatenate(rows)

        step = task.images_per_patient
        table = np.array([[probe(site, step * number) for number in range(16)] for site in range(4)])
        scale = table[:, :8].std(axis=1).mean(axis=0) + 1e-6

        def right(known, unknown):
            centres = known.mean(axis=1) / scale
            found = [
                np.argmin(np.linalg.norm(centres - one / scale, axis=1)) == site
                for site, rows in enumerate(unknown)
                for one in rows
            ]
            return sum(found), len(found)

        hits, count = right(table[:, :8], table[:, 8:])
        assert count == 32
        assert hits >= 18
        one_site = table[0].reshape(4, 4, -1)
        hits, count = right(one_site[:, :2], one_site[:, 2:])
        # 8 images, chance 1/4: 7 or more by chance with probability below 4e-4.
        assert hits < 7

    def test_files_give_the_same_cases(self, name, tmp_path):
        task = TASKS[name]
        size = 48 if task.spatial_dims == 2 else 32
        write_phantom(task, tmp_path / "data", sites=2, images_per_site=4, size=size, seed=SEED)
        config = load_config(tmp_path / "data" / "config.toml", {})
        data = load_dataset(config)
        drawn = make_task_dataset(task, sites=2, images_per_site=4, size=size, test_fraction=0.25, seed=SEED)
        assert (data.spatial_dims, data.channels) == (task.spatial_dims, task.channels)
        assert data.class_names == drawn.class_names == ("background", *task.class_names)
        for site_name, site in data.sites.items():
            made = {
                f"{site_name}-{case.name}": case
                for case in (*drawn.sites[site_name].train, *drawn.sites[site_name].test)
            }
            for case in (*site.train, *site.test):
                np.testing.assert_array_equal(case.labels, made[case.name].labels)
                np.testing.assert_allclose(case.image, made[case.name].image, atol=0.01)
                if task.file == "nifti":
                    assert case.spacing == pytest.approx(made[case.name].spacing, rel=1e-5)

    def test_a_model_trained_on_it_reads_its_files(self, name, tmp_path):
        config = load_config(None, {"data": {"phantom_task": name}})
        reading = reading_of(config.data)
        task = TASKS[name]
        size = 48 if task.spatial_dims == 2 else 32
        write_phantom(task, tmp_path / "data", sites=1, images_per_site=4, size=size, seed=SEED)
        data = read_folder(tmp_path / "data", test_fraction=0.25, seed=SEED, reading=reading)
        assert data.class_names == ("background", *task.class_names)


def test_the_default_phantom_is_as_before():
    """The leg in the dataset of old: a figure that was measured with it stays comparable."""
    config = load_config(None, {"data": {"phantom_images": 8, "image_size": 32}})
    data = load_dataset(config)
    assert data.sites["clinic-1"].train[0].image.shape == (1, 32, 32)
    assert data.class_names == ("background", "vein")
    assert Reading() == Reading()


class TestRefusals:
    def test_an_unknown_task(self):
        with pytest.raises(ConfigError, match=r"phantom_task.*kidney-ct"):
            load_config(None, {"data": {"phantom_task": "knee"}})
        with pytest.raises(ConfigError, match="'knee' is unknown; expected one of leg-ct"):
            phantom_task("knee")

    def test_a_target_of_another_task(self):
        with pytest.raises(ConfigError, match="tissues belongs to leg-ct"):
            load_config(None, {"data": {"phantom_task": "fundus", "phantom_target": "tissues"}})

    def test_a_folder_that_is_there(self, tmp_path):
        with pytest.raises(ConfigError, match="exists already"):
            write_phantom(TASKS["fundus"], tmp_path, sites=1, images_per_site=4, size=32, seed=SEED)
