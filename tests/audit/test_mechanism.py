"""Mechanism audits: wrong claims are refuted, right ones are not, and both at their stated rates."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from secfl.audit import Assumed, Calls, Verdict, audit_mechanism, audit_samples, release
from secfl.audit.release import audit_release, plan_of_run, release_samples, release_views, usual_plan
from secfl.cli.main import main
from secfl.config import load_config
from secfl.dp.accounting import Relation
from secfl.dp.analytic import analytic_gaussian_epsilon
from secfl.dp.noise import NoiseFamily, NoiseShare, privatize
from secfl.dp.plan import PrivacyPlan
from secfl.errors import ConfigError, LedgerCorrupted
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.guarantees import UnitOfPrivacy
from secfl.randomness import InsecureSeededRng
from secfl.testing.tasks import LinearTask


def gaussian(sigma, seed=0):
    source = np.random.default_rng(seed)
    return lambda value, count: source.normal(value, sigma, count)


class TestAnyMechanism:
    def test_a_right_gaussian_is_not_refuted(self):
        claim = (analytic_gaussian_epsilon(1e-5, 2.0), 1e-5)
        for seed in range(5):
            found = audit_mechanism(
                gaussian(2.0, seed), neighbours=(0.0, 1.0), claimed=claim, draws=20_000, calls=Calls.BATCH
            )
            assert found.verdict is Verdict.NOT_REFUTED  # each wrong with probability at most 1e-3
            assert 0.2 < found.epsilon_lower < claim[0]

    def test_too_little_noise_is_refuted(self):
        claim = (analytic_gaussian_epsilon(1e-5, 2.0), 1e-5)
        found = audit_mechanism(
            gaussian(0.5), neighbours=(0.0, 1.0), claimed=claim, draws=20_000, calls=Calls.BATCH
        )
        assert found.verdict is Verdict.REFUTED
        assert found.epsilon_lower > claim[0]

    def test_the_gaussian_estimate_suspects_what_the_bound_cannot_refute(self):
        claim = (analytic_gaussian_epsilon(1e-5, 2.0), 1e-5)
        found = audit_mechanism(
            gaussian(1.5),
            neighbours=(0.0, 1.0),
            claimed=claim,
            draws=20_000,
            calls=Calls.BATCH,
            assume=Assumed.GAUSSIAN,
        )
        assert found.verdict is Verdict.SUSPECT
        assert found.epsilon_gaussian > claim[0] > found.epsilon_lower

    def test_laplace_noise_is_judged_without_the_gaussian_estimate(self):
        source = np.random.default_rng(1)
        found = audit_mechanism(
            lambda value: value + source.laplace(), neighbours=(0.0, 1.0), claimed=(1.0, 0.0), draws=20_000
        )
        assert found.verdict is Verdict.NOT_REFUTED
        assert found.epsilon_lower > 0.7
        assert found.epsilon_gaussian is None

    def test_a_vector_is_reduced_to_the_direction_that_matters(self):
        source = np.random.default_rng(2)
        target = np.linspace(-1, 1, 30) / np.linalg.norm(np.linspace(-1, 1, 30))
        found = audit_mechanism(
            lambda value: value * target + source.normal(0, 0.3, 30),
            neighbours=(0.0, 1.0),
            claimed=(2.0, 1e-5),
            draws=4_000,
        )
        assert found.verdict is Verdict.REFUTED

    def test_a_difference_in_spread_alone_is_found(self):
        source = np.random.default_rng(3)
        found = audit_mechanism(
            lambda value, count: source.normal(0, value, (count, 8)),
            neighbours=(1.0, 2.0),
            claimed=(1.0, 1e-5),
            draws=4_000,
            calls=Calls.BATCH,
        )
        assert found.verdict is Verdict.REFUTED

    def test_an_output_that_only_one_neighbour_gives_is_found(self):
        source = np.random.default_rng(4)
        found = audit_mechanism(
            lambda value: value if source.random() < 0.2 else source.normal(0, 100),
            neighbours=(0.0, 1.0),
            claimed=(2.0, 1e-5),
            draws=10_000,
        )
        assert found.verdict is Verdict.REFUTED
        assert "=" in found.event

    def test_nan_is_an_event(self):
        source = np.random.default_rng(6)
        found = audit_mechanism(
            lambda value: np.full(3, np.nan) if value else source.normal(size=3),
            neighbours=(0, 1),
            claimed=(3.0, 1e-5),
            draws=2_000,
        )
        assert found.verdict is Verdict.REFUTED

    def test_a_constant_mechanism_is_not_refuted(self):
        found = audit_mechanism(lambda _: 7.0, neighbours=(0, 1), claimed=(0.0, 0.0), draws=1000)
        assert found.verdict is Verdict.NOT_REFUTED
        assert found.epsilon_lower == 0

    def test_no_differential_privacy_at_all_is_refuted_as_far_as_draws_reach(self):
        found = audit_mechanism(lambda value: value, neighbours=(0, 1), claimed=(4.0, 0.0), draws=10_000)
        assert found.verdict is Verdict.REFUTED
        assert found.epsilon_lower == pytest.approx(found.epsilon_reachable)
        beyond = audit_mechanism(lambda value: value, neighbours=(0, 1), claimed=(9.0, 0.0), draws=10_000)
        assert beyond.verdict is Verdict.NOT_REFUTED  # so many draws cannot show more
        assert beyond.epsilon_reachable < 9

    def test_true_claims_stay_unrefuted_at_a_level_that_can_be_counted(self):
        # Randomized response sits exactly at its claim, so this is the hardest true claim. At the level 0.05, 200
        # audits give at most 10 false alarms in the mean; Binomial(200, 0.05) exceeds 27 with probability 1e-6.
        source = np.random.default_rng(7)
        epsilon = 1.0
        chance = 1 / (1 + math.exp(-epsilon))
        alarms = 0
        for _ in range(200):
            first, second = (source.random(400) < p for p in (chance, 1 - chance))
            found = audit_samples(
                first.astype(float),
                second.astype(float),
                claimed=(epsilon, 0.0),
                level=0.05,
                suspect_level=0.05,
            )
            alarms += found.verdict is Verdict.REFUTED
        assert alarms <= 27

    @pytest.mark.parametrize(
        "wrong",
        [
            {"draws": 10},
            {"claimed": (-1.0, 1e-5)},
            {"claimed": (1.0, 1.0)},
            {"claimed": (math.nan, 0.0)},
            {"level": 0.0},
            {"level": 0.3, "suspect_level": 0.1},
        ],
    )
    def test_bad_arguments_are_refused(self, wrong):
        given = {"neighbours": (0.0, 1.0), "claimed": (1.0, 1e-5), "draws": 200, "calls": Calls.BATCH}
        with pytest.raises(ConfigError):
            audit_mechanism(gaussian(1.0), **(given | wrong))

    def test_outputs_of_different_shapes_are_refused(self):
        shapes = iter(range(1, 1000))
        with pytest.raises(ConfigError, match="shape"):
            audit_mechanism(
                lambda _: np.zeros(next(shapes)), neighbours=(0, 1), claimed=(1.0, 0.0), draws=100
            )


@pytest.fixture(scope="module")
def plan():
    return PrivacyPlan(
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


class TestOurRelease:
    def test_every_view_stands(self, plan):
        found = audit_release(plan, draws=20_000, rng=InsecureSeededRng(11))
        assert len(found) == len(release_views(plan)) == 8
        for one in found:
            assert one.audit.verdict is Verdict.NOT_REFUTED, one.name
            assert one.audit.epsilon_gaussian > 0.8 * one.audit.claimed_epsilon  # the claim is tight

    def test_half_the_noise_does_not_stand(self, plan):
        halved = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=plan.share_sigma() / 4)
        present, absent = release_samples(
            plan, shares=5, draws=20_000, rng=InsecureSeededRng(12), noise=halved
        )
        found = audit_samples(present, absent, claimed=(plan.epsilon(2.0), plan.delta))
        assert found.verdict is Verdict.REFUTED

    def test_the_clip_holds_in_what_is_seen(self, plan):
        present, absent = release_samples(plan, shares=3, draws=5_000, rng=InsecureSeededRng(13))
        spread = plan.noise_multiplier * math.sqrt(3 / 5)
        # Means of 5,000 draws: 6 standard errors.
        assert present.mean() == pytest.approx(1.0, abs=6 * spread / math.sqrt(5000) + 1e-3)
        assert absent.mean() == pytest.approx(0.0, abs=6 * spread / math.sqrt(5000))
        assert present.std() == pytest.approx(spread, rel=0.06)


def finished_run(path, **privacy):
    given = {"privacy": privacy} if privacy else {"training": {"rounds": 1}}
    simulate(load_config(None, given), out=path, observer=SilentObserver(), task=LinearTask(features=30))
    return path


PRIVATE = {
    "mode": "patient",
    "noise_multiplier": 1.5,
    "accept_weak": True,
    "nominal_patients": 40,
    "steps": 2,
}


class TestOurReleaseOutside:
    def test_the_command_tells_every_view_and_fails_when_one_is_refuted(self, capsys, monkeypatch):
        few = ["audit", "release", "--draws", "4000", "--clients", "3", "--json"]
        assert main(few) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["verdict"] == "NOT REFUTED"
        views = {one["name"]: one for one in document["views"]}
        assert len(views) == len(release_views(usual_plan(clients=3, noise_multiplier=2.0)))
        assert views["crypto_broken"]["claimed_epsilon"] > views["aggregator, curious"]["claimed_epsilon"]
        assert main(few[:-1]) == 0
        assert "ε at least" in capsys.readouterr().out

        def thin(total, *, noise, **rest):
            return privatize(total, noise=replace(noise, sigma=noise.sigma / 8), **rest)

        monkeypatch.setattr(release, "privatize", thin)
        assert main(few) == 5
        assert json.loads(capsys.readouterr().out)["verdict"] == "REFUTED"

    def test_the_plan_of_a_run_is_the_one_in_its_ledger(self, tmp_path, capsys):
        run = finished_run(tmp_path / "run", **PRIVATE, sampling_rate=0.5)
        plan = plan_of_run(run)
        assert (plan.noise_multiplier, plan.cohort_size, plan.releases, plan.sampling_rate) == (1.5, 3, 1, 1)
        assert main(["audit", "release", str(run), "--draws", "2000", "--json"]) == 0
        text = capsys.readouterr().out
        assert json.loads(text)["noise_multiplier"] == 1.5
        (tmp_path / "release.json").write_text(text)
        page = tmp_path / "page.html"
        assert main(["report", str(run), "--audit", str(tmp_path / "release.json"), "--out", str(page)]) == 0
        assert "claimed 2.7" in page.read_text()
        ledger = run / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes().replace(b"1.5", b"9.5"))  # a plan that nobody signed
        with pytest.raises(LedgerCorrupted):
            plan_of_run(run)

    @pytest.mark.parametrize(
        ("privacy", "reason"),
        [
            ({}, "no differential privacy"),
            (PRIVATE | {"schedule": "round", "local_steps": 2}, "schedule step"),
        ],
    )
    def test_what_it_cannot_draw_is_refused(self, tmp_path, capsys, privacy, reason):
        run = finished_run(tmp_path / "run", **privacy)
        assert main(["audit", "release", str(run), "--draws", "200"]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1

    def test_another_relation_is_refused(self, tmp_path, monkeypatch):
        run = finished_run(tmp_path / "run", **PRIVATE)
        other = replace(plan_of_run(run), relation=Relation.REPLACE_ONE)
        monkeypatch.setattr(PrivacyPlan, "from_dict", lambda _: other)
        with pytest.raises(ConfigError, match="in or out"):
            plan_of_run(run)
