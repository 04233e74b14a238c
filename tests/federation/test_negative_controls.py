"""Faults in a run's own client step, each with the detector that catches it.

The mechanisms alone have their controls in tests/dp; here the same faults are put into what a site really does, under
both schedules. Every detector is run on the sound step first and must stay silent there. False-alarm rates: statistical
detectors 1e-6 each (`secfl.audit.verdicts.REFUTED_LEVEL`), 15 of them; replays compare integers with frozen noise and
never alarm falsely; collisions of sound streams have probability 2^-93.
"""

import dataclasses
import hashlib

import numpy as np
import pytest

from secfl.audit.noise_tests import correlation_test, variance_test
from secfl.audit.other_tests import collision_test, convergence_test
from secfl.audit.sampling_tests import batch_size_test, inclusion_test, membership_matrix, repetition_test
from secfl.config import load_config
from secfl.dp.accounting import Relation
from secfl.dp.noise import NoiseShare, PatientSum, _WordStream, noisy_sum
from secfl.errors import LocalProtocolError, UnsupportedEvent
from secfl.federation import local_rounds, local_work
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import run_terms
from secfl.federation.releases import Announcement
from secfl.federation.work import local_work as make_work
from secfl.ledger.state import check_terms
from secfl.randomness import ExperimentSeed, InsecureSeededRng, SystemRng
from secfl.testing.tasks import LinearTask
from secfl.types import PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, VectorSpec

PATIENTS = 200
SCHEDULES = ("step", "round")


class Rows(LinearTask):
    """Gradients as a test wants them; remembers who was sampled."""

    def __init__(self, row=None, *, without=None):
        super().__init__(3, features=10, examples=PATIENTS)
        self.row = row or (lambda _: np.zeros(11, np.float32))
        self.without = without
        self.sampled = []

    def patient_gradients(self, site, state, chosen):
        self.sampled.append(np.asarray(chosen))
        kept = [patient for patient in chosen if patient != self.without]
        yield np.array([self.row(patient) for patient in kept], np.float32).reshape(len(kept), 11)


def settings_of(schedule="step", **privacy):
    values = {
        "mode": "patient",
        "schedule": schedule,
        "local_steps": 1,
        "local_optimizer": "average",
        "step_size": 1.0,
        "nominal_patients": PATIENTS,
        "sampling_rate": 0.1,
        "steps": 1000,
        "noise_multiplier": 2.0,
        "accept_weak": True,
    }
    return load_config(None, {"privacy": values | privacy})


class Site:
    """One site's step, and what it releases in grid units."""

    def __init__(self, task, settings, *, site="site-00"):
        self.task = task
        self.settings = settings
        self.terms = run_terms(settings, task, parameters=11, threshold=3)
        self.work = make_work(site, config=settings, task=task, terms=self.terms)

    def release(self, index=0, announced=None):
        """The noisy sum of one step, read off the integers or off the model's difference."""
        found = self.work.contribute(self.offer(index, announced), _Spec())
        clip = self.terms.round_terms.releases.unit_clip()
        if self.settings.privacy.schedule.value == "round":
            batch = self.settings.privacy.sampling_rate * PATIENTS
            moved = found.report.update.values.astype(float) * -batch
            return np.rint(moved / clip.groups[0].step)
        bits = self.terms.round_terms.bits
        wide = found.privatized.vectors["update"].astype(np.int64)
        return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)

    def offer(self, index, announced=None):
        return RoundOffer(
            run_id=bytes(16),
            round_id=RoundId(0),
            round_index=index,
            cohort=("site-00", "site-01", "site-02"),
            threshold=3,
            scheme=SchemeSpec(name="masking"),
            state=self.task.initial_state(),
            announced=announced or Announcement(),
        )


class _Spec:
    model_digest = bytes(32)


# --- noise off, noise halved


def narrow_noise(schedule):
    site = Site(Rows(), settings_of(schedule))
    noise = np.concatenate([site.release(index) for index in range(300)])
    (share,) = site.terms.round_terms.releases.noise(0)
    return variance_test(noise, share.sigma).flagged


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_noise_that_is_off_or_halved_is_caught(monkeypatch, schedule, factor):
    assert not narrow_noise(schedule)

    def narrower(total, *, noise, rng):
        if factor == 0:
            return total.values
        return noisy_sum(total, noise=NoiseShare(family=noise.family, sigma=factor * noise.sigma), rng=rng)

    def share(offer, terms, site):
        (whole,) = terms.releases.noise(offer.round_index)
        return NoiseShare(family=whole.family, sigma=factor * whole.sigma) if factor else None

    monkeypatch.setattr(local_rounds, "noisy_sum", narrower)
    monkeypatch.setattr(local_work, "_noise", share)
    assert narrow_noise(schedule)


