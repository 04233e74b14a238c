"""``secfl data``: look at images before training, deal them out to sites, draw phantoms."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secfl.config import load_config
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed

if TYPE_CHECKING:
    from secfl.segmentation.data.check import DataReport
    from secfl.segmentation.data.folder import Reading

__all__ = ["app"]

_FORMAT_VERSION = 1
_BAD_INPUT = 2

app = typer.Typer(help="Images: check a folder, deal it out to sites, draw phantoms.", no_args_is_help=True)

_Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="A run's TOML file; its [data] section tells labels and windows."
    ),
]
_Seed = Annotated[int, typer.Option(metavar="N", help="The same seed gives the same result.", min=0)]
_Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]
_Out = Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")]


class SkewName(Enum):
    """What sites differ in."""

    SIZE = "size"
    APPEARANCE = "appearance"
    PREVALENCE = "prevalence"


def _reading(config: Path | None, folder: Path) -> tuple[Reading, float]:
    from secfl.segmentation.segmentation_task import reading_of

    settings = load_config(config, {"data": {"source": str(folder)}})
    return reading_of(settings.data, settings.privacy.mode), settings.data.test_fraction


@app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of <site>/images and <site>/masks.")],
    config: _Config = None,
    seed: _Seed = 0,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also a page with thumbnails: .html or .png.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Read every image and mask: counts, sizes, spacings, labels, duplicates, empty masks.

    Exit code 2 if a run would refuse the folder, or if an image is both trained and tested on.

    Example: secfl data check hospital-images --sheet sheet.html
    """
    from secfl.segmentation.data.check import check_folder
    from secfl.segmentation.data.check_sheet import write_sheet

    reading, test_fraction = _reading(config, folder)
    report = check_folder(folder, reading=reading, test_fraction=test_fraction, seed=ExperimentSeed(seed))
    if sheet is not None:
        write_sheet(report, sheet)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, allow_nan=False))
    else:
        _print(report)
    if not report.is_usable:
        raise typer.Exit(_BAD_INPUT)


def _print(report: DataReport) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, padding=0, show_edge=False, title=str(report.root))
    table.add_column("site", no_wrap=True)
    for column in (
        "images",
        "patients",
        "train/test",
        "sizes",
        "spacings",
        "channels",
        "foreground",
        "empty",
    ):
        table.add_column(column, min_width=len(column), overflow="fold")
    for name, site in report.sites.items():
        total = max(1, sum(site.voxels.values()))
        shares = [f"{label} {count / total:.2%}" for label, count in list(site.voxels.items())[1:]]
        table.add_row(
            name,
            str(site.images),
            str(site.patients),
            f"{site.train}/{site.test}",
            _first(sorted(site.sizes)),
            _first(sorted(site.spacings)),
            _first([str(count) for count in sorted(site.channels)]),
            "\n".join(shares),
            str(len(site.empty_masks)),
        )
    Console().print(table)
    for one in report.duplicates:
        across = f" across {one.crosses}" if one.crosses else ""
        typer.echo(f"same pixels{across}: {', '.join(one.images)}")
    for line in report.all_problems:
        typer.echo(f"problem: {line}")
    typer.echo("usable" if report.is_usable else "not usable as it is")


def _first(items: list[str]) -> str:
    more = f"\n… {len(items) - 3} more" if len(items) > 3 else ""
    return "\n".join(items[:3]) + more


@app.command("partition")
def partition(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data folder; its sites are put together.")],
    out: _Out,
    sites: Annotated[int, typer.Option(metavar="N", help="New sites.", min=1, max=1024)] = 3,
    skew: Annotated[SkewName, typer.Option(help="What sites differ in.")] = SkewName.SIZE,
    concentration: Annotated[
        float,
        typer.Option(metavar="A", help="Of the Dirichlet distribution: small is unlike, large is alike."),
    ] = 1.0,
    config: _Config = None,
    seed: _Seed = 0,
    as_json: _Json = False,
) -> None:
    """Deal one set of images out to sites, by patient.

    Example: secfl data partition images --out sites --sites 5 --skew appearance
    """
    from secfl.segmentation.data.partition import Skew, write_partition

    if not 1e-3 <= concentration <= 1e6:
        raise ConfigError(f"--concentration {concentration}: expected 0.001 to 1000000")
    counts = write_partition(
        folder,
        out,
        reading=_reading(config, folder)[0],
        sites=sites,
        skew=Skew(skew.value),
        concentration=concentration,
        seed=ExperimentSeed(seed),
    )
    if as_json:
        typer.echo(
            json.dumps({"format_version": _FORMAT_VERSION, "out": str(out), "images": dict(counts)}, indent=2)
        )
        return
    for name, count in counts.items():
        typer.echo(f"{name}: {count} images")
    typer.echo(f"wrote {out}")


@app.command("phantom")
def phantom(
    out: _Out,
    task: Annotated[str, typer.Option(metavar="NAME", help="Such as leg-ct, fundus, kidney-ct.")] = "leg-ct",
    sites: Annotated[int, typer.Option(metavar="N", help="Sites.", min=1, max=1024)] = 3,
    images: Annotated[int, typer.Option(metavar="N", help="Images per site.", min=4, max=100_000)] = 60,
    size: Annotated[int, typer.Option(metavar="N", help="Side of an image, pixels.", min=32, max=1024)] = 96,
    seed: _Seed = 0,
) -> None:
    """Draw images and masks of a phantom into a data folder, with a configuration that reads it.

    Example: secfl data phantom --task fundus --out eyes --images 12 --size 64
    """
    from secfl.segmentation.data.phantom_files import write_phantom
    from secfl.segmentation.data.phantom_tasks import phantom_task

    chosen = phantom_task(task)
    write_phantom(chosen, out, sites=sites, images_per_site=images, size=size, seed=ExperimentSeed(seed))
    typer.echo(f"wrote {sites * images} images of {chosen.anatomy} ({chosen.modality}) to {out}")
    typer.echo(f"train on them with: secfl simulate --config {out / 'config.toml'}")
