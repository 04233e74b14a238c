import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.dp.accounting import (
    Accountant,
    Relation,
    cross_check,
    delta_with_cryptography,
    epsilon,
    epsilon_reference,
)
from secfl.dp.analytic import analytic_gaussian_delta, analytic_gaussian_epsilon, log_normal_cdf
from secfl.dp.events import (
    Composed,
    Gaussian,
    IntegerNoise,
    Leaf,
    NonPrivate,
    NoOp,
    PoissonSampled,
    SelfComposed,
    ZeroConcentrated,
)
from secfl.dp.integer import GaussianEquivalent
from secfl.dp.noise import NoiseFamily
from secfl.dp.rdp import curve_of_leaves, rdp_curve, rdp_of_leaf, rdp_to_epsilon
from secfl.errors import ConfigError, PrivacyError, UnsupportedEvent

ACCOUNTANTS = [Accountant.PLD, Accountant.RDP]


def sgd(z, rate=0.04, steps=500):
    return SelfComposed(PoissonSampled(rate, Gaussian(z)), steps)


def integer(z, *, grid=4096, family=NoiseFamily.DISCRETE_GAUSSIAN, dimension=10**6, shares=5, error=0.0):
    return IntegerNoise(
        family=family,
        sigma=z * grid,
        sensitivity=grid,
        dimension=dimension,
        shares=shares,
        smallest_share=z * grid / math.sqrt(shares),
        sampler_error=error,
    )


# --- golden figures

GOLDEN = {5: 5.879, 4: 7.397, 3: 10.238, 2: 16.993, 1: 44.086}
"""Shares that stay unknown out of five -> ε at q = 0.04, T = 500, z = 1, δ = 1e-5."""


@pytest.mark.parametrize(("shares", "expected"), GOLDEN.items())
@pytest.mark.parametrize("accountant", [Accountant.PLD, Accountant.LIBRARY_PLD])
def test_golden_table(shares, expected, accountant):
    assert epsilon(sgd(math.sqrt(shares / 5)), delta=1e-5, accountant=accountant) == pytest.approx(
        expected, abs=0.01
    )


@pytest.mark.parametrize(("shares", "expected"), [(5, 6.54), (4, 8.31), (3, 12.00), (2, 18.99), (1, 116.0)])
def test_golden_skellam_column(shares, expected):
    mechanism = integer(math.sqrt(shares / 5), family=NoiseFamily.SKELLAM, shares=shares)
    event = SelfComposed(PoissonSampled(0.04, mechanism), 500)
    assert epsilon(event, delta=1e-5) == pytest.approx(expected, abs=0.01 if shares > 1 else 0.1)


@pytest.mark.parametrize(("rate", "expected"), [(0.02, 2.77), (0.04, 5.88), (0.08, 12.79)])
def test_figures_of_sites_with_different_rates(rate, expected):
    assert epsilon(sgd(1.0, rate=rate), delta=1e-5) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("rounds", "z"), [(20, 2.7), (50, 4.2), (100, 6.0)])
def test_client_level_needs_this_much_noise_for_epsilon_eight(rounds, z):
    assert epsilon(SelfComposed(Gaussian(z), rounds), delta=1e-5) == pytest.approx(8.0, abs=0.12)


def test_published_figures_of_opacus():
    """pytorch/opacus, accountants_test.py: z = 1.5, q = 0.04, 2250 steps: RDP 7.329, PRV 6.78 (± 0.01)."""
    event = sgd(1.5, steps=2250)
    assert epsilon(event, delta=1e-5, accountant=Accountant.RDP) == pytest.approx(7.32911117143, abs=2e-3)
    assert epsilon(event, delta=1e-5, accountant=Accountant.PLD) == pytest.approx(6.777, abs=0.02)


def test_a_known_schedule_has_no_amplification():
    """20 participations without sampling: 28.4, not 5.88."""
    assert epsilon(SelfComposed(Gaussian(1.0), 20), delta=1e-5) == pytest.approx(28.4, abs=0.05)


def test_zcdp_without_amplification_is_useless_here():
    assert epsilon(SelfComposed(ZeroConcentrated(0.5), 500), delta=1e-5) == pytest.approx(355, abs=1)


# --- the exact Gaussian


@given(st.floats(0.05, 50), st.floats(1e-11, 0.3))
def test_analytic_epsilon_inverts_analytic_delta(z, delta):
    found = analytic_gaussian_epsilon(delta, z)
    assert analytic_gaussian_delta(found, z) <= delta
    if found > 0:
        assert analytic_gaussian_delta(found * (1 - 1e-6), z) > delta * (1 - 1e-9)


