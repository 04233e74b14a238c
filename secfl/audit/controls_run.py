"""Controls that are whole runs with canaries: the noise of every step, as the auditor of a run sees it."""

from __future__ import annotations

from secfl.audit.controls import Control, Preset, Run, wrong_and_right
from secfl.audit.findings import Finding
from secfl.audit.power import small_audit
from secfl.randomness import InsecureSeededRng

__all__ = ["run_controls"]


def run_controls() -> list[Control]:
    """An honest run, and one whose sites add too little noise while the plan says otherwise."""

    def steps(shortfall: float) -> Run:
        def run(rng: InsecureSeededRng) -> Finding:
            seed = int.from_bytes(rng.bytes(6), "little")
            each, whole = small_audit(seed, shortfall=shortfall, steps=25, canaries=300).variance
            return each if each.flagged else whole

        return run

    return wrong_and_right(
        "variance test of a run's steps",
        wrong={"a run with 1.5 times too little noise": steps(1.5)},
        right={"a run with the planned noise": steps(1.0)},
        preset=Preset.FULL,
    )
