"""Draw the state diagrams of docs/protocol.md from the transition tables that the parties look their steps up in.

A diagram stands between two comments, and everything between them is replaced. So does the list of attacks, which
comes from the attacker harness::

    <!-- states of: masking client -->
    <!-- end of states -->

    <!-- attacks -->
    <!-- end of attacks -->

    python docs/draw_states.py            write the page
    python docs/draw_states.py --check    write nothing; exit 1 when the page would change
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from secfl.crypto.ckks_shared_phases import SHARED_AGGREGATOR_STEPS, SHARED_CLIENT_STEPS
from secfl.crypto.masking_phases import AGGREGATOR_STEPS, CLIENT_STEPS, Step
from secfl.crypto.wire import Phase
from secfl.testing.adversaries import every_attack

PAGE = Path(__file__).with_name("protocol.md")
BLOCK = re.compile(r"(<!-- states of: (?P<name>.+?) -->\n).*?(<!-- end of states -->)", re.DOTALL)
ATTACKS = re.compile(r"(<!-- attacks -->\n).*?(<!-- end of attacks -->)", re.DOTALL)

ASKED_ONE_BY_ONE = {Phase.CKKS_KEY, Phase.CKKS_OPEN}
"""Phases in which one client answers for all, and a deadline asks the next one."""


def identifier(phase: Phase | None) -> str:
    """How mermaid calls a state; ``None`` is the end."""
    return "[*]" if phase is None else phase.replace("-", "_")


def diagram(phases: Iterable[Phase], arrows: Iterable[tuple[Phase | None, Phase | None, str]]) -> str:
    """A mermaid block. Arrows go from a phase (``None``: the start) to a phase (``None``: the end)."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{phase}" as {identifier(phase)}' for phase in phases]
    lines += [
        f"    {identifier(here)} --> {identifier(there)}" + (f": {label}" if label else "")
        for here, there, label in arrows
    ]
    return "\n".join([*lines, "```", ""])


def client(steps: Mapping[Phase, tuple[Step, ...]]) -> str:
    """A client: one arrow for each message that it takes, labelled ``takes / sends``."""
    arrows: list[tuple[Phase | None, Phase | None, str]] = [(None, next(iter(steps)), "")]
    for phase, options in steps.items():
        for step in options:
            taken = "start" if step.accepts is None else step.accepts.name
            sent = "nothing" if step.sends is None else step.sends.name
            arrows.append((phase, step.following, f"{taken} / {sent}"))
    return diagram(steps, arrows)


def aggregator(steps: Mapping[Phase, Step]) -> str:
    """The aggregator: an arrow when a phase is complete, and what a deadline does before."""
    arrows: list[tuple[Phase | None, Phase | None, str]] = [(None, next(iter(steps)), "")]
    for phase, step in steps.items():
        assert step.accepts is not None
        sent = "opens the sum" if step.sends is None else step.sends.name
        if phase in ASKED_ONE_BY_ONE:
            arrows.append((phase, step.following, f"{step.accepts.name} / {sent}"))
            arrows.append((phase, phase, "deadline / asks the next client"))
            arrows.append((phase, None, "deadline, nobody left / aborted"))
        else:
            arrows.append(
                (phase, step.following, f"{step.accepts.name} from all, or deadline and t / {sent}")
            )
            arrows.append((phase, None, "deadline, fewer than t / aborted"))
    return diagram(steps, arrows)


def diagrams() -> dict[str, str]:
    """Every diagram by the name in its comment."""
    return {
        "masking client": client({phase: (step,) for phase, step in CLIENT_STEPS.items()}),
        "masking aggregator": aggregator(AGGREGATOR_STEPS),
        "shared-key client": client(SHARED_CLIENT_STEPS),
        "shared-key aggregator": aggregator(SHARED_AGGREGATOR_STEPS),
    }


def attacks() -> str:
    """The attacker harness as a table."""
    rows = [f"| {attack.name} | {attack.guard} |" for attack in every_attack()]
    return "\n".join(["| the attacker tries to | what stops it |", "|---|---|", *rows, ""])


def redrawn(text: str) -> str:
    """The page with every diagram as the tables have it. `KeyError` for a name that is no diagram's."""
    drawn, listed = diagrams(), attacks()
    text = ATTACKS.sub(lambda match: match[1] + listed + match[2], text)
    return BLOCK.sub(lambda match: match[1] + drawn[match["name"]] + match[3], text)


def main(arguments: list[str]) -> int:
    """Write or check."""
    before = PAGE.read_text(encoding="utf-8")
    after = redrawn(before)
    if arguments == ["--check"]:
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
