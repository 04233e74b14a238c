"""Attackers of secure aggregation, shipped so that anybody can check that they fail.

Hazard: everything here does what no honest party does. Every attack is played twice: against parties whose guard was
taken away, where it must succeed, and against the real ones, where it must not. `every_attack` lists them;
``python -m secfl.testing.adversaries`` plays them and prints what each of them learned.

- `secfl.testing.adversaries.on_masking`: a malicious aggregator alone;
- `secfl.testing.adversaries.on_cohorts`: small cohorts and low thresholds;
- `secfl.testing.adversaries.on_rounds`: other models, tasks and rounds, restarts, numbers that are none;
- `secfl.testing.adversaries.on_members`: malicious clients;
- `secfl.testing.adversaries.on_shared_key`: what a key in every client allows;
- `secfl.testing.adversaries.on_ckks`: copied and malformed ciphertexts;
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
    from secfl.testing.adversaries import (
        on_ckks,
        on_cohorts,
        on_masking,
        on_members,
        on_rounds,
        on_shared_key,
    )

    modules = (on_masking, on_cohorts, on_rounds, on_members, on_shared_key, on_ckks)
    return tuple(attack for module in modules for attack in module.ATTACKS)
