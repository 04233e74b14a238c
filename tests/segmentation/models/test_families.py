"""Every family: trains, segments, is saved, is exported, stands before Opacus, and gives one gradient a patient."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from opacus.validators import ModuleValidator
from safetensors.numpy import load_file, save_file

from secfl.config import ModelConfig, TrainingConfig
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.data.phantom import make_phantom_dataset
from secfl.segmentation.inference import predict
from secfl.segmentation.models import ModelSpec, build_model, families, model_spec
from secfl.segmentation.models.checking import check_model
from secfl.segmentation.models.exporting import export_onnx
from secfl.segmentation.models.size import measure_size
from secfl.segmentation.models.state import load_state, state_of
from secfl.segmentation.patient_gradients import Method, PatientGradients
from secfl.segmentation.training import Span, deterministic, samples_of, train_span

MONAI = {"monai:SegResNet": {"init_filters": 8}, "monai:UNet": {"channels": [8, 16, 16], "strides": [2, 2]}}
OWN = "small_net:build"
EVERY = (*families(), *MONAI, OWN)


def spec(family, *, spatial_dims=2, normalization="instance", channels=(4, 8, 8)):
    return ModelSpec(
        family=family,
        in_channels=1,
        classes=2,
        channels=channels,
        normalization=normalization,
        spatial_dims=spatial_dims,
        arguments=MONAI.get(family, {}),
        stated_multiple=1 if family == OWN else 8 if family in MONAI else None,
    )


@pytest.fixture(autouse=True)
def own_model(project, monkeypatch):
    """The example's folder, from which `OWN` comes."""
    monkeypatch.syspath_prepend(str(project / "examples" / "own_model"))


@pytest.fixture(scope="module")
def samples():
    data = make_phantom_dataset(
        sites=1, images_per_site=8, size=32, test_fraction=0.3, seed=ExperimentSeed(0), target="tissues"
    )
    found = samples_of(data.sites["clinic-1"].train)
    return [Sample(one.image, (one.labels > 1).long(), one.valid) for one in found]


def test_the_seven_families_are_there():
    assert set(families()) == {
        "cnn",
        "sequential",
        "semantic",
        "unet",
        "vgg19",
        "modified_unet",
        "modified_net",
    }


