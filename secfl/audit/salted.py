"""Are images of a site in what it sends? Salted images, and a search for their salt in every field.

Every pixel of a salted image is moved up or down by a coin toss that nobody else knows; a salted mask is coin tosses
alone. A field that was made without the image is independent of these coins, whatever else it holds, so a correlation
between the two has an exact bound: for coins w_i = ±1 and any fixed numbers f_i, Hoeffding's inequality gives

    P(|Σ w_i f_i| >= t·‖f‖) <= 2·exp(-t²/2).

The search slides pieces of the salt, row by row and column by column, over every stream of bytes that a party sends,
read as bytes, as every 2nd, 3rd, 4th or 8th byte, as 32-bit floats, as bits in both orders, as lowest bits, and over
vectors as numbers. t follows from the number of trials and the level (Bonferroni). A copy of a piece in any of these
readings scores the square root of its length times the share of the salt in the picture's deviation. What is encrypted
under a key of the reader's cannot be found by anybody; `secfl.audit.contents` bounds how much there could be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secfl.audit.contents import Contents, Field, Origin
from secfl.audit.findings import Finding
from secfl.audit.verdicts import REFUTED_LEVEL
from secfl.crypto.packing import unpack
from secfl.errors import ConfigError
from secfl.randomness import Rng
from secfl.types import AGGREGATOR

__all__ = ["PIECE", "Salt", "find_images", "salt_pictures"]

PIECE: Final = 512
"""Pixels of a piece, where a picture has as many."""

_LEAST_PIECE: Final = 128
_AMPLITUDE: Final = 48
_Coins = NDArray[np.int8]
_Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Salt:
    """The coins of one picture.

    Attributes:
        name: Of the picture, for people.
        owner: The site that has it.
        coins: ±1, shape ``(height, width)``.
    """

    name: str
    owner: str
    coins: _Coins = field(repr=False)


def salt_pictures(folder: Path, *, sites: Sequence[str], images: int, side: int, rng: Rng) -> list[Salt]:
    """Write ``<site>/images/*.png`` and ``<site>/masks/*.png``, 8-bit grey, as a federation reads them.

    An image is a bright disc on a dark ground, every pixel moved by ±48 of 255; its mask is coin tosses.

    Args:
        folder: Made if it is missing.
        sites: Their names.
        images: A site.
        side: Pixels.
        rng: Of the coins; they must not be known to the parties.

    Returns:
        Two salts a picture: of the image and of the mask.
    """
    rows, columns = np.mgrid[:side, :side]
    salts = []
    for site in sites:
        for number in range(images):
            radius = side * (0.2 + 0.02 * (number % 8))
            disc = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < radius**2
            for kind in ("images", "masks"):
                raw = np.frombuffer(rng.bytes(side * side), np.uint8).reshape(side, side)
                coins = ((raw & 1).astype(np.int8) * 2 - 1).astype(np.int8)
                ground = np.where(disc, 160, 95) + _AMPLITUDE * coins
                pixels = ground if kind == "images" else (coins > 0) * 255
                path = folder / site / kind / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                salts.append(Salt(name=f"{site}/{kind}/{path.name}", owner=site, coins=coins))
    return salts


def find_images(
    contents: Contents,
    salts: Sequence[Salt],
    *,
    level: float = REFUTED_LEVEL,
    name: str = "no image in any field",
) -> Finding:
    """Search everything that each party sent for the salt of its own pictures; the aggregator's for everybody's.

    Args:
        contents: Of a recording; several of one run may be searched one by one.
        salts: From `salt_pictures`.
        level: The probability that anything is flagged although no field depends on the coins.
        name: For the table.

    Raises:
        ConfigError: No salt, or pictures of fewer than 128 pixels.
    """
    if not salts or min(one.coins.size for one in salts) < _LEAST_PIECE:
        raise ConfigError(f"salts: expected pictures of at least {_LEAST_PIECE} pixels")
    streams = _streams(contents.fields)
    length = min(PIECE, *(one.coins.size for one in salts))
    best, where, trials, searched = 0.0, "", 0, 0
    pieces = {owner: _pieces(salts, owner, length=length) for owner in {author for author, *_ in streams}}
    for (author, message, field_name), fields in streams.items():
        names, rows = pieces[author]
        if not names:
            continue
        searched += sum(len(one.value) for one in fields)
        for reading, numbers in _readings(fields):
            if numbers.size < length:
                continue
            score, piece = _highest(numbers, rows)
            trials += len(names) * (numbers.size - length + 1)
            if score > best:
                best = score
                where = f"{names[piece]} in {field_name} of {message} from {author}, read as {reading}"
    threshold = math.sqrt(2 * math.log(2 * max(1, trials) / level))
    return Finding(
        name=name,
        flagged=best >= threshold,
        statistic=f"highest correlation {best:.1f} deviations, {threshold:.1f} allowed: {where or 'nothing searched'}",
        level=level,
        p_value=min(1.0, 2 * max(1, trials) * math.exp(-(best**2) / 2)),
        power=f"{length} successive pixels in {searched} bytes, {trials} trials; a bare copy scores up to "
        f"{math.sqrt(length):.1f}",
    )


def _streams(fields: Sequence[Field]) -> dict[tuple[str, str, str], list[Field]]:
    """What one author put into one field over the whole recording; copies and known bytes hold nothing new."""
    streams: dict[tuple[str, str, str], list[Field]] = {}
    for one in fields:
        if one.origin in (Origin.FRESH, Origin.VECTOR):
            streams.setdefault((one.author, one.message.name.lower(), one.name), []).append(one)
    return streams


def _pieces(salts: Sequence[Salt], author: str, *, length: int) -> tuple[list[str], _Numbers]:
    names, rows = [], []
    for one in salts:
        if author not in (one.owner, AGGREGATOR):
            continue
        for order, flat in (("rows", one.coins.ravel()), ("columns", one.coins.T.ravel())):
            for start in range(0, flat.size - length + 1, length):
                names.append(f"{one.name} ({order} from pixel {start})")
                rows.append(flat[start : start + length].astype(np.float64))
    return names, np.array(rows).reshape(len(rows), length)


def _readings(fields: Sequence[Field]) -> Iterator[tuple[str, _Numbers]]:
    """One stream in every way in which pixels may lie in it."""
    data = b"".join(one.value for one in fields)
    raw = np.frombuffer(data, np.uint8)
    for step in (1, 2, 3, 4, 8):
        for first in range(step):
            yield f"bytes {first}::{step}", raw[first::step].astype(np.float64)
    for first in range(4):
        words = raw[first : first + (raw.size - first) // 4 * 4]
        with np.errstate(invalid="ignore"):  # a NaN that signals
            floats = words.view("<f4").astype(np.float64)
        yield f"floats from {first}", np.where(np.abs(floats) < 1e6, floats, 0.0)  # NaN compares as false
    for order in ("little", "big"):
        yield f"bits, {order}", np.unpackbits(raw, bitorder=order).astype(np.float64)
    yield "lowest bits of bytes", (raw & 1).astype(np.float64)
    if fields[0].bits:
        yield from _as_residues(fields)


def _as_residues(fields: Sequence[Field]) -> Iterator[tuple[str, _Numbers]]:
    words = np.concatenate([unpack(one.value, length=one.length, bits=one.bits) for one in fields])
    bits = fields[0].bits
    signed = words.astype(np.int64)
    signed = np.where(signed >> (bits - 1), signed - (1 << bits), signed)
    yield "residues", signed.astype(np.float64)
    for place in range(min(8, bits)):
        yield f"bit {place} of residues", (signed >> place & 1).astype(np.float64)
    yield "low bytes of residues", (signed & 255).astype(np.float64)


def _highest(numbers: _Numbers, rows: _Numbers) -> tuple[float, int]:
    """The highest |Σ w f| / ‖f‖ over all pieces and places, f less its mean in the window, and whose it is."""
    from scipy.signal import oaconvolve

    length = rows.shape[1]
    centred = numbers - numbers.mean()
    window = np.concatenate([[0.0], np.cumsum(centred)])
    squares = np.concatenate([[0.0], np.cumsum(centred**2)])
    means = (window[length:] - window[:-length]) / length
    norms = np.sqrt(np.maximum(squares[length:] - squares[:-length] - length * means**2, 0.0))
    # A window that is constant but for rounding has no say.
    usable = norms > 1e-6 * max(1.0, float(np.abs(centred).max()))
    if not usable.any():
        return 0.0, 0
    found = (
        oaconvolve(centred[None, :], rows[:, ::-1], mode="valid", axes=1) - rows.sum(axis=1)[:, None] * means
    )
    scores = np.abs(found[:, usable]) / norms[usable]
    place = int(scores.argmax())
    return float(scores.flat[place]), place // scores.shape[1]