def test_analytic_gaussian_at_known_points():
    """δ(0) is the total variation distance of N(0, z²) and N(1, z²): 2Φ(1/(2z)) - 1."""
    for z in (0.3, 1.0, 4.0):
        assert analytic_gaussian_delta(0.0, z) == pytest.approx(
            math.erf(1 / (2 * z) / math.sqrt(2)), rel=1e-12
        )
    assert analytic_gaussian_epsilon(1e-5, 3.730631634944469) == pytest.approx(1.0, abs=1e-4)


def test_log_normal_cdf_is_smooth_where_the_formula_changes():
    left, right = log_normal_cdf(-30 - 1e-9), log_normal_cdf(-30 + 1e-9)
    assert left == pytest.approx(right, rel=1e-8)
    assert log_normal_cdf(-50.0) == pytest.approx(-1254.8313611, abs=1e-6)


@given(st.floats(0.3, 20), st.integers(1, 60), st.floats(1e-9, 1e-2))
@settings(max_examples=25)
def test_pld_without_sampling_equals_the_analytic_gaussian(z, count, delta):
    event = SelfComposed(Gaussian(z), count)
    exact = epsilon(event, delta=delta, accountant=Accountant.EXACT)
    composed = epsilon(event, delta=delta, accountant=Accountant.PLD)
    assert exact - 1e-9 <= composed <= exact * 1.001 + 1e-3


# --- properties

multipliers = st.floats(0.5, 5.0)
rates = st.floats(0.001, 0.5)
counts = st.integers(1, 400)
deltas = st.floats(1e-9, 1e-3)
SLACK = 1.002  # two privacy loss grids may round differently


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@given(multipliers, rates, st.integers(2, 40))
@settings(max_examples=12)
def test_composing_n_events_equals_n_times_the_event(accountant, z, rate, count):
    single = PoissonSampled(rate, Gaussian(z))
    together = epsilon(SelfComposed(single, count), delta=1e-5, accountant=accountant)
    apart = epsilon(Composed((single,) * count), delta=1e-5, accountant=accountant)
    nested = epsilon(
        Composed((SelfComposed(single, count - 1), NoOp(), single)), delta=1e-5, accountant=accountant
    )
    assert together == apart == nested


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@given(multipliers, rates, counts, deltas, st.floats(1.05, 3.0))
@settings(max_examples=12)
def test_epsilon_is_monotone(accountant, z, rate, count, delta, factor):
    def at(z=z, rate=rate, count=count, delta=delta):
        return epsilon(sgd(z, rate, count), delta=delta, accountant=accountant)

    base = at()
    slack = SLACK * base + 1e-3
    assert at(z=z * factor) <= slack
    assert at(rate=rate / factor) <= slack
    assert at(count=max(1, int(count / factor))) <= slack
    assert at(delta=delta * factor) <= slack


@given(multipliers, rates, counts, deltas)
@settings(max_examples=25)
def test_renyi_is_never_below_pld(z, rate, count, delta):
    event = sgd(z, rate, count)
    pld = epsilon(event, delta=delta, accountant=Accountant.PLD)
    assert epsilon(event, delta=delta, accountant=Accountant.RDP) >= pld * 0.9999 - 1e-4


@pytest.mark.parametrize(
    ("z", "rate", "steps"), [(1.0, 0.04, 500), (0.6, 0.2, 50), (2.0, 0.01, 1000), (1.1, 0.004, 3000)]
)
def test_all_accountants_agree(z, rate, steps):
    figures = cross_check(sgd(z, rate, steps), delta=1e-5)
    assert set(figures) == set(Accountant) - {Accountant.EXACT}
    assert figures[Accountant.PLD] == pytest.approx(figures[Accountant.LIBRARY_PLD], rel=2e-3)
    # The library also tries fractional orders, which help where ε is large.
    assert 1 - 1e-9 <= figures[Accountant.RDP] / figures[Accountant.LIBRARY_RDP] <= (1.12 if z < 1 else 1.01)


def test_cross_check_catches_an_accountant_that_is_wrong(monkeypatch):
    monkeypatch.setattr("secfl.dp.accounting._library_epsilon", lambda *_: 1.0)
    with pytest.raises(PrivacyError, match="disagree"):
        cross_check(sgd(1.0, steps=497), delta=1e-5)


def test_many_distinct_mechanisms_are_merged_to_the_safe_side():
    event = Composed(tuple(PoissonSampled(0.04, Gaussian(1.4 * 0.999**i)) for i in range(300)))
    merged = epsilon(event, delta=1e-5)
    assert merged >= epsilon(sgd(1.4, steps=300), delta=1e-5)
    assert merged <= epsilon(sgd(1.4 * 0.999**299, steps=300), delta=1e-5)
    assert merged <= epsilon(event, delta=1e-5, accountant=Accountant.RDP)
    few = Composed(tuple(PoissonSampled(0.04, Gaussian(1.4 * 0.999**i)) for i in range(100)))
    assert epsilon(few, delta=1e-5) <= merged


