"""``secfl study``: published claims about secfl itself, each measured again by one resumable command."""

from __future__ import annotations

import json
import shlex
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from secfl.cli import study_published
from secfl.cli.study_progress import study_listener

__all__ = ["app"]

_INTERRUPTED = 130

app = typer.Typer(help="Studies, each one resumable command.", no_args_is_help=True)


class PresetName(StrEnum):
    """Size of a study."""

    SMOKE = "smoke"
    FULL = "full"


@app.callback()
def _study() -> None:
    """Studies, each one resumable command."""


@app.command("dp-curve")
def dp_curve(
    preset: Annotated[
        PresetName,
        typer.Option(help="full: the published figures; smoke: a minute, figures without meaning."),
    ] = PresetName.FULL,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the figures go.")] = Path("runs/dp-curve"),
    runs: Annotated[
        Path, typer.Option(metavar="DIR", help="Where run directories are kept; again: goes on with them.")
    ] = Path("runs"),
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Runs at once.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="All figures on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing but errors.")] = False,
) -> None:
    """Dice without noise and at ε = 8 and 2: secure aggregation, local noise, pooled DP-SGD, public pre-training.

    Three phantom clinics, every patient protected. Interrupted, the same command goes on where it was.

    Example: secfl study dp-curve --preset smoke
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    from secfl.studies.dp_curve import preset_named
    from secfl.studies.dp_curve_study import run_study
    from secfl.studies.dp_curve_tables import markdown

    command = shlex.join(["secfl", "study", "dp-curve", "--preset", preset.value, "--out", str(out)])
    try:
        with study_listener(quiet=quiet) as listener:
            document = run_study(
                preset_named(preset.value),
                out=out,
                runs=runs,
                processes=processes,
                listener=listener,
                estimate=lambda left, minutes: (
                    None
                    if quiet
                    else typer.echo(
                        f"{left} runs left, about {minutes:g} minutes with {processes} at once", err=True
                    )
                ),
                command=command,
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command goes on: {command}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    elif not quiet:
        typer.echo(markdown(document))
        typer.echo(f"figures: {out}", err=True)


@app.command("optimisation")
def optimisation(
    data: Annotated[str, typer.Option(metavar="DIR|phantom", help="Sites that differ.")] = "phantom",
    models: Annotated[
        str, typer.Option(metavar="A,B,…", help="Model families, with commas between them.")
    ] = "unet,monai:SegResNet",
    seeds: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Runs of each arm.")] = 3,
    rounds: Annotated[int | None, typer.Option(metavar="R", min=1, help="Federated rounds.")] = None,
    proximal: Annotated[
        str,
        typer.Option(metavar="μ,μ,…", help="μ of FedProx; of several, the best on training images held out."),
    ] = "0.01",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Runs and results; again: goes on with them.")
    ] = Path("runs/optimisation"),
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Runs at once.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="All figures on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing but errors.")] = False,
) -> None:
    """FedAvg, FedProx and own normalisation against local and pooled training, under secure aggregation.

    Interrupted, the same command goes on where it was.

    Example: secfl study optimisation --data sites --processes 1
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    from secfl.errors import ConfigError
    from secfl.studies.optimisation import OptimisationStudy, markdown, run_study

    try:
        strengths = tuple(float(part) for part in proximal.split(","))
    except ValueError:
        raise ConfigError(f"--proximal {proximal}: expected numbers with commas between them") from None

    study = OptimisationStudy(
        data=data,
        models=tuple(models.split(",")),
        seeds=seeds,
        rounds=rounds,
        proximal=strengths,
    )
    try:
        with study_listener(quiet=quiet) as listener:
            document = run_study(study, out=out, processes=processes, listener=listener)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
    elif not quiet:
        typer.echo(markdown(document))
        typer.echo(f"figures: {out}", err=True)


study_published.register(app)
