"""Replays: what one unit changes, measured; and single faults, each with its detector."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from secfl.audit import Verdict, client_round
from secfl.audit.client_round import replay_patient_round
from secfl.audit.client_step import PatientView, replay_metrics, replay_patient_step
from secfl.audit.family_replay import replay_family, replay_folder
from secfl.audit.noise_tests import correlation_test, shortfall_found, variance_test
from secfl.audit.other_tests import collision_test, convergence_test, reachability_audit
from secfl.audit.replay import difference_norm, replay
from secfl.audit.sampling_tests import batch_size_test, inclusion_test, membership_matrix, repetition_test
from secfl.config import load_config
from secfl.dp.noise import NoiseFamily, integer_sampler
from secfl.dp.sampling import PoissonSampler
from secfl.errors import ConfigError
from secfl.federation.privacy import run_terms
from secfl.randomness import InsecureSeededRng
from secfl.segmentation.models.registry import families
from secfl.testing.tasks import LinearTask

PRIVATE = {"mode": "patient", "noise_multiplier": 1.0, "accept_weak": True, "nominal_patients": 40}


class TestReplay:
    def test_the_distance_goes_the_short_way_around(self):
        one = np.array([1, 65535, 7], np.uint32)
        other = np.array([65534, 2, 7], np.uint32)
        assert difference_norm(one, other, bits=16) == pytest.approx(math.sqrt(9 + 9))
        assert difference_norm(other, one, bits=16) == pytest.approx(math.sqrt(18))

    def test_large_residues_are_compared_in_exact_integers(self):
        one, other = np.array([2**60, 0], np.uint64), np.array([0, 2**60], np.uint64)
        assert difference_norm(one, other, bits=62) == math.sqrt(2 * 2**120)

    def test_nan_is_no_distance(self):
        assert difference_norm(np.array([np.nan]), np.array([0.0]), bits=None) == math.inf

    def test_a_step_with_its_own_randomness_is_refused(self):
        source = np.random.default_rng(0)
        with pytest.raises(ConfigError, match="randomness"):
            replay(lambda data, _: data + source.normal(size=3), neighbours=[(0.0, 1.0)], sensitivity=1.0)

    def test_the_worst_pair_counts(self):
        found = replay(
            lambda data, _: np.array([data]), neighbours=[(0.0, 0.5), (0.0, 2.0), (1.0, 0.0)], sensitivity=1.0
        )
        assert (found.verdict, found.measured, found.worst_pair) == (Verdict.REFUTED, 2.0, 1)


class MixingTask(LinearTask):
    """Batch normalisation in spirit: every row is taken relative to the batch's mean."""

    def patient_gradients(self, site, state, chosen):
        for rows in super().patient_gradients(site, state, chosen):
            yield rows - rows.mean(axis=0)


def terms_of(task, parameters):
    return run_terms(load_config(None, {"privacy": PRIVATE}), task, parameters=parameters, threshold=3)


def sensitivity_of(finding):
    return float(finding.statistic.split()[2].rstrip(","))


class TestOurClientStep:
    def test_it_keeps_its_sensitivity(self):
        task = LinearTask(features=30)
        found = replay_patient_step(task, terms_of(task, 31), patients=(0, 5, 39))
        assert len(found) == 5
        assert not any(one.flagged for one in found), found
        # The worst gradients use the whole sensitivity, so they did reach the step; NaN counts as nothing.
        measured = {one.name.rpartition("against ")[2]: sensitivity_of(one) for one in found}
        planned = float(found[0].statistic.split()[-1])
        assert measured["a gradient of 1e6 clips"] > 0.9 * planned
        assert measured["the opposite gradient, 1e6 times"] > 0.9 * planned
        assert measured["NaN"] == 0

    def test_a_gradient_that_depends_on_other_patients_is_refuted(self):
        task = MixingTask(features=30)
        found = replay_patient_step(task, terms_of(task, 31), patients=(0, 5))
        assert any(one.flagged for one in found)

    def test_neighbours_lack_exactly_one_row(self):
        task = LinearTask(features=4)
        view = PatientView(task, "site-01", 3, row=None)
        state = task.initial_state()
        rows = np.concatenate(list(view.patient_gradients("site-01", state, np.arange(6))))
        whole = np.concatenate(list(task.patient_gradients("site-01", state, np.arange(6))))
        assert np.array_equal(rows, np.delete(whole, 3, axis=0))
        other = np.concatenate(list(view.patient_gradients("site-00", state, np.arange(6))))
        assert len(other) == 6

    def test_without_a_private_plan_there_is_nothing_to_replay(self):
        task = LinearTask(features=4)
        terms = run_terms(load_config(None, {}), task, parameters=5, threshold=3)
        with pytest.raises(ConfigError, match="dp patient"):
            replay_patient_step(task, terms)

    def test_a_plan_for_rounds_is_not_replayed_as_a_step(self):
        task = LinearTask(features=4)
        with pytest.raises(ConfigError, match="schedule step"):
            replay_patient_step(task, round_terms(task, 5))

    @pytest.mark.slow
    @pytest.mark.parametrize("family", families())
    def test_every_model_family_keeps_its_sensitivity(self, family):
        found = replay_family(family, size=32)
        assert len(found) == 3 * 7
        assert [one for one in found if one.flagged] == []

    @pytest.mark.slow
    def test_a_patient_who_leaves_the_folder_changes_one_row(self):
        found = replay_folder(size=32)
        assert [one.name.rpartition(": ")[2] for one in found] == [
            "built from neighbouring data",
            "metrics do not depend on training patients",
            "built from neighbouring data",
        ]
        assert [one for one in found if one.flagged] == []
        assert all("measured 0," not in one.statistic for one in found), found


