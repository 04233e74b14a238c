"""Patient-level private steps through the secure sum."""

import numpy as np
import pytest

from secfl.config import load_config
from secfl.dp.clipping import GridClip
from secfl.dp.noise import NoiseFamily, NoiseShare
from secfl.errors import ConfigError, PrivacyError
from secfl.federation import simulation
from secfl.federation.local_work import PatientStep
from secfl.federation.observer import SilentObserver
from secfl.federation.privacy import run_terms
from secfl.randomness import InsecureSeededRng, SystemRng
from secfl.testing.tasks import LinearTask

NOISE = {"mode": "patient", "nominal_patients": 40, "sampling_rate": 0.2, "steps": 5, "step_size": 0.05}


def config(scheme="masking", **privacy):
    return load_config(None, {"secure_agg": {"scheme": scheme}, "privacy": NOISE | privacy})


def simulate(path, settings, task=None):
    return simulation.simulate(
        settings, out=path, observer=SilentObserver(), task=task or LinearTask(features=10)
    )


def test_the_planned_epsilon_is_kept(tmp_path):
    summary = simulate(tmp_path / "run", config(epsilon=4.0))
    views = {(v["view"], v["adversary"], v["colluders"]): v["epsilon"] for v in summary["privacy"]["views"]}
    assert 3.5 < views["aggregator", "malicious", 0] <= 4.0
    assert views["aggregator_colluders", "curious", 1] > views["aggregator", "curious", 0]
    assert summary["privacy"]["unit"] == "patient"
    assert summary["rounds_completed"] == 5


def test_without_secure_aggregation_every_client_adds_the_whole_noise(tmp_path):
    plain = simulate(tmp_path / "plain", config("plain", noise_multiplier=2.0))
    masked = simulate(tmp_path / "masked", config("masking", noise_multiplier=2.0))

    def curious(summary):
        rows = summary["privacy"]["views"]
        return next(r["epsilon"] for r in rows if (r["view"], r["adversary"]) == ("aggregator", "curious"))

    assert curious(plain) == pytest.approx(curious(masked), rel=0.02)


def test_seeded_steps_are_repeated_by_a_resumed_run(tmp_path):
    settings = config(noise_multiplier=1.0, insecure_test_noise=3, accept_weak=True)

    class Stop(SilentObserver):
        def phase(self, name, done, total):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 12:
                raise KeyboardInterrupt

    whole = simulate(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(settings, out=tmp_path / "cut", observer=Stop(), task=LinearTask(features=10))
    resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver(), task=LinearTask(features=10))
    assert resumed["final_model_sha256"] == whole["final_model_sha256"]


def test_the_experiment_seed_does_not_reach_sampling_or_noise(tmp_path):
    """Two runs with one --seed differ, because sampling and noise are secret."""
    settings = config(noise_multiplier=1.0, accept_weak=True)
    models = {simulate(tmp_path / name, settings)["final_model_sha256"] for name in "ab"}
    assert len(models) == 2


def step_of(task, *, seed, sampling_rate=1.0):
    settings = config(noise_multiplier=1.0, sampling_rate=sampling_rate, accept_weak=True)
    terms = run_terms(settings, task, parameters=11, threshold=3)
    return terms, PatientStep(
        "site-00",
        task=task,
        terms=terms.round_terms,
        sampling_rate=sampling_rate,
        secret=InsecureSeededRng(seed),
    )


class WithoutPatient(LinearTask):
    """The neighbouring data set: one patient's row is gone."""

    gone = 7

    def patient_gradients(self, site, state, chosen):
        return super().patient_gradients(site, state, chosen[chosen != self.gone])


class Wild(LinearTask):
    """One patient's gradient is not a number."""

    def patient_gradients(self, site, state, chosen):
        for rows in super().patient_gradients(site, state, chosen):
            rows[0] = np.nan
            yield rows


