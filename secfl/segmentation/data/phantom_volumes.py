"""Phantoms in scanners' units: four-channel MRI of the brain, and CT of the kidneys in three dimensions."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from secfl.segmentation.data.phantom_drawing import (
    Drawing,
    Field,
    blob,
    blurred,
    coordinates,
    grainy,
    smooth_field,
)

__all__ = ["brain_mri", "kidney_ct", "kidney_depth"]

Generator = np.random.Generator

_SIGNAL = {  # T1, T1 with contrast agent, T2, FLAIR
    "scalp": (620, 640, 300, 340),
    "grey": (480, 490, 560, 600),
    "white": (640, 650, 400, 470),
    "fluid": (180, 185, 980, 120),
    "edema": (430, 440, 760, 880),
    "enhancing": (470, 900, 640, 680),
    "core": (330, 345, 820, 560),
}


def brain_mri(site: Generator, patient: Generator, picture: Generator, size: int) -> Drawing:
    """An axial slice in T1, T1 with contrast agent, T2 and FLAIR: 1 edema, 2 enhancing tumour, 3 core.

    Sites: coil shading, noise, resolution, field of view, and each sequence's own scale and contrast.
    """
    shading, noise, blur = site.uniform(0.05, 0.45), site.uniform(8, 45), site.uniform(0.3, 1.0)
    zoom = site.uniform(0.9, 1.12)
    scale, power = site.uniform(0.5, 1.8, 4), site.uniform(0.8, 1.25, 4)
    x, y = coordinates(size)
    x, y = x / np.float32(zoom), y / np.float32(zoom)
    head = blob(
        patient,
        x,
        y,
        centre=(0, 0),
        axes=(0.88, 0.88 * patient.uniform(0.78, 0.86)),
        roughness=0.02,
        tilt=patient.normal(np.pi / 2, 0.06),
    )
    tissue = np.zeros((size, size), np.int8)
    names = list(_SIGNAL)
    folds = 0.08 * smooth_field(patient, size, 22) + 0.05 * smooth_field(patient, size, 40)
    tissue[head < 1] = 1
    tissue[head < 0.93] = 0
    tissue[head < 0.9] = 1 + names.index("fluid")
    tissue[head + folds < 0.87] = 1 + names.index("grey")
    tissue[head + 2.2 * folds < 0.74] = 1 + names.index("white")
    for sign in (-1, 1):
        horn = blob(
            patient,
            x * sign,
            y,
            centre=(0.09, -0.02),
            axes=(0.07, 0.24),
            roughness=0.15,
            tilt=patient.uniform(-0.3, 0.1),
        )
        tissue[(horn < 1) & (head < 0.7)] = 1 + names.index("fluid")
    angle, far = patient.uniform(0, 2 * np.pi), patient.uniform(0.25, 0.5)
    centre = float(far * np.cos(angle)), float(0.8 * far * np.sin(angle))
    labels = np.zeros((size, size), np.uint8)
    if patient.uniform() < 0.85:
        large = patient.uniform(0.13, 0.26)
        ball = blob(
            patient, x, y, centre=centre, axes=(large, large * patient.uniform(0.7, 1.0)), roughness=0.2
        )
        brain = head < 0.85
        rim = patient.uniform(0.6, 0.8)
        labels[(ball < 1.7 + 0.4 * smooth_field(patient, size, 10)) & brain] = 1
        labels[(ball < 1) & brain] = 2
        labels[(ball < rim) & brain] = 3
        for label, name in ((1, "edema"), (2, "enhancing"), (3, "core")):
            tissue[labels == label] = 1 + names.index(name)
    table = np.array([(15, 15, 15, 15), *_SIGNAL.values()], dtype=np.float32)
    image = np.moveaxis(table[tissue], -1, 0)
    image = np.stack(
        [700 * gain * (plane / 700) ** bend for plane, gain, bend in zip(image, scale, power, strict=True)]
    )
    bias = np.exp(shading * (smooth_field(patient, size, 3) + 0.6 * x))
    image = blurred((image * bias).astype(np.float32), blur * size / 128)
    for plane, gain in zip(image, scale, strict=True):
        sigma = np.float32(noise * gain)
        plane[:] = np.hypot(
            plane + sigma * grainy(picture, plane.shape, 0.0), sigma * grainy(picture, plane.shape, 0.0)
        )
    pixel = 230.0 / size * zoom
    return Drawing(values=np.rint(image).astype(np.float32), labels=labels, spacing=(pixel, pixel))


def kidney_depth(size: int) -> int:
    """Slices of a kidney volume with sides of ``size``."""
    return max(12, size // 4)


@lru_cache(maxsize=2)
def _box(size: int) -> tuple[Field, Field, Field]:
    depth = kidney_depth(size)
    across = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    along = (np.arange(depth, dtype=np.float32) + 0.5) * np.float32(2 / depth) - 1
    return across[:, None, None], across[None, :, None], along[None, None, :]


def kidney_ct(site: Generator, patient: Generator, picture: Generator, size: int) -> Drawing:
    """The kidneys in CT, axes x, y, z in RAS+, Hounsfield units: 1 kidney, 2 tumour.

    Sites: noise, its grain, slice thickness, contrast phase, field of view, habitus, share of tumours.
    """
    noise, grain, thickness = site.uniform(8, 26), site.uniform(0.5, 1.1), site.uniform(3.0, 6.0)
    cortex, fov, fat, share = (
        site.uniform(110, 210),
        site.uniform(340, 430),
        site.uniform(0.05, 0.16),
        site.uniform(0.4, 0.9),
    )
    x, y, z = _box(size)
    half = np.float32(fov / 2)
    x, y, z = x * half, y * half, z * np.float32(thickness * kidney_depth(size) / 2)
    wide, deep = patient.uniform(145, 165), patient.uniform(95, 115)
    body = np.hypot(x / np.float32(wide), y / np.float32(deep)) + 0 * z
    image = np.full(body.shape, -1000.0, np.float32)
    image[body < 1] = -95
    image[body < 1 - fat] = 50
    image[body < 0.8 - fat] = -85
    spine = np.hypot(x, y + np.float32(0.42 * deep)) + 0 * z
    image[spine < 26] = 220
    image[np.hypot(x - 5, y + np.float32(0.42 * deep - 36)) + 0 * z < 9] = cortex + 20
    labels = np.zeros(body.shape, np.uint8)
    ill = int(patient.integers(0, 2)) if patient.uniform() < share else -1
    for number, sign in enumerate((-1.0, 1.0)):
        centre = np.array(
            [sign * patient.uniform(58, 70), patient.uniform(-32, -18), patient.uniform(-10, 10)]
        )
        axes = np.array([patient.uniform(23, 28), patient.uniform(24, 29), patient.uniform(40, 50)])
        dx, dy, dz = (
            (place - np.float32(at)) / np.float32(axis)
            for place, at, axis in zip((x, y, z), centre, axes, strict=True)
        )
        kidney = np.sqrt(dx**2 + dy**2 + dz**2)
        hilum = np.sqrt((dx + sign * 0.75) ** 2 * 2 + dy**2 * 3 + dz**2 * 1.6)
        inside = (kidney < 1) & (hilum > 0.7)
        image[inside] = cortex
        image[inside & (kidney < 0.7)] = cortex * 0.75
        labels[inside] = 1
        if number == ill:
            radius = patient.uniform(11, 22)
            way = np.array(
                [sign * patient.uniform(0.2, 0.9), patient.uniform(-0.5, 0.9), patient.uniform(-0.7, 0.7)]
            )
            at = centre + axes * way / np.linalg.norm(way) * patient.uniform(0.7, 1.0)
            ball = np.sqrt(
                sum((place - np.float32(mid)) ** 2 for place, mid in zip((x, y, z), at, strict=True))
            )
            tumour = (ball < radius) & (body < 0.85)
            image[tumour] = cortex * 0.5 + 15
            labels[tumour] = 2
    pixel = fov / size
    image = gaussian_filter(image, (0.9 / pixel, 0.9 / pixel, 0.3), mode="nearest", truncate=2.0)
    hiss = picture.standard_normal(image.shape, dtype=np.float32)
    hiss = gaussian_filter(hiss, (grain, grain, 0), mode="wrap", truncate=2.0)
    image += hiss * np.float32(noise / float(hiss.std()))
    return Drawing(
        values=np.rint(image)[None].astype(np.float32),
        labels=labels,
        spacing=(pixel, pixel, float(thickness)),
    )
