"""How often audits find what is there, measured: the table of docs/audit.md.

Repeated canary audits of the same honest run and of runs whose noise is too narrow, on the small linear task: real
sampling, clip, noise and integers; the sums are added directly (every scheme gives the same integers).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from secfl._version import __version__
from secfl.audit.canary_book import CanaryAudit
from secfl.audit.canary_run import audit_integers
from secfl.audit.canary_world import prepare
from secfl.audit.noise_tests import shortfall_found, variance_test
from secfl.config import load_config
from secfl.dp.noise import NoiseFamily, integer_sampler
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng
from secfl.testing.tasks import LinearTask

__all__ = ["PowerRow", "canary_rows", "measure_power", "small_audit", "variance_rows"]

_FORMAT_VERSION = 1
_MULTIPLIER = 0.8628195  # ε = 8 at δ = 1e-5 with q = 0.04 over 500 steps
_SHORTFALL = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRow:
    """One line of the table.

    Attributes:
        test: Which detector.
        fault: What was wrong; ``"none"`` for false alarms.
        found: In how many repetitions it spoke.
        repetitions: Of how many.
        detail: Figures behind it.
    """

    test: str
    fault: str
    found: int
    repetitions: int
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "test": self.test,
            "fault": self.fault,
            "found": self.found,
            "repetitions": self.repetitions,
            "detail": self.detail,
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
    """Canary audits at ε = 8 (q = 0.04, T = 500, m = 1000, 5 sites, 2000 parameters), honest and too narrow."""
    if repetitions < 1 or thin < 1:
        raise ConfigError("power: expected one repetition or more of each kind")
    rows: list[PowerRow] = []
    done = 0
    for fault, shortfall, count in (
        ("none", 1.0, repetitions),
        (f"noise {_SHORTFALL} times too narrow", _SHORTFALL, thin),
    ):
        found = []
        for seed in range(count):
            found.append(small_audit(seed, shortfall=shortfall, steps=steps, canaries=canaries))
            done += 1
            progress(done, repetitions + thin)
        rows += _summary(found, fault)
    return rows


def small_audit(seed: int, *, shortfall: float, steps: int, canaries: int) -> CanaryAudit:
    """One repeatable canary audit on the small linear task, five sites, q = 0.04."""
    config = load_config(
        None,
        {
            "secure_agg": {"threshold": 4},
            "privacy": {
                "mode": "patient",
                "noise_multiplier": _MULTIPLIER,
                "accept_weak": True,
                "nominal_patients": 240,
                "sampling_rate": 0.04,
                "steps": steps,
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


def _summary(found: list[CanaryAudit], fault: str) -> list[PowerRow]:
    views = [audit.views[0] for audit in found]
    gdp = np.array([view.measured.gdp for view in views])
    one_run = np.array([view.measured.one_run for view in views])
    epsilon, expected = views[0].epsilon or np.inf, views[0].expected
    count = len(found)

    def row(test: str, spoke: int, detail: str) -> PowerRow:
        return PowerRow(test=test, fault=fault, found=spoke, repetitions=count, detail=detail)

    return [
        row(
            "canaries, Gaussian estimate above ε",
            int((gdp > epsilon).sum()),
            f"estimate {gdp.mean():.2f} ± {gdp.std():.2f} at ε = {epsilon:.2f}; an honest run is expected to show "
            f"{expected.gdp:.2f} ± {expected.gdp_spread:.2f}",
        ),
        row(
            "canaries, one-run bound above ε",
            int((one_run > epsilon).sum()),
            f"bound {one_run.mean():.2f} ± {one_run.std():.2f}",
        ),
        row("variance test, worst step", sum(audit.variance[0].flagged for audit in found), "level 1e-6"),
        row("variance test, all steps", sum(audit.variance[1].flagged for audit in found), "level 1e-6"),
    ]


def measure_power(
    repetitions: int,
    thin: int,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """The whole table as plain values; about 10 to 20 seconds a repetition."""
    began = time.perf_counter()
    rows = [*variance_rows(repetitions), *canary_rows(repetitions, thin, progress=progress)]
    return {
        "format_version": _FORMAT_VERSION,
        "software": f"secfl {__version__}",
        "rows": [one.to_dict() for one in rows],
        "seconds": round(time.perf_counter() - began, 1),
    }
