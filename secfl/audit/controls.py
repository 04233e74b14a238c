"""The common form of a control: something known to be right or wrong, put before a detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from secfl.audit.findings import Finding
from secfl.audit.mechanism import MechanismAudit
from secfl.audit.verdicts import Verdict
from secfl.randomness import InsecureSeededRng

__all__ = ["Control", "Kind", "Preset", "Run", "finding_of_audit", "wrong_and_right"]

Run: TypeAlias = Callable[[InsecureSeededRng], Finding]
"""From a source of repeatable randomness to the detector's finding."""


class Kind(StrEnum):
    """NEGATIVE: wrong on purpose, must be flagged. POSITIVE: right, must not be."""

    NEGATIVE = "negative"
    POSITIVE = "positive"


class Preset(StrEnum):
    """SMOKE: in under three minutes on two cores. FULL: more draws, all schemes, and runs with canaries."""

    SMOKE = "smoke"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One control.

    Attributes:
        name: What is right or wrong about it.
        kind: Whether it must be flagged.
        detector: What looks at it.
        run: From a source of repeatable randomness to the detector's finding.
        preset: The smallest preset that runs it.
    """

    name: str
    kind: Kind
    detector: str
    run: Run
    preset: Preset = Preset.SMOKE

    @property
    def expected(self) -> bool:
        """Whether it must be flagged."""
        return self.kind is Kind.NEGATIVE


def wrong_and_right(
    detector: str,
    *,
    wrong: Mapping[str, Run] = MappingProxyType({}),
    right: Mapping[str, Run] = MappingProxyType({}),
    preset: Preset = Preset.SMOKE,
) -> list[Control]:
    """Controls of one detector by name: first what it must flag, then what it must not."""
    return [
        Control(name=name, kind=kind, detector=detector, run=run, preset=preset)
        for kind, runs in ((Kind.NEGATIVE, wrong), (Kind.POSITIVE, right))
        for name, run in runs.items()
    ]


def finding_of_audit(name: str, audit: MechanismAudit) -> Finding:
    """A mechanism audit as a row for tables."""
    return Finding(
        name=name,
        flagged=audit.verdict is Verdict.REFUTED,
        statistic=f"ε >= {audit.epsilon_lower:.2f}, claimed {audit.claimed_epsilon:.2f}",
        level=audit.level,
        power=f"{audit.draws} draws could show {audit.epsilon_reachable:.1f}",
    )
