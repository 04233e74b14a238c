"""Attackers of secure aggregation, shipped so that anybody can check that they fail.

Hazard: everything here does what no honest party does. Every attack is played twice: against parties whose guard was
taken away, where it must succeed, and against the real ones, where it must not. `every_attack` lists them;
``python -m secfl.testing.adversaries`` plays them and prints what each of them learned.

- `secfl.testing.adversaries.on_masking`: a malicious aggregator alone;
- `secfl.testing.adversaries.on_rounds`: other models, tasks and rounds, restarts, numbers that are none;
- `secfl.testing.adversaries.on_members`: malicious clients;
- `secfl.testing.adversaries.on_ckks`: both key modes;
- `secfl.testing.adversaries.broken_masking`, `secfl.testing.adversaries.broken_plain`: broken schemes, the negative
  controls of the conformance suite;
- `secfl.testing.adversaries.forging`: signing again what was tampered with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secfl.testing.adversaries.attacks import Attack

__all__ = ["every_attack"]


def every_attack() -> tuple[Attack, ...]:
    """All attacks, those on masking first."""
    from secfl.testing.adversaries import on_ckks, on_masking, on_members, on_rounds

    return (*on_masking.ATTACKS, *on_rounds.ATTACKS, *on_members.ATTACKS, *on_ckks.ATTACKS)
