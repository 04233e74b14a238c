"""All controls in one go: do the detectors find what is wrong, and keep silent about what is right?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secfl._version import __version__
from secfl.audit.controls import Control, Preset
from secfl.audit.controls_privacy import privacy_controls
from secfl.audit.controls_protocol import protocol_controls
from secfl.audit.controls_run import run_controls
from secfl.audit.findings import Finding
from secfl.randomness import InsecureSeededRng

__all__ = ["ControlOutcome", "SuiteReport", "all_controls", "run_suite"]

_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOutcome:
    """One control and what its detector said."""

    control: Control
    finding: Finding
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the detector said what it should."""
        return self.finding.flagged is self.control.expected

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.control.name,
            "kind": self.control.kind.value,
            "detector": self.control.detector,
            "flagged": self.finding.flagged,
            "expected": self.control.expected,
            "statistic": self.finding.statistic,
            "p_value": self.finding.p_value,
            "level": self.finding.level,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReport:
    """The outcome of a suite."""

    preset: Preset
    seed: int
    outcomes: tuple[ControlOutcome, ...]

    @property
    def passed(self) -> bool:
        """Whether every control came out as expected."""
        return all(one.passed for one in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format_version": _FORMAT_VERSION,
            "software": f"secfl {__version__}",
            "preset": self.preset.value,
            "seed": self.seed,
            "controls": [one.to_dict() for one in self.outcomes],
            "passed": self.passed,
            "seconds": round(sum(one.seconds for one in self.outcomes), 3),
        }


def all_controls(preset: Preset) -> list[Control]:
    """The controls of a preset, in order."""
    found = [*privacy_controls(), *protocol_controls(), *run_controls()]
    return [one for one in found if preset is Preset.FULL or one.preset is Preset.SMOKE]


def run_suite(
    preset: Preset,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> SuiteReport:
    """Run every control of a preset.

    What is audited draws its noise and keys from a seeded source here, so that a suite can be repeated; the code
    under audit is the code that runs. (Keys that OpenSSL draws itself differ from run to run.)

    Args:
        preset: How much.
        seed: Of the controls' randomness.
        progress: Told which control is next.
    """
    controls = all_controls(preset)
    source = InsecureSeededRng(seed)
    outcomes = []
    for number, control in enumerate(controls):
        progress(control.name, number, len(controls))
        began = time.perf_counter()
        finding = control.run(source.fork(control.name))
        outcomes.append(ControlOutcome(control=control, finding=finding, seconds=time.perf_counter() - began))
    return SuiteReport(preset=preset, seed=seed, outcomes=tuple(outcomes))
