"""Training steps and patients' gradients by model family, data loading, phantoms, prediction.

Run: ``pytest benchmarks/test_segmentation.py --benchmark-only --benchmark-json=segmentation.json``; then write the
tables with ``docs/draw_segmentation.py``. One thread, processor time; ``extra_info`` holds seconds per step, patient or
volume, images a second, the peak of a process that trains that family alone (10^6 bytes above what it needs without a
model), and ``references``: the same time in reference operations of the same run (a product of two 512x512 float32
matrices), by which machines can be compared.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from secfl.config import load_config
from secfl.config.data import PhantomTaskName
from secfl.randomness import ExperimentSeed
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.data.phantom_tasks import draw_image, phantom_task
from secfl.segmentation.inference import predict
from secfl.segmentation.models import ModelSpec, build_model, families
from secfl.segmentation.patient_gradients import Method, PatientGradients, fastest_method
from secfl.segmentation.segmentation_task import load_dataset
from secfl.segmentation.training import Span, deterministic, train_span

_SPEC = importlib.util.spec_from_file_location(
    "dicom_files_to_time", Path(__file__).parent.parent / "tests" / "segmentation" / "data" / "conftest.py"
)
dicom_files = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = dicom_files  # dataclasses look their module up
_SPEC.loader.exec_module(dicom_files)

CHANNELS = (16, 16, 32, 64, 128)
SIDE = 96
BATCH = 4
EVERY = (*families(), "monai:SegResNet")

processor_time = functools.partial(pytest.mark.benchmark, timer=time.process_time)
"""One thread's own time, so that other programs disturb it little."""

