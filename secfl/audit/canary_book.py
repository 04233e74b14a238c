"""The book of a canary audit: scores and noise of every view, step by step, and what they come to in the end.

The adversary of every view knows all real patients' contributions and everything but the coins; what a colluder
knows, its noise above all, is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfl.audit.canary_world import CanaryWorld
from secfl.audit.findings import Finding
from secfl.audit.noise_tests import variance_test
from secfl.audit.release import describe, release_views, shares_in_view
from secfl.audit.scores import ExpectedPower, Power, expected_power, llr_step, power_of
from secfl.audit.verdicts import REFUTED_LEVEL, Verdict
from secfl.crypto.codec import centre
from secfl.dp.effective import z_broken
from secfl.dp.plan import PrivacyPlan
from secfl.guarantees import Adversary, View

__all__ = [
    "LEVEL",
    "VARIANCE_TESTS",
    "Book",
    "CanaryAudit",
    "CanaryView",
    "audited_views",
    "judged",
    "measured_power",
    "scored_canaries",
    "view_multiplier",
]

LEVEL: Final = 0.05
"""Of the one-run bounds of all views together."""

VARIANCE_TESTS: Final = ("noise of the worst step", "noise of all steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryView:
    """One view's figures.

    Attributes:
        adversary: Who looks.
        epsilon: What the ledger (or the plan, without a ledger) promises against it at δ.
        multiplier: z of the view.
        measured: From this run's scores.
        expected: From simulations of an honest run.
        verdict: REFUTED when the one-run bound exceeds ε; SUSPECT when the Gaussian estimate does.
        scores: One per canary, those of colluders' sites too (they are not judged), shape ``(m,)``.
    """

    adversary: Adversary
    epsilon: float | None
    multiplier: float
    measured: Power
    expected: ExpectedPower
    verdict: Verdict
    scores: NDArray[np.float64] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "view": self.adversary.view.value,
            "adversary": self.adversary.behaviour.value,
            "colluders": self.adversary.colluders,
            "name": describe(self.adversary),
            "epsilon": self.epsilon,
            "noise_multiplier": self.multiplier,
            "verdict": self.verdict.value,
            "measured": self.measured.to_dict(),
            "expected": self.expected.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryAudit:
    """What a canary audit found.

    Attributes:
        views: One row per audited view.
        variance: The variance test of every step, and of all steps together.
        commitment: Hexadecimal; opened by `seed`.
        seed: The canaries' seed, revealed after the run.
    """

    views: tuple[CanaryView, ...]
    variance: tuple[Finding, ...]
    commitment: str
    seed: str
    canaries: int
    guesses: int
    delta: float
    steps: int
    sampling_rate: float

    @property
    def verdict(self) -> Verdict:
        """The strongest word of any view and of the variance tests."""
        words = [one.verdict for one in (*self.views, *self.variance)]
        return min(words, key=list(Verdict).index)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict.value,
            "canaries": self.canaries,
            "guesses": self.guesses,
            "delta": self.delta,
            "steps": self.steps,
            "sampling_rate": self.sampling_rate,
            "level": LEVEL,
            "commitment": self.commitment,
            "seed": self.seed,
            "views": [one.to_dict() for one in self.views],
            "variance": [one.to_dict() for one in self.variance],
        }


def scored_canaries(site: NDArray[np.intp], *, sites: int, view: Adversary) -> NDArray[np.bool_]:
    """Canaries of sites that do not collude: the last k sites do. Bool, shape ``(m,)``.

    Args:
        site: Index of each canary's site.
        sites: Their number.
        view: Who looks.
    """
    found: NDArray[np.bool_] = site < sites - view.colluders
    return found


def measured_power(
    scores: NDArray[np.float64],
    present: NDArray[np.bool_],
    *,
    scored: NDArray[np.bool_],
    guesses: int,
    delta: float,
    level: float,
) -> Power:
    """Both figures of one view; of the committed guesses as large a share as of the canaries.

    Args:
        scores: One per canary.
        present: The coins.
        scored: Canaries that count in this view.
        guesses: r, for all canaries.
        delta: δ.
        level: Of the one-run bound.
    """
    made = 2 * max(1, round(guesses * scored.mean() / 2))
    return power_of(scores[scored], present[scored], guesses=made, delta=delta, level=level)


def judged(measured: Power, epsilon: float | None) -> Verdict:
    """The word for one view; where nothing is promised, nothing is refuted."""
    if epsilon is None:
        return Verdict.NOT_REFUTED
    if measured.one_run > epsilon:
        return Verdict.REFUTED
    return Verdict.SUSPECT if measured.gdp > epsilon else Verdict.NOT_REFUTED


def audited_views(plan: PrivacyPlan) -> list[Adversary]:
    """Views whose sums a run without drop-outs shows: the curious aggregator with k colluders, and broken crypto.

    A malicious aggregator's view needs drop-outs, which it causes itself; `secfl.audit.release` audits its noise.
    """
    return [
        one
        for one in release_views(plan)
        if one.view is View.CRYPTO_BROKEN or one.behaviour.value == "curious"
    ]


@dataclass(slots=True)
class Book:
    """Scores and noise, step by step."""

    world: CanaryWorld
    scores: dict[Adversary, NDArray[np.float64]] = field(init=False)
    squares: list[tuple[int, float]] = field(init=False, default_factory=list)
    noise_steps: list[Finding] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        canaries = self.world.task.canaries.count
        self.scores = {view: np.zeros(canaries) for view in audited_views(self.world.plan)}

    def multiplier(self, view: Adversary) -> NDArray[np.float64]:
        """Standard deviation of each canary's projection in a view."""
        shares = shares_in_view(self.world.plan, view)
        sigma = self.world.plan.share_sigma() * math.sqrt(shares)
        return sigma / self.world.task.canaries.norms

    def scored(self, view: Adversary) -> NDArray[np.bool_]:
        """Canaries of sites that do not collude: the last k sites do."""
        sites = len(self.world.task.sites)
        return scored_canaries(self.world.task.canaries.site, sites=sites, view=view)

    def enter(self, vectors: Sequence[NDArray[Any]], total: NDArray[Any]) -> None:
        """Book one step.

        Args:
            vectors: What each site contributed, in the order of sites.
            total: The opened sum, residues.
        """
        world, bits = self.world, self.world.terms.round_terms.bits
        task, canaries = world.task, world.task.canaries
        known = [task.known[site] for site in task.sites]
        seen = centre(total, bits=bits) - sum(known)
        alone = [centre(vector, bits=bits) - part for vector, part in zip(vectors, known, strict=True)]
        projected = canaries.project(seen)
        single = [canaries.project(part) for part in alone]
        for view, so_far in self.scores.items():
            if view.view is View.CRYPTO_BROKEN:
                x = np.stack(single)[canaries.site, np.arange(canaries.count)]
            else:
                # A colluder knows its own noise and canaries: its whole vector is subtracted.
                x = projected - sum(single[len(single) - view.colluders :], np.zeros(canaries.count))
            np.add(so_far, llr_step(x, rate=world.rate, multiplier=self.multiplier(view)), out=so_far)
        planted = np.zeros_like(seen)
        for site in task.sites:
            canaries.add_to(planted, task.sampled[site])
        noise = seen - planted
        sigma = world.plan.share_sigma() * math.sqrt(len(task.sites))
        self.noise_steps.append(variance_test(noise, sigma))
        self.squares.append((noise.size, float(np.dot(noise.astype(np.float64), noise.astype(np.float64)))))

    def close(self, epsilon_of: Callable[[Adversary], float | None]) -> CanaryAudit:
        """Guess, compare and judge."""
        world, plan = self.world, self.world.plan
        canaries, guesses = world.task.canaries, world.canary_plan.guesses
        share = LEVEL / len(self.scores)
        rows = []
        for view, scores in self.scores.items():
            scored = self.scored(view)
            measured = measured_power(
                scores, canaries.present, scored=scored, guesses=guesses, delta=plan.delta, level=share
            )
            z = view_multiplier(plan, view)
            expected = expected_power(
                rate=world.rate,
                steps=len(self.squares),
                multiplier=z,
                canaries=int(scored.sum()),
                guesses=measured.guesses,
                delta=plan.delta,
                level=share,
            )
            epsilon = epsilon_of(view)
            rows.append(
                CanaryView(
                    adversary=view,
                    epsilon=epsilon,
                    multiplier=z,
                    measured=measured,
                    expected=expected,
                    verdict=judged(measured, epsilon),
                    scores=scores,
                )
            )
        return CanaryAudit(
            views=tuple(rows),
            variance=self._variance(),
            commitment=world.canary_plan.commitment().hex(),
            seed=world.canary_plan.seed.hex(),
            canaries=canaries.count,
            guesses=guesses,
            delta=plan.delta,
            steps=len(self.squares),
            sampling_rate=world.rate,
        )

    def _variance(self) -> tuple[Finding, Finding]:
        from scipy.stats import chi2

        worst = min(self.noise_steps, key=lambda one: 0.0 if one.p_value is None else one.p_value)
        corrected = min(1.0, (worst.p_value or 0.0) * len(self.noise_steps))
        each = Finding(
            name=VARIANCE_TESTS[0],
            flagged=corrected < REFUTED_LEVEL,
            statistic=worst.statistic,
            level=REFUTED_LEVEL,
            p_value=corrected,
            power=worst.power,
        )
        draws = sum(count for count, _ in self.squares)
        sigma = self.world.plan.share_sigma() * math.sqrt(len(self.world.task.sites))
        total = math.fsum(square for _, square in self.squares) / sigma**2
        p_value = float(chi2.cdf(total, draws))
        whole = Finding(
            name=VARIANCE_TESTS[1],
            flagged=p_value < REFUTED_LEVEL,
            statistic=f"σ measured/promised = {math.sqrt(total / draws):.4f} in {draws} draws",
            level=REFUTED_LEVEL,
            p_value=p_value,
        )
        return each, whole


def view_multiplier(plan: PrivacyPlan, view: Adversary) -> float:
    """The noise multiplier that a view faces."""
    if view.view is View.CRYPTO_BROKEN:
        return z_broken(plan.noise_multiplier, plan.shares)
    return plan.z_aggregator(view.behaviour, colluders=view.colluders)
