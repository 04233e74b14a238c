"""A private step against a plain step of the same U-Net at equal batch, and against Opacus alone.

Run: ``pytest benchmarks/test_private_step.py --benchmark-only``. ``extra_info`` holds milliseconds per image, in
processor time, which other processes disturb less than the clock. A private step is everything that a client does
between the batch and the integers for the secure sum: per-patient gradients, clipping to the grid, noise.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.noise import NoiseFamily, NoiseShare, privatize
from secfl.randomness import SystemRng
from secfl.segmentation.augmentation import Sample
from secfl.segmentation.losses import dice_and_cross_entropy
from secfl.segmentation.models.registry import ModelSpec, build_model
from secfl.segmentation.patient_gradients import Method, PatientGradients

BATCH = 16
CLASSES = 6
SIZES = {2: (48, 48), 3: (16, 16, 16)}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unet(dims):
    return build_model(
        ModelSpec(
            family="unet",
            in_channels=1,
            classes=CLASSES,
            channels=(8, 16, 32),
            normalization="instance",
            spatial_dims=dims,
        ),
        seed=0,
    )


def images(dims):
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, *SIZES[dims])
    image = torch.randn(BATCH, 1, *SIZES[dims], generator=generator)
    return image, torch.randint(0, CLASSES, shape, generator=generator), torch.ones(shape)


def measure(benchmark, step):
    """Processor time, and milliseconds per image."""
    timer = benchmark._timer
    step()
    benchmark._timer = time.process_time
    benchmark.pedantic(step, rounds=15, iterations=1)
    benchmark._timer = timer
    if benchmark.stats is not None:
        benchmark.extra_info["ms_per_image"] = round(benchmark.stats.stats.min / BATCH * 1e3, 3)


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("dims", [2, 3])
def test_plain_step(benchmark, dims):
    model, (image, labels, valid) = unet(dims), images(dims)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        optimizer.zero_grad()
        dice_and_cross_entropy(model(image), labels, valid).backward()
        optimizer.step()

    measure(benchmark, step)


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", list(Method))
def test_private_step(benchmark, dims, method):
    model = unet(dims)
    patients = [[Sample(*parts)] for parts in zip(*images(dims), strict=True)]
    size = sum(parameter.numel() for parameter in model.parameters())
    grid = GridClip.single(dimension=size, clip_norm=1.0, grid_norm=2**16)
    gradients = PatientGradients(model, multiple=4, physical_batch=BATCH, method=method)
    share = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=2.0**16)

    def step():
        total = PatientAccumulator(grid)
        for rows in gradients.rows(patients):
            total.add_all(rows)
        privatize(total.total(), noise=share, bits=32, rng=SystemRng())

    measure(benchmark, step)


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("force_functorch", [False, True], ids=["hooks", "functorch"])
def test_peer_opacus_gradients(benchmark, dims, force_functorch):
    """Per-sample gradients alone, no clipping: Opacus needs activations that do not work in place."""
    opacus = pytest.importorskip("opacus.grad_sample")
    model = unet(dims)
    for module in model.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = False
    image, labels, valid = images(dims)
    wrapped = opacus.GradSampleModule(model, force_functorch=force_functorch, loss_reduction="sum")
    loss = torch.func.vmap(
        lambda logits, truth, inside: dice_and_cross_entropy(logits[None], truth[None], inside[None])
    )

    def step():
        wrapped.zero_grad()
        for parameter in wrapped.parameters():
            parameter.grad_sample = None
        loss(wrapped(image), labels, valid).sum().backward()

    try:
        step()
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        pytest.skip(f"Opacus {type(error).__name__}: {str(error).splitlines()[0][:100]}")
    rows = [parameter.grad_sample for parameter in wrapped.parameters()]
    exact = PatientGradients(unet(dims), multiple=4, physical_batch=BATCH, method=Method.MICRO_BATCH)
    expected = np.concatenate(
        list(exact.rows([[Sample(*one)] for one in zip(image, labels, valid, strict=True)]))
    )
    np.testing.assert_allclose(torch.cat([row.flatten(1) for row in rows], 1).numpy(), expected, atol=1e-4)
    measure(benchmark, step)
