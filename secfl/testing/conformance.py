"""The conformance suite: subclass it in your tests, and pytest checks your scheme.

    from secfl.testing.conformance import Capabilities, PhaseRule, SecureAggregationConformance

    class TestMyScheme(SecureAggregationConformance):
        capabilities = Capabilities(phases=(PhaseRule(name="input"),), input_phase="input")

        def scheme(self):
            return MyScheme()

Capabilities say what the scheme claims; every claim is tested. The suite needs pytest and hypothesis, which are not
run-time dependencies of secfl. What it can find, and how often it cries wolf, is stated where it is done; negative
controls (`secfl.testing.adversaries.broken`) show that every check fails when it must.

`failed_checks` runs a suite without pytest's collection.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from secfl.testing.conformance_base import (
    Capabilities,
    Dropouts,
    Inputs,
    PhaseRule,
    Quorum,
    Transcripts,
)
from secfl.testing.conformance_correctness import CorrectnessChecks
from secfl.testing.conformance_hostile import HostileChecks
from secfl.testing.conformance_machine import MachineChecks
from secfl.testing.conformance_privacy import PrivacyChecks

__all__ = [
    "CHECKS",
    "Capabilities",
    "Dropouts",
    "Inputs",
    "PhaseRule",
    "Quorum",
    "SecureAggregationConformance",
    "Transcripts",
    "failed_checks",
]


class SecureAggregationConformance(CorrectnessChecks, HostileChecks, PrivacyChecks, MachineChecks):
    """All checks. Provide `capabilities` and `scheme`, and override what differs from the defaults."""


CHECKS: tuple[str, ...] = tuple(
    sorted(name for name in dir(SecureAggregationConformance) if name.startswith("test_"))
)
"""The names of all checks."""


def failed_checks(
    suite: SecureAggregationConformance, *, checks: Sequence[str] = CHECKS
) -> dict[str, BaseException]:
    """Run checks and return those that failed, with what they raised. Checks that do not apply are left out."""
    import pytest

    failures: dict[str, BaseException] = {}
    for name in checks:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                getattr(suite, name)()
        except pytest.skip.Exception:
            continue
        except Exception as error:  # noqa: BLE001 - a failed check is what is looked for
            failures[name] = error
    return failures
