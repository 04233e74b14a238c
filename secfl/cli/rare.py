"""Commands whose ``--help`` fits a screen: options that few need are listed by ``--help-all``."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

__all__ = ["HelpAll", "with_rare"]

_ALL: Final = "secfl.help-all"


def with_rare(*names: str) -> type[TyperCommand]:
    """A command class that leaves these parameters out of ``--help``; they work all the same.

    Args:
        names: Names of parameters.
    """

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            for parameter in self.params:
                if parameter.name in names:
                    parameter.hidden = not ctx.meta.get(_ALL, False)
            super().format_help(ctx, formatter)

    return Command


def _show(context: typer.Context, wanted: bool) -> None:
    if wanted:
        context.meta[_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", is_eager=True, callback=_show, help="Show every option and exit.")
]
