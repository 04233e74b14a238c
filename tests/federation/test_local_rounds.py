"""`--dp-schedule round`: several private steps at each site, then one sum of the models' differences."""

import math

import numpy as np
import pytest
from scipy import stats

from secfl.config import load_config
from secfl.dp.accounting import epsilon
from secfl.errors import ConfigError
from secfl.federation import simulation
from secfl.federation.local_work import LocalReport
from secfl.federation.observer import SilentObserver
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import run_terms
from secfl.federation.work import local_work
from secfl.ledger.events import Noise, Placement
from secfl.ledger.verify import load, verify_file
from secfl.testing.tasks import LinearTask
from secfl.types import RoundId, SchemeSpec

ROUND = {
    "mode": "patient",
    "schedule": "round",
    "nominal_patients": 40,
    "sampling_rate": 0.2,
    "steps": 12,
    "local_steps": 4,
    "local_optimizer": "average",
    "step_size": 0.05,
}


def config(scheme="masking", **privacy):
    secure = {"scheme": scheme, "coordinate_bound": 4.0}
    return load_config(None, {"secure_agg": secure, "privacy": ROUND | privacy})


def simulate(path, settings, task=None):
    return simulation.simulate(
        settings, out=path, observer=SilentObserver(), task=task or LinearTask(features=10)
    )


def rows_of(summary):
    return {(v["view"], v["adversary"], v["colluders"]): v["epsilon"] for v in summary["privacy"]["views"]}


def test_every_view_has_the_epsilon_of_each_sites_own_noise(tmp_path):
    """Local placement: neither colluders nor broken cryptography cost anything more."""
    summary = simulate(tmp_path / "run", config(noise_multiplier=1.5))
    assert summary["rounds_completed"] == 3
    found = {value for (view, _, _), value in rows_of(summary).items() if view != "network"}
    settings = config(noise_multiplier=1.5)
    plan = run_terms(settings, LinearTask(features=10), parameters=11, threshold=3).plan
    own = epsilon(plan.event(), delta=1e-5)
    assert plan.releases == 12
    assert max(found) == pytest.approx(own, rel=1e-3)
    assert min(found) == pytest.approx(own, rel=1e-3)


def test_every_local_step_is_an_event_with_the_sites_own_noise(tmp_path):
    simulate(tmp_path / "run", config(noise_multiplier=1.5))
    state = load(tmp_path / "run/ledger.jsonl")
    (terms,) = state.terms.values()
    assert isinstance(terms.event, Noise)
    assert (terms.event.placement, terms.event.count, terms.event.shares) == (Placement.LOCAL, 4, 1)
    assert len(state.commits) == 3
    assert verify_file(tmp_path / "run/ledger.jsonl").findings == ()


def test_the_planned_epsilon_is_kept_by_each_site_carrying_the_whole_noise(tmp_path):
    kept = simulate(tmp_path / "round", config(epsilon=4.0))
    assert 3.5 < max(e for e in rows_of(kept).values() if e is not None) <= 4.0
    rounds, steps = (
        run_terms(settings, LinearTask(features=10), parameters=11, threshold=3).round_terms.releases
        for settings in (config(epsilon=4.0), config(schedule="step", epsilon=4.0))
    )
    # In sums of single steps three sites share what each of them carries here.
    assert rounds.noise(0)[0].sigma / rounds.plan.grid_norm == pytest.approx(
        math.sqrt(3) * steps.noise(0)[0].sigma / steps.plan.grid_norm, rel=0.02
    )


def test_a_resumed_run_repeats_seeded_rounds(tmp_path):
    settings = config(noise_multiplier=1.0, insecure_test_noise=3, accept_weak=True)

    class Stop(SilentObserver):
        def __init__(self):
            self.rounds = 0

        def round_finished(self, report):
            self.rounds += 1

        def phase(self, name, done, total):
            if self.rounds == 1 and name == "aggregating":
                raise KeyboardInterrupt

    whole = simulate(tmp_path / "whole", settings)
    assert {row["epsilon"] for row in whole["privacy"]["views"]} == {None}
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(settings, out=tmp_path / "cut", observer=Stop(), task=LinearTask(features=10))
    resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver(), task=LinearTask(features=10))
    assert resumed["final_model_sha256"] == whole["final_model_sha256"]


def test_rounds_learn(tmp_path):
    """Little noise, so that a failure is not the noise's: the model must beat the untrained one's coin flips."""
    task = LinearTask(features=4, examples=200)
    settings = config(
        noise_multiplier=0.3, steps=60, nominal_patients=200, accept_weak=True, clip=5.0, step_size=0.1
    )
    summary = simulate(tmp_path / "run", settings, task)
    assert summary["evaluation_only"]["dice"]["mean"] > 0.9


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"local_steps": 5, "noise_multiplier": 1.0}, "privacy.steps"),
        ({"local_steps": 13, "noise_multiplier": 1.0}, "privacy.steps"),
    ],
)
def test_refusals_name_the_key(tmp_path, change, named):
    with pytest.raises(ConfigError, match=named):
        simulate(tmp_path / "run", config(**change))
    assert not (tmp_path / "run").exists()


