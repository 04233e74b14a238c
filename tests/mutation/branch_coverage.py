"""Fail where the tests take less than a given share of a package's branches.

    python tests/mutation/branch_coverage.py secfl.crypto secfl.dp --fail-under 90

Reads the file ``.coverage`` that ``make coverage`` wrote. What counts is branches, the two ways out of every
condition, alone: coverage's own total mixes them with lines, of which straight code has many.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def measured(package: str) -> dict[str, Any]:
    """What coverage knows about one package."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "coverage.json"
        include = f"{package.replace('.', '/')}/*"
        command = [
            sys.executable,
            "-m",
            "coverage",
            "json",
            "--quiet",
            f"--include={include}",
            "-o",
            str(report),
        ]
        subprocess.run(command, check=True)
        return json.loads(report.read_bytes())


def main() -> int:
    """Print a line for each package, and for each of its modules that is below the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", nargs="+")
    parser.add_argument(
        "--fail-under", type=float, required=True, help="percent of the branches of each package"
    )
    chosen = parser.parse_args()
    below = False
    for package in chosen.package:
        found = measured(package)
        share = _share(found["totals"])
        below = below or share < chosen.fail_under
        lines = found["totals"]["percent_covered_display"]
        sys.stdout.write(f"{package}: {share:.1f} % of the branches ({lines} % of lines and branches)\n")
        for name, file in sorted(found["files"].items()):
            if _share(file["summary"]) < chosen.fail_under:
                sys.stdout.write(f"  {name}: {_share(file['summary']):.1f} %\n")
    return 1 if below else 0


def _share(summary: dict[str, Any]) -> float:
    branches = summary["num_branches"]
    return 100 * summary["covered_branches"] / branches if branches else 100.0


if __name__ == "__main__":
    sys.exit(main())
