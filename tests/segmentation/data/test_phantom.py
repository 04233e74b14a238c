"""The leg-CT phantom: deterministic, anatomically ordered, unlike between sites."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.phantom import Tissue, make_phantom, make_phantom_dataset, scanner_of_site

SEED = ExperimentSeed(11)


def dataset(**settings):
    return make_phantom_dataset(
        **{"sites": 3, "images_per_site": 12, "size": 64, "test_fraction": 0.25, "seed": SEED} | settings
    )


def slices(site, count, size=96):
    scanner = scanner_of_site(site, SEED)
    return [
        make_phantom(
            scanner,
            size=size,
            anatomy=SEED.generator(f"patient/{site}/{number}"),
            slice_position=0.3,
            noise=SEED.generator(f"slice/{site}/{number}"),
        )
        for number in range(count)
    ]


@cache
def fine_slices(site):
    return slices(site, 12, size=224)


class TestDataset:
    def test_the_same_seed_gives_the_same_pixels(self):
        first, second = dataset(), dataset()
        for one, other in zip(first.sites.values(), second.sites.values(), strict=True):
            for a, b in zip((*one.train, *one.test), (*other.train, *other.test), strict=True):
                assert (a.name, a.patient) == (b.name, b.patient)
                np.testing.assert_array_equal(a.image, b.image)
                np.testing.assert_array_equal(a.labels, b.labels)

    def test_another_seed_gives_others(self):
        one = dataset().sites["clinic-1"].train[0]
        other = dataset(seed=ExperimentSeed(12)).sites["clinic-1"].train[0]
        assert (one.image != other.image).mean() > 0.2

    def test_more_images_or_sites_leave_the_first_ones_as_they_are(self):
        few = dataset().sites["clinic-2"]
        many = dataset(images_per_site=20, sites=5).sites["clinic-2"]
        by_name = {case.name: case for case in (*many.train, *many.test)}
        for case in (*few.train, *few.test):
            np.testing.assert_array_equal(case.image, by_name[case.name].image)

    def test_sizes_and_ranges(self):
        data = dataset(sites=10)
        assert list(data.sites) == sorted(data.sites)
        assert next(iter(data.sites)) == "clinic-01"
        assert (data.channels, data.classes, data.is_phantom) == (1, 2, True)
        for site in data.sites.values():
            assert len(site.train) + len(site.test) == 12
            for case in (*site.train, *site.test):
                assert case.image.shape == (1, 64, 64)
                assert abs(case.image).max() <= 1
                assert 5 <= case.labels.sum() <= 0.04 * case.labels.size
                assert case.spacing is not None

    def test_no_patient_crosses(self):
        for site in dataset().sites.values():
            assert {case.patient for case in site.train}.isdisjoint(case.patient for case in site.test)
            counts = np.unique([case.patient for case in site.train], return_counts=True)[1]
            assert set(counts) == {2}


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "names"),
        [
            ("vein", ("background", "vein")),
            ("thrombus", ("background", "thrombus")),
            ("tissues", ("background", "skin and fat", "muscle", "bone", "artery", "vein")),
        ],
    )
    def test_classes_and_labels(self, target, names):
        data = dataset(target=target, images_per_site=20)
        assert data.class_names == names
        assert data.classes == len(names)
        found = {
            label for site in data.sites.values() for case in site.train for label in np.unique(case.labels)
        }
        assert found == set(range(len(names)))

    def test_they_are_parts_of_one_anatomy(self):
        vein, thrombus, tissues = (
            dataset(target=target).sites["clinic-3"].train for target in ("vein", "thrombus", "tissues")
        )
        for whole, part, all_labels in zip(vein, thrombus, tissues, strict=True):
            np.testing.assert_array_equal(whole.image, part.image)
            np.testing.assert_array_equal(all_labels.labels == 5, whole.labels == 1)
            assert (whole.labels >= part.labels).all()


class TestAnatomy:
    @pytest.fixture
    def drawn(self):
        return [one for site in range(6) for one in fine_slices(site)]

    def test_every_slice_has_every_tissue_but_the_thrombus(self, drawn):
        always = set(Tissue) - {Tissue.THROMBUS}
        assert all(always <= set(np.unique(one.labels)) for one in drawn)
        with_thrombus = np.mean([Tissue.THROMBUS in one.labels for one in drawn])
        assert 0.1 < with_thrombus < 0.8

    def test_a_thrombus_lies_in_the_vein(self, drawn):
        for one in drawn:
            thrombus = one.labels == Tissue.THROMBUS
            ring = binary_dilation(thrombus) & ~thrombus
            assert set(np.unique(one.labels[ring])) <= {Tissue.VEIN, Tissue.ARTERY, Tissue.FAT}

    def test_vessels_lie_in_the_leg_beside_the_bone(self, drawn):
        for one in drawn:
            vessels = one.labels >= Tissue.ARTERY
            ring = binary_dilation(vessels) & ~vessels
            assert set(np.unique(one.labels[ring])) <= {Tissue.MUSCLE, Tissue.FAT}
            artery, vein = (one.labels == Tissue.ARTERY).sum(), (one.labels >= Tissue.VEIN).sum()
            assert vein > artery

    def test_marrow_lies_in_bone_and_skin_outside(self, drawn):
        for one in drawn:
            marrow = one.labels == Tissue.MARROW
            ring = binary_dilation(marrow) & ~marrow
            assert set(np.unique(one.labels[ring])) == {Tissue.BONE}
            air = one.labels == Tissue.AIR
            assert set(np.unique(one.labels[binary_dilation(air) & ~air])) == {Tissue.SKIN}

    @pytest.mark.parametrize(
        ("tissue", "low", "high"),
        [(Tissue.FAT, -115, -75), (Tissue.MUSCLE, 45, 65), (Tissue.VEIN, 80, 215), (Tissue.ARTERY, 80, 245)],
    )
    def test_hounsfield_units(self, drawn, tissue, low, high):
        means = []
        for one in drawn:
            core = binary_erosion(one.labels == tissue, iterations=4)
            means += [one.hounsfield[core].mean()] if core.sum() > 10 else []
        assert len(means) >= 20
        assert low < np.median(means) < high


class TestShift:
    def test_a_probe_tells_the_sites_apart(self):
        """The nearest site in noise and vessel contrast is the right one far more often than chance (1/6)."""

        def probe(one):
            muscle = binary_erosion(one.labels == Tissue.MUSCLE, iterations=2)
            vessel = one.labels == Tissue.ARTERY
            return np.array(
                [one.hounsfield[muscle].std() / 5, one.hounsfield[vessel].mean() / 20, one.pixel * 20]
            )

        known = [np.mean([probe(one) for one in slices(site, 10)], axis=0) for site in range(6)]
        right = 0
        for site in range(6):
            for one in slices(site, 20)[10:]:
                right += int(np.argmin([np.linalg.norm(probe(one) - centre) for centre in known]) == site)
        # With 60 slices and chance 1/6, 30 or more right happen with probability below 1e-8.
        assert right >= 30
