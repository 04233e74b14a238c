"""Noise, clipping and accounting. Peers are measured in the same run; those not installed are skipped.

Run: ``pytest benchmarks/test_dp.py --benchmark-only``. ``extra_info`` holds ns per draw.
"""

from __future__ import annotations

import numpy as np
import pytest

from secfl.dp import accounting, noise, tables
from secfl.dp.accounting import Accountant, epsilon
from secfl.dp.clipping import GridClip
from secfl.dp.events import Composed, Gaussian, PoissonSampled, SelfComposed
from secfl.dp.noise import NoiseFamily, NoiseShare, PatientSum, integer_sampler, privatize
from secfl.dp.plan import PrivacyPlan
from secfl.dp.what_if import plan_table
from secfl.guarantees import UnitOfPrivacy
from secfl.randomness import SystemRng

DRAWS = 1_000_000
WIDTHS = [0.5, 4.5, 64.0, 1000.0, 1e4, 1e5]


def per_item(benchmark, count):
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["ns_per_item"] = round(benchmark.stats.stats.median / count * 1e9, 2)


@pytest.mark.benchmark(group="noise")
@pytest.mark.parametrize("family", list(NoiseFamily))
@pytest.mark.parametrize("sigma", WIDTHS)
def test_integer_noise(benchmark, family, sigma):
    sampler = integer_sampler(family, sigma)
    draws = benchmark(sampler.draw, DRAWS, SystemRng())
    assert draws.size == DRAWS
    per_item(benchmark, DRAWS)


@pytest.mark.benchmark(group="noise")
def test_peer_numpy_normal(benchmark):
    generator = np.random.default_rng()
    benchmark(generator.normal, 0.0, 1000.0, DRAWS)
    per_item(benchmark, DRAWS)


@pytest.mark.benchmark(group="noise")
def test_peer_numpy_difference_of_poissons(benchmark):
    generator = np.random.default_rng()
    benchmark(lambda: generator.poisson(5e5, DRAWS) - generator.poisson(5e5, DRAWS))
    per_item(benchmark, DRAWS)


@pytest.mark.benchmark(group="noise")
def test_peer_opendp_discrete_gaussian(benchmark):
    dp = pytest.importorskip("opendp.prelude")
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    mechanism = space >> dp.m.then_gaussian(1000.0)
    count = 20_000
    zeros = [0] * count
    benchmark(mechanism, zeros)
    per_item(benchmark, count)


@pytest.mark.benchmark(group="noise")
def test_peer_randomgen_normal(benchmark):
    randomgen = pytest.importorskip("randomgen")
    generator = np.random.Generator(randomgen.AESCounter())
    benchmark(generator.normal, 0.0, 1000.0, DRAWS)
    per_item(benchmark, DRAWS)


@pytest.mark.benchmark(group="tables")
@pytest.mark.parametrize("family", list(NoiseFamily))
@pytest.mark.parametrize("sigma", [190.0, 1e5])
def test_building_the_tables(benchmark, family, sigma):
    def build():
        for kept in (
            integer_sampler,
            noise._design,
            tables.discrete_gaussian_thresholds,
            tables.skellam_thresholds,
        ):
            kept.cache_clear()
        return integer_sampler(family, sigma)

    assert benchmark.pedantic(build, rounds=3).reach > sigma


@pytest.mark.benchmark(group="update")
def test_privatize(benchmark):
    total = PatientSum(values=np.zeros(DRAWS, np.int64), sensitivity=4096)
    share = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=4096.0)
    benchmark(privatize, total, noise=share, bits=24, rng=SystemRng())
    per_item(benchmark, DRAWS)


@pytest.mark.benchmark(group="update")
def test_clip_one_patient(benchmark):
    grid = GridClip.single(dimension=DRAWS, clip_norm=1.0, grid_norm=2**16)
    gradient = np.random.default_rng(0).normal(0, 1, DRAWS).astype(np.float32)
    benchmark(grid.clip, gradient)
    per_item(benchmark, DRAWS)


def forget():
    accounting._gaussian_epsilon.cache_clear()
    accounting._loss_distribution.cache_clear()


def sgd(z=1.0):
    return SelfComposed(PoissonSampled(0.04, Gaussian(z)), 500)


@pytest.mark.benchmark(group="accounting")
@pytest.mark.parametrize("accountant", [a for a in Accountant if a is not Accountant.EXACT])
def test_accountants(benchmark, accountant):
    def account():
        forget()
        return epsilon(sgd(), delta=1e-5, accountant=accountant)

    account()  # dp-accounting takes a second to load
    assert 5.8 < benchmark(account) < 6.7


@pytest.mark.benchmark(group="accounting")
@pytest.mark.parametrize("accountant", [Accountant.AUTO, Accountant.RDP])
def test_ten_thousand_heterogeneous_events(benchmark, accountant):
    events = Composed(tuple(PoissonSampled(0.01, Gaussian(1.0 + i * 1e-4)) for i in range(10_000)))

    def account():
        forget()
        return epsilon(events, delta=1e-5, accountant=accountant)

    assert benchmark.pedantic(account, rounds=1) > 0


@pytest.mark.benchmark(group="accounting")
def test_table_of_views(benchmark):
    plan = PrivacyPlan(
        unit=UnitOfPrivacy.PATIENT,
        clip_norm=1.0,
        grid_norm=4096,
        dimension=10**6,
        noise_multiplier=1.0,
        releases=500,
        cohort_size=5,
        threshold=4,
        delta=1e-5,
        sampling_rate=0.04,
    )

    def table():
        forget()
        return plan_table(plan)

    assert len(benchmark(table)) == 14
