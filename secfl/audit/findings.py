"""The common form of what a detector says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secfl.audit.verdicts import REFUTED_LEVEL, Verdict

__all__ = ["Finding", "from_p_value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One test and its outcome.

    Attributes:
        name: What was tested.
        flagged: Whether something is wrong.
        statistic: The figure that decided, in words with its unit.
        level: False-alarm rate of this test; 0 where a finding is a plain fact.
        p_value: Where the test has one: the probability of what was seen, or worse, if nothing is wrong.
        power: What the test could have found, or ``"not run: …"`` with the reason.
    """

    name: str
    flagged: bool
    statistic: str
    level: float = 0.0
    p_value: float | None = None
    power: str = ""

    @property
    def verdict(self) -> Verdict:
        """REFUTED or NOT REFUTED."""
        return Verdict.REFUTED if self.flagged else Verdict.NOT_REFUTED

    @property
    def skipped(self) -> bool:
        """Whether there was too little to test."""
        return self.power.startswith("not run")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "flagged": self.flagged,
            "verdict": self.verdict.value,
            "skipped": self.skipped,
            "statistic": self.statistic,
            "level": self.level,
            "p_value": self.p_value,
            "power": self.power,
        }


def from_p_value(
    name: str, p_value: float, *, statistic: str, level: float = REFUTED_LEVEL, power: str = ""
) -> Finding:
    """A finding that is flagged when the p-value is below the level."""
    return Finding(
        name=name,
        flagged=p_value < level,
        statistic=statistic,
        level=level,
        p_value=p_value,
        power=power,
    )
