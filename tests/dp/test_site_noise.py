import math

import pytest

from secfl.dp.accounting import epsilon
from secfl.dp.events import SelfComposed
from secfl.dp.site_noise import SiteNoise
from secfl.errors import ConfigError
from secfl.guarantees import Behaviour

CURIOUS, MALICIOUS = Behaviour.CURIOUS, Behaviour.MALICIOUS
SITES = SiteNoise(weights=(0.5, 0.3, 0.2), grid_norm=10_000, noise_multiplier=2.0, dimension=1000)
KEEP = {"threshold": 3}


def test_the_shares_add_up_to_the_planned_noise():
    total = math.fsum(SITES.share(site).sigma ** 2 for site in range(3))
    assert total == pytest.approx((2.0 * 10_000) ** 2)


def test_every_sites_own_noise_protects_its_units_equally():
    own = [SITES.share(site).sigma / SITES.sensitivity(site) for site in range(3)]
    assert own == pytest.approx([own[0]] * 3, rel=1e-3)


def test_sensitivity_follows_the_public_weight_and_never_exceeds_it():
    assert [SITES.sensitivity(site) for site in range(3)] == [10_000, 6_000, 4_000]
    third = SiteNoise(weights=(3.0, 1.0), grid_norm=1000, noise_multiplier=1.0, dimension=1)
    assert third.sensitivity(1) == 333


def test_views_per_site():
    alone = [SITES.event(site, colluders=0, behaviour=CURIOUS, **KEEP) for site in range(3)]
    assert alone[0].noise_multiplier == pytest.approx(2.0)
    assert alone[1].noise_multiplier == pytest.approx(2.0 * 10 / 6)
    figures = [epsilon(SelfComposed(event, 5), delta=1e-5) for event in alone]
    assert figures == sorted(figures, reverse=True)


def test_colluders_are_the_largest_other_shares():
    total, own, largest = 2.0 * 10_000, SITES.share(2).sigma, SITES.share(0).sigma
    one = SITES.event(2, colluders=1, behaviour=CURIOUS, **KEEP)
    assert one.sigma == pytest.approx(math.sqrt(total**2 - largest**2))
    assert one.shares == 2
    broken = SITES.event(2, colluders=2, behaviour=CURIOUS, **KEEP)
    assert broken.sigma == pytest.approx(own)
    assert broken.shares == 1


def test_a_malicious_aggregator_drops_the_largest_share():
    four = SiteNoise(weights=(4.0, 2.0, 1.0, 1.0), grid_norm=10_000, noise_multiplier=2.0, dimension=10)
    event = four.event(2, colluders=0, threshold=3, behaviour=MALICIOUS)
    kept = [four.share(site).sigma ** 2 for site in (1, 2, 3)]
    assert event.sigma == pytest.approx(math.sqrt(sum(kept)))


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (1.0, -1.0), (1.0, math.inf), (1.0, 1e-9)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ConfigError):
        SiteNoise(weights=weights, grid_norm=1000, noise_multiplier=1.0, dimension=1)


def test_scaled():
    assert SITES.scaled(4.0).share(0).sigma == pytest.approx(2 * SITES.share(0).sigma)
