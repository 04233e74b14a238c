"""``secfl export``: the model of a run for other programs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from secfl.errors import ConfigError

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file, model.onnx.")],
    site: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Whose own parameters to use, where parts of the model stay at the sites."
        ),
    ] = None,
) -> None:
    """Write a run's global model as ONNX, with free batch and image sizes (extra secfl[onnx]).

    Input "image": (batch, channels, sides), normalised as in training; output "logits": (batch, classes, sides).

    Example: secfl export RUN --out model.onnx
    """
    if out.suffix != ".onnx":
        raise ConfigError(f"--out {out}: expected a name that ends in .onnx")
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; expected a new file")
    # Deprecations inside our dependencies are for us, not for whoever exports a model.
    warnings.filterwarnings("ignore")
    from secfl.federation.prediction import predictor_of_run

    predictor = predictor_of_run(run, site=site)
    predictor.export_onnx(out)
    typer.echo(f"wrote {out}: classes {', '.join(predictor.class_names)}")