# --- wrong sensitivity, by replay


def moved_by_one_patient(schedule, row):
    """How far one patient moves the release, over the sensitivity; everybody is sampled, and the noise is frozen."""
    settings = settings_of(schedule, sampling_rate=1.0, insecure_test_noise=1)
    sites = [Site(Rows(row, without=without), settings) for without in (None, 7)]
    releases = [site.release().astype(float) for site in sites]
    return float(np.linalg.norm(releases[0] - releases[1])) / sites[0].terms.plan.sensitivity


def dominated(patient):
    """One patient outweighs all others in the opposite direction."""
    return np.full(11, -1e4 if patient == 7 else 1.0, np.float32)


def broken(patient):
    return np.full(11, np.nan if patient == 7 else 0.1, np.float32)


def clip_after_the_sum(gradients, clip):
    rows = np.concatenate(list(gradients))
    whole = clip.clip(rows.sum(axis=0)).values.astype(np.int64)
    return PatientSum(values=whole, sensitivity=clip.sensitivity), 0.0


def mean_over_the_batch(gradients, clip):
    rows = np.concatenate(list(gradients))
    total = sum(clip.clip(row).values.astype(np.int64) for row in rows)
    mean = np.rint(total * PATIENTS / len(rows)).astype(np.int64)
    return PatientSum(values=mean, sensitivity=clip.sensitivity), 0.0


def without_looking_for_nan(gradients, clip):
    with np.errstate(invalid="ignore"):
        rows = np.concatenate(list(gradients)).astype(float)
        rows *= np.minimum(1, 1 / np.linalg.norm(rows, axis=1, keepdims=True)) * clip.groups[0].grid_norm
        total = np.nan_to_num(rows.sum(axis=0), nan=2.0**20).astype(np.int64)
    return PatientSum(values=total, sensitivity=clip.sensitivity), 0.0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("fault", "row"),
    [(clip_after_the_sum, dominated), (mean_over_the_batch, dominated), (without_looking_for_nan, broken)],
)
def test_wrong_sensitivity_is_caught_by_replay(monkeypatch, schedule, fault, row):
    # 1e-3 for reading grid units off a float32 model; the integers themselves are exact.
    slack = 1e-3 if schedule == "round" else 0.0
    assert moved_by_one_patient(schedule, row) <= 1 + slack
    for module in (local_rounds, local_work):
        monkeypatch.setattr(module, "clipped_sum", fault)
    assert moved_by_one_patient(schedule, row) > 1 + slack


def test_replacing_a_patient_accounted_as_removing_one_is_caught():
    """Replacing moves the sum by up to 2G: accounted with G it is refuted by replay, and the ledger refuses it."""
    settings = settings_of(sampling_rate=1.0, insecure_test_noise=1)
    rows = (lambda _: np.full(11, 1e3), lambda patient: np.full(11, -1e3 if patient == 7 else 1e3))
    sites = [Site(Rows(row), settings) for row in rows]
    bound = sites[0].terms.plan.sensitivity
    moved = np.linalg.norm((sites[0].release() - sites[1].release()).astype(float))
    assert bound < moved <= 2 * bound
    assert moved_by_one_patient("step", rows[0]) <= 1


def test_the_ledger_refuses_replacing_under_sampling(tmp_path):
    from secfl.federation import simulation
    from secfl.federation.observer import SilentObserver
    from secfl.ledger.verify import load

    simulation.simulate(
        settings_of(steps=1), out=tmp_path / "run", observer=SilentObserver(), task=LinearTask(features=10)
    )
    state = load(tmp_path / "run/ledger.jsonl")
    (terms,) = state.terms.values()
    check_terms(state.header, terms.event, terms.guarantee)
    replaced = dataclasses.replace(state.header, relation=Relation.REPLACE_ONE)
    with pytest.raises(UnsupportedEvent, match="added or removed"):
        check_terms(replaced, terms.event, terms.guarantee)


# --- one noise seed for two clients


