"""Controls of clip, noise and accounting, each in the wrong form and in the one that runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfl.audit.controls import Control, Preset, Run, finding_of_audit, wrong_and_right
from secfl.audit.findings import Finding
from secfl.audit.mechanism import audit_samples
from secfl.audit.noise_tests import correlation_test, variance_test
from secfl.audit.other_tests import convergence_test, reachability_audit
from secfl.audit.release import audit_release, release_samples
from secfl.audit.replay import replay
from secfl.crypto.codec import centre
from secfl.dp.adaptive import QuantileClip, bit_slot_size
from secfl.dp.analytic import analytic_gaussian_epsilon
from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.noise import NoiseFamily, NoiseShare, PatientSum, privatize
from secfl.dp.plan import PrivacyPlan
from secfl.guarantees import UnitOfPrivacy
from secfl.randomness import InsecureSeededRng, Rng

__all__ = ["privacy_controls"]

_DIMENSION: Final = 10_000
_BITS: Final = 40
_GRID: Final = GridClip.single(dimension=6, clip_norm=1.0, grid_norm=1000)
_SHARE: Final = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=300.0)
_HALF: Final = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=150.0)
_PLAN: Final = PrivacyPlan(
    unit=UnitOfPrivacy.PATIENT,
    clip_norm=1.0,
    grid_norm=1000,
    dimension=4,
    noise_multiplier=2.0,
    releases=1,
    cohort_size=5,
    threshold=4,
    delta=1e-5,
)
_Gradients = list[NDArray[np.float64]]


def privacy_controls() -> list[Control]:
    """All of them, wrong and right ones next to each other."""
    return [*_noise_controls(), *_replay_controls(), *_mechanism_controls(), *_clip_controls()]


# Noise


def _noise(share: NoiseShare | None, rng: Rng) -> NDArray[np.int64]:
    """What `privatize` adds to a sum of zeros."""
    zeros = PatientSum(values=np.zeros(_DIMENSION, dtype=np.int64), sensitivity=1000)
    sent = privatize(zeros, noise=share, bits=_BITS, rng=rng).vectors["update"]
    return centre(sent, bits=_BITS)


def _noise_controls() -> list[Control]:
    def variance(share: NoiseShare | None) -> Run:
        return lambda rng: variance_test(_noise(share, rng), _SHARE.sigma)

    def pair(one: str, other: str) -> Run:
        return lambda rng: correlation_test(_noise(_SHARE, rng.fork(one)), _noise(_SHARE, rng.fork(other)))

    return [
        *wrong_and_right(
            "variance test",
            wrong={"noise off": variance(None), "noise halved": variance(_HALF)},
            right={"noise as planned": variance(_SHARE)},
        ),
        *wrong_and_right(
            "correlation of two noises",
            wrong={"one noise seed for two clients": pair("everybody", "everybody")},
            right={"noise of two clients": pair("a", "b")},
        ),
    ]


# Replays


def _unit(*parts: float) -> NDArray[np.float64]:
    vector = np.array([*parts, *([0.0] * (_GRID.dimension - len(parts)))])
    return vector / np.linalg.norm(vector)


def _scenes() -> list[tuple[_Gradients, _Gradients]]:
    """Neighbours that are hard on careless code: one patient far longer than the clip, opposite, or not finite."""
    others = [_unit(1.0), _unit(1.0, 0.1), _unit(1.0, -0.1)]
    hostile = [1e6 * _unit(-1.0), 1e6 * _unit(0.0, 1.0), np.full(_GRID.dimension, np.nan)]
    return [([*others, row], others) for row in hostile]


def _ours(gradients: _Gradients, rng: Rng) -> NDArray[np.uint64]:
    """Our step: clip and round each patient, sum, noise."""
    accumulator = PatientAccumulator(_GRID)
    accumulator.add_all(gradients)
    return (
        privatize(accumulator.total(), noise=_SHARE, bits=_BITS, rng=rng).vectors["update"].astype(np.uint64)
    )


def _clip_after_the_sum(gradients: _Gradients, rng: Rng) -> NDArray[np.uint64]:
    """Wrong: the sum is clipped, so that one long gradient turns all others around."""
    finite = [row for row in gradients if np.isfinite(row).all()]
    clipped = _GRID.clip(np.sum(finite, axis=0)).values.astype(np.int64)
    total = PatientSum(values=clipped, sensitivity=_GRID.sensitivity)
    return privatize(total, noise=_SHARE, bits=_BITS, rng=rng).vectors["update"].astype(np.uint64)


def _mean_over_the_batch(gradients: _Gradients, rng: Rng) -> NDArray[np.uint64]:
    """Wrong: divided by the actual size of the batch, scaled as if it were the planned four."""
    accumulator = PatientAccumulator(_GRID)
    accumulator.add_all(gradients)
    mean = np.rint(accumulator.total().values * (4 / len(gradients))).astype(np.int64)
    total = PatientSum(values=mean, sensitivity=_GRID.sensitivity)
    return privatize(total, noise=_SHARE, bits=_BITS, rng=rng).vectors["update"].astype(np.uint64)


def _nan_goes_through(gradients: _Gradients, rng: Rng) -> NDArray[np.float64]:
    """Wrong: a clip by ``min(1, C/norm)`` lets NaN pass, and the noise does not hide it."""
    scaled = [row * min(1.0, 1.0 / float(np.linalg.norm(row))) for row in gradients]
    return np.sum(scaled, axis=0) * _GRID.sensitivity + centre(
        privatize(
            PatientSum(values=np.zeros(_GRID.length, np.int64), sensitivity=1),
            noise=_SHARE,
            bits=_BITS,
            rng=rng,
        ).vectors["update"],
        bits=_BITS,
    )


def _replay_controls() -> list[Control]:
    bound = float(_GRID.sensitivity)

    def measured(step: Callable[[_Gradients, Rng], NDArray[np.uint64]]) -> Run:
        return lambda _: replay(step, neighbours=_scenes(), sensitivity=bound, bits=_BITS).finding("replay")

    def replaced(sensitivity: float) -> Run:
        others = [_unit(0.0, 1.0)]
        pair = ([*others, 1e6 * _unit(1.0)], [*others, 1e6 * _unit(-1.0)])
        return lambda _: replay(_ours, neighbours=[pair], sensitivity=sensitivity, bits=_BITS).finding(
            "replay"
        )

    def nan(_: Rng) -> Finding:
        return replay(_nan_goes_through, neighbours=_scenes()[2:], sensitivity=bound).finding("replay")

    return wrong_and_right(
        "replay",
        wrong={
            "clip after the sum": measured(_clip_after_the_sum),
            "mean over the actual batch": measured(_mean_over_the_batch),
            "NaN in an update": nan,
            "replace-one accounted with add/remove sensitivity": replaced(bound),
        },
        right={
            "every patient clipped, NaN and all": measured(_ours),
            "replace-one accounted with twice the sensitivity": replaced(2 * bound),
        },
    )


# Mechanisms


def _mechanism_controls() -> list[Control]:
    def one_view(share: NoiseShare | None, draws: int) -> Run:
        def run(rng: InsecureSeededRng) -> Finding:
            present, absent = release_samples(_PLAN, shares=5, draws=draws, rng=rng, noise=share)
            claimed = (_PLAN.epsilon(_PLAN.noise_multiplier), _PLAN.delta)
            return finding_of_audit("release", audit_samples(present, absent, claimed=claimed))

        return run

    def every_view(rng: InsecureSeededRng) -> Finding:
        audits = audit_release(_PLAN, draws=1_000_000, rng=rng)
        rows = [finding_of_audit(one.name, one.audit) for one in audits]
        return next((row for row in rows if row.flagged), rows[-1])

    def floats(rng: InsecureSeededRng) -> Finding:
        # The audited noise is NumPy's on purpose; its seed comes from the control's source.
        source = np.random.default_rng(int.from_bytes(rng.bytes(8), "little"))
        audit = reachability_audit(
            lambda value, count: value + source.normal(0.0, 4.0, count), claimed=_claim(4.0), draws=200_000
        )
        return finding_of_audit("reachability", audit)

    def integers(rng: InsecureSeededRng) -> Finding:
        sampler = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=400.0).sampler()

        def release(value: float, count: int) -> NDArray[np.float64]:
            return (round(100 * value) + sampler.draw(count, rng)) / 100

        return finding_of_audit(
            "reachability", reachability_audit(release, claimed=_claim(4.0), draws=200_000)
        )

    halved = replace(_PLAN.noise_share(), sigma=_PLAN.share_sigma() / 4)
    return [
        *wrong_and_right(
            "mechanism audit",
            wrong={"a quarter of the noise": one_view(halved, 50_000)},
            right={"clip, round, noise, sum": one_view(None, 50_000)},
        ),
        *wrong_and_right(
            "mechanism audit", right={"every view of a release, 1e6 draws": every_view}, preset=Preset.FULL
        ),
        *wrong_and_right(
            "unreachable outputs", wrong={"floating-point noise": floats}, right={"integer noise": integers}
        ),
    ]


def _claim(multiplier: float) -> tuple[float, float]:
    return analytic_gaussian_epsilon(1e-5, multiplier), 1e-5


# Adaptive clip

_UNITS: Final = 200
_ROUNDS: Final = 80


def _adaptive(rng: InsecureSeededRng, *, direction: int) -> Finding:
    norms = np.exp(np.linspace(-2.0, 2.0, _UNITS))  # median 1
    slot = bit_slot_size(grid_norm=1000, noise_multiplier=1.0, bit_sigma=_UNITS / 20)
    grid = GridClip.single(dimension=1, clip_norm=1.0, grid_norm=1000, bit_slot=slot)
    noise = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=1000.0).sampler()

    def run(first: float) -> float:
        source = rng.fork(f"start {first}")
        clip = QuantileClip(clip_norm=first, expected_units=_UNITS, grid=grid)
        for _ in range(_ROUNDS):
            unit = clip.unit_clip()
            bits = sum(int(unit.clip(np.array([norm])).values[-1]) for norm in norms)
            moved = clip.after(bits + int(noise.draw(1, source)[0])).clip_norm
            if direction < 0:
                moved = min(max(clip.clip_norm**2 / moved, clip.smallest), clip.largest)
            clip = replace(clip, clip_norm=moved)
        return clip.clip_norm

    return convergence_test(run, 1.0)


def _clip_controls() -> list[Control]:
    return wrong_and_right(
        "convergence test",
        wrong={"adaptive clip with the sign inverted": lambda rng: _adaptive(rng, direction=-1)},
        right={"adaptive clip": lambda rng: _adaptive(rng, direction=1)},
    )
