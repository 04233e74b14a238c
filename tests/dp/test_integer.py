"""The proof in docs/privacy.md, checked against exact divergences on small supports."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import integrate, stats

from secfl.dp.analytic import analytic_gaussian_delta
from secfl.dp.events import Gaussian, IntegerNoise, Leaf
from secfl.dp.integer import SMALLEST_SHARE, gaussian_equivalent, share_sum_remainder
from secfl.dp.noise import NoiseFamily
from secfl.dp.rdp import rdp_of_leaf
from secfl.errors import UnsupportedEvent


def noise(sigma, *, sensitivity=1, dimension=1, shares=1, family=NoiseFamily.DISCRETE_GAUSSIAN):
    return IntegerNoise(
        family=family,
        sigma=sigma,
        sensitivity=sensitivity,
        dimension=dimension,
        shares=shares,
        smallest_share=sigma / math.sqrt(shares),
        sampler_error=0.0,
    )


@pytest.mark.parametrize("s", [0.4, 0.5, 0.7, 1.0])
def test_rounded_gaussian_is_within_the_stated_factor_of_the_discrete_one(s):
    """Lemma 1 for small s, where the factor is visible: 1 ± 2·exp(-2π²s²), both directions, numerically."""
    sigma = 2.0
    eta = 2 * sum(math.exp(-2 * math.pi**2 * s * s * k * k) for k in range(1, 20))
    bound = math.log((1 + eta) / (1 - eta))
    wide = range(-60, 61)

    def kernel(y, x):
        return math.exp(-((y - x) ** 2) / (2 * s * s)) / math.fsum(
            math.exp(-((j - x) ** 2) / (2 * s * s)) for j in range(math.floor(x) - 25, math.floor(x) + 26)
        )

    total = math.fsum(math.exp(-(j * j) / (2 * sigma**2)) for j in wide)
    spread = math.sqrt(sigma**2 - s**2)
    worst = 0.0
    for y in range(8):
        rounded, _ = integrate.quad(
            lambda x, y=y: stats.norm.pdf(x, 0, spread) * kernel(y, x),
            y - 12,
            y + 12,
            limit=400,
            epsabs=1e-14,
        )
        worst = max(worst, abs(math.log(rounded / (math.exp(-(y * y) / (2 * sigma**2)) / total))))
    assert worst <= bound + 1e-10
    # The normalisation of the kernel is where the factor comes from, and there it is nearly attained.
    theta = [
        math.fsum(math.exp(-((j - x) ** 2) / (2 * s * s)) for j in range(-25, 26)) for x in (0.0, 0.25, 0.5)
    ]
    extremes = [abs(value / (s * math.sqrt(2 * math.pi)) - 1) for value in theta]
    assert max(extremes) <= eta + 1e-12
    assert max(extremes) > 0.9 * eta


@pytest.mark.parametrize(("sigma", "sensitivity"), [(4.0, 1), (4.0, 3), (6.5, 4), (12.0, 12), (30.0, 20)])
def test_exact_delta_of_the_discrete_gaussian_never_exceeds_the_accounted_one(exact, sigma, sensitivity):
    reach = math.ceil(12 * sigma)
    pmf = [float(p) for p in exact.discrete_gaussian(sigma**2, reach)]
    p = exact.shifted(pmf, sensitivity, sensitivity)
    q = exact.shifted(pmf, 0, sensitivity)
    equivalent = gaussian_equivalent(noise(sigma, sensitivity=sensitivity))
    assert equivalent.noise_multiplier == pytest.approx(math.sqrt(sigma**2 - 4) / sensitivity)
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0, 4.0):
        accounted = analytic_gaussian_delta(epsilon, equivalent.noise_multiplier)
        assert exact.hockey_stick(p, q, epsilon) <= accounted + 1e-14
    # On a coarse grid the continuous Gaussian of the same σ is not a bound: the correction is needed.
    if sensitivity == 1:
        optimistic = [analytic_gaussian_delta(e, sigma / sensitivity) for e in np.linspace(0.05, 1.2, 24)]
        true = [exact.hockey_stick(p, q, e) for e in np.linspace(0.05, 1.2, 24)]
        assert any(t > o for t, o in zip(true, optimistic, strict=True))


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8])
@pytest.mark.parametrize("shares", [2, 3, 5])
def test_sum_of_shares_is_within_tau_of_one_discrete_gaussian(exact, share, shares):
    reach = 12
    single = exact.discrete_gaussian(share**2, reach)
    with localcontext() as context:
        context.prec = 60
        total = single
        for _ in range(shares - 1):
            total = exact.convolve(total, single)
        whole = exact.discrete_gaussian(shares * share**2, shares * reach)
        centre = shares * reach
        # Near the end of the truncated support the exact sum itself is cut; look where it is not.
        ratios = [
            abs(float((total[centre + x] / whole[centre + x]).ln()))
            for x in range(-reach // 2, reach // 2 + 1)
        ]
    assert max(ratios) <= share_sum_remainder(share, shares)


def test_the_bound_with_the_total_width_is_violated(exact):
    """σ_local must enter the bound: with the total σ in its place the exact sum contradicts it."""
    share, shares, reach = 0.5, 5, 12
    single = exact.discrete_gaussian(share**2, reach)
    with localcontext() as context:
        context.prec = 60
        total = single
        for _ in range(shares - 1):
            total = exact.convolve(total, single)
        whole = exact.discrete_gaussian(shares * share**2, shares * reach)
        worst = max(
            abs(float((total[shares * reach + x] / whole[shares * reach + x]).ln())) for x in range(-5, 6)
        )
    assert (
        share_sum_remainder(share * math.sqrt(shares), shares) < worst <= share_sum_remainder(share, shares)
    )


def test_narrow_shares_are_refused_and_wide_ones_cost_next_to_nothing():
    with pytest.raises(UnsupportedEvent, match="finer grid"):
        gaussian_equivalent(noise(8.9, shares=5))  # 3.98 per share
    equivalent = gaussian_equivalent(noise(SMALLEST_SHARE * math.sqrt(5), shares=5, dimension=10**7))
    assert 0 < equivalent.remainder < 1e-26


def test_skellam_has_no_gaussian_equivalent():
    with pytest.raises(UnsupportedEvent, match="skellam"):
        gaussian_equivalent(noise(100.0, family=NoiseFamily.SKELLAM))


def exact_renyi(p, q, order):
    """Rényi divergence of Decimal lists, in Decimal until the last step."""
    with localcontext() as context:
        context.prec = 60
        moment = sum((a / b) ** order * b for a, b in zip(p, q, strict=True) if a > 0 and b > 0)
        return float((moment.ln()) / (order - 1))


@pytest.mark.parametrize("variance", [0.25, 1.0, 9.0, 64.0])
@pytest.mark.parametrize("sensitivity", [1, 2, 3])
def test_skellam_bound_covers_the_exact_divergence(exact, variance, sensitivity):
    reach = 120 + sensitivity
    pmf = exact.skellam(variance, reach)
    inner = slice(sensitivity, len(pmf) - sensitivity)
    p, q = pmf[: len(pmf) - sensitivity][inner], pmf[sensitivity:][inner]
    event = noise(math.sqrt(variance), sensitivity=sensitivity, family=NoiseFamily.SKELLAM)
    for order in (2, 3, 5, 8, 16, 32, 64):
        true = max(exact_renyi(p, q, order), exact_renyi(q, p, order))
        assert true <= rdp_of_leaf(Leaf(event), order) + 1e-9
        # The bound is not idle: where the noise is wide it is nearly attained.
        if variance == 64 and sensitivity == 1 and order <= 8:
            assert true > 0.95 * rdp_of_leaf(Leaf(event), order)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("order", [2, 3, 7, 20])
def test_sampled_skellam_bound_covers_the_exact_divergence(exact, rate, order):
    variance = 4.0
    pmf = exact.skellam(variance, 100)
    with localcontext() as context:
        context.prec = 60
        q = Decimal(rate)
        without, with_unit = pmf[1:], pmf[:-1]
        mixture = [(1 - q) * a + q * b for a, b in zip(without, with_unit, strict=True)]
        true = max(exact_renyi(mixture, without, order), exact_renyi(without, mixture, order))
    event = noise(2.0, family=NoiseFamily.SKELLAM)
    bound = rdp_of_leaf(Leaf(event, rate), order)
    assert true <= bound
    assert bound < rdp_of_leaf(Leaf(event), order)


@pytest.mark.parametrize("rate", [0.004, 0.04, 0.5])
@pytest.mark.parametrize("order", [2, 5, 16])
@pytest.mark.parametrize("z", [0.8, 2.0])
def test_sampled_gaussian_divergence_is_the_integral(rate, order, z):
    def integrand(x):
        log_p = stats.norm.logpdf(x, 0, z)
        log_mix = np.logaddexp(math.log1p(-rate) + log_p, math.log(rate) + stats.norm.logpdf(x, 1, z))
        return math.exp(order * log_mix + (1 - order) * log_p)

    value, _ = integrate.quad(integrand, -12 * z, order + 12 * z, limit=500, epsabs=0, epsrel=1e-12)
    assert rdp_of_leaf(Leaf(Gaussian(z), rate), order) == pytest.approx(
        math.log(value) / (order - 1), rel=1e-6
    )
