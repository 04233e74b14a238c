"""A report on data as one page: HTML that needs no other file, or a sheet of thumbnails as PNG."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np

from secfl.errors import ConfigError
from secfl.segmentation.data.check import THUMBNAIL, THUMBNAILS_PER_SITE, DataReport, SiteReport

__all__ = ["write_sheet"]

_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em;max-width:70em}table{border-collapse:collapse}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}"
    "img{margin:2px;image-rendering:pixelated}.bad{color:#a00}"
)


def write_sheet(report: DataReport, path: Path) -> None:
    """Write ``.html`` or ``.png``. Both show images: they are for whoever may see the data.

    Raises:
        ConfigError: Another suffix, or the file cannot be written.
    """
    if path.suffix not in {".html", ".png"}:
        raise ConfigError(f"--sheet {path}: expected a file that ends with .html or .png")
    try:
        if path.suffix == ".html":
            path.write_text(_page(report), encoding="utf-8")
        else:
            path.write_bytes(_png(_sheet(report)))
    except OSError as error:
        raise ConfigError(f"--sheet {path}: cannot be written ({error.strerror})") from None


def _sheet(report: DataReport) -> np.ndarray:
    """One row per site."""
    rows = []
    for site in report.sites.values():
        row = np.zeros((THUMBNAIL, THUMBNAIL * THUMBNAILS_PER_SITE, 3), np.uint8)
        for index, thumbnail in enumerate(site.thumbnails):
            row[:, index * THUMBNAIL : (index + 1) * THUMBNAIL] = thumbnail
        rows.append(row)
    return np.vstack(rows)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _page(report: DataReport) -> str:
    rows = "".join(_row(name, site) for name, site in report.sites.items())
    lines = [f"<li class=bad>{escape(line)}</li>" for line in report.all_problems]
    lines += [
        f"<li class={'bad' if one.crosses else 'note'}>same pixels"
        f"{f' across {one.crosses}' if one.crosses else ''}: {escape(', '.join(one.images))}</li>"
        for one in report.duplicates
    ]
    state = "usable" if report.is_usable else "not usable as it is"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(report.root.name)}</title>"
        f"<style>{_STYLE}</style><h1>{escape(str(report.root))}: {state}</h1>"
        "<table><tr><th>site<th>images<th>patients<th>train / test<th>sizes<th>spacings<th>channels<th>voxels"
        f"<th>empty masks<th>first images</tr>{rows}</table><ul>{''.join(lines)}</ul></html>\n"
    )


def _row(name: str, site: SiteReport) -> str:
    pictures = "".join(
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(_png(one)).decode()}">'
        for one in site.thumbnails
    )
    cells = [
        escape(name),
        str(site.images),
        str(site.patients),
        f"{site.train} / {site.test}",
        _counts(site.sizes),
        _counts(site.spacings),
        _counts(site.channels),
        _counts(site.voxels),
        str(len(site.empty_masks)),
        pictures,
    ]
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"


def _counts(counts: object) -> str:
    assert isinstance(counts, dict)
    return "<br>".join(f"{escape(str(key))}: {count}" for key, count in sorted(counts.items(), key=str))
