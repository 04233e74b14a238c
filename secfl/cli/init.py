"""``secfl init``: a configuration for one's own images, with every key explained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secfl.config import load_config
from secfl.config.commented import commented_toml
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed

if TYPE_CHECKING:
    from secfl.segmentation.data.check import DataReport

__all__ = ["init"]


def init(
    data: Annotated[
        str, typer.Argument(metavar="DIR|phantom", help="A folder of <site>/images and <site>/masks.")
    ] = "phantom",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The configuration; must not exist.")] = Path(
        "secfl.toml"
    ),
    scheme: Annotated[str, typer.Option(metavar="SCHEME", help="masking, ckks or plain.")] = "masking",
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="Protect every patient with this ε; default: no noise.")
    ] = None,
) -> None:
    """Look at your images and write a configuration that fits them, every key explained.

    Example: secfl init hospital-images --out secfl.toml; secfl simulate --config secfl.toml
    """
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; expected a new file")
    privacy = (
        {} if epsilon is None else {"mode": "patient", "epsilon": epsilon, "sampling_rate": 0.1, "steps": 100}
    )
    tree = {"data": {"source": data}, "secure_agg": {"scheme": scheme}, "privacy": privacy}
    config = load_config(None, tree)
    seen, check = "Images drawn by a generator; they belong to nobody.", ""
    if data != "phantom":
        seen, check = _look(Path(data)), f"Check the images:  secfl data check {data} --config {out}\n"
    chosen = {"format_version", "data.source", "secure_agg.scheme", *(f"privacy.{key}" for key in privacy)}
    heading = (
        f"secfl: a run on {data}, written by `secfl init`.\n{seen}\n"
        "A key that is commented out has the value that stands there.\n"
        f"{check}Run it:            secfl simulate --config {out}"
    )
    text = commented_toml(config, chosen=frozenset(chosen), heading=heading)
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(f"wrote {out}; next: secfl simulate --config {out}")


def _look(folder: Path) -> str:
    """What the folder holds, in a comment's lines.

    Raises:
        DataError: It is no folder of sites.
    """
    from secfl.segmentation.data.check import check_folder
    from secfl.segmentation.segmentation_task import reading_of

    settings = load_config(None, {"data": {"source": str(folder)}}).data
    report = check_folder(
        folder, reading=reading_of(settings), test_fraction=settings.test_fraction, seed=ExperimentSeed(0)
    )
    for line in report.all_problems:
        typer.echo(f"problem: {line}", err=True)
    return "\n".join(_site_lines(report))


def _site_lines(report: DataReport) -> list[str]:
    return [
        f"{name}: {site.images} images of {site.patients} patients, {', '.join(site.sizes)}, "
        f"classes {', '.join(site.voxels) or 'none'}"
        for name, site in report.sites.items()
    ]
