"""Sites that count differently under one clip: noise of their own width, and an epsilon of their own."""

import math

import numpy as np
import pytest
from scipy import stats

from secfl.config import load_config
from secfl.dp.accounting import epsilon
from secfl.dp.events import PoissonSampled, SelfComposed
from secfl.errors import ConfigError, LedgerCorrupted, PrivacyError, UnsupportedEvent
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import run_terms
from secfl.federation.work import local_work
from secfl.guarantees import Behaviour
from secfl.ledger.events import Family, Noise, Sampling, SiteNoise, event_from_json
from secfl.ledger.state import check_terms
from secfl.ledger.verify import load, verify_file
from secfl.testing.tasks import LinearTask
from secfl.types import RoundId, SchemeSpec

WEIGHTS = {"site-00": 1.0, "site-01": 2.0, "site-02": 4.0, "site-03": 4.0}
PATIENT = {
    "mode": "patient",
    "nominal_patients": 40,
    "sampling_rate": 0.2,
    "steps": 3,
    "noise_multiplier": 2.0,
    "accept_weak": True,
    "site_weights": WEIGHTS,
}


def config(scheme="masking", **privacy):
    return load_config(None, {"secure_agg": {"scheme": scheme}, "privacy": PATIENT | privacy})


def task_of(sites=4):
    return LinearTask(sites, features=10)


def terms_of(settings, task=None):
    return run_terms(settings, task or task_of(), parameters=11, threshold=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("sites") / "run"
    summary = simulation.simulate(config(), out=path, observer=SilentObserver(), task=task_of())
    return path, summary


def test_the_ledger_states_an_epsilon_for_each_site_and_recomputes_it(run):
    """Every row equals that of `secfl.dp.site_noise.SiteNoise`, the colluders being those with the most noise."""
    path, _ = run
    verdict = verify_file(path / "ledger.jsonl")
    assert verdict.findings == ()
    sites, noise = terms_of(config()).round_terms.releases.site_noise
    rows = {(row.view.value, row.adversary, row.colluders, row.site): row for row in verdict.statements}
    for index, site in enumerate(sites):
        for behaviour in Behaviour:
            for colluders in (0, 1, 2, 3):
                view = "aggregator_colluders" if colluders else "aggregator"
                event = noise.event(index, colluders=colluders, threshold=3, behaviour=behaviour)
                expected = epsilon(SelfComposed(PoissonSampled(0.2, event), 3), delta=1e-5)
                row = rows[view, behaviour, colluders, site]
                assert row.epsilon == pytest.approx(expected, rel=1e-3)
                assert row.z_effective == pytest.approx(event.noise_multiplier, rel=1e-6)


def test_small_weights_are_better_protected_by_the_others_and_equally_by_themselves(run):
    path, summary = run
    rows = summary["privacy"]["views"]

    def of(view, site):
        return next(row["epsilon"] for row in rows if (row["view"], row["site"]) == (view, site))

    assert of("aggregator", "site-00") < of("aggregator", "site-01") < of("aggregator", "site-02")
    alone = [of("crypto_broken", site) for site in WEIGHTS]
    assert max(alone) == pytest.approx(min(alone), rel=0.01)  # sensitivities are whole numbers
    (terms,) = load(path / "ledger.jsonl").terms.values()
    assert isinstance(terms.event, SiteNoise)
    assert dict(terms.event.weights) == WEIGHTS


def test_a_target_holds_for_the_patients_of_every_site(tmp_path):
    settings = config(epsilon=3.0, noise_multiplier=None)
    summary = simulation.simulate(settings, out=tmp_path / "run", observer=SilentObserver(), task=task_of())
    found = [row["epsilon"] for row in summary["privacy"]["views"] if row["view"] == "aggregator"]
    assert 2.9 < max(found) <= 3.0
    # Equal shares would need less: three small ones are less than three of four equal ones.
    assert (
        terms_of(settings).noise_multiplier
        > terms_of(config(epsilon=3.0, noise_multiplier=None, site_weights=None)).noise_multiplier
    )


def contribute(task, settings, site):
    class Spec:
        model_digest = bytes(32)

    terms = terms_of(settings, task)
    offer = RoundOffer(
        run_id=bytes(16),
        round_id=RoundId(0),
        round_index=0,
        cohort=tuple(WEIGHTS),
        threshold=3,
        scheme=SchemeSpec(name="masking"),
        state=task.initial_state(),
    )
    words = local_work(site, config=settings, task=task, terms=terms).contribute(offer, Spec())
    values = words.privatized.vectors["update"].astype(np.int64)
    bits = terms.round_terms.bits
    return np.where(values >= 1 << (bits - 1), values - (1 << bits), values)


class Without(LinearTask):
    """One patient of every site is gone."""

    def patient_gradients(self, site, state, chosen):
        return super().patient_gradients(site, state, chosen[chosen != 7])


class Quiet(LinearTask):
    def patient_gradients(self, site, state, chosen):
        yield np.zeros((len(chosen), 11), np.float32)


def test_one_patient_moves_the_sum_by_at_most_its_sites_sensitivity():
    """Replay with frozen noise; a site that clipped to the common bound instead is caught."""
    settings = config(sampling_rate=1.0, insecure_test_noise=1)
    terms = terms_of(settings)
    sites, noise = terms.round_terms.releases.site_noise
    for index, site in enumerate(sites):
        vectors = [contribute(task, settings, site) for task in (task_of(), Without(4, features=10))]
        moved = np.linalg.norm((vectors[0] - vectors[1]).astype(float))
        bound = noise.sensitivity(index)
        assert 0.9 * bound < moved <= bound
        if index < 2:
            assert bound < 0.6 * terms.plan.sensitivity


def test_each_site_adds_noise_of_its_own_width():
    """Chi-square over 60 steps of each site; two-sided level 1e-6 for each of 4. Equal shares are rejected."""
    settings = config()
    terms = terms_of(settings)
    sites, noise = terms.round_terms.releases.site_noise
    for index, site in enumerate(sites[:2]):
        drawn = np.concatenate([contribute(Quiet(4, features=10), settings, site) for _ in range(60)])
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], drawn.size)
        assert low < ((drawn / noise.share(index).sigma) ** 2).sum() < high
        assert not low < ((drawn / terms.plan.share_sigma()) ** 2).sum() < high


