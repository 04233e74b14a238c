from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secfl.errors import ConfigError, LocalProtocolError, PrivacyError, UnsupportedEvent
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.ledger import (
    Composed,
    Family,
    Noise,
    NonPrivate,
    Placement,
    PrivacyLedger,
    Sampling,
    SiteNoise,
    event_from_plan,
)
from secfl.ledger.bounds import colluder_bound
from secfl.ledger.events import event_from_json
from secfl.ledger.views import adversaries, statements, statements_about

# t = 4, m = 5, q = 0.04, T = 500, z = 1, δ = 1e-5 (docs/privacy.md).
CURIOUS = [5.879, 7.397, 10.238, 16.993, 44.086]
MALICIOUS = [7.397, 10.238, 16.993, 44.086, 44.086]
RENYI = [6.54, 8.31, 12.00, 18.99, 116.0]


def rows_of(ledger: PrivacyLedger, delta: float | None = None):
    return {
        (row.view.value, row.adversary.value, row.colluders, row.site): row
        for row in ledger.statements(delta)
    }


def aggregator(rows, behaviour: str, colluders: int, site=None):
    view = "aggregator_colluders" if colluders else "aggregator"
    return rows[view, behaviour, colluders, site]


@pytest.fixture
def golden(make_ledger, workshop):
    ledger = make_ledger(workshop)
    for _ in range(10):
        ledger.commit(ledger.reserve(workshop.noise(count=50), workshop.guarantee()))
    return rows_of(ledger)


class TestGoldenTable:
    def test_curious(self, golden):
        found = [aggregator(golden, "curious", k).epsilon for k in range(5)]
        assert found == pytest.approx(CURIOUS, abs=0.01)

    def test_malicious(self, golden):
        found = [aggregator(golden, "malicious", k).epsilon for k in range(5)]
        assert found == pytest.approx(MALICIOUS, abs=0.01)

    def test_renyi_column(self, golden):
        found = [aggregator(golden, "curious", k).epsilon_rdp for k in range(5)]
        assert found == pytest.approx(RENYI, abs=0.02)

    def test_the_other_views(self, golden):
        assert golden["client", "curious", 0, None].epsilon == pytest.approx(CURIOUS[1], abs=0.01)
        assert golden["final_model", "curious", 0, None].epsilon == pytest.approx(CURIOUS[0], abs=0.01)
        assert golden["network", "curious", 0, None].epsilon == pytest.approx(CURIOUS[0], abs=0.01)
        assert golden["crypto_broken", "curious", 0, None].epsilon == pytest.approx(CURIOUS[4], abs=0.01)

    def test_rows_beyond_the_bound_are_the_broken_row(self, golden):
        broken = golden["crypto_broken", "curious", 0, None]
        for behaviour, colluders, beyond in (
            [("curious", k, k > 3) for k in range(5)] + [("malicious", k, k > 2) for k in range(5)]
        ):  # fmt: skip
            row = aggregator(golden, behaviour, colluders)
            assert row.broken == beyond
            assert (row.epsilon == broken.epsilon) == beyond
            assert (row.z_effective == broken.z_effective) == beyond
            assert (row.assumptions == ()) == beyond
            assert row.post_quantum == beyond

    def test_columns(self, golden):
        row = aggregator(golden, "curious", 1)
        assert row.z_effective == pytest.approx(math.sqrt(4 / 5))
        assert (row.unit, row.relation, row.delta) == ("patient", "add_remove", 1e-5)
        assert (row.dropouts_tolerated, row.colluders_tolerated, row.key_mode) == (1, 3, "pairwise")
        assert [item.name for item in row.assumptions] == ["x25519", "ml-kem-768"]
        assert row.unprotected == ("per-site metrics",)
        assert "at most 3 may collude, threshold 4 of 5" in row.holds_if
        assert aggregator(golden, "malicious", 0).colluders_tolerated == 2
        assert golden["final_model", "curious", 0, None].colluders_tolerated is None
        assert golden["final_model", "curious", 0, None].post_quantum

    def test_json_has_the_names_that_a_summary_needs(self, golden):
        plain = aggregator(golden, "malicious", 2).to_json()
        assert plain["view"] == "aggregator_colluders"
        assert (plain["colluders"], plain["adversary"]) == (2, "malicious")
        assert plain["epsilon"] == pytest.approx(16.993, abs=0.01)
        assert plain["holds_if"]