# --- the integer mechanism


@pytest.mark.parametrize("shares", GOLDEN)
def test_the_proved_figure_is_just_above_the_reference(shares):
    mechanism = integer(math.sqrt(shares / 5), shares=shares, error=1e-35)
    event = SelfComposed(PoissonSampled(0.04, mechanism), 500)
    reference = epsilon_reference(event, delta=1e-5)
    proved = epsilon(event, delta=1e-5)
    assert reference == pytest.approx(GOLDEN[shares], abs=0.01)
    assert reference <= proved <= reference * 1.001


def test_a_coarse_grid_costs_what_the_equivalent_gaussian_costs():
    event = SelfComposed(integer(1.0, grid=10, shares=1), 20)
    equivalent = SelfComposed(Gaussian(math.sqrt(1 - 4 / 100)), 20)
    assert epsilon(event, delta=1e-5) == pytest.approx(epsilon(equivalent, delta=1e-5), rel=1e-9)
    assert epsilon(event, delta=1e-5) > epsilon_reference(event, delta=1e-5)


def test_the_sampler_error_takes_its_part_of_delta():
    mechanism = integer(1.0, error=5e-19)  # · 1e6 coordinates · 20 releases = 1e-11, times 1 + e^ε
    event = SelfComposed(PoissonSampled(0.04, mechanism), 20)
    ideal = SelfComposed(PoissonSampled(0.04, integer(1.0)), 20)
    charged = epsilon(event, delta=1e-9)
    left = 1e-9 - (1 + math.exp(charged)) * 1e-11
    assert 1.001 * epsilon(ideal, delta=1e-9) < charged < math.inf
    assert epsilon(ideal, delta=left) <= charged + 1e-9


def test_an_error_as_large_as_delta_leaves_no_guarantee():
    event = SelfComposed(integer(1.0, error=1e-11), 100)
    assert epsilon(event, delta=1e-5) == math.inf


def test_crypto_advantage_is_added_to_delta():
    assert delta_with_cryptography(1e-5, 8.0, advantage_log2=-math.inf) == 1e-5
    expected = 1e-5 + (1 + math.exp(8)) * 2.0**-40
    assert delta_with_cryptography(1e-5, 8.0, advantage_log2=-40.0) == pytest.approx(expected)
    assert delta_with_cryptography(1e-5, 8.0, advantage_log2=0.0) == 1.0
    assert delta_with_cryptography(1e-5, 800.0, advantage_log2=-200.0) == 1.0


# --- what is refused


@pytest.mark.parametrize("order", [-1, 0, 1, 10**6])
def test_a_divergence_has_an_order_for_which_there_is_a_bound(order):
    """At order 1 and below the sums over binomials are empty: nothing would come of them, as if it were private."""
    with pytest.raises(ConfigError, match=f"Rényi order {order}: expected an integer from 2"):
        rdp_of_leaf(Leaf(Gaussian(1.0), 0.04), order)


def test_non_private_and_empty():
    assert epsilon(Composed((sgd(1.0), NonPrivate("x"))), delta=1e-5) == math.inf
    assert epsilon_reference(NonPrivate("x"), delta=1e-5) == math.inf
    assert epsilon(NoOp(), delta=1e-5) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_out_of_range(delta):
    """Also where nothing is computed from it: a row of a ledger would state a δ that is none."""
    for call in (epsilon, epsilon_reference):
        for event in (sgd(1.0), NonPrivate("x"), Composed(())):
            with pytest.raises(ConfigError, match="delta"):
                call(event, delta=delta)
    with pytest.raises(ConfigError, match="delta"):
        rdp_to_epsilon({2: 1.0}, delta)
    with pytest.raises(ConfigError, match="delta"):
        analytic_gaussian_epsilon(delta, 1.0)


@pytest.mark.parametrize("accountant", [Accountant.PLD, Accountant.LIBRARY_PLD])
def test_fft_accountants_are_refused_below_their_precision(accountant):
    with pytest.raises(ConfigError, match="1e-12"):
        epsilon(sgd(1.0), delta=1e-13, accountant=accountant)
    assert epsilon(sgd(1.0), delta=1e-13) == epsilon(sgd(1.0), delta=1e-13, accountant=Accountant.RDP)


@pytest.mark.parametrize("z", [0.01, 0.1])
@pytest.mark.parametrize("steps", [1, 1000, 10**6])
def test_hardly_any_noise_gives_a_large_number_quickly(z, steps):
    figure = epsilon(sgd(z, steps=steps), delta=1e-5)
    assert figure > 50
    assert figure >= epsilon_reference(sgd(z * 1.01, steps=steps), delta=1e-5)


