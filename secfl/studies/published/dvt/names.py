"""Names of the study's jobs."""

from __future__ import annotations

from secfl.config import Scheme
from secfl.studies.published.dvt.phases import Phase

__all__ = ["job_name", "second_scheme"]


def job_name(phase: Phase, seed: int, scheme: Scheme) -> str:
    """Of a run under a scheme."""
    return f"phase-{phase.number}-seed-{seed}-{scheme.value}"


def second_scheme(scheme: Scheme) -> Scheme:
    """What a scheme is compared with."""
    return Scheme.MASKING if scheme is Scheme.CKKS else Scheme.CKKS