def round_terms(task, parameters):
    privacy = PRIVATE | {"schedule": "round", "steps": 6, "local_steps": 3}
    return run_terms(load_config(None, {"privacy": privacy}), task, parameters=parameters, threshold=3)


class TestOurRound:
    def test_every_local_step_keeps_its_sensitivity(self):
        task = LinearTask(features=30)
        found = replay_patient_round(task, round_terms(task, 31), patients=(0, 5))
        assert len(found) == 6
        assert not any(one.flagged for one in found), found
        measured = [sensitivity_of(one) for one in found[:-1]]
        planned = float(found[0].statistic.split()[-1])
        assert max(measured) > 0.9 * planned

    def test_a_gradient_that_depends_on_other_patients_is_refuted(self):
        task = MixingTask(features=30)
        found = replay_patient_round(task, round_terms(task, 31), patients=(0, 5))
        assert any(one.flagged for one in found[:-1])

    def test_a_later_step_that_mixes_patients_is_refuted(self):
        task = LateMixingTask(features=30)
        found = replay_patient_round(task, round_terms(task, 31), patients=(0,))
        assert any(one.flagged for one in found[:-1])

    def test_what_is_sent_beside_the_noisy_sums_is_refuted(self, monkeypatch):
        honest = client_round.PatientRound._train

        def telling(self, offer):
            update, *rest = honest(self, offer)
            everybody = np.arange(self._task.patients(self._name))
            rows = list(self._task.patient_gradients(self._name, offer.state, everybody))
            clear = np.nan_to_num(np.concatenate(rows)).clip(-1, 1).sum(axis=0)
            return replace(update, values=update.values + np.float32(1e-2) * clear), *rest

        monkeypatch.setattr(client_round.PatientRound, "_train", telling)
        task = LinearTask(features=30)
        found = replay_patient_round(task, round_terms(task, 31), patients=(0,))
        assert found[-1].flagged

    def test_a_plan_for_steps_is_not_replayed_as_a_round(self):
        task = LinearTask(features=4)
        with pytest.raises(ConfigError, match="schedule round"):
            replay_patient_round(task, terms_of(task, 5))


class LateMixingTask(LinearTask):
    """Right at the initial model only, so that a replay of the first step alone sees nothing."""

    def patient_gradients(self, site, state, chosen):
        first = all(np.array_equal(one, state[name]) for name, one in self.initial_state().items())
        for rows in super().patient_gradients(site, state, chosen):
            yield rows if first else rows * 1e-3 + 1e3 * rows.sum(axis=0)


class TestMetrics:
    def test_metrics_of_test_patients_pass_and_of_training_patients_do_not(self):
        class Other(LinearTask):
            def evaluate(self, site, state):
                return replace(super().evaluate(site, state), accuracy=0.125)

        task = LinearTask(features=4)
        assert not replay_metrics(task, [LinearTask(features=4)]).flagged
        assert replay_metrics(task, [Other(features=4)]).flagged