class TestSchemes:
    def ledger(self, make_ledger, workshop, **changes):
        ledger = make_ledger(workshop)
        ledger.commit(ledger.reserve(workshop.noise(count=20), workshop.guarantee(**changes)))
        return rows_of(ledger)

    def test_plain_hides_nothing_from_the_aggregator_nor_the_network(self, make_ledger, workshop):
        rows = self.ledger(make_ledger, workshop.variant(scheme="plain", key_mode="none"))
        broken = rows["crypto_broken", "curious", 0, None].epsilon
        for key in rows:
            if key[0] in {"network", "aggregator", "aggregator_colluders"} or key[:2] == (
                "client",
                "malicious",
            ):
                assert rows[key].epsilon == broken
                assert rows[key].broken
        assert rows["final_model", "curious", 0, None].epsilon < broken
        assert aggregator(rows, "curious", 0).colluders_tolerated == -1

    def test_a_shared_key_with_one_colluder_is_broken_cryptography(self, make_ledger, workshop):
        rows = self.ledger(make_ledger, workshop.variant(scheme="ckks", key_mode="shared"))
        broken = rows["crypto_broken", "curious", 0, None].epsilon
        assert aggregator(rows, "curious", 1).epsilon == broken
        assert aggregator(rows, "malicious", 0).epsilon == broken
        assert rows["client", "malicious", 0, None].epsilon == broken
        assert aggregator(rows, "curious", 0).epsilon < broken
        # The client that opens the sum is sent every ciphertext.
        assert rows["client", "curious", 0, None].epsilon == broken
        assert rows["final_model", "curious", 0, None].epsilon < broken

    def test_encrypted_links_show_the_network_nothing(self, make_ledger, workshop):
        rows = self.ledger(make_ledger, workshop, network_sees=Visibility.NOTHING)
        row = rows["network", "curious", 0, None]
        assert (row.epsilon, row.sees) == (0.0, "public facts only")
        assert [item.name for item in row.assumptions] == ["x25519", "ml-kem-768"]

    def test_a_third_partys_scheme_is_taken_at_its_word_but_not_beyond_subtraction(
        self, make_ledger, workshop
    ):
        other = workshop.variant(scheme="their-scheme", key_mode="theirs")
        rows = self.ledger(make_ledger, other, curious_colluders=9, malicious_colluders=1)
        assert [aggregator(rows, "curious", k).broken for k in range(5)] == [False] * 4 + [True]
        assert [aggregator(rows, "malicious", k).broken for k in range(5)] == [False] * 2 + [True] * 3

    @pytest.mark.parametrize("planned", [4, 5])
    def test_the_bound_follows_those_who_were_there(self, workshop, planned):
        guarantee = workshop.guarantee(survivors=planned)
        assert colluder_bound(guarantee, Behaviour.CURIOUS, survivors=5) == 3
        assert colluder_bound(guarantee, Behaviour.CURIOUS, survivors=4) == 2
        assert colluder_bound(guarantee, Behaviour.MALICIOUS, survivors=4) == 2

    def test_a_scheme_that_claims_less_gets_less(self, workshop):
        guarantee = workshop.guarantee(curious_colluders=1)
        assert colluder_bound(guarantee, Behaviour.CURIOUS, survivors=5) == 1


