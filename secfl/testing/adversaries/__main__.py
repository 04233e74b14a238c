"""``python -m secfl.testing.adversaries``: play every attack with and without its guard, and say what it learned."""

from __future__ import annotations

import sys

from secfl.testing.adversaries import every_attack
from secfl.testing.adversaries.attacks import Guard


def main() -> int:
    """Print every attack; 1 when one succeeds against its guard, or fails without it."""
    surprises = 0
    for attack in every_attack():
        without, stopped = attack.play(Guard.REMOVED), attack.play(Guard.IN_PLACE)
        surprise = not without.success or bool(stopped.success)
        surprises += surprise
        lines = (
            f"{attack.name}  [{attack.line}]",
            f"  guard:    {attack.guard}",
            f"  without:  {without.success or 'FAILED: ' + without.refusal}",
            f"  with it:  {'SUCCEEDED: ' + stopped.success if stopped.success else stopped.refusal}",
        )
        sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(f"{len(every_attack())} attacks, {surprises} surprises\n")
    return 1 if surprises else 0


if __name__ == "__main__":
    raise SystemExit(main())
