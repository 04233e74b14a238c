"""Pictures (PNG, JPEG, TIFF) to arrays: Pillow, with errors that name the file and nothing of its content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "read_image", "read_mask"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
"""What the folder reader takes for an image, in lower case."""

_MODES = frozenset({"1", "L", "RGB", "I", "F", "I;16", "I;16B", "I;16L"})
_MASK_MODES = _MODES | {"P"}
_PNG_DEPTH_AT = 24


def read_image(path: Path) -> NDArray[np.float32]:
    """Read an image as float32, shape ``(channels, height, width)``, in the file's own units.

    Grey images have one channel, colour images three; an alpha channel or a palette is refused, because the
    file does not say what it means for an intensity.

    Raises:
        DataError: Not readable as an image, of an unsupported kind, or with values that are not finite.
    """
    pixels = _read(path, _MODES)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DataError(f"{path}: expected a grey image or one with 3 channels, got shape {pixels.shape}")
    image = np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32)
    if not np.isfinite(image).all():
        raise DataError(f"{path}: expected finite intensities, found NaN or infinity")
    return image


def read_mask(path: Path) -> NDArray[np.int64]:
    """Read the labels stored in a picture with one channel, shape ``(height, width)``; palette indices count.

    Raises:
        DataError: Not readable, not two-dimensional, or with values that are no whole numbers from 0 to 65535.
    """
    pixels = _read(path, _MASK_MODES)
    if pixels.ndim == 3 and pixels.shape[2] == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2:
        raise DataError(f"{path}: expected a mask with one channel, got shape {pixels.shape}")
    labels = np.asarray(pixels, dtype=np.float64)
    if not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
        raise DataError(f"{path}: values that are no labels; expected whole numbers from 0 to 65535")
    if labels.min() < 0 or labels.max() > 65535:
        raise DataError(f"{path}: labels out of range; expected whole numbers from 0 to 65535")
    return labels.astype(np.int64)


def _read(path: Path, modes: frozenset[str]) -> NDArray[np.generic]:
    """Rows, columns and, for colour, channels, as stored: an EXIF orientation is not applied."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            frames, mode = getattr(file, "n_frames", 1), file.mode
            deep = mode == "RGB" and _is_deep(path)
            pixels = np.array(file)
    except Exception:  # noqa: BLE001 - decoders raise many kinds of errors, whose texts may quote the content
        raise DataError(
            f"{path}: cannot be read as an image; expected an intact PNG, JPEG or TIFF file"
        ) from None
    if frames != 1:
        raise DataError(f"{path}: expected one image in the file, found {frames}")
    if deep:
        raise DataError(f"{path}: expected colours of 8 bits, found 16 (they would be cut to 8)")
    if mode not in modes:
        channels = " (4 channels where 3 are expected)" if mode in {"RGBA", "CMYK"} else ""
        raise DataError(f"{path}: expected a grey or RGB image, got mode {mode}{channels}")
    return pixels


def _is_deep(path: Path) -> bool:
    """Whether a colour PNG has 16 bits per channel, of which Pillow would drop half without a word."""
    with path.open("rb") as file:
        start = file.read(_PNG_DEPTH_AT + 1)
    return start.startswith(b"\x89PNG") and start[_PNG_DEPTH_AT] == 16