def test_the_opened_sum_is_the_weighted_mean_gradient():
    """Hardly any noise: each patient's clipped gradient counts with its site's weight over a public constant."""
    settings = config(sampling_rate=1.0, noise_multiplier=0.01)
    terms, task = terms_of(settings), task_of()
    total = sum(contribute(task, settings, site) for site in WEIGHTS)
    opened = total / (terms.round_terms.grid.scale * terms.round_terms.divisor)
    expected = np.zeros(11)
    for site, weight in WEIGHTS.items():
        for rows in task.patient_gradients(site, task.initial_state(), np.arange(40)):
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            expected -= weight / 4 * (rows / np.maximum(1, norms)).sum(axis=0)
    expected /= 40 * (1 + 2 + 4 + 4) / 4
    np.testing.assert_allclose(opened, expected, atol=0.01 * np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"site-00": 1.0}, "expected one number for each of site-00, site-01"),
        (WEIGHTS | {"site-09": 1.0}, "expected one number for each"),
        ({}, "got none"),
    ],
)
def test_weights_that_are_not_the_sites_are_refused(weights, reason):
    with pytest.raises(ConfigError, match=reason):
        terms_of(config(site_weights=weights))


def test_weights_need_a_secure_sum():
    with pytest.raises(ConfigError, match=r"privacy\.site_weights: weights matter inside a secure sum"):
        config("plain")


# --- the event


def event(**changes):
    values = {
        "family": Family.DISCRETE_GAUSSIAN,
        "noise_multiplier": 2.0,
        "shares": 3,
        "sensitivity": 1000.0,
        "dimension": 11,
        "sampling": Sampling.POISSON,
        "sampling_rate": 0.1,
        "weights": {"a": 1.0, "b": 2.0, "c": 4.0},
    }
    return SiteNoise(**values | changes)


def test_the_event_survives_the_file():
    made = event()
    assert event_from_json(made.to_json()) == made
    assert isinstance(made, Noise)
    assert made.unit_sensitivity("a") == 250
    assert made.least_protected(3) == "c"
    total = math.sqrt(sum(made.share_sigma(name) ** 2 for name in made.weights))
    assert total == pytest.approx(2000.0)
    assert made.unknown_sigma("c", 2) == pytest.approx(
        math.hypot(made.share_sigma("c"), made.share_sigma("a"))
    )


@pytest.mark.parametrize(
    "change",
    [
        {"shares": 2},
        {"weights": {"a": 1.0, "b": 2.0, "c": 0.0}},
        {"weights": {"a": 1.0, "b": 2.0, "c": math.inf}},
        {"weights": {"a": 1e-9, "b": 2.0, "c": 4.0}},
        {"family": Family.GAUSSIAN},
        {"sensitivity": 10.5},
        {"site_rates": {"a": 0.1, "b": 0.1, "c": 0.1}},
    ],
)
def test_impossible_events_are_refused(change):
    with pytest.raises(ConfigError):
        event(**change)


def test_an_event_without_its_weights_is_refused():
    for damage in (
        lambda d: d.pop("weights"),
        lambda d: d.update(weights=None),
        lambda d: d.update(weights=[1]),
    ):
        data = event().to_json()
        damage(data)
        with pytest.raises(UnsupportedEvent):
            event_from_json(data)


def test_the_ledger_refuses_weights_of_others_and_narrow_shares(run):
    path, _ = run
    state = load(path / "ledger.jsonl")
    (terms,) = state.terms.values()
    made = terms.event
    renamed = {name.replace("site", "sight"): weight for name, weight in made.weights.items()}
    for changed, reason in (
        (type(made)(**fields_of(made) | {"weights": renamed}), "one weight for each client"),
        (type(made)(**fields_of(made) | {"noise_multiplier": 0.01}), "shares of"),
    ):
        with pytest.raises((PrivacyError, LedgerCorrupted), match=reason):
            check_terms(state.header, changed, terms.guarantee)


def fields_of(made):
    from dataclasses import fields

    return {item.name: getattr(made, item.name) for item in fields(made)}