# --- what one site releases


class Quiet(LinearTask):
    """All gradients are zero: what moves the model is noise alone."""

    def patient_gradients(self, site, state, chosen):
        yield np.zeros((len(chosen), 11), np.float32)


class Biased(LinearTask):
    """One patient more with a gradient beyond the clip, always in the same direction."""

    def patient_gradients(self, site, state, chosen):
        rows = np.zeros((len(chosen), 11), np.float32)
        rows[chosen == 7] = 100.0
        yield rows


def work_of(task, settings, *, seed=None):
    if seed is not None:
        settings = settings.model_copy(
            update={"privacy": settings.privacy.model_copy(update={"insecure_test_noise": seed})}
        )
    terms = run_terms(settings, task, parameters=11, threshold=3)
    return terms, local_work("site-00", config=settings, task=task, terms=terms)


def difference(task, settings, *, seed=None, index=0):
    terms, work = work_of(task, settings, seed=seed)
    report = contribution(work, terms, task, index).report
    assert isinstance(report, LocalReport)
    return report.update.values.astype(float)


def contribution(work, terms, task, index=0):
    class Spec:
        model_digest = bytes(32)

    offer = RoundOffer(
        run_id=bytes(16),
        round_id=RoundId(0),
        round_index=index,
        cohort=("site-00", "site-01", "site-02"),
        threshold=3,
        scheme=SchemeSpec(name="masking"),
        state=task.initial_state(),
    )
    assert terms.round_terms.releases is not None
    return work.contribute(offer, Spec())


def test_the_noise_of_a_step_is_whole_at_every_site():
    """Chi-square of the noise that plain SGD shows, 400 rounds of 4 steps; two-sided level 1e-6.

    It rejects noise of 1/sqrt(3), which would do if it were shared among three sites.
    """
    settings = config(noise_multiplier=2.0, steps=1600, accept_weak=True)
    terms, work = work_of(Quiet(features=10), settings)
    noise = np.concatenate(
        [
            contribution(work, terms, Quiet(features=10), index).report.update.values.astype(float)
            for index in range(400)
        ]
    )
    step = terms.plan.clip_norm / terms.plan.grid_norm
    expected = 0.05 / (0.2 * 40) * terms.plan.total_sigma() * step * math.sqrt(4)
    statistic = float(((noise / expected) ** 2).sum())
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], noise.size)
    assert low < statistic < high
    assert statistic / 3 < low


def test_one_patient_moves_a_site_by_at_most_its_clip_in_every_step():
    """Replay with frozen noise and sampling at rate 1: plain SGD shows the sum of the steps' differences."""
    settings = config(noise_multiplier=2.0, sampling_rate=1.0, accept_weak=True)
    moved = difference(Biased(features=10), settings, seed=1) - difference(
        Quiet(features=10), settings, seed=1
    )
    bound = 4 * 0.05 / 40 * 1.0  # steps x learning rate / expected batch x clip
    assert 0.95 * bound < np.linalg.norm(moved) <= bound * (1 + 1e-5)


def test_a_second_attempt_sends_what_was_released_already():
    task = LinearTask(features=10)
    terms, work = work_of(task, config(noise_multiplier=2.0))
    first, second, other = (contribution(work, terms, task, index) for index in (0, 0, 1))
    same = first.privatized.vectors["update"] == second.privatized.vectors["update"]
    assert same.all()
    assert (first.privatized.vectors["update"] != other.privatized.vectors["update"]).any()


def test_another_number_of_local_steps_is_another_round():
    """Sites that disagree about local steps, optimizer or learning rate do not end up in one sum."""
    task = LinearTask(features=10)
    digests = {
        run_terms(
            config(noise_multiplier=2.0, **change), task, parameters=11, threshold=3
        ).round_terms.task_digest
        for change in ({}, {"local_steps": 3}, {"step_size": 0.06}, {"local_optimizer": "adam"})
    }
    assert len(digests) == 4


def test_the_update_says_which_noise_it_carries():
    task = LinearTask(features=10)
    terms, work = work_of(task, config(noise_multiplier=2.0))
    assert contribution(work, terms, task).privatized.noise.endswith("in each of 4 local steps")
    terms, work = work_of(task, config(noise_multiplier=2.0), seed=1)
    assert contribution(work, terms, task).privatized.noise.endswith("(seeded, not private)")
