"""Per-patient gradients: both ways agree, patients stay apart, memory stays bounded."""

import numpy as np
import pytest
import torch
from torch import nn

from secfl.errors import ConfigError
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.models.registry import ModelSpec, build_model
from secfl.segmentation.patient_gradients import (
    Method,
    PatientGradients,
    fastest_method,
    refuse_mixing_layers,
)


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


FAST = [Method.LAYERS, Method.VMAP]


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("normalization", ["instance", "group"])
def test_every_way_equals_exact_micro_batching(normalization, method):
    model = unet(normalization=normalization)
    fast = rows(model, PATIENTS, method=method)
    exact = rows(model, PATIENTS, method=Method.MICRO_BATCH)
    assert fast.shape == (5, sum(p.numel() for p in model.parameters()))
    np.testing.assert_allclose(fast, exact, atol=1e-5, rtol=0)
    assert np.abs(exact).max() > 1e-2


@pytest.mark.parametrize("method", FAST)
def test_three_dimensions_too(method):
    model = unet(spatial_dims=3)
    volumes = [[sample(seed, shape=(8, 8, 8))] for seed in range(3)]
    fast = rows(model, volumes, method=method)
    np.testing.assert_allclose(fast, rows(model, volumes, method=Method.MICRO_BATCH), atol=1e-5, rtol=0)


class Odd(nn.Module):
    """Every kind of convolution that the layers' way knows: strides, gaps, paddings, biases, no padding."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, (3, 5), padding=(1, 2), stride=(2, 1)),
            nn.GroupNorm(2, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False),
            nn.InstanceNorm2d(6, affine=True),
            nn.LeakyReLU(inplace=True),
            nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(4, 4, (1, 3), stride=(1, 2), padding=(0, 1)),
            nn.InstanceNorm2d(4),
            nn.Conv2d(4, 2, 1, stride=(2, 2)),
        )

    def forward(self, x):
        return nn.functional.interpolate(self.layers(x), x.shape[2:])


def test_the_layers_way_knows_every_convolution_that_it_takes():
    torch.manual_seed(0)
    model = Odd().double()
    exact = rows(model, PATIENTS, method=Method.MICRO_BATCH)
    np.testing.assert_allclose(rows(model, PATIENTS, method=Method.LAYERS), exact, atol=1e-6)
    assert fastest_method(model, image=(1, 16, 16), classes=2) is Method.LAYERS
    assert [module.inplace for module in model.modules() if hasattr(module, "inplace")] == [True, True]
    assert all(parameter.requires_grad for parameter in model.parameters())


class Changed(nn.Module):
    """Convolutions with something that the layers' way does not see."""

    def __init__(self, what):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)
        self.what = what

    def forward(self, x):
        hidden = torch.sin(self.first(x))
        if self.what == "mixes images":
            hidden = hidden - hidden.mean(0, keepdim=True)
        if self.what == "uses weights elsewhere":
            hidden = hidden * self.first.weight.sum()
        logits = self.last(hidden)
        if self.what == "changes an input in place":
            hidden.detach().mul_(2)
        return logits


@pytest.mark.parametrize("what", ["mixes images", "uses weights elsewhere"])
def test_a_model_that_the_layers_way_would_get_wrong_is_found_out_by_asking_it(what):
    torch.manual_seed(0)
    assert fastest_method(Changed("nothing"), image=(1, 8, 8), classes=2) is Method.LAYERS
    assert fastest_method(Changed(what), image=(1, 8, 8), classes=2) is Method.VMAP


def test_an_input_that_was_changed_after_its_layer_is_refused():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rows(Changed("changes an input in place").double(), PATIENTS, method=Method.LAYERS)


class Folded(nn.Module):
    """Cuts every image into quarters, which become images of their own inside."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        count, _, height, width = x.shape
        quarters = x.reshape(count * 4, 1, height // 2, width // 2)
        return self.layer(quarters).reshape(count, 2, height, width)


def test_a_layer_that_sees_another_number_of_images_is_refused():
    with pytest.raises(RuntimeError, match="Conv2d: 12 inputs for 3 images"):
        rows(Folded().double(), PATIENTS, method=Method.LAYERS)
    assert fastest_method(Folded(), image=(1, 8, 8), classes=2) is Method.VMAP


@pytest.mark.parametrize(
    "layer",
    [
        nn.PReLU(),
        nn.Conv2d(2, 2, 1, groups=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.LayerNorm(8),
    ],
)
def test_layers_that_it_does_not_know_go_another_way(layer):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), layer, nn.Conv2d(2, 2, 1))
    assert fastest_method(model, image=(1, 8, 8), classes=2) is Method.VMAP


def test_a_row_is_the_mean_over_the_patients_images_by_plain_autograd():
    model = unet()
    losses = [
        dice_and_cross_entropy(model(s.image[None]), s.labels[None], s.valid[None]) for s in PATIENTS[3]
    ]
    (sum(losses) / 3).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
    np.testing.assert_allclose(rows(model, PATIENTS)[3], expected, atol=1e-6)


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("physical_batch", [1, 2, 3, 8])
def test_the_physical_batch_does_not_matter(physical_batch, method):
    model = unet()
    np.testing.assert_allclose(
        rows(model, PATIENTS, physical_batch=physical_batch, method=method), rows(model, PATIENTS), atol=1e-6
    )


@pytest.mark.parametrize("method", FAST)
def test_a_row_depends_on_its_patient_alone(method):
    model = unet()
    everybody = rows(model, PATIENTS, method=method)
    without = rows(model, PATIENTS[:2] + PATIENTS[3:], method=method)
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
