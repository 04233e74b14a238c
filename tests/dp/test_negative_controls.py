"""Wrong mechanisms that a reviewer must be able to catch, each with the detector that catches it.

Every detector is run on the right mechanism first and must stay silent there. Statistical detectors have a
false-alarm rate of 1e-6; with 9 of them this file raises a false alarm in fewer than 20 of a million runs.
"""

import math

import numpy as np
import pytest
from scipy import stats

from secfl.dp.accounting import Relation, epsilon
from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.dp.events import Gaussian, PoissonSampled, SelfComposed, unless_seeded
from secfl.dp.noise import NoiseFamily, NoiseShare, PatientSum, privatize
from secfl.dp.plan import PrivacyPlan
from secfl.dp.sampling import PoissonSampler
from secfl.errors import ConfigError
from secfl.guarantees import UnitOfPrivacy
from secfl.randomness import InsecureSeededRng, SystemRng
from secfl.types import exact_square_norm

LEVEL = 1e-6
DIMENSION, BITS, GRID_NORM, CLIENTS = 2000, 30, 4096, 3
GRID = GridClip.single(dimension=DIMENSION, clip_norm=1.0, grid_norm=GRID_NORM)
SIGMA = 4096.0
SHARE = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=SIGMA / math.sqrt(CLIENTS))


def patients(count, *, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, scale, DIMENSION).astype(np.float32) for _ in range(count)]


def grid_sum(gradients):
    accumulator = PatientAccumulator(GRID)
    accumulator.add_all(gradients)
    return accumulator.total()


def decode(residues):
    total = sum(r.astype(np.int64) for r in residues) % 2**BITS
    return np.where(total >= 2 ** (BITS - 1), total - 2**BITS, total)


def send(total, *, share=SHARE, rng=None):
    return privatize(total, noise=share, bits=BITS, rng=rng or SystemRng()).vectors["update"]


# --- noise: variance of what is opened, minus the known sum


def noise_rejected(noise):
    """Second moment against σ²; two-sided, level 1e-6."""
    score = (np.mean(noise.astype(float) ** 2) / SIGMA**2 - 1) / math.sqrt(2 / noise.size)
    return abs(score) > stats.norm.isf(LEVEL / 2)


@pytest.mark.parametrize("wrong", ["none", "half", "one client's share missing"])
def test_missing_noise_is_caught(wrong):
    totals = [grid_sum(patients(4, seed=site)) for site in range(CLIENTS)]
    known = sum(total.values for total in totals)
    assert not noise_rejected(decode([send(total) for total in totals]) - known)
    shares = {
        "none": [None] * CLIENTS,
        "half": [NoiseShare(family=SHARE.family, sigma=SHARE.sigma / 2)] * CLIENTS,
        "one client's share missing": [None] + [SHARE] * (CLIENTS - 1),
    }[wrong]
    opened = decode([send(total, share=share) for total, share in zip(totals, shares, strict=True)])
    assert noise_rejected(opened - known)


def test_one_noise_seed_for_two_clients_is_caught():
    """Correlation of two clients' noises; level 1e-6."""
    zero = PatientSum(values=np.zeros(DIMENSION, np.int64), sensitivity=GRID_NORM)

    def correlated(first, second):
        noises = [decode([send(zero, rng=rng)]).astype(float) for rng in (first, second)]
        return abs(np.corrcoef(*noises)[0, 1]) * math.sqrt(DIMENSION) > stats.norm.isf(LEVEL / 2)

    assert not correlated(SystemRng(), SystemRng())
    assert not correlated(InsecureSeededRng(1).fork("a"), InsecureSeededRng(1).fork("b"))
    assert correlated(InsecureSeededRng(1), InsecureSeededRng(1))


def test_floating_point_noise_is_caught_by_unreachable_outputs():
    """Near zero a double has finer steps than near one: such outputs rule out the other input (Mironov 2012)."""

    def reachable_from_one(output):
        # Whatever is added to 1.0, the sum is a multiple of 2^-53.
        return float(output * 2.0**53).is_integer()

    rng = np.random.default_rng(0)
    floats = 0.0 + rng.normal(0, 1.0, 200)
    assert not all(reachable_from_one(x) for x in floats)
    zero = PatientSum(values=np.zeros(DIMENSION, np.int64), sensitivity=GRID_NORM)
    assert all(reachable_from_one(float(x)) for x in decode([send(zero)]))


# --- replay: the client step on neighbouring data, with frozen noise


