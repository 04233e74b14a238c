"""Run the commands named in a Markdown file and paste what they print.

A block looks like this, and everything between its two comments is replaced::

    <!-- output of: secfl doctor -->
    <!-- end of output -->

The commands of one file run in order in one temporary folder, so that a later one finds what an earlier one wrote.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"(<!-- output of: (?P<command>.+?) -->\n).*?(<!-- end of output -->)", re.DOTALL)


def refresh(page: Path) -> int:
    """Rewrite the blocks of one page; the number of blocks."""
    with tempfile.TemporaryDirectory() as folder:
        text, count = BLOCK.subn(
            lambda match: match[1] + fenced(match["command"], folder) + match[3],
            page.read_text(encoding="utf-8"),
        )
    page.write_text(text, encoding="utf-8")
    return count


def fenced(command: str, folder: str) -> str:
    """The command and its output as a console block; a failure ends everything."""
    beside = str(Path(sys.executable).parent)
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=os.environ
        | {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "\n".join(["```console", f"$ {command}", *lines, "```", ""])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {refresh(Path(name))} blocks")