_PEAK = """
import json, sys
import torch
from secfl.config import TrainingConfig
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.models import ModelSpec, build_model
from secfl.segmentation.training import Span, deterministic, train_span

def peak():
    # Not ru_maxrss: across fork and exec it keeps the peak of the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

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


@pytest.fixture(scope="module")
def reference() -> float:
    """Seconds of one reference operation, the least of 20."""
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(512, 512, generator=draw) for _ in range(2))
    times = []
    with deterministic(1):
        for _ in range(20):
            began = time.process_time()
            one @ other
            times.append(time.process_time() - began)
    return min(times)


@pytest.fixture
def note(benchmark, reference):
    """Keeps figures that follow from the median, and the median in reference operations."""

    def keep(**facts):
        if benchmark.stats is not None:  # None under --benchmark-disable
            median = benchmark.stats.stats.median
            facts["references"] = lambda median: median / reference
            benchmark.extra_info.update({name: round(fact(median), 5) for name, fact in facts.items()})

    return keep


@processor_time(group="training step, 4 images of 96x96")
@pytest.mark.parametrize("family", EVERY)
def test_training_step(benchmark, note, family):
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
    note(seconds_per_step=lambda median: median)
    asked = json.dumps([family, SIDE, BATCH, CHANNELS])
    done = subprocess.run([sys.executable, "-c", _PEAK, asked], capture_output=True, text=True, check=True)
    benchmark.extra_info["peak_megabytes"] = round(int(done.stdout.split()[-1]) / 1e6, 1)


@processor_time(group="gradients of 8 patients, images of 48x48")
@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, None) for family in EVERY),
        *((family, method) for family in ("unet", "modified_net") for method in Method),
    ],
    ids=str,
)
def test_patient_gradients(benchmark, note, family, method):
    """By the way that a run would choose, and by every way for two families."""
    spec = specification(family)
    model = build_model(spec, seed=0)
    method = method or fastest_method(model, image=(1, 48, 48), classes=2)
    gradients = PatientGradients(model, multiple=spec.multiple, physical_batch=8, method=method)
    patients = [[sample] for sample in noise(8, 48, 48)]

    def rows():
        with deterministic(1):
            return sum(len(part) for part in gradients.rows(patients))

    assert benchmark.pedantic(rows, rounds=3, warmup_rounds=1) == len(patients)
    note(seconds_per_patient=lambda median: median / len(patients))
    benchmark.extra_info["method"] = method.value


@processor_time(group="phantom images of 128x128")
@pytest.mark.parametrize("name", PhantomTaskName.__args__)
def test_phantom(benchmark, note, name):
    """The target is at least 200 images of 128x128 a second; of a volume every slice counts."""
    task, seed, count = phantom_task(name), ExperimentSeed(0), 4 if name == "kidney-ct" else 40
    slices = 0

    def make():
        nonlocal slices
        made = [
            draw_image(task, site=number % 3, number=number, size=128, seed=seed) for number in range(count)
        ]
        slices = sum(one.labels.size // 128**2 for one in made)

    benchmark.pedantic(make, rounds=3, warmup_rounds=1)
    note(images_per_second=lambda median: slices / median)


def write_pictures(root: Path) -> int:
    """48 RGB pictures of 256x256 as PNG."""
    draw = np.random.default_rng(0)
    for number in range(48):
        smooth = np.kron(draw.integers(0, 255, (16, 16, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
        for kind, pixels in (("images", smooth), ("masks", (smooth[..., 0] > 128).astype(np.uint8) * 255)):
            path = root / f"site-{number % 2}" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return 48


def write_volumes(root: Path, *, as_dicom: bool) -> int:
    """8 CT volumes of 128x128x24 as compressed NIfTI or as DICOM series, masks as NIfTI; counted in slices."""
    draw = np.random.default_rng(0)
    for number in range(8):
        values = np.rint(draw.normal(40, 15, (24, 128, 128)))
        values[6:18, 30:80, 40:90] += 200
        series = dicom_files.Series(values)
        labels = (values > 140).astype(np.uint8).transpose(2, 1, 0)
        images, masks = (root / f"site-{number % 2}" / kind for kind in ("images", "masks"))
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        if as_dicom:
            series.write(images / str(number))
        else:
            stored = values.astype(np.int16).transpose(2, 1, 0)
            nibabel.save(nibabel.Nifti1Image(stored, series.affine()), images / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, series.affine()), masks / f"{number}.nii.gz")
    return 8 * 24


FORMATS = {
    "PNG": write_pictures,
    "NIfTI": lambda root: write_volumes(root, as_dicom=False),
    "DICOM": lambda root: write_volumes(root, as_dicom=True),
}


@processor_time(group="data loading")
@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("kind", FORMATS)
def test_loading(benchmark, note, tmp_path, kind, cached):
    """A folder from its files to what is trained on; cached, the prepared images are mapped."""
    count = FORMATS[kind](tmp_path / "data")
    data = {"source": str(tmp_path / "data"), "normalization": "zscore"} | (
        {"cache": str(tmp_path / "cache")} if cached else {}
    )
    config = load_config(None, {"data": data})

    def load():
        return [
            case.image.sum()
            for site in load_dataset(config).sites.values()
            for case in (*site.train, *site.test)
        ]

    assert len(benchmark.pedantic(load, rounds=3, warmup_rounds=1)) in (48, 8)
    note(images_per_second=lambda median: count / median)


@processor_time(group="data loading")
def test_loading_with_local_normalisation(benchmark, note, tmp_path):
    count = write_pictures(tmp_path)
    config = load_config(None, {"data": {"source": str(tmp_path), "normalization": "local"}})
    benchmark.pedantic(load_dataset, args=(config,), rounds=3)
    note(images_per_second=lambda median: count / median)


@processor_time(group="prediction")
@pytest.mark.parametrize("family", EVERY)
def test_picture(benchmark, note, family):
    spec = specification(family)
    model = build_model(spec, seed=0)
    images = [sample.image.numpy() for sample in noise(4, 256, 256)]

    def run():
        with deterministic(1):
            return predict(model, images, multiple=spec.multiple)

    assert len(benchmark.pedantic(run, rounds=3, warmup_rounds=1)) == len(images)
    note(images_per_second=lambda median: len(images) / median)


@processor_time(group="prediction")
@pytest.mark.parametrize("family", ["unet", "modified_unet"])
def test_volume(benchmark, note, family):
    """96x96x48 voxels by overlapping boxes of 64."""
    spec = specification(family, dims=3)
    model = build_model(spec, seed=0)
    volume = [noise(1, 48, 96, 96)[0].image.numpy()]

    def run():
        with deterministic(1):
            return predict(model, volume, multiple=spec.multiple, window=64)

    (found,) = benchmark.pedantic(run, rounds=1)
    assert found.shape == volume[0].shape[1:]
    note(seconds_per_volume=lambda median: median)