def sensitivity_violated(step, data, neighbour, bound):
    """Whether the integer outputs differ by more than ``bound`` although the noise is the same."""
    outputs = [decode([send(step(x), rng=InsecureSeededRng(5))]) for x in (data, neighbour)]
    difference = (outputs[0] - outputs[1]) % 2**BITS
    difference = np.where(difference >= 2 ** (BITS - 1), difference - 2**BITS, difference)
    return exact_square_norm(difference) > bound**2


def as_sum(values):
    return PatientSum(values=np.asarray(values, np.int64), sensitivity=GRID_NORM)


def clip_after_the_sum(gradients):
    return as_sum(GRID.clip(np.sum(gradients, axis=0)).values)


def mean_over_the_actual_batch(gradients, expected=4):
    return as_sum(np.rint(grid_sum(gradients).values * (expected / max(1, len(gradients)))))


def unchecked_non_finite(gradients):
    with np.errstate(invalid="ignore"):
        clipped = [g / max(1.0, float(np.linalg.norm(g))) * GRID_NORM for g in gradients]
        return as_sum(np.nan_to_num(np.sum(clipped, axis=0), nan=2**20))


def opposed():
    """One patient outweighs the others in the opposite direction."""
    line = np.ones(DIMENSION, np.float32)
    return [line, -3 * line], [line]


def unlike():
    return [np.eye(1, DIMENSION, i, dtype=np.float32)[0] for i in range(4)], [
        np.eye(1, DIMENSION, i, dtype=np.float32)[0] for i in range(1)
    ]


def with_nan():
    bad = np.full(DIMENSION, np.nan, np.float32)
    good = patients(2)
    return [*good, bad], good


@pytest.mark.parametrize(
    ("wrong", "neighbours"),
    [
        (clip_after_the_sum, opposed),
        (mean_over_the_actual_batch, unlike),
        (unchecked_non_finite, with_nan),
    ],
)
def test_wrong_sensitivity_is_caught_by_replay(wrong, neighbours):
    data, neighbour = neighbours()
    neighbour = data[:-1] if neighbours is unlike else neighbour
    assert not sensitivity_violated(grid_sum, data, neighbour, GRID_NORM)
    assert sensitivity_violated(wrong, data, neighbour, GRID_NORM)


def test_replacement_accounted_with_the_sensitivity_of_removal_is_caught():
    line = np.ones(DIMENSION, np.float32)
    data, neighbour = [line, line], [line, -line]
    plan = PrivacyPlan(
        unit=UnitOfPrivacy.PATIENT,
        relation=Relation.REPLACE_ONE,
        clip_norm=1.0,
        grid_norm=GRID_NORM,
        dimension=DIMENSION,
        noise_multiplier=2.0,
        releases=10,
        cohort_size=CLIENTS,
        threshold=CLIENTS,
        delta=1e-5,
    )
    assert sensitivity_violated(grid_sum, data, neighbour, GRID_NORM)
    assert not sensitivity_violated(grid_sum, data, neighbour, plan.sensitivity)


# --- sampling


def test_a_schedule_from_a_seed_is_not_presented_as_secret():
    event = SelfComposed(PoissonSampled(0.04, Gaussian(1.0)), 500)
    assert epsilon(unless_seeded(event, SystemRng()), delta=1e-5) < 6
    assert epsilon(unless_seeded(event, InsecureSeededRng(0)), delta=1e-5) == math.inf


def test_shuffling_presented_as_poisson_is_caught_by_batch_sizes_and_inclusions():
    """Chi-square of batch sizes and of participations against the binomial; level 1e-6 each."""
    population, rate, steps = 400, 0.05, 200

    def rejected(batches):
        sizes = np.array([batch.size for batch in batches])
        taken = np.bincount(np.concatenate(batches), minlength=population)
        results = []
        for values, trials in ((sizes, population), (taken, steps)):
            statistic = ((values - trials * rate) ** 2).sum() / (trials * rate * (1 - rate))
            low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], values.size)
            results.append(not low <= statistic <= high)
        return results

    sampler = PoissonSampler(population=population, rate=rate)
    assert rejected([sampler.draw(SystemRng()) for _ in range(steps)]) == [False, False]
    order = np.random.default_rng(0)
    shuffled = [b for _ in range(steps // 20) for b in np.split(order.permutation(population), 20)]
    assert rejected(shuffled) == [True, True]


def test_sampled_clients_cannot_be_planned():
    with pytest.raises(ConfigError, match="not sampled"):
        PrivacyPlan(
            unit=UnitOfPrivacy.CLIENT,
            relation=Relation.ZERO_OUT,
            clip_norm=1.0,
            grid_norm=GRID_NORM,
            dimension=DIMENSION,
            noise_multiplier=2.0,
            releases=10,
            cohort_size=CLIENTS,
            threshold=CLIENTS,
            delta=1e-5,
            sampling_rate=0.5,
        )
