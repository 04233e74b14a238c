"""Write what every command's ``--help`` prints into ``docs/cli.md``; a test compares them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WIDTH = 100
_PROBE = """
import json, sys
import typer
from secfl.cli.main import app

def walk(command, path):
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, [*path, name])

print(json.dumps(list(walk(typer.main.get_command(app), []))))
"""


def help_texts() -> dict[str, str]:
    """Command -> what its ``--help`` prints, at one width, without colour."""
    environment = os.environ | {
        "COLUMNS": str(WIDTH),
        "TERMINAL_WIDTH": str(WIDTH),
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONIOENCODING": "utf-8",
    }

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    paths = json.loads(python(_PROBE))
    printed = python(
        "import contextlib, io, json\nfrom secfl.cli.main import main\nfound = []\n"
        f"for path in {paths!r}:\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        main([*path, '--help-all' if path == ['simulate'] else '--help'])\n"
        "    found.append(out.getvalue())\n"
        "print(json.dumps(found))\n"
    )
    return {
        " ".join(["secfl", *path]): "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
        for path, text in zip(paths, json.loads(printed), strict=True)
    }


def page() -> str:
    """The whole page."""
    parts = [
        "# Command line\n",
        "Written by `docs/paste_help.py` from the commands themselves. Results go to standard output, progress",
        "and errors to standard error; every command that prints figures takes `--json`. `NO_COLOR=1` gives",
        "plain text.",
        "`secfl --install-completion` makes the Tab key complete commands and options in your shell.\n",
    ]
    for command, text in help_texts().items():
        parts += [f"## {command}\n", "```text", text, "```\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
