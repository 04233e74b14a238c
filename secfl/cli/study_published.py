"""``secfl study NAME`` for every published system: one command body for all of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from secfl.cli.study_progress import study_listener
from secfl.errors import ConfigError
from secfl.studies.published.table import STUDIES, Entry

__all__ = ["register"]

_INTERRUPTED = 130


class _PresetName(StrEnum):
    SMOKE = "smoke"
    SMALL = "small"
    PAPER = "paper"


class _SchemeName(StrEnum):
    PLAIN = "plain"
    MASKING = "masking"
    CKKS = "ckks"


def register(app: typer.Typer, studies: Mapping[str, Entry] = STUDIES) -> None:
    """Add one command for each published system."""
    for name, entry in studies.items():
        text = (
            f"{entry.text}\n\nInterrupted, the same command goes on where it was.\n\n"
            f"Example: secfl study {name} --preset smoke"
        )
        app.command(name, help=text)(_command(name, entry))


def _command(name: str, entry: Entry) -> Callable[..., None]:
    def command(
        preset: Annotated[
            _PresetName | None,
            typer.Option(
                help="smoke: two minutes, figures without meaning; small (default): two cores; paper: a GPU."
            ),
        ] = None,
        data: Annotated[
            str | None, typer.Option(metavar="DIR|phantom", help="Images; phantom by default.")
        ] = None,
        secure_agg: Annotated[
            _SchemeName | None, typer.Option(help="How updates are added; masking by default.")
        ] = None,
        seeds: Annotated[
            int | None,
            typer.Option(
                metavar="N", min=1, max=100, help="Runs of each kind; default 3, and 1 for smoke and paper."
            ),
        ] = None,
        first_seed: Annotated[
            int | None,
            typer.Option(metavar="N", min=0, help="First experiment seed; default 0."),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Table, pictures and runs; default runs/NAME-PRESET."),
        ] = None,
        resume: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Go on with an interrupted study, as it was asked for."),
        ] = None,
        processes: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Jobs at once.")] = 2,
        as_json: Annotated[bool, typer.Option("--json", help="table.json on standard output.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="Nothing but errors.")] = False,
    ) -> None:
        warnings.filterwarnings("ignore", category=FutureWarning)
        from secfl.config import Scheme
        from secfl.studies.published.interface import Preset, Request
        from secfl.studies.published.runner import command_line, read_request, run_published

        study = entry.load()
        if resume is None:
            chosen = Preset(preset or Preset.SMALL)
            count, first = seeds or (3 if chosen is Preset.SMALL else 1), first_seed or 0
            request = Request(
                preset=chosen,
                seeds=tuple(range(first, first + count)),
                data=data or "phantom",
                scheme=Scheme(secure_agg or Scheme.MASKING),
            )
            folder = out or Path("runs") / f"{name}-{chosen.value}"
        elif preset or data or secure_agg or seeds or first_seed is not None or out:
            raise ConfigError(
                "--resume: takes everything from the folder; expected no other setting beside it"
            )
        else:
            request, folder = read_request(study, resume), resume
        try:
            with study_listener(quiet=quiet) as listener:
                document = run_published(
                    study,
                    request,
                    out=folder,
                    processes=processes,
                    listener=listener,
                    say=lambda text: None if quiet else typer.echo(text, err=True),
                )
        except KeyboardInterrupt:
            typer.echo(f"interrupted; go on by: {command_line(study, request, folder)}", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        if as_json:
            typer.echo(json.dumps(document, indent=2, allow_nan=False))
        elif not quiet:
            typer.echo((folder / "table.md").read_text(encoding="utf-8"))
            typer.echo(f"{folder}/README.md tells what was run and what it shows", err=True)

    return command
