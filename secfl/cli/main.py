"""``secfl``: the entry point, its subcommands and its exit codes.

Exit codes: 0 done, 2 bad input or configuration, 3 refused by the privacy policy, 4 protocol aborted,
5 verification failed, 6 ledger not closed, 130 interrupted.

Subcommands import what they need when they run, so that ``secfl --help`` and ``secfl ledger verify`` answer
without waiting for torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from secfl._version import __version__
from secfl.cli import (
    audit,
    bench,
    data,
    doctor,
    export,
    init,
    keys,
    ledger,
    models,
    plan,
    predict,
    report,
    simulate,
    site,
    study,
    watch,
)
from secfl.cli.rare import with_rare
from secfl.errors import SecflError

__all__ = ["INTERRUPTED", "app", "main"]

INTERRUPTED = 130
_BAD_INPUT = 2
# Later versions of typer carry their own copy of click, so its errors are found through the one that typer exports.
_CommandError: type[Exception] = typer.BadParameter.__mro__[2]
_NOBODY_READS = 1
_LINE_BREAK = re.compile(r"(?<=\S)\n(?=\S)")

app = typer.Typer(
    name="secfl",
    help="Federated segmentation of medical images with secure aggregation and a privacy ledger.",
    epilog="Exit codes: 0 done, 2 bad input, 3 refused by the privacy policy, 4 protocol aborted, "
    "5 verification failed, 6 ledger not closed.",
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.command("simulate", cls=with_rare(*simulate.RARE))(simulate.simulate)
app.command("watch")(watch.watch)
app.command("report")(report.report)
app.command("compare")(report.compare)
app.add_typer(ledger.app, name="ledger")
app.add_typer(audit.app, name="audit")
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")
app.add_typer(site.app, name="site")
app.add_typer(study.app, name="study")
app.command("plan")(plan.plan)
app.command("models")(models.models)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.add_typer(data.app, name="data")
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"secfl {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; ``sys.argv`` by default.

    Returns:
        The exit code. Every error that secfl raises on purpose, and every error of the operating system,
        ends as one line ``error: …`` on standard error.
    """
    # Waiting threads that spin make training several times slower on a busy machine; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    command = typer.main.get_command(app)
    _fill_paragraphs(command)
    try:
        code = command.main(args=arguments, prog_name="secfl", standalone_mode=False)
        sys.stdout.flush()
    except SecflError as error:
        return _fail(str(error), error.exit_code)
    except _CommandError as error:
        return _fail(_usage(error), _BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", _BAD_INPUT)
    return code if isinstance(code, int) else 0


def _fill_paragraphs(command: Any) -> None:
    """Help breaks lines where the terminal ends, not where the source did."""
    command.help = _LINE_BREAK.sub(" ", command.help or "")
    for below in getattr(command, "commands", {}).values():
        _fill_paragraphs(below)


def _usage(error: Any) -> str:
    """What is wrong with the command line, each suggestion once, and where to look it up."""
    message = (
        re.sub(r"( Did you mean [^?]+\?)(?=.*\1)", "", error.format_message()).rstrip(".")
        or "a command is missing"
    )
    context = getattr(error, "ctx", None)
    return f"{message}; see {context.command_path} --help" if context else message


def _fail(message: str, code: int) -> int:
    """One line on standard error, whatever a file name or a peer put into the message."""
    line = "".join(char if char.isprintable() else " " for char in message)
    typer.echo(f"error: {line}", err=True)
    return code
