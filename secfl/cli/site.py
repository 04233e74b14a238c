"""``secfl site``: what a site does with its home, beside serving runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="A site's home in a deployment (docs/deploy-flower.md).", no_args_is_help=True)


@app.callback()
def site() -> None:
    """A site's home in a deployment (docs/deploy-flower.md)."""


@app.command("leave")
def leave(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="Folder with the key and the state.")],
    name: Annotated[str, typer.Argument(metavar="SITE", help="The site.")],
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", metavar="FILE", help="File whose first line encrypts the key."),
    ] = None,
) -> None:
    """Give up a run that does not go on: answer it no more, and destroy the secrets of its last round.

    Example: secfl site leave /var/lib/secfl north
    """
    from secfl.federation.keyfiles import read_passphrase
    from secfl.federation.site_home import leave_home

    if leave_home(home, name, passphrase=read_passphrase(passphrase_file)):
        typer.echo(f"{name} has left its run; for another one move {home / 'state'} away and keep it")
    else:
        typer.echo(f"{name} has joined no run")