class OneSeed(InsecureSeededRng):
    """A source that gives every client and every purpose the same bytes."""

    def fork(self, label):
        return OneSeed(1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_noise_seed_for_two_clients_is_caught(schedule):
    def correlated(secret):
        noises = []
        for name in ("site-00", "site-01"):
            site = Site(Rows(), settings_of(schedule), site=name)
            if secret is not None:
                site.work._secret = secret
            noises.append(np.concatenate([site.release(index) for index in range(30)]))
        return correlation_test(*noises).flagged

    assert not correlated(None)
    assert correlated(OneSeed(1))


# --- floating-point noise


def test_floating_point_noise_is_caught_before_it_can_leave():
    """What a scheme takes are integers; and sums with noise are whole numbers of grid steps, whatever they sum."""
    spec = RoundSpec(
        run_id=bytes(16),
        round_id=RoundId(0),
        cohort=("a", "b", "c"),
        threshold=3,
        vectors=(VectorSpec(name="update", length=4, modulus_bits=20),),
        scheme=SchemeSpec(name="masking"),
        manifest_digest=bytes(32),
        model_digest=bytes(32),
        task_digest=bytes(32),
        plan_digest=bytes(32),
    )
    PrivatizedUpdate(vectors={"update": np.ones(4, np.uint32)}, noise="none").check(spec)
    with pytest.raises(LocalProtocolError, match="uint32"):
        PrivatizedUpdate(vectors={"update": np.ones(4)}, noise="none").check(spec)
    site = Site(Rows(), settings_of("round"))
    (share,) = site.terms.round_terms.releases.noise(0)
    total = PatientSum(values=np.arange(11), sensitivity=site.terms.plan.sensitivity)
    assert noisy_sum(total, noise=share, rng=SystemRng()).dtype == np.int64
    with pytest.raises(LocalProtocolError, match="int64"):
        PatientSum(values=np.arange(11) + np.random.default_rng(0).normal(size=11), sensitivity=1)


# --- an adaptive clip with the sign inverted


@pytest.mark.parametrize("sign", [1, -1])
def test_an_inverted_adaptive_clip_is_caught(sign):
    """70 steps of one site's own bits. A sound clip ends within a factor of 2 except with probability below 1e-11."""

    def norms(patient):
        row = np.zeros(11, np.float32)
        row[0] = np.exp((patient - 99.5) / 200)  # median 1
        return row

    def run(start):
        site = Site(
            Rows(norms), settings_of(sampling_rate=1.0, quantile_clip={"smallest": 1e-9, "largest": 1e9})
        )
        quantile = dataclasses.replace(site.terms.round_terms.releases.quantile, expected_units=PATIENTS)
        quantile = dataclasses.replace(quantile, clip_norm=start)
        for index in range(70):
            bits = int(site.release(index, Announcement(clip_norm=quantile.clip_norm))[-1])
            quantile = quantile.after(sign * bits)
        return quantile.clip_norm

    assert convergence_test(run, 1.0).flagged == (sign == -1)


# --- sampling


class Shuffled:
    """Epochs of batches of one size, as most training loops draw them."""

    def __init__(self, *, population, rate):
        self.generator = np.random.default_rng(5)
        self.size = round(population * rate)
        self.population = population
        self.left = np.empty(0, np.intp)

    def draw(self, rng):
        if not self.left.size:
            self.left = self.generator.permutation(self.population)
        batch, self.left = self.left[: self.size], self.left[self.size :]
        return np.sort(batch)


class Seeded:
    """Poisson sampling from the public seed of the experiment."""

    def __init__(self, *, population, rate):
        self.generator = ExperimentSeed(0).generator("patients")
        self.population, self.rate = population, rate

    def draw(self, rng):
        return np.flatnonzero(self.generator.random(self.population) < self.rate)


def sampled(schedule, steps=100):
    site = Site(Rows(), settings_of(schedule))
    for index in range(steps):
        site.release(index)
    return membership_matrix(site.task.sampled, PATIENTS)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shuffling_accounted_as_poisson_is_caught(monkeypatch, schedule):
    found = sampled(schedule)
    assert not batch_size_test(found, 0.1).flagged
    assert not inclusion_test(found, 0.1).flagged
    for module in (local_rounds, local_work):
        monkeypatch.setattr(module, "PoissonSampler", Shuffled)
    found = sampled(schedule)
    assert batch_size_test(found, 0.1).flagged
    assert inclusion_test(found, 0.1).flagged


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_seeded_sampling_presented_as_secret_is_caught_by_a_restart(monkeypatch, schedule):
    assert not repetition_test(lambda: sampled(schedule, 40), 0.1).flagged
    for module in (local_rounds, local_work):
        monkeypatch.setattr(module, "PoissonSampler", Seeded)
    assert repetition_test(lambda: sampled(schedule, 40), 0.1).flagged


# --- short seeds


class ShortSeed:
    """Keys stretched from 32 bits; which ones they are repeats from run to run, so that this control is no gamble."""

    is_secret = True

    def __init__(self):
        self.source = InsecureSeededRng(0)

    def bytes(self, count):
        return hashlib.shake_256(self.source.bytes(4)).digest(count)


@pytest.mark.slow
def test_short_seeds_of_noise_streams_are_caught_by_collisions():
    """Among 2^18 streams, 32-bit seeds repeat 8 times on average; sound ones with probability 2^-93."""

    def beginnings(rng):
        for _ in range(2**18):
            yield _WordStream(rng).more(2).tobytes()

    assert not collision_test(beginnings(SystemRng())).flagged
    assert collision_test(beginnings(ShortSeed())).flagged