class TestNoise:
    @pytest.mark.parametrize("family", list(NoiseFamily))
    def test_honest_noise_passes_and_a_little_less_does_not(self, family):
        sigma = 20.0
        excess = 1 / sigma**2 if family is NoiseFamily.SKELLAM else 0.0
        noise = integer_sampler(family, sigma).draw(20_000, InsecureSeededRng(1))
        assert not variance_test(noise, sigma, excess_kurtosis=excess).flagged
        assert variance_test(noise, sigma * 1.1, excess_kurtosis=excess).flagged

    def test_ten_thousand_draws_find_five_percent_as_promised(self):
        assert shortfall_found(10_000) == pytest.approx(1.05, abs=0.002)
        sampler = integer_sampler(NoiseFamily.DISCRETE_GAUSSIAN, 100.0)
        found = sum(
            variance_test(sampler.draw(10_000, InsecureSeededRng(seed)), 105.0).flagged for seed in range(40)
        )
        assert found >= 34  # 98 % each: fewer has probability 1e-5

    def test_no_noise_and_no_number_are_found(self):
        assert variance_test(np.zeros(50, np.int64), 1.0).flagged
        assert variance_test(np.array([np.nan] * 9), 1.0).flagged

    def test_one_seed_for_two_clients_is_found(self):
        sampler = integer_sampler(NoiseFamily.DISCRETE_GAUSSIAN, 10.0)
        one, other = (sampler.draw(2_000, InsecureSeededRng(seed)) for seed in (1, 2))
        assert not correlation_test(one, other).flagged
        assert correlation_test(one, one.copy()).flagged
        assert correlation_test(one, other + one // 2).flagged

    def test_floating_point_noise_has_outputs_that_one_neighbour_cannot_reach(self):
        source = np.random.default_rng(3)
        found = reachability_audit(
            lambda value, count: value + source.normal(0.0, 4.0, count), claimed=(1.1, 1e-5), draws=200_000
        )
        assert found.verdict is Verdict.REFUTED

    def test_integer_noise_has_none(self):
        sampler = integer_sampler(NoiseFamily.DISCRETE_GAUSSIAN, 400.0)
        rng = InsecureSeededRng(4)
        found = reachability_audit(
            lambda value, count: (100 * value + sampler.draw(count, rng)) / 100,
            claimed=(1.1, 1e-5),
            draws=200_000,
        )
        assert found.verdict is Verdict.NOT_REFUTED


def poisson(seed, population=200, rate=0.1, steps=400):
    sampler, rng = PoissonSampler(population=population, rate=rate), InsecureSeededRng(seed)
    return membership_matrix([sampler.draw(rng) for _ in range(steps)], population)


def shuffled(seed, population=200, rate=0.1, steps=400):
    source, size, batches = np.random.default_rng(seed), round(population * rate), []
    while len(batches) < steps:
        order = source.permutation(population)
        batches += [order[at : at + size] for at in range(0, population, size)]
    return membership_matrix(batches[:steps], population)


class TestSampling:
    def test_poisson_sampling_passes(self):
        for seed in range(10):
            assert not batch_size_test(poisson(seed), 0.1).flagged
            assert not inclusion_test(poisson(seed), 0.1).flagged

    def test_shuffling_does_not(self):
        assert batch_size_test(shuffled(1), 0.1).flagged
        assert inclusion_test(shuffled(1), 0.1).flagged

    def test_another_rate_does_not(self):
        assert batch_size_test(poisson(1, rate=0.15), 0.1).flagged

    def test_a_schedule_that_a_restart_repeats_is_found(self):
        assert repetition_test(lambda: poisson(5), 0.1).flagged
        seeds = iter((5, 6))
        assert not repetition_test(lambda: poisson(next(seeds)), 0.1).flagged

    @pytest.mark.parametrize("test", [batch_size_test, inclusion_test])
    def test_too_little_is_said_and_not_judged(self, test):
        with pytest.raises(ConfigError):
            test(np.zeros((3, 10), bool), 0.1)


class TestOthers:
    def test_short_seeds_collide(self):
        def streams(bits, count=2_000):
            for number in range(count):
                yield InsecureSeededRng(number % (1 << bits)).bytes(16)

        assert collision_test(streams(10)).flagged
        assert not collision_test(streams(40)).flagged

    def test_a_clip_that_runs_away_is_found(self):
        assert convergence_test(lambda clip: clip * 100, 1.0).flagged
        assert not convergence_test(lambda _: 1.1, 1.0).flagged
