"""Image files to arrays: Pillow, with errors that name the file and nothing of its content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "read_binary_mask", "read_image"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
"""What the folder reader takes for an image, in lower case."""

_MODES = frozenset({"1", "L", "RGB", "I", "F", "I;16", "I;16B", "I;16L"})
_MASK_VALUES = ({0}, {0, 1}, {0, 255}, {1}, {255})


def read_image(path: Path) -> NDArray[np.float32]:
    """Read an image as float32, shape ``(channels, height, width)``, in the file's own units.

    Grey images have one channel, colour images three; an alpha channel or a palette is refused, because the
    file does not say what it means for an intensity.

    Raises:
        DataError: Not readable as an image, of an unsupported kind, or with values that are not finite.
    """
    pixels = _read(path)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DataError(f"{path}: expected a grey image or one with 3 channels, got shape {pixels.shape}")
    image = np.ascontiguousarray(np.moveaxis(pixels, -1, 0), dtype=np.float32)
    if not np.isfinite(image).all():
        raise DataError(f"{path}: expected finite intensities, found NaN or infinity")
    return image


def read_binary_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask of 0 and 1, or 0 and 255, as booleans of shape ``(height, width)``.

    Raises:
        DataError: Not readable, not two-dimensional, or with other values.
    """
    pixels = _read(path)
    if pixels.ndim == 3 and pixels.shape[2] == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2:
        raise DataError(f"{path}: expected a mask with one channel, got shape {pixels.shape}")
    found = set(np.unique(pixels).tolist())
    if found not in _MASK_VALUES:
        raise DataError(
            f"{path}: expected a binary mask with values 0 and 255, or 0 and 1; found {len(found)} values"
        )
    mask: NDArray[np.bool_] = pixels != 0
    return mask


def _read(path: Path) -> NDArray[np.generic]:
    """Rows, columns and, for colour, channels, as stored: an EXIF orientation is not applied."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            frames, mode = getattr(file, "n_frames", 1), file.mode
            pixels = np.array(file)
    except Exception:  # noqa: BLE001 - decoders raise many kinds of errors, whose texts may quote the content
        raise DataError(
            f"{path}: cannot be read as an image; expected an intact PNG, JPEG or TIFF file"
        ) from None
    if frames != 1:
        raise DataError(f"{path}: expected one image in the file, found {frames}")
    if mode not in _MODES:
        raise DataError(f"{path}: expected a grey or RGB image, got mode {mode}")
    return pixels