@pytest.mark.parametrize(("z", "rate", "steps"), [(100.0, 1e-3, 10**7), (1000.0, 1e-3, 10**7)])
def test_tiny_losses_are_resolved_by_the_grid(z, rate, steps):
    """The sum of many tiny losses is Gaussian with variance T q²/z² (GDP limit, Bu et al. 2020)."""
    limit = analytic_gaussian_epsilon(1e-5, z / rate / math.sqrt(steps))
    assert epsilon(sgd(z, rate, steps), delta=1e-5) == pytest.approx(limit, rel=0.02)


def test_small_delta_never_gives_a_smaller_epsilon():
    figures = [epsilon(sgd(1.0), delta=10.0**-k) for k in range(3, 16)]
    assert figures == sorted(figures)


def test_replace_one_under_sampling_is_refused():
    with pytest.raises(UnsupportedEvent, match="replace-one"):
        epsilon(sgd(1.0), delta=1e-5, relation=Relation.REPLACE_ONE)
    assert epsilon(SelfComposed(Gaussian(4.0), 3), delta=1e-5, relation=Relation.REPLACE_ONE) > 0


def test_accountants_refuse_what_they_do_not_cover():
    skellam = integer(1.0, family=NoiseFamily.SKELLAM)
    for accountant in (Accountant.PLD, Accountant.LIBRARY_PLD, Accountant.LIBRARY_RDP, Accountant.EXACT):
        with pytest.raises(UnsupportedEvent):
            epsilon(skellam, delta=1e-5, accountant=accountant)
    with pytest.raises(UnsupportedEvent, match="sampling"):
        epsilon(sgd(1.0), delta=1e-5, accountant=Accountant.EXACT)
    with pytest.raises(UnsupportedEvent, match="sampled"):
        epsilon(PoissonSampled(0.1, ZeroConcentrated(0.1)), delta=1e-5)
    with pytest.raises(UnsupportedEvent, match="reference"):
        epsilon_reference(ZeroConcentrated(0.1), delta=1e-5)


@pytest.mark.parametrize("order", [1, 0, -3, 1025])
def test_renyi_orders_out_of_range_are_refused(order):
    with pytest.raises(ConfigError, match="order"):
        rdp_curve(sgd(1.0), orders=(order,))
    with pytest.raises(ConfigError, match="order"):
        rdp_to_epsilon({order: 1.0}, 1e-5)


def test_accounting_loads_neither_torch_nor_scipy_nor_an_accountant():
    code = (
        "import sys, secfl.dp.plan, secfl.dp.what_if, secfl.dp.filters, secfl.dp.adaptive\n"
        "from secfl.dp.accounting import epsilon\n"
        "from secfl.dp.events import *\n"
        "epsilon(SelfComposed(PoissonSampled(.04, Gaussian(1.)), 500), delta=1e-5)\n"
        "assert not {'torch', 'scipy', 'dp_accounting', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("accountant", [Accountant.AUTO, Accountant.PLD, Accountant.RDP])
def test_the_pure_remainder_is_charged(monkeypatch, accountant):
    """It is about 1e-25 for real noise; with R = 0.1 in its place the theorem's 2R and e^R are visible."""
    made = integer(1.0, shares=1)
    remainder = 0.1

    def with_remainder(event):
        assert event == made
        return GaussianEquivalent(noise_multiplier=1.0, remainder=remainder)

    for module in ("accounting", "rdp"):
        monkeypatch.setattr(f"secfl.dp.{module}.gaussian_equivalent", with_remainder)
    charged = epsilon(PoissonSampled(0.04, made), delta=1e-5, accountant=accountant)
    pure = epsilon(
        PoissonSampled(0.04, Gaussian(1.0)), delta=1e-5 * math.exp(-remainder), accountant=Accountant.PLD
    )
    assert charged >= pure + 2 * remainder - 1e-9
    for order in (2, 5):
        ideal = rdp_of_leaf(Leaf(Gaussian(1.0), 0.04), order)
        found = rdp_of_leaf(Leaf(made, 0.04), order)
        assert found == pytest.approx(ideal + remainder * (2 * order - 1) / (order - 1))


def test_no_curve_of_a_sampled_zcdp_mechanism_is_given_for_a_leaf_made_by_hand():
    """The amplification bound needs noise of a known, symmetric form; ρ alone does not say it."""
    leaf = Leaf(ZeroConcentrated(0.1), 0.01)
    with pytest.raises(UnsupportedEvent, match="under sampling"):
        rdp_of_leaf(leaf, 4)
    with pytest.raises(UnsupportedEvent, match="under sampling"):
        curve_of_leaves({leaf: 10})