def contribution(task, *, seed=1):
    from secfl.federation.offer import RoundOffer
    from secfl.types import RoundId, SchemeSpec

    _, step = step_of(task, seed=seed)
    offer = RoundOffer(
        run_id=bytes(16),
        round_id=RoundId(0),
        round_index=0,
        cohort=("site-00", "site-01", "site-02"),
        threshold=3,
        scheme=SchemeSpec(name="masking"),
        state=task.initial_state(),
    )
    return step.contribute(offer, None).privatized.vectors["update"]


def signed(vector, bits):
    half = 1 << (bits - 1)
    wide = vector.astype(np.int64)
    return np.where(wide >= half, wide - (1 << bits), wide)


def test_one_patient_moves_the_sum_by_at_most_the_sensitivity():
    """Replay with frozen noise: the difference of neighbouring data is one clipped patient."""
    terms, _ = step_of(LinearTask(features=10), seed=0)
    bits, bound = terms.round_terms.bits, terms.plan.sensitivity
    with_patient = signed(contribution(LinearTask(features=10)), bits)
    without = signed(contribution(WithoutPatient(features=10)), bits)
    moved = np.linalg.norm((with_patient - without).astype(float))
    assert 0.9 * bound < moved <= bound  # this patient's gradient is larger than the clip


def test_a_patient_without_a_finite_gradient_counts_as_zero():
    terms, _ = step_of(LinearTask(features=10), seed=0)
    bits = terms.round_terms.bits
    wild = signed(contribution(Wild(features=10)), bits)
    assert np.abs(wild).max() < 2 ** (bits - 2)
    moved = np.linalg.norm((wild - signed(contribution(LinearTask(features=10)), bits)).astype(float))
    assert moved <= terms.plan.sensitivity


def test_a_clip_after_the_sum_would_be_caught():
    """The wrong order of clip and sum leaves one patient's influence unbounded by G."""
    task = LinearTask(features=10)
    clip = GridClip.single(dimension=11, clip_norm=1.0, grid_norm=1000)
    rows = np.concatenate(list(task.patient_gradients("site-00", task.initial_state(), np.arange(40))))
    wrong = clip.clip(rows.sum(axis=0)).values.astype(float)
    fewer = clip.clip(np.delete(rows, 7, axis=0).sum(axis=0)).values.astype(float)
    rows[7] *= 1e6  # one patient who is allowed to dominate the sum
    dominated = clip.clip(rows.sum(axis=0)).values.astype(float)
    assert np.linalg.norm(dominated - fewer) > 1000 > np.linalg.norm(wrong - fewer)


def test_the_sampler_takes_each_patient_with_the_stated_probability():
    """Binomial count over 2,000 draws of 40 patients; two-sided false-alarm rate 1e-6, and 1.1 q is rejected."""
    from scipy.stats import binom

    from secfl.dp.sampling import PoissonSampler

    sampler = PoissonSampler(population=40, rate=0.2)
    count = sum(len(sampler.draw(SystemRng())) for _ in range(2000))
    low, high = binom.ppf([5e-7, 1 - 5e-7], 80_000, 0.2)
    assert low <= count <= high
    assert binom.cdf(high, 80_000, 0.22) < 1e-6


def test_refusals_name_the_reason(tmp_path):
    with pytest.raises(PrivacyError, match="accept-weak"):
        simulate(tmp_path / "run", config(noise_multiplier=0.1))
    folder = load_config(
        None, {"data": {"source": "somewhere"}, "privacy": {"mode": "patient", "epsilon": 8}}
    )
    with pytest.raises(ConfigError, match="nominal_patients"):
        simulate(tmp_path / "run", folder)
    assert not (tmp_path / "run").exists()


def test_share_widths_add_up():
    terms, _ = step_of(LinearTask(3, features=10), seed=0)
    (share,) = terms.round_terms.releases.noise(0)
    assert isinstance(share, NoiseShare)
    assert share.family is NoiseFamily.DISCRETE_GAUSSIAN
    assert share.sigma * np.sqrt(3) == pytest.approx(terms.plan.total_sigma())
