"""Phantoms of colour and grey pictures: fundus, dermoscopy, ultrasound, chest radiograph, retinal OCT.

Every function draws one picture of 8 bits from a site's generator (its device and clientele, in the same state for
every picture of the site), a patient's, and the picture's own.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from secfl.segmentation.data.phantom_drawing import (
    Drawing,
    Field,
    blob,
    blurred,
    coordinates,
    grainy,
    smooth_field,
    to_bytes,
)

__all__ = ["chest_xray", "dermoscopy", "fundus", "retina_oct", "ultrasound"]

Generator = np.random.Generator


def fundus(site: Generator, patient: Generator, picture: Generator, size: int) -> Drawing:
    """The back of the eye in colour: 1 vessels, 2 optic disc. Sites: pigment, light, contrast, blur, field."""
    pigment = np.array([site.uniform(150, 225), site.uniform(55, 120), site.uniform(15, 65)])
    falloff, contrast, blur = site.uniform(0.1, 0.55), site.uniform(0.28, 0.6), site.uniform(0.3, 1.1)
    radius, noise = site.uniform(0.84, 0.97), site.uniform(2, 8)
    x, y = coordinates(size)
    side = 1.0 if patient.uniform() < 0.5 else -1.0
    disc = (side * patient.uniform(0.32, 0.5), patient.uniform(-0.12, 0.12))
    tree = _vessels(patient, disc, side, size)
    inside = blob(patient, x, y, centre=disc, axes=(0.15, 0.17), roughness=0.05)
    labels = np.zeros((size, size), np.uint8)
    labels[inside < 1] = 2
    labels[tree > 0] = 1
    labels[np.hypot(x, y) > radius] = 0
    light = 1 - falloff * (x**2 + y**2) + 0.08 * smooth_field(picture, size, 5)
    light -= 0.2 * np.exp(-((x + side * 0.18) ** 2 + (y - disc[1]) ** 2) / 0.02)
    glow = np.clip(1.4 - inside, 0, 0.8)
    dark = 1 - contrast * (tree > 0)
    planes = []
    for channel, (base, bright) in enumerate(zip(pigment, (60, 105, 75), strict=True)):
        plane = (base * light + bright * glow) * (dark if channel else 1 - 0.4 * (1 - dark))
        planes.append(plane)
    image = blurred(np.stack(planes).astype(np.float32), blur * size / 128)
    image += noise * grainy(picture, image.shape, 0.0)
    image *= np.hypot(x, y) <= radius
    return Drawing(values=to_bytes(image), labels=labels, spacing=(18.0 / size, 18.0 / size))


def _vessels(patient: Generator, disc: tuple[float, float], side: float, size: int) -> Field:
    """Four arcades with branches, drawn as lines that taper."""
    picture = Image.new("L", (size, size))
    draw = ImageDraw.Draw(picture)

    def grow(x: float, y: float, angle: float, *, bend: float, width: float, depth: int) -> None:
        for _ in range(16 if depth == 0 else 8):
            step = 0.076
            to = x + step * np.cos(angle), y + step * np.sin(angle)
            ends = [((value + 1) / 2) * size for value in (x, y, *to)]
            draw.line(ends, fill=255, width=max(1, round(width * size / 128)))
            x, y = to
            angle += bend + patient.normal(0, 0.08)
            width *= 0.95
            if depth < 2 and patient.uniform() < (0.27 if depth == 0 else 0.16):
                turn = patient.choice([-1, 1]) * patient.uniform(0.4, 0.9)
                grow(x, y, angle + turn, bend=bend * -0.4, width=width * 0.65, depth=depth + 1)

    for start, bend in ((-1.9, -0.075), (1.9, 0.075), (-1.0, 0.05), (1.0, -0.05)):
        angle = start if side > 0 else np.pi - start
        first = angle + patient.normal(0, 0.1)
        grow(*disc, first, bend=bend * side, width=patient.uniform(2.2, 3.2), depth=0)
    return np.asarray(picture, dtype=np.float32)


def dermoscopy(site: Generator, patient: Generator, picture: Generator, size: int) -> Drawing:
    """A pigmented lesion of the skin in colour: 1 lesion. Sites: skin, camera's colour, vignette, zoom, hair."""
    skin = np.array([site.uniform(165, 235), site.uniform(120, 185), site.uniform(95, 165)])
    cast = np.array([site.uniform(0.9, 1.1) for _ in range(3)])
    vignette, zoom = site.uniform(0.0, 0.5), site.uniform(0.32, 0.55)
    hair, noise, blur = site.uniform(0, 9), site.uniform(1, 6), site.uniform(0.2, 0.9)
    x, y = coordinates(size)
    pigment = np.array([patient.uniform(70, 130), patient.uniform(45, 80), patient.uniform(30, 65)])
    axes = zoom * patient.uniform(0.75, 1.25), zoom * patient.uniform(0.6, 1.1)
    centre = patient.uniform(-0.2, 0.2), patient.uniform(-0.2, 0.2)
    depth = blob(patient, x, y, centre=centre, axes=axes, roughness=0.25)
    labels = (depth < 1).astype(np.uint8)
    amount = np.clip((1.12 - depth) / 0.24, 0, 1) * (0.75 + 0.25 * smooth_field(patient, size, 9))
    texture = 1 + 0.05 * smooth_field(picture, size, 24) + 0.06 * smooth_field(picture, size, 5)
    shade = texture * (1 - vignette * (x**2 + y**2) / 2)
    image = np.stack(
        [
            (tone * (1 - amount) + dark * amount) * shade * gain
            for tone, dark, gain in zip(skin, pigment, cast, strict=True)
        ]
    ).astype(np.float32)
    image = blurred(image, blur * size / 128) * _hairs(picture, size, picture.poisson(hair))
    image += noise * grainy(picture, image.shape, 0.0)
    return Drawing(values=to_bytes(image), labels=labels, spacing=(14.0 / size, 14.0 / size))