@pytest.mark.parametrize("family", EVERY)
def test_it_trains_segments_and_survives_a_file(family, samples, tmp_path):
    """Muscle and bone fill half the picture: a random answer is right on half of the pixels."""
    one = spec(family)
    settings = TrainingConfig(batch_size=3, learning_rate=0.01, augmentation="none", schedule="constant")
    with deterministic(1):
        model = build_model(one, seed=0)

        def train(span):
            return train_span(
                model, samples, settings=settings, span=span, multiple=one.multiple, seed=span.first
            )

        first = train(Span(first=0, epochs=1, total=10))
        last = train(Span(first=1, epochs=8, total=10))
    assert last < 0.8 * first
    images = [sample.image.numpy() for sample in samples]
    found = predict(model, images, multiple=one.multiple)
    right = np.mean([np.mean(p == s.labels.numpy()) for p, s in zip(found, samples, strict=True)])
    assert right > 0.75
    save_file(dict(state_of(model)), tmp_path / "model.safetensors")
    again = build_model(one, seed=1)
    load_state(
        again, {name: load_file(tmp_path / "model.safetensors")[name] for name, _ in again.named_parameters()}
    )
    same = predict(again, images, multiple=one.multiple)
    assert all(np.array_equal(a, b) for a, b in zip(found, same, strict=True))


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("spatial_dims", [2, 3])
class TestEveryFamilyInTwoAndThreeDimensions:
    def test_onnx_gives_the_same_logits_for_other_sizes_and_batches(self, family, spatial_dims, tmp_path):
        one = spec(family, spatial_dims=spatial_dims)
        model = build_model(one, seed=0)
        export_onnx(model, one, tmp_path / "model.onnx")
        assert model.training
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        sides = (16, 24, 16)[:spatial_dims]
        image = torch.randn(3, 1, *sides, generator=torch.Generator().manual_seed(0))
        (found,) = session.run(None, {"image": image.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, model.eval()(image).numpy(), atol=1e-4)

    def test_opacus_accepts_it(self, family, spatial_dims):
        model = build_model(spec(family, spatial_dims=spatial_dims), seed=0).train()
        assert ModuleValidator.validate(model, strict=False) == []

    def test_a_patients_gradient_equals_exact_micro_batching(self, family, spatial_dims):
        one = spec(family, spatial_dims=spatial_dims, normalization="group")
        model = build_model(one, seed=0).double()
        draw = torch.Generator().manual_seed(1)
        sides = (16,) * spatial_dims
        patients = []
        for _ in range(3):
            image = torch.randn(1, *sides, generator=draw, dtype=torch.float64)
            patients.append([Sample(image, (image[0] > 0.5).long(), torch.ones_like(image[0]))])

        def rows(method):
            gradients = PatientGradients(model, multiple=one.multiple, physical_batch=2, method=method)
            return np.concatenate(list(gradients.rows(patients)))

        fast, exact = rows(Method.VMAP), rows(Method.MICRO_BATCH)
        np.testing.assert_allclose(fast, exact, atol=1e-5, rtol=0)
        assert np.abs(exact).max() > 1e-3
        assert fast.shape == (3, sum(value.numel() for value in model.parameters()))

    def test_its_size_is_what_it_has(self, family, spatial_dims):
        one = spec(family, spatial_dims=spatial_dims)
        model = build_model(one, seed=0)
        small, large = (measure_size(one, side=side) for side in (64, 128))
        assert small.parameters == sum(value.numel() for value in model.parameters())
        ratio = 2**spatial_dims
        assert large.gigaflops == pytest.approx(ratio * small.gigaflops, rel=0.05)
        assert large.activation_megabytes == pytest.approx(ratio * small.activation_megabytes, rel=0.2)


def test_the_work_of_one_convolution_by_hand(monkeypatch):
    """A 1x1 convolution from 2 to 3 channels without anything else: 2 * 2 * 3 operations a pixel."""
    monkeypatch.setattr(
        "secfl.segmentation.models.size.build_model", lambda *_, **__: torch.nn.Conv2d(2, 3, 1, bias=False)
    )
    one = ModelSpec(family="cnn", in_channels=2, classes=3, channels=(4, 4, 4), normalization="group")
    size = measure_size(one, side=100)
    assert size.gigaflops == pytest.approx(2 * 2 * 3 * 100 * 100 / 1e9)
    assert size.parameters == 6
    assert size.state_megabytes == pytest.approx(6 * 16 / 1e6, abs=1e-3)
    assert size.activation_megabytes == pytest.approx(2 * 100 * 100 * 4 / 1e6)


def test_the_published_widths_give_the_published_encoder():
    """VGG-19 has 20,018,880 weights and 5,504 biases in its convolutions; norms stand for the biases here."""
    model = build_model(spec("vgg19", channels=(64, 128, 256, 512, 512)), seed=0)
    weights = [
        value for name, value in model.named_parameters() if name.startswith("stages") and value.ndim == 4
    ]
    grey = (3 - 1) * 64 * 9  # colour images would have three input channels
    assert len(weights) == 16
    assert sum(value.numel() for value in weights) + grey == 20_018_880


@pytest.mark.parametrize(
    "family", ["vgg19", "modified_unet", "modified_net", "cnn", "semantic", "sequential"]
)
@pytest.mark.parametrize("channels", [(8, 8), (8, 0, 8), ()])
def test_impossible_widths_are_named(family, channels):
    with pytest.raises(ConfigError, match=r"model\.channels.*" + family):
        build_model(spec(family, channels=channels), seed=0)


class TestMonai:
    def test_arguments_come_from_the_configuration(self):
        model = ModelConfig(name="monai:SegResNet", arguments={"init_filters": 16}, multiple=8)
        wide = measure_size(model_spec(model, in_channels=1, classes=2), side=32)
        assert wide.multiple == 8
        assert wide.parameters > 2 * measure_size(spec("monai:SegResNet"), side=32).parameters

    @pytest.mark.parametrize(
        ("family", "arguments", "message"),
        [
            ("monai:Nothing", {}, "no such network"),
            ("monai:SegResNet", {"depth": 3}, r"model\.arguments: depth: not an argument"),
            ("monai:SegResNet", {"init_filters": -1}, r"model\.arguments: .*cannot be built"),
            ("monai:VNet", {}, "keeps running statistics"),
            ("monai:SegResNet", {"init_filters": 8, "out_channels": 5}, "returns .*expected logits of shape"),
        ],
    )
    def test_what_cannot_be_used_is_one_line(self, family, arguments, message):
        one = ModelSpec(
            family=family,
            in_channels=1,
            classes=2,
            channels=(4, 8, 8),
            normalization="instance",
            arguments=arguments,
        )
        with pytest.raises(ConfigError, match=message) as caught:
            check_model(build_model(one, seed=0), one)
        assert "\n" not in str(caught.value)

    def test_a_list_of_one_is_unpacked(self):
        one = ModelSpec(
            family="monai:BasicUNetPlusPlus",
            in_channels=1,
            classes=2,
            channels=(),
            normalization="group",
            arguments={"features": [8, 8, 8, 8, 8, 8]},
        )
        check_model(build_model(one, seed=0), one)


class Chance(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Dropout(0.5), torch.nn.Conv2d(8, 2, 1)
        )

    def forward(self, image):
        return self.body(image)


def test_dropout_repeats_with_the_seed_and_stays_out_of_patients_gradients(samples):
    def trained():
        torch.manual_seed(3)
        model = Chance()
        with deterministic(1):
            torch.manual_seed(int(torch.randint(1000, (1,))) + trained_before)
            train_span(
                model,
                samples[:2],
                settings=TrainingConfig(batch_size=2),
                span=Span(first=0, epochs=2, total=4),
                multiple=1,
                seed=7,
            )
        return state_of(model)

    trained_before = 0
    one = trained()
    trained_before = 50
    two = trained()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    model = Chance()
    gradients = PatientGradients(model, multiple=1, physical_batch=2)
    rows = [np.concatenate(list(gradients.rows([[samples[0]]]))) for _ in range(2)]
    assert np.array_equal(*rows)
