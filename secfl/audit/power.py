"""How often audits find what is there, measured: the table of docs/audit.md.

Repeated canary audits of the same honest run and of runs whose noise is too narrow, on the small linear task: real
sampling, clip, noise and integers; the sums are added directly (every scheme gives the same integers).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl._version import __version__
from secfl.audit.canary_book import LEVEL, CanaryAudit
from secfl.audit.canary_run import audit_integers
from secfl.audit.canary_world import prepare
from secfl.audit.noise_tests import shortfall_found, variance_test
from secfl.audit.scores import expected_power
from secfl.config import load_config
from secfl.dp.noise import NoiseFamily, integer_sampler
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng
from secfl.testing.tasks import LinearTask

__all__ = ["PowerRow", "Sampling", "canary_rows", "measure_power", "small_audit", "variance_rows"]

_FORMAT_VERSION = 1
_MULTIPLIER = 0.8628195  # ε = 8 at δ = 1e-5 with q = 0.04 over 500 steps
_SHORTFALL = 1.5
_EVERYBODY_STEPS = 20
_EVERYBODY_MULTIPLIER = 2.684306  # ε = 8 at δ = 1e-5 over 20 steps that everybody takes part in


class Sampling(StrEnum):
    """Who takes part in a step: patients drawn with q = 0.04, or everybody."""

    POISSON = "poisson"
    EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRow:
    """One line of the table.

    Attributes:
        test: Which detector.
        fault: What was wrong; ``"none"`` for false alarms.
        found: In how many repetitions it spoke.
        repetitions: Of how many.
        detail: Figures behind it, in words.
        measured: Mean and spread of the figure over the repetitions, where there is one.
        expected: The same of simulated runs with the same q, T, z, m and fault.
    """

    test: str
    fault: str
    found: int
    repetitions: int
    detail: str
    measured: tuple[float, float] | None = None
    expected: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "test": self.test,
            "fault": self.fault,
            "found": self.found,
            "repetitions": self.repetitions,
            "detail": self.detail,
            "measured": self.measured,
            "expected": self.expected,
        }


def variance_rows(repetitions: int) -> list[PowerRow]:
    """The variance test of 1e4 draws at level 1e-6, honest and 1.05 times too narrow."""
    sampler = integer_sampler(NoiseFamily.DISCRETE_GAUSSIAN, 100.0)
    rows = []
    for fault, factor in (("none", 1.0), ("noise 1.05 times too narrow", 1.05)):
        found = sum(
            variance_test(sampler.draw(10_000, InsecureSeededRng(seed)), 100.0 * factor).flagged
            for seed in range(repetitions)
        )
        rows.append(
            PowerRow(
                test="variance test, 1e4 draws",
                fault=fault,
                found=found,
                repetitions=repetitions,
                detail=f"98 % expected at {shortfall_found(10_000):.3f}",
            )
        )
    return rows


def canary_rows(
    repetitions: int,
    thin: int,
    *,
    steps: int = 500,
    canaries: int = 1000,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[PowerRow]:
    """Canary audits at ε = 8 (m = 1000, 5 sites, 2000 parameters): honest with and without sampling, and too narrow.

    Sampled: q = 0.04 over ``steps`` steps. Without sampling everybody takes part in each of 20 steps.

    Raises:
        ConfigError: Fewer than one repetition of a kind.
    """
    if repetitions < 1 or thin < 1:
        raise ConfigError("power: expected one repetition or more of each kind")
    rows: list[PowerRow] = []
    done = 0
    for fault, shortfall, sampling, count in (
        ("none", 1.0, Sampling.POISSON, repetitions),
        ("none, everybody in each step", 1.0, Sampling.EVERYBODY, repetitions),
        (f"noise {_SHORTFALL} times too narrow", _SHORTFALL, Sampling.POISSON, thin),
    ):
        found = []
        for seed in range(count):
            found.append(
                small_audit(seed, shortfall=shortfall, steps=steps, canaries=canaries, sampling=sampling)
            )
            done += 1
            progress(done, 2 * repetitions + thin)
        rows += _summary(found, fault, shortfall=shortfall)
    return rows


def small_audit(
    seed: int, *, shortfall: float, steps: int, canaries: int, sampling: Sampling = Sampling.POISSON
) -> CanaryAudit:
    """One repeatable canary audit on the small linear task, five sites; q = 0.04, or everybody in 20 steps."""
    everybody = sampling is Sampling.EVERYBODY
    config = load_config(
        None,
        {
            "secure_agg": {"threshold": 4},
            "privacy": {
                "mode": "patient",
                "noise_multiplier": _EVERYBODY_MULTIPLIER if everybody else _MULTIPLIER,
                "accept_weak": True,
                "nominal_patients": 240,
                "sampling_rate": 1.0 if everybody else 0.04,
                "steps": _EVERYBODY_STEPS if everybody else steps,
            },
        },
    )
    world = prepare(
        config,
        LinearTask(sites=5, features=2 * canaries - 1, examples=40),
        canaries=canaries,
        threshold=4,
        rng=InsecureSeededRng(seed),
        guesses=max(2, canaries // 20 * 2),
        shortfall=shortfall,
    )
    return audit_integers(world, secret=InsecureSeededRng(seed, path=f"{shortfall}"))


def _summary(found: list[CanaryAudit], fault: str, *, shortfall: float) -> list[PowerRow]:
    views = [audit.views[0] for audit in found]
    gdp = np.array([view.measured.gdp for view in views])
    one_run = np.array([view.measured.one_run for view in views])
    first, epsilon = found[0], views[0].epsilon or np.inf
    expected = expected_power(
        rate=first.sampling_rate,
        steps=first.steps,
        multiplier=views[0].multiplier,
        canaries=views[0].measured.canaries,
        guesses=views[0].measured.guesses,
        delta=first.delta,
        level=LEVEL / len(first.views),
        shortfall=shortfall,
    )
    count = len(found)

    def variance(test: str, place: int) -> PowerRow:
        flagged = sum(audit.variance[place].flagged for audit in found)
        return PowerRow(test=test, fault=fault, found=flagged, repetitions=count, detail="level 1e-6")

    def above(test: str, figures: NDArray[np.float64], simulated: tuple[float, float]) -> PowerRow:
        measured = float(figures.mean()), float(figures.std())
        return PowerRow(
            test=test,
            fault=fault,
            found=int((figures > epsilon).sum()),
            repetitions=count,
            detail=f"{measured[0]:.2f} ± {measured[1]:.2f} at ε = {epsilon:.2f}; "
            f"simulated {simulated[0]:.2f} ± {simulated[1]:.2f}",
            measured=measured,
            expected=simulated,
        )

    return [
        above("canaries, Gaussian estimate above ε", gdp, (expected.gdp, expected.gdp_spread)),
        above("canaries, one-run bound above ε", one_run, (expected.one_run, expected.one_run_spread)),
        variance("variance test, worst step", 0),
        variance("variance test, all steps", 1),
    ]


def measure_power(
    repetitions: int,
    thin: int,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """The whole table as plain values; a few seconds of processor time a repetition."""
    began = time.perf_counter()
    rows = [*variance_rows(repetitions), *canary_rows(repetitions, thin, progress=progress)]
    return {
        "format_version": _FORMAT_VERSION,
        "software": f"secfl {__version__}",
        "rows": [one.to_dict() for one in rows],
        "seconds": round(time.perf_counter() - began, 1),
    }
