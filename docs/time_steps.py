"""Time the README's steps with one's own images: ``python docs/time_steps.py [--out docs/figures/steps.json]``.

Runs every line of the README's ``sh`` blocks in one new folder, with one thread, and writes the processor time of each,
in seconds: its own and that of the processes that it waited for. ``make paste`` puts them into
``docs/how-to/own-data.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from secfl.benchmarking.suite import describe_machine

DOCS = Path(__file__).resolve().parent
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def steps(page: str) -> list[str]:
    """The commands of a page's ``sh`` blocks, without their comments."""
    lines = "".join(SHELL.findall(page)).splitlines()
    return [command for line in lines if (command := line.partition("#")[0].strip())]


def measure(commands: list[str]) -> list[dict[str, Any]]:
    """Processor seconds of each command; one that fails ends everything."""
    beside = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            before = _processor_seconds()
            done = subprocess.run(
                ["/bin/bash", "-euo", "pipefail", "-c", command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            found.append({"command": command, "processor_seconds": round(_processor_seconds() - before, 2)})
            print(f"{found[-1]['processor_seconds']:8.2f} s  {command}", flush=True)
    return found


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DOCS / "figures" / "steps.json")
    given = parser.parse_args()
    timed = measure(steps((DOCS.parent / "README.md").read_text(encoding="utf-8")))
    document = {"machine": describe_machine(), "steps": timed}
    given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