def _hairs(picture: Generator, size: int, count: int) -> Field:
    canvas = Image.new("L", (size, size), 255)
    draw = ImageDraw.Draw(canvas)
    for _ in range(count):
        start, angle = picture.uniform(0, size, 2), picture.uniform(0, 2 * np.pi)
        points = [
            (start[0] + t * np.cos(angle), start[1] + t * np.sin(angle) + t * t / (6 * size))
            for t in np.linspace(0, size * 0.8, 9)
        ]
        draw.line(points, fill=110, width=max(1, size // 128))
    return np.asarray(canvas, dtype=np.float32) / 255


def ultrasound(site: Generator, patient: Generator, picture: Generator, size: int) -> Drawing:
    """A lesion of the breast in B-mode: 1 lesion. Sites: speckle size, gain, compression, attenuation, depth."""
    speckle, gain = site.uniform(0.5, 1.4), site.uniform(85, 150)
    compression, attenuation, zoom = site.uniform(0.35, 0.6), site.uniform(0.1, 0.8), site.uniform(0.22, 0.38)
    x, y = coordinates(size)
    layers = 0.25 * np.sin(y * patient.uniform(9, 14) + smooth_field(patient, size, 4) * 2) * (y < 0.1)
    echo = 1 + layers + 0.35 * smooth_field(patient, size, 8)
    centre = patient.uniform(-0.35, 0.35), patient.uniform(-0.2, 0.3)
    axes = zoom * patient.uniform(0.8, 1.3), zoom * patient.uniform(0.55, 0.9)
    depth = blob(patient, x, y, centre=centre, axes=axes, roughness=0.16)
    inside = depth < 1
    level = patient.uniform(0.12, 0.4)
    echo = np.where(inside, level, echo)
    echo = np.where(np.abs(depth - 1.05) < 0.06, echo * 1.5, echo)
    below = (np.abs(x - centre[0]) < axes[0] * 0.8) & (y > centre[1] + axes[1])
    echo = echo * np.where(below, patient.uniform(0.45, 1.6), 1.0)
    echo = np.maximum(echo * np.exp(-attenuation * (y + 1) / 2), 0.01)
    real = grainy(picture, (size, size), speckle * size / 128)
    imaginary = grainy(picture, (size, size), speckle * size / 128)
    envelope = np.asarray(echo, dtype=np.float32) * np.hypot(real, imaginary)
    image = gain * envelope ** np.float32(compression)
    return Drawing(
        values=to_bytes(image[None]), labels=inside.astype(np.uint8), spacing=(40.0 / size, 40.0 / size)
    )


def chest_xray(site: Generator, patient: Generator, picture: Generator, size: int) -> Drawing:
    """A frontal radiograph: 1 lungs, 2 heart. Sites: exposure, latitude, noise, blur, field, shadows of fluid."""
    exposure, latitude = site.uniform(105, 175), site.uniform(60, 105)
    noise, blur, zoom, fluid = (
        site.uniform(2, 9),
        site.uniform(0.3, 1.0),
        site.uniform(0.9, 1.1),
        site.uniform(0.1, 0.5),
    )
    x, y = coordinates(size)
    x, y = x / np.float32(zoom), y / np.float32(zoom)
    labels = np.zeros((size, size), np.uint8)
    apex = patient.uniform(-0.78, -0.66)
    dome = [patient.uniform(0.42, 0.58), patient.uniform(0.46, 0.64)]
    width = patient.uniform(0.27, 0.35)
    lungs = np.zeros((size, size), bool)
    for sign, floor in ((-1.0, dome[0]), (1.0, dome[1])):
        across = (x * sign - 0.42) / width
        lung = (np.abs(across) < np.sqrt(np.clip(1 - ((y - 0.15) / (0.15 - apex)) ** 2, 0, 1))) & (y > apex)
        lung &= y < floor - 0.16 * (across - 0.2) ** 2 * sign**2 + 0.22 * np.maximum(across, 0)
        lungs |= lung
    heart = (
        blob(
            patient,
            x,
            y,
            centre=(patient.uniform(0.06, 0.14), patient.uniform(0.28, 0.36)),
            axes=(patient.uniform(0.27, 0.36), patient.uniform(0.25, 0.32)),
            roughness=0.05,
        )
        < 1
    )
    labels[lungs] = 1
    labels[heart] = 2
    density = 0.75 + 0.1 * smooth_field(patient, size, 4) - 0.25 * (np.abs(x) > 0.86)
    density -= 0.62 * lungs
    density += 0.4 * (heart & lungs) + 0.12 * (heart & ~lungs)
    density += 0.32 * np.exp(-((x / 0.1) ** 2)) * (0.8 + 0.2 * np.cos(y * 40))
    bow = y + 0.55 * x**2
    density += (
        0.12
        * np.maximum(0, np.cos(bow * patient.uniform(26, 31) + patient.uniform(0, 6))) ** 3
        * (np.abs(x) < 0.85)
    )
    if picture.uniform() < fluid:
        density += (
            0.35
            * np.clip((y - dome[0] + 0.25) * 5, 0, 1)
            * lungs
            * (x * (1 if picture.uniform() < 0.5 else -1) > 0)
        )
    image = blurred(
        np.asarray(exposure + latitude * (density - 0.5) * 1.6, dtype=np.float32), blur * size / 128
    )
    image += noise * grainy(picture, (size, size), 0.5)
    return Drawing(values=to_bytes(image[None]), labels=labels, spacing=(360.0 / size, 360.0 / size))


def retina_oct(site: Generator, patient: Generator, picture: Generator, size: int) -> Drawing:
    """A section through the macula: 1 retina, 2 fluid in it. Sites: speckle, contrast, averaging, height, disease."""
    speckle, contrast, noise = site.uniform(0.4, 0.9), site.uniform(0.55, 1.0), site.uniform(0.12, 0.45)
    thick, disease, gain = site.uniform(0.36, 0.52), site.uniform(0.3, 0.9), site.uniform(120, 190)
    x, y = coordinates(size)
    column = x[0]
    tilt, bow = patient.uniform(-0.18, 0.18), patient.uniform(0.0, 0.14)
    middle, pit = patient.uniform(-0.15, 0.15), patient.uniform(0.1, 0.2)
    bottom = patient.uniform(0.2, 0.42) + tilt * column - bow * column**2
    cysts = [
        (
            patient.uniform(-0.6, 0.6),
            patient.uniform(0.35, 0.65),
            patient.uniform(0.05, 0.13),
            patient.uniform(0.03, 0.09),
        )
        for _ in range(int(patient.integers(1, 5)) if patient.uniform() < disease else 0)
    ]
    swelling = sum(
        (0.8 * high * np.exp(-(((column - at) / (2 * wide)) ** 2)) for at, _, wide, high in cysts),
        np.zeros_like(column),
    )
    top = bottom - thick * (1 + swelling) + pit * np.exp(-(((column - middle) / 0.2) ** 2))
    depth = (y - top) / (bottom - top)
    retina = (depth > 0) & (depth < 1)
    bands = np.interp(
        depth.ravel(),
        [-0.02, 0.0, 0.1, 0.22, 0.35, 0.5, 0.62, 0.72, 0.8, 0.88, 0.94, 1.0, 1.05, 1.8],
        [0.08, 0.9, 0.85, 0.5, 0.62, 0.3, 0.45, 0.2, 0.18, 0.65, 0.3, 1.0, 0.75, 0.2],
    ).reshape(size, size)
    labels = retina.astype(np.uint8)
    for at, share, wide, high in cysts:
        row = np.interp(at, column, top + share * (bottom - top))
        fluid = (((x - at) / wide) ** 2 + ((y - row) / high) ** 2 < 1) & (depth > 0.08) & (depth < 0.92)
        bands[fluid] = 0.06
        labels[fluid] = 2
    signal = np.asarray(bands**contrast, dtype=np.float32)
    grain = grainy(picture, (size, size), speckle * size / 128)
    image = gain * signal * np.exp(noise * grain) + 14 * np.abs(grainy(picture, (size, size), 0.0))
    return Drawing(values=to_bytes(image[None]), labels=labels, spacing=(2.0 / size, 6.0 / size))
