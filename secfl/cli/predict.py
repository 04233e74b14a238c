"""``secfl predict``: the model of a run segments images."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from secfl.segmentation.prediction import PredictedImage

__all__ = ["predict"]

_FORMAT_VERSION = 1


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES…", help="Image files, folders of one DICOM series each, or folders of images."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for masks and overlays.")],
    site: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose own parameters to use, where parts of the model stay at the sites; of unlike models, whose.",
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of unlike models, the clients' of this family in place of the student."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Masks with the images' names; also prints each image's Dice."),
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Pictures of the images with their masks.")
    ] = True,
    identifiers: Annotated[
        bool,
        typer.Option(
            "--with-identifiers", help="Copy the patient's name, number and dates into DICOM segmentations."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Segment images with a run's global model; masks come in each image's own format and geometry.

    DICOM gives DICOM SEG, NIfTI gives NIfTI with the same affine, PNG and TIFF give PNG and TIFF, JPEG gives PNG.

    Example: secfl predict RUN scans/case7.nii.gz --out masks
    """
    # Deprecations inside our dependencies are for us, not for whoever segments images.
    warnings.filterwarnings("ignore")
    from secfl.federation.prediction import predictor_of_run
    from secfl.segmentation.prediction import Identifiers, Writing, predict_files

    done = predict_files(
        predictor_of_run(run, site=site, family=family),
        images,
        out=out,
        writing=Writing(
            overlays=overlays, identifiers=Identifiers.KEEP if identifiers else Identifiers.REMOVE
        ),
        truth=truth,
        tell=lambda one: None if as_json else typer.echo(_line(one)),
    )
    if as_json:
        document = {"format_version": _FORMAT_VERSION, "images": [_row(one) for one in done]}
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    if truth is not None:
        mean = sum(one.dice or 0.0 for one in done) / len(done)
        typer.echo(f"mean Dice of {len(done)} images: {mean:.4f}")
    typer.echo(f"wrote {out}")


def _line(one: PredictedImage) -> str:
    parts = []
    for name, count in one.voxels.items():
        volume = f" ({one.millilitres[name]:.2f} ml)" if one.millilitres else ""
        parts.append(f"{name} {count} voxels{volume}")
    dice = "" if one.dice is None else f" · Dice {one.dice:.4f}"
    return f"{one.mask.name}: {', '.join(parts)}{dice}"


def _row(one: PredictedImage) -> dict[str, Any]:
    return {
        "image": str(one.image),
        "mask": str(one.mask),
        "overlay": None if one.overlay is None else str(one.overlay),
        "voxels": dict(one.voxels),
        "millilitres": None if one.millilitres is None else dict(one.millilitres),
        "dice": one.dice,
    }