class TestDropouts:
    def test_they_count_as_they_happened(self, make_ledger, workshop):
        mixed = make_ledger(workshop, name="mixed.jsonl")
        for survivors in ("abcde", "abcd", "abde"):
            mixed.commit(mixed.reserve(workshop.noise(count=20), workshop.guarantee()), survivors=survivors)
        full, least = make_ledger(workshop, name="full.jsonl"), make_ledger(workshop, name="least.jsonl")
        for _ in range(3):
            full.commit(full.reserve(workshop.noise(count=20), workshop.guarantee()))
            least.commit(least.reserve(workshop.noise(count=20), workshop.guarantee()), survivors="abcd")
        between = [aggregator(rows_of(ledger), "curious", 0).epsilon for ledger in (full, mixed, least)]
        assert between == sorted(between)
        assert len(set(between)) == 3
        # A malicious aggregator could have declared them anyway.
        same = {
            round(aggregator(rows_of(ledger), "malicious", 0).epsilon, 9) for ledger in (full, mixed, least)
        }
        assert len(same) == 1

    def test_a_bound_that_fell_in_one_round_breaks_that_round(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        for survivors in ("abcde", "abcd"):
            ledger.commit(ledger.reserve(workshop.noise(count=20), workshop.guarantee()), survivors=survivors)
        row = aggregator(rows_of(ledger), "curious", 3)
        assert row.broken
        assert row.colluders_tolerated == 2
        assert row.epsilon < rows_of(ledger)["crypto_broken", "curious", 0, None].epsilon

    def test_what_is_not_settled_counts_at_the_threshold(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        ledger.reserve(workshop.noise(), workshop.guarantee())
        assert aggregator(rows_of(ledger), "curious", 0).epsilon == pytest.approx(CURIOUS[1], abs=0.01)


class TestPlacement:
    def rows(self, make_ledger, workshop, **changes):
        ledger = make_ledger(workshop)
        noise = workshop.noise(shares=1, count=20, **changes)
        ledger.commit(ledger.reserve(noise, workshop.guarantee()))
        return rows_of(ledger)

    def test_local_noise_needs_nobody_else(self, make_ledger, workshop):
        rows = self.rows(make_ledger, workshop, placement=Placement.LOCAL)
        assert len({row.epsilon for row in rows.values()}) == 1
        assert {row.z_effective for row in rows.values()} == {1.0}

    def test_central_noise_protects_from_outsiders_only(self, make_ledger, workshop):
        rows = self.rows(make_ledger, workshop, placement=Placement.CENTRAL)
        for key, row in rows.items():
            # A client that taps the network sees there the sum without noise, as the network does.
            outside = key[0] == "final_model" or key[:2] == ("client", "curious")
            assert (row.epsilon is not None) == outside
            assert ("before" in row.non_private or "after" in row.non_private) != outside


class TestIntegerNoise:
    def test_the_proved_figure_is_just_above_the_reference(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        ledger.commit(ledger.reserve(workshop.discrete(count=500), workshop.guarantee()))
        for row in rows_of(ledger).values():
            assert row.epsilon_reference <= row.epsilon <= row.epsilon_reference + 0.01

    def test_skellam_has_its_own_column(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        noise = workshop.noise(family=Family.SKELLAM, sensitivity=4096.0, dimension=1000, count=500)
        ledger.commit(ledger.reserve(noise, workshop.guarantee()))
        found = [aggregator(rows_of(ledger), "curious", k).epsilon for k in range(4)]
        assert found == pytest.approx(RENYI[:4], abs=0.05)  # by Rényi alone, and close to the Gaussian

    def test_unknown_shares_are_counted_in_the_remainder(self, make_ledger, workshop):
        # Shares of 4.5 grid units: the sum of fewer discrete Gaussians is closer to one.
        ledger = make_ledger(workshop)
        noise = workshop.noise(
            family=Family.DISCRETE_GAUSSIAN,
            noise_multiplier=4.5 * math.sqrt(5) / 10,
            sensitivity=10.0,
            dimension=10_000,
            count=1,
            sampling=Sampling.NONE,
            sampling_rate=1.0,
        )
        ledger.commit(ledger.reserve(noise, workshop.guarantee()))
        rows = rows_of(ledger)
        assert all(row.epsilon > row.epsilon_reference for row in rows.values())


class TestErrors:
    def epsilon(self, make_ledger, workshop, name, *, variation=0.0, **changes):
        ledger = make_ledger(workshop, name=name)
        noise = workshop.noise(noise_multiplier=2.0, count=20, **changes.pop("noise", {}))
        reservation = ledger.reserve(noise, workshop.guarantee(**changes))
        ledger.commit(reservation, total_variation=variation)
        return rows_of(ledger)

    def test_the_samplers_distance_is_paid_for(self, make_ledger, workshop):
        free = self.epsilon(make_ledger, workshop, "free.jsonl")
        paid = self.epsilon(make_ledger, workshop, "paid.jsonl", variation=1e-8)
        much = self.epsilon(make_ledger, workshop, "much.jsonl", variation=1e-5)
        for key in free:
            assert free[key].epsilon < paid[key].epsilon
            assert much[key].epsilon is None
            assert "exceed delta" in much[key].non_private

    def test_what_the_event_says_about_the_sampler_cannot_be_undercut(self, make_ledger, workshop):
        by_commit = self.epsilon(make_ledger, workshop, "a.jsonl", variation=20 * 1000 * 5 * 1e-13)
        noise = {"sampler_error": 1e-13, "dimension": 1000}
        by_event = self.epsilon(make_ledger, workshop, "b.jsonl", noise=noise, variation=1e-12)
        key = ("aggregator", "curious", 0, None)
        assert by_event[key].epsilon == pytest.approx(by_commit[key].epsilon, abs=1e-9)

    def test_the_cryptographic_advantage_is_paid_for_where_it_carries_the_row(self, make_ledger, workshop):
        free = self.epsilon(make_ledger, workshop, "free.jsonl")
        paid = self.epsilon(make_ledger, workshop, "paid.jsonl", advantage_log2=-25.0)
        for key in free:
            rests = key[0] not in {"final_model", "crypto_broken"} and not free[key].broken
            assert (paid[key].epsilon > free[key].epsilon) == rests

    def test_the_bound_is_met(self, make_ledger, workshop):
        # δ_ideal(ε) + (1 + e^ε)·E <= δ, by the library's own δ.
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant

        row = self.epsilon(make_ledger, workshop, "x.jsonl", variation=1e-8)["aggregator", "curious", 0, None]
        accountant = PLDAccountant().compose(PoissonSampledDpEvent(0.04, GaussianDpEvent(2.0)), 20)
        total = accountant.get_delta(row.epsilon) + (1 + math.exp(row.epsilon)) * 1e-8
        assert 0.9e-5 < total <= 1.001e-5


class TestSites:
    def test_each_site_has_its_own_rate(self, make_ledger, workshop):
        rates = dict(zip("abcde", (0.02, 0.04, 0.08, 0.04, 0.04), strict=True))
        ledger = make_ledger(workshop)
        noise = workshop.noise(sampling_rate=0.08, site_rates=rates)
        ledger.commit(ledger.reserve(noise, workshop.guarantee()))
        rows = rows_of(ledger)
        found = [aggregator(rows, "curious", 0, site).epsilon for site in "abc"]
        assert found == pytest.approx([2.77, 5.88, 12.79], abs=0.01)
        assert "patients of a" in aggregator(rows, "curious", 0, "a").sees

    def test_equal_rates_make_one_row(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        noise = workshop.noise(site_rates=dict.fromkeys("abcde", 0.04))
        ledger.commit(ledger.reserve(noise, workshop.guarantee()))
        assert {row.site for row in ledger.statements()} == {None}


class TestWithoutPrivacy:
    def test_everything_is_null_and_says_why(self, make_ledger, workshop):
        ledger = make_ledger(workshop, workshop.header(unit=None, relation=None, delta=None))
        off = NonPrivate(reason="differential privacy is off")
        ledger.commit(ledger.reserve(off, workshop.guarantee(network_sees=Visibility.NOTHING)))
        for row in ledger.statements():
            assert row.epsilon is None
            assert row.non_private == "differential privacy is off"
            assert "no guarantee: differential privacy is off" in row.holds_if

    def test_seeded_noise_is_non_private(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))
        seeded = NonPrivate(reason="the noise came from a seed on the command line")
        ledger.commit(ledger.reserve(seeded, workshop.guarantee()))
        rows = rows_of(ledger)
        assert all(row.epsilon is None for row in rows.values())
        assert {row.z_effective for row in rows.values()} == {None}

    def test_a_ledger_without_rounds_has_spent_nothing(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        assert {row.epsilon for row in ledger.statements()} == {0.0}

    def test_a_delta_is_needed_where_there_is_noise(self, make_ledger, workshop):
        ledger = make_ledger(workshop, workshop.header(delta=None))
        ledger.reserve(workshop.noise(), workshop.guarantee())
        with pytest.raises(ConfigError, match="delta"):
            ledger.statements()
        assert rows_of(ledger, 1e-5)["final_model", "curious", 0, None].epsilon > 0


def test_unprotected_things_of_the_run_and_of_its_rounds_are_listed(make_ledger, workshop):
    ledger = make_ledger(workshop)
    ledger.reserve(workshop.noise(), workshop.guarantee(), unprotected=["a preview", "per-site metrics"])
    assert ledger.statements()[0].unprotected == ("per-site metrics", "a preview")


def test_rows_are_those_of_the_page(workshop):
    rows = [(row.view.value, row.behaviour.value, row.colluders) for row in adversaries(3)]
    assert rows == [
        ("network", "curious", 0),
        ("aggregator", "curious", 0),
        ("aggregator", "malicious", 0),
        ("aggregator_colluders", "curious", 1),
        ("aggregator_colluders", "curious", 2),
        ("aggregator_colluders", "malicious", 1),
        ("aggregator_colluders", "malicious", 2),
        ("client", "curious", 0),
        ("client", "malicious", 0),
        ("final_model", "curious", 0),
        ("crypto_broken", "curious", 0),
    ]


def test_single_rows_are_the_same_as_in_the_table(make_ledger, workshop):
    ledger = make_ledger(workshop)
    ledger.commit(ledger.reserve(workshop.noise(), workshop.guarantee()))
    alone = Adversary(view=View.AGGREGATOR, behaviour=Behaviour.MALICIOUS)
    (row,) = statements_about(ledger.state, [alone])
    assert row == aggregator(rows_of(ledger), "malicious", 0)
    assert row == ledger.statement(alone)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_order_between_rows(make_ledger, workshop, tmp_path, data):
    """More colluders never learn less, malice never helps privacy, and nothing is worse than broken."""
    threshold = data.draw(st.sampled_from([4, 5]))
    workshop = workshop.variant(threshold=threshold)
    name = f"run{data.draw(st.integers(0, 10**9))}.jsonl"
    (tmp_path / name).unlink(missing_ok=True)
    ledger = make_ledger(workshop, name=name)
    for _ in range(data.draw(st.integers(1, 3))):
        noise = workshop.discrete(noise_multiplier=data.draw(st.sampled_from([1.0, 2.0])))
        reservation = ledger.reserve(noise, workshop.guarantee())
        if data.draw(st.booleans()):
            ledger.commit(reservation, survivors="abcde"[: data.draw(st.integers(threshold, 5))])
    rows = rows_of(ledger)
    broken = rows["crypto_broken", "curious", 0, None].epsilon
    slack = 1e-6
    for behaviour in ("curious", "malicious"):
        series = [aggregator(rows, behaviour, k).epsilon for k in range(5)]
        assert all(a <= b + slack for a, b in itertools.pairwise(series))
    for colluders in range(5):
        curious, malicious = (
            aggregator(rows, behaviour, colluders) for behaviour in ("curious", "malicious")
        )
        assert curious.epsilon <= malicious.epsilon + slack
    for row in rows.values():
        assert row.epsilon <= broken + slack
        assert row.epsilon <= row.epsilon_rdp + 1e-3  # the tight accountant is the tight one
    ledger.release()


class TestEventsFromElsewhere:
    def test_dp_accounting_events(self):
        from dp_accounting import (
            ComposedDpEvent,
            GaussianDpEvent,
            LaplaceDpEvent,
            NonPrivateDpEvent,
            PoissonSampledDpEvent,
            SelfComposedDpEvent,
        )

        from secfl.errors import UnsupportedEvent
        from secfl.ledger import event_from_dp_accounting

        def translate(event):
            return event_from_dp_accounting(event, placement=Placement.CENTRAL)

        inner = PoissonSampledDpEvent(0.1, GaussianDpEvent(1.5))
        assert translate(SelfComposedDpEvent(inner, 7)) == Noise(
            family=Family.GAUSSIAN,
            noise_multiplier=1.5,
            placement=Placement.CENTRAL,
            sampling=Sampling.POISSON,
            sampling_rate=0.1,
            count=7,
        )
        assert isinstance(translate(NonPrivateDpEvent()), NonPrivate)
        both = translate(ComposedDpEvent([inner, GaussianDpEvent(2.0)]))
        assert isinstance(both, Composed)
        assert len(both.events) == 2
        for unknown in (LaplaceDpEvent(1.0), PoissonSampledDpEvent(0.1, LaplaceDpEvent(1.0))):
            with pytest.raises(UnsupportedEvent, match="Laplace"):
                translate(unknown)

    def test_plans(self, workshop):
        plan = workshop.plan(releases=500)
        event = event_from_plan(plan, count=50)
        assert (event.shares, event.sensitivity, event.count) == (5, 4096.0, 50)
        assert event.placement is Placement.DISTRIBUTED
        assert 0 < event.sampler_error < 1e-30

    def test_a_ledger_reaches_what_its_plan_promised(self, make_ledger, workshop):
        plan = workshop.plan(noise_multiplier=1.3, releases=200)
        ledger = make_ledger(workshop, workshop.header(plan=plan.to_dict()))
        for _ in range(4):
            ledger.commit(ledger.reserve(event_from_plan(plan, count=50), workshop.guarantee()))
        for behaviour, colluders in (
            (Behaviour.CURIOUS, 0),
            (Behaviour.MALICIOUS, 1),
            (Behaviour.CURIOUS, 3),
        ):
            promised = plan.epsilon(plan.z_aggregator(behaviour, colluders=colluders))
            row = aggregator(rows_of(ledger), behaviour.value, colluders)
            assert row.epsilon == pytest.approx(promised, abs=2e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"sensitivity": -1.0},
        {"shares": 0},
        {"count": 0},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"sampling": Sampling.NONE},
        {"placement": Placement.LOCAL},
        {"site_rates": {"a": 0.5}},
        {"sampler_error": 1.0},
        {"sampler_error": -1e-9},
    ],
)
def test_impossible_events(workshop, changes):
    with pytest.raises(ConfigError, match="event"):
        workshop.noise(**changes)


def test_statements_of_a_released_ledger_can_still_be_read(make_ledger, workshop):
    ledger = make_ledger(workshop)
    ledger.release()
    assert statements(ledger.state)
    with pytest.raises(LocalProtocolError, match="released"):
        ledger.checkpoint([])
    assert ledger.state.size == 1


BY_SITE = {
    "family": Family.DISCRETE_GAUSSIAN,
    "noise_multiplier": 9.0,
    "shares": 5,
    "sensitivity": 4096.0,
    "dimension": 10,
    "weights": {"a": 1.0, "b": 0.9, "c": 0.8, "d": 0.7, "e": 0.6},
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"placement": Placement.LOCAL, "shares": 1}, "one share for each weight"),
        ({"shares": 4}, "one share for each weight"),
        ({"family": Family.GAUSSIAN}, "integer noise"),
        ({"site_rates": {"a": 1.0}, "sampling": Sampling.POISSON}, "one sampling rate"),
        ({"weights": BY_SITE["weights"] | {"e": 0.0}}, "positive numbers"),
        ({"weights": BY_SITE["weights"] | {"e": math.inf}}, "positive numbers"),
        ({"weights": BY_SITE["weights"] | {"e": 1e-4}}, "too small for the grid"),
        ({"sensitivity": 4096.5}, "too small for the grid"),
    ],
)
def test_impossible_noise_by_site(changes, reason):
    assert SiteNoise(**BY_SITE).unit_sensitivity("e") > 1
    with pytest.raises(ConfigError, match=reason):
        SiteNoise(**(BY_SITE | changes))


