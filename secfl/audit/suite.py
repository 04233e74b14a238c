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
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng

__all__ = ["ControlOutcome", "RepeatedReport", "SuiteReport", "all_controls", "repeat_suite", "run_suite"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedReport:
    """One suite over several seeds.

    Attributes:
        reports: One per seed.
    """

    reports: tuple[SuiteReport, ...]

    @property
    def passed(self) -> bool:
        """Whether every control came out as expected under every seed."""
        return all(one.passed for one in self.reports)

    def rows(self) -> list[dict[str, Any]]:
        """One row per control: under how many seeds it was flagged, and under which it was not as expected."""
        found = []
        for outcomes in zip(*(report.outcomes for report in self.reports), strict=True):
            p_values = [one.finding.p_value for one in outcomes if one.finding.p_value is not None]
            control = outcomes[0].control
            found.append(
                {
                    "name": control.name,
                    "kind": control.kind.value,
                    "detector": control.detector,
                    "expected": control.expected,
                    "times_flagged": sum(one.finding.flagged for one in outcomes),
                    "seeds": len(outcomes),
                    "wrong_seeds": [
                        report.seed
                        for report, one in zip(self.reports, outcomes, strict=True)
                        if not one.passed
                    ],
                    "statistic": outcomes[0].finding.statistic,
                    "p_value_least": min(p_values, default=None),
                    "p_value_most": max(p_values, default=None),
                    "seconds": round(sum(one.seconds for one in outcomes), 3),
                }
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: every control under every seed in the form of one suite, and their counts."""
        return {
            "format_version": _FORMAT_VERSION,
            "software": f"secfl {__version__}",
            "preset": self.reports[0].preset.value,
            "seeds": [one.seed for one in self.reports],
            "controls": [
                {"seed": report.seed, **one.to_dict()} for report in self.reports for one in report.outcomes
            ],
            "counts": self.rows(),
            "passed": self.passed,
            "seconds": round(sum(one.seconds for report in self.reports for one in report.outcomes), 3),
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


def repeat_suite(
    preset: Preset,
    *,
    seeds: int,
    first: int = 0,
    progress: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> RepeatedReport:
    """The suite under ``seeds`` consecutive seeds.

    Args:
        preset: How much.
        seeds: How many.
        first: The first seed.
        progress: Told which control is next, of all seeds together.

    Raises:
        ConfigError: No seed.
    """
    if seeds < 1:
        raise ConfigError(f"seeds {seeds}: expected 1 or more")
    reports = []
    for number in range(seeds):

        def told(name: str, done: int, total: int, *, number: int = number) -> None:
            progress(f"seed {first + number}: {name}", number * total + done, seeds * total)

        reports.append(run_suite(preset, seed=first + number, progress=told))
    return RepeatedReport(reports=tuple(reports))
