"""Crops and augmentation: image, labels and field of view move together."""

from __future__ import annotations

import pytest
import torch

from secfl.segmentation.augmentation import Batch, Sample, augment, crop_batch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(height=24, width=30):
    """An image whose first channel is its labels."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[6:15, 4:20] = 1
    labels[10:12] = 2
    valid = torch.ones(height, width)
    valid[:, :3] = 0
    image = torch.stack([labels.float(), torch.linspace(-1, 1, height * width).reshape(height, width)])
    return Sample(image, labels, valid)


class TestCrops:
    @pytest.mark.parametrize("side", [8, 16, 24])
    def test_all_parts_are_cut_alike(self, side):
        batch = crop_batch([sample() for _ in range(16)], shape=(side, side), generator=generator())
        assert batch.image.shape == (16, 2, side, side)
        assert torch.equal(batch.image[:, 0].long(), batch.labels)
        assert len({tuple(image[1].flatten().tolist()) for image in batch.image}) > 1

    def test_every_position_occurs(self):
        batch = crop_batch([sample(8, 8)] * 400, shape=(6, 6), generator=generator())
        corners = {round(float(value), 6) for value in batch.image[:, 1, 0, 0]}
        assert len(corners) == 9

    def test_what_is_padded_does_not_count(self):
        batch = crop_batch([sample(10, 30)], shape=(16, 16), generator=generator())
        assert batch.valid[0, 10:].sum() == 0
        assert batch.valid[0, :10].sum() > 0
        assert not batch.labels[0, 10:].any()


@pytest.fixture
def batch():
    return crop_batch([sample() for _ in range(24)], shape=(24, 24), generator=generator(4))


class TestAugment:
    def test_none_changes_nothing(self, batch):
        assert augment(batch, strength="none", generator=generator()) is batch

    def test_standard_only_moves_labels(self, batch):
        moved = augment(batch, strength="standard", generator=generator())
        for before, after in zip(batch.labels, moved.labels, strict=True):
            assert torch.equal(torch.bincount(before.flatten()), torch.bincount(after.flatten()))
        assert not torch.equal(batch.labels, moved.labels)

    @pytest.mark.parametrize("strength", ["standard", "strong"])
    def test_image_and_labels_move_together(self, batch, strength):
        """The first channel is the labels: after any intensity change it still ranks the pixels like them."""
        moved = augment(batch, strength=strength, generator=generator(1))
        for image, labels in zip(moved.image[:, 0], moved.labels, strict=True):
            pair = torch.stack([image.flatten(), labels.flatten().float()])
            assert torch.corrcoef(pair)[0, 1] > 0.8

    @pytest.mark.parametrize("strength", ["standard", "strong"])
    def test_labels_and_field_of_view_stay_what_they_are(self, batch, strength):
        moved = augment(batch, strength=strength, generator=generator(2))
        assert moved.labels.dtype == torch.int64
        assert set(moved.labels.unique().tolist()) <= {0, 1, 2}
        assert set(moved.valid.unique().tolist()) <= {0.0, 1.0}
        assert torch.isfinite(moved.image).all()

    @pytest.mark.parametrize("strength", ["standard", "strong"])
    def test_the_generator_decides(self, batch, strength):
        one, same, other = (
            augment(batch, strength=strength, generator=generator(seed)).image for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_all_eight_symmetries_occur(self):
        image = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(200, 1, 1, 1)
        flat = Batch(image, image[:, 0].long(), torch.ones(200, 4, 4))
        moved = augment(flat, strength="standard", generator=generator())
        assert len({tuple(labels.flatten().tolist()) for labels in moved.labels}) == 8

    def test_oblong_images_keep_their_shape(self):
        image = torch.rand(20, 1, 4, 6)
        oblong = Batch(image, torch.zeros(20, 4, 6, dtype=torch.int64), torch.ones(20, 4, 6))
        assert augment(oblong, strength="standard", generator=generator()).image.shape == (20, 1, 4, 6)