def test_noise_by_site_has_the_weights_of_the_cohort(make_ledger, workshop):
    ledger = make_ledger(workshop)
    weights = dict(zip("abcdx", BY_SITE["weights"].values(), strict=True))
    with pytest.raises(PrivacyError, match="one weight for each client"):
        ledger.reserve(SiteNoise(**(BY_SITE | {"weights": weights})), workshop.guarantee())
    ledger.reserve(SiteNoise(**BY_SITE), workshop.guarantee())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "laplace"}, "event of kind 'laplace'"),
        ({"family": "laplace"}, "laplace"),
        ({"placement": None}, "None"),
        ({"count": "many"}, "event"),
        ({"kind": "composed", "events": 3}, "event"),
        ({"kind": "site_noise", "weights": []}, "event"),
    ],
)
def test_unknown_events_are_refused_never_guessed(workshop, changes, reason):
    with pytest.raises(UnsupportedEvent, match=reason):
        event_from_json(workshop.noise().to_json() | changes)


def test_noise_that_decays_has_one_event_for_each_release(workshop):
    plan = workshop.plan(noise_multiplier=4.0, noise_decay=0.9, releases=5, sampling_rate=1.0)
    with pytest.raises(ConfigError, match="one event for each release"):
        event_from_plan(plan, count=2)
    widths = [event_from_plan(plan, release=release).noise_multiplier for release in range(3)]
    assert widths == pytest.approx([4.0, 3.6, 3.24])
