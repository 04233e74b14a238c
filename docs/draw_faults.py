"""Play every fault of ``tests/federation/fault_stage.py`` and write down what came of it, in docs/faults.md.

    python docs/draw_faults.py            (as root, for the small disks; some minutes)
    python docs/draw_faults.py 3 17       (these rows again, counted from 0; the others stay)

The table stands between two comments, and everything between them is replaced.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("faults.md")
STAGE = Path(__file__).parents[1] / "tests" / "federation" / "fault_stage.py"
START, END = "<!-- faults -->\n", "<!-- end of faults -->"


def load_stage() -> Any:
    """The list of faults."""
    spec = importlib.util.spec_from_file_location("fault_stage", STAGE)
    assert spec is not None
    assert spec.loader is not None
    stage = sys.modules["fault_stage"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    return stage


def main() -> int:
    """Play them all; returns 1 when one ended in another way than expected."""
    stage = load_stage()
    os.environ["FAULTY_SITE"] = stage.ONE
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STAGE.parent), os.environ.get("PYTHONPATH", "")])
    text = PAGE.read_text(encoding="utf-8")
    rows = text.split(START)[1].split(END)[0].splitlines()[2:]
    again = [int(number) for number in sys.argv[1:]] or range(len(stage.FAULTS))
    rows += [""] * (len(stage.FAULTS) - len(rows))
    wrong = 0
    for number in again:
        fault = stage.FAULTS[number]
        with tempfile.TemporaryDirectory() as folder:
            seen = stage.play(fault, Path(folder))
        agrees = seen.outcome == fault.expected and not seen.findings
        wrong += not agrees
        told = (
            seen.outcome if agrees else f"**{seen.outcome}** {'; '.join(seen.findings)} {seen.words}".strip()
        )
        rows[number] = f"| {fault.done} | {fault.expected} | {told} | {seen.rounds} | {seen.seconds:.0f} |"
        sys.stderr.write(f"{rows[number]}\n")
    before, rest = text.split(START)
    head = "| what is done | expected | observed | rounds | seconds |\n|---|---|---|---|---|\n"
    table = head + "\n".join(rows) + "\n"
    PAGE.write_text(before + START + table + END + rest.split(END)[1], encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
