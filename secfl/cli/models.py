"""``secfl models``: which models there are, and how large each one is."""

from __future__ import annotations

import json
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from secfl.config import ModelConfig
from secfl.errors import ConfigError

__all__ = ["models"]

_FORMAT_VERSION = 1


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A family, monai:<Network>, or package.module:factory; default: all."
        ),
    ] = None,
    dims: Annotated[int, typer.Option(metavar="2|3", help="Images or volumes.", min=2, max=3)] = 2,
    side: Annotated[
        int | None,
        typer.Option(metavar="N", help="Side of the image, pixels; default 256, or 64 for volumes.", min=1),
    ] = None,
    image_channels: Annotated[int, typer.Option(metavar="N", help="Channels of the image.", min=1)] = 1,
    classes: Annotated[int, typer.Option(metavar="N", help="Labels with background.", min=2)] = 2,
    channels: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Feature maps per level (model.channels).")
    ] = None,
    arguments: Annotated[
        str | None, typer.Option(metavar="JSON", help="Further arguments of a network (model.arguments).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """Model families with their parameters, memory and work for one image.

    Example: secfl models unet --side 128
    """
    warnings.filterwarnings("ignore")
    from secfl.segmentation.models import families, model_spec
    from secfl.segmentation.models.size import measure_size

    settings = ModelConfig(name=name or "unet", arguments=_arguments(arguments))
    if channels is not None:
        settings = settings.model_copy(update={"channels": _channels(channels)})
    pixels = side or (256 if dims == 2 else 64)
    sizes = [
        measure_size(
            model_spec(
                settings, family=family, in_channels=image_channels, classes=classes, spatial_dims=dims
            ),
            side=pixels,
        )
        for family in ((name,) if name else families())
    ]
    if as_json:
        rows = [size.to_json() for size in sizes]
        typer.echo(json.dumps({"format_version": _FORMAT_VERSION, "models": rows}, indent=2))
        return
    table = Table(box=None, title_justify="left", title=f"one image of {pixels} pixels a side, {dims}-D")
    table.add_column("family")
    for heading in ("parameters", "GFLOP", "state MB", "activations MB", "sides"):
        table.add_column(heading, justify="right")
    for size in sizes:
        table.add_row(
            size.family,
            f"{size.parameters:,}",
            f"{size.gigaflops:.2f}",
            f"{size.state_megabytes:.1f}",
            f"{size.activation_megabytes:.0f}",
            f"×{size.multiple}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "GFLOP: forward pass; a step takes about 3 times as many. State: weights, gradients and AdamW's moments. "
        "Activations: kept by one step for one image.",
        soft_wrap=True,
    )


def _channels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--channels {text}: expected whole numbers with commas between them") from None


def _arguments(text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'--arguments {text}: expected a JSON object such as {{"init_filters": 8}}')
    return found
