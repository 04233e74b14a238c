"""Previews as bytes that a page can hold."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from secfl.errors import DataError

__all__ = ["Picture", "picture", "read_pictures"]

_MOST = 12
_LARGEST = 1 << 20  # bytes
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One PNG with its text.

    Attributes:
        source: A ``data:`` address.
        text: What is to be seen, for those who cannot see it, and as a caption.
        group: What it belongs to: a site.
    """

    source: str
    text: str
    group: str


def read_pictures(folder: Path) -> tuple[Picture, ...]:
    """The first previews of each site, a dozen at most.

    Raises:
        DataError: One is not a PNG, or larger than a preview is.
    """
    chosen: list[tuple[int, str, Path]] = []
    for path in sorted(folder.glob("*.png")):
        site, _, number = path.stem.rpartition("-")
        chosen.append((int(number) if number.isdigit() else 0, site, path))
    chosen = sorted(chosen)[:_MOST]
    return tuple(
        picture(path, text=f"{site}: test image, its truth, and the model's prediction", group=site)
        for _, site, path in sorted(chosen, key=lambda one: (one[1], one[0]))
    )


def picture(path: Path, *, text: str, group: str = "") -> Picture:
    """One PNG file.

    Raises:
        DataError: It is not a PNG, or larger than 1 MiB.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not content.startswith(_PNG) or len(content) > _LARGEST:
        raise DataError(f"{path}: expected a PNG of at most 1 MiB")
    return Picture(
        source=f"data:image/png;base64,{base64.b64encode(content).decode()}", text=text, group=group
    )
