"""Whole images through a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secfl.segmentation import inference
from secfl.segmentation.inference import predict, probabilities
from secfl.segmentation.models import ModelSpec, build_model


class Threshold(nn.Module):
    """Foreground where the image is positive; refuses sides that are no multiple of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))
        self.batches: list[torch.Size] = []

    def forward(self, image):
        assert all(side % 4 == 0 for side in image.shape[2:])
        self.batches.append(image.shape)
        return torch.cat([-image[:, :1], image[:, :1]], dim=1) * self.gain


def images(*shapes):
    draw = np.random.default_rng(0)
    return [draw.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("augmentation", ["none", "flips"])
def test_any_size_and_order(augmentation):
    given = images((16, 16), (13, 18), (16, 16), (5, 3), (16, 16))
    found = predict(Threshold(), given, multiple=4, augmentation=augmentation)
    for image, labels in zip(given, found, strict=True):
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, image[0] > 0)


def test_images_of_one_shape_share_a_batch_up_to_a_limit():
    model = Threshold()
    predict(model, images(*[(128, 128)] * 6, (8, 8), (300, 300)), multiple=4)
    assert [shape[0] for shape in model.batches] == [4, 2, 1, 1]


def test_flips_make_the_prediction_follow_the_mirrored_image():
    spec = ModelSpec(family="unet", in_channels=2, classes=2, channels=(4, 4, 4), normalization="instance")
    model = build_model(spec, seed=0)
    batch = torch.from_numpy(np.stack(images((16, 16))))
    kwargs = {"multiple": 4, "augmentation": "flips"}
    straight, mirrored = (probabilities(model, part, **kwargs) for part in (batch, batch.flip(-1)))
    torch.testing.assert_close(straight, mirrored.flip(-1))
    plain, mirrored = (probabilities(model, part, multiple=4) for part in (batch, batch.flip(-1)))
    assert (plain - mirrored.flip(-1)).abs().max() > 1e-4


def test_large_images_go_through_a_sliding_window(monkeypatch):
    monkeypatch.setattr(inference, "_WHOLE_IMAGE_SIDE", 32)
    model = Threshold()
    given = images((50, 33))
    np.testing.assert_array_equal(predict(model, given, multiple=4)[0], given[0][0] > 0)
    assert max(max(shape[2:]) for shape in model.batches) <= 32


def test_the_mode_of_the_model_is_put_back():
    model = Threshold().train()
    predict(model, images((8, 8)), multiple=4)
    assert model.training
