"""Per-patient gradients: both ways agree, patients stay apart, memory stays bounded."""

import numpy as np
import pytest
import torch
from torch import nn

from secfl.errors import ConfigError
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.models.registry import ModelSpec, build_model
from secfl.segmentation.patient_gradients import Method, PatientGradients, refuse_mixing_layers


def unet(spatial_dims=2, normalization="instance"):
    spec = ModelSpec(
        family="unet",
        in_channels=1,
        classes=2,
        channels=(4, 8, 8),
        normalization=normalization,
        spatial_dims=spatial_dims,
    )
    return build_model(spec, seed=0).double()


def sample(seed, shape=(16, 16)):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    labels = (image[0] > 0.5).long()
    return Sample(image, labels, torch.ones(shape, dtype=torch.float64))


def rows(model, patients, *, method=Method.VMAP, physical_batch=3):
    gradients = PatientGradients(model, multiple=4, physical_batch=physical_batch, method=method)
    return np.concatenate(list(gradients.rows(patients)))


PATIENTS = [[sample(1)], [sample(2), sample(3)], [sample(4)], [sample(5), sample(6), sample(7)], [sample(8)]]


@pytest.mark.parametrize("normalization", ["instance", "group"])
def test_transforms_equal_exact_micro_batching(normalization):
    model = unet(normalization=normalization)
    fast = rows(model, PATIENTS)
    exact = rows(model, PATIENTS, method=Method.MICRO_BATCH)
    assert fast.shape == (5, sum(p.numel() for p in model.parameters()))
    np.testing.assert_allclose(fast, exact, atol=1e-5, rtol=0)
    assert np.abs(exact).max() > 1e-2


def test_three_dimensions_too():
    model = unet(spatial_dims=3)
    volumes = [[sample(seed, shape=(8, 8, 8))] for seed in range(3)]
    fast = rows(model, volumes)
    np.testing.assert_allclose(fast, rows(model, volumes, method=Method.MICRO_BATCH), atol=1e-5, rtol=0)


def test_a_row_is_the_mean_over_the_patients_images_by_plain_autograd():
    model = unet()
    losses = [
        dice_and_cross_entropy(model(s.image[None]), s.labels[None], s.valid[None]) for s in PATIENTS[3]
    ]
    (sum(losses) / 3).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
    np.testing.assert_allclose(rows(model, PATIENTS)[3], expected, atol=1e-6)


@pytest.mark.parametrize("physical_batch", [1, 2, 3, 8])
def test_the_physical_batch_does_not_matter(physical_batch):
    model = unet()
    np.testing.assert_allclose(
        rows(model, PATIENTS, physical_batch=physical_batch), rows(model, PATIENTS), atol=1e-6
    )


def test_a_row_depends_on_its_patient_alone():
    model = unet()
    everybody = rows(model, PATIENTS)
    without = rows(model, PATIENTS[:2] + PATIENTS[3:])
    np.testing.assert_allclose(np.delete(everybody, 2, axis=0), without, atol=1e-6)


def test_images_of_unlike_sizes_are_padded_and_padding_does_not_count():
    model = unet()
    mixed = [[sample(1), sample(2, shape=(14, 10))], [sample(3)]]
    fast = rows(model, mixed)
    np.testing.assert_allclose(fast, rows(model, mixed, method=Method.MICRO_BATCH), atol=1e-5)
    assert np.isfinite(fast).all()


def test_no_patient_gives_no_row():
    assert list(PatientGradients(unet(), multiple=4, physical_batch=2).rows([])) == []


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def test_batch_normalisation_is_refused_by_name_and_for_good_reason(monkeypatch):
    with pytest.raises(ConfigError, match=r"layer norm \(BatchNorm2d\).*group or instance"):
        PatientGradients(Mixing(), multiple=1, physical_batch=4)
    # Without the guard one patient's data reaches another's gradient: plain autograd over a batch shows it.
    model = Mixing().double()
    batch = [sample(1), sample(2)]

    def gradient_of_first(second):
        model.zero_grad()
        logits = model(torch.stack([batch[0].image, second.image]))
        dice_and_cross_entropy(logits[:1], batch[0].labels[None], batch[0].valid[None]).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert (gradient_of_first(batch[1]) - gradient_of_first(sample(9))).abs().max() > 1e-3
    refuse_mixing_layers(unet())
