"""Training steps by model family, data loading, prediction.

Run: ``pytest benchmarks/test_segmentation.py --benchmark-only``. One thread; ``extra_info`` holds seconds per step and
image, the peak of a process that trains that family alone (10^6 bytes above what it needs without a model), and
images, or volumes, a second.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from secfl.config import load_config
from secfl.randomness import ExperimentSeed
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.data.phantom import make_phantom_dataset
from secfl.segmentation.inference import predict
from secfl.segmentation.models import ModelSpec, build_model, families
from secfl.segmentation.patient_gradients import Method, PatientGradients
from secfl.segmentation.segmentation_task import load_dataset
from secfl.segmentation.training import Span, deterministic, train_span

CHANNELS = (16, 16, 32, 64, 128)
SIDE = 96
BATCH = 4
EVERY = (*families(), "monai:SegResNet")

_PEAK = """
import json, resource, sys
import torch
from secfl.config import TrainingConfig
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.models import ModelSpec, build_model
from secfl.segmentation.training import Span, deterministic, train_span

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

family, side, batch, channels = json.loads(sys.argv[1])
spec = ModelSpec(family=family, in_channels=1, classes=2, channels=tuple(channels), normalization="instance")
model = build_model(spec, seed=0)
image = torch.randn(1, side, side)
samples = [Sample(image, (image[0] > 0).long(), torch.ones(side, side))] * batch
tiny = [Sample(torch.zeros(1, 32, 32), torch.zeros(32, 32).long(), torch.ones(32, 32))]
settings = TrainingConfig(batch_size=batch, augmentation="none")
with deterministic(1):
    train_span(model, tiny, settings=settings, span=Span(first=0, epochs=1, total=9), multiple=spec.multiple, seed=0)
    before = peak()
    train_span(model, samples, settings=settings, span=Span(first=0, epochs=2, total=9), multiple=spec.multiple, seed=0)
print(peak() - before)
"""


def specification(family: str, *, dims: int = 2) -> ModelSpec:
    return ModelSpec(
        family=family,
        in_channels=1,
        classes=2,
        channels=CHANNELS,
        normalization="instance",
        spatial_dims=dims,
    )


def noise(count: int, *sides: int) -> list[Sample]:
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(1, *sides, generator=draw) for _ in range(count)]
    return [Sample(image, (image[0] > 0.5).long(), torch.ones(sides)) for image in images]


def note(benchmark, **facts):
    if benchmark.stats is not None:  # None under --benchmark-disable
        median = benchmark.stats.stats.median
        benchmark.extra_info.update({name: round(fact(median), 5) for name, fact in facts.items()})


@pytest.mark.benchmark(group="training step, 4 images of 96x96")
@pytest.mark.parametrize("family", EVERY)
def test_training_step(benchmark, family):
    spec = specification(family)
    model = build_model(spec, seed=0)
    samples = noise(BATCH, SIDE, SIDE)
    settings = load_config(None, {"training": {"batch_size": BATCH}}).training

    def step():
        with deterministic(1):
            train_span(
                model,
                samples,
                settings=settings,
                span=Span(first=0, epochs=1, total=10),
                multiple=spec.multiple,
                seed=0,
            )

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    note(benchmark, seconds_per_step=lambda median: median)
    asked = json.dumps([family, SIDE, BATCH, CHANNELS])
    done = subprocess.run([sys.executable, "-c", _PEAK, asked], capture_output=True, text=True, check=True)
    benchmark.extra_info["peak_megabytes"] = round(int(done.stdout.split()[-1]) / 1e6, 1)


@pytest.mark.benchmark(group="gradients of 8 patients, images of 48x48")
@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("family", ["unet", "modified_net"])
def test_patient_gradients(benchmark, family, method):
    spec = specification(family)
    gradients = PatientGradients(
        build_model(spec, seed=0), multiple=spec.multiple, physical_batch=8, method=method
    )
    patients = [[sample] for sample in noise(8, 48, 48)]

    def rows():
        with deterministic(1):
            return sum(len(part) for part in gradients.rows(patients))

    assert benchmark.pedantic(rows, rounds=3, warmup_rounds=1) == len(patients)
    note(benchmark, seconds_per_patient=lambda median: median / len(patients))


@pytest.mark.benchmark(group="data")
def test_phantom(benchmark):
    """The target is at least 200 images of 128x128 a second."""
    count = 80

    def make():
        return make_phantom_dataset(
            sites=2, images_per_site=count // 2, size=128, test_fraction=0.25, seed=ExperimentSeed(0)
        )

    benchmark.pedantic(make, rounds=3)
    note(benchmark, images_per_second=lambda median: count / median)


@pytest.mark.benchmark(group="data")
@pytest.mark.parametrize("normalization", ["zscore", "local"])
def test_folder_of_png(benchmark, tmp_path, normalization):
    draw, count = np.random.default_rng(0), 48
    for number in range(count):
        for kind in ("images", "masks"):
            pixels = draw.integers(0, 2, (256, 256), np.uint8) * 255
            path = tmp_path / f"site-{number % 2}" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    config = load_config(None, {"data": {"source": str(tmp_path), "normalization": normalization}})
    benchmark.pedantic(load_dataset, args=(config,), rounds=3)
    note(benchmark, images_per_second=lambda median: count / median)


@pytest.mark.benchmark(group="prediction")
@pytest.mark.parametrize("family", EVERY)
def test_picture(benchmark, family):
    spec = specification(family)
    model = build_model(spec, seed=0)
    images = [sample.image.numpy() for sample in noise(4, 256, 256)]

    def run():
        with deterministic(1):
            return predict(model, images, multiple=spec.multiple)

    assert len(benchmark.pedantic(run, rounds=3, warmup_rounds=1)) == len(images)
    note(benchmark, images_per_second=lambda median: len(images) / median)


@pytest.mark.benchmark(group="prediction")
@pytest.mark.parametrize("family", ["unet", "modified_unet"])
def test_volume(benchmark, family):
    """96x96x48 voxels by overlapping boxes of 64."""
    spec = specification(family, dims=3)
    model = build_model(spec, seed=0)
    volume = [noise(1, 48, 96, 96)[0].image.numpy()]

    def run():
        with deterministic(1):
            return predict(model, volume, multiple=spec.multiple, window=64)

    (found,) = benchmark.pedantic(run, rounds=1)
    assert found.shape == volume[0].shape[1:]
    note(benchmark, seconds_per_volume=lambda median: median)
