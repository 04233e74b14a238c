"""Adaptive mechanisms in whole runs: what they decide, what the ledger records, what is refused."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from secfl.config import load_config
from secfl.crypto.identity import Directory, Identity
from secfl.dp.accounting import epsilon
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.federation import simulation
from secfl.federation.checkpoint import load as load_checkpoint
from secfl.federation.observer import SilentObserver
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import run_terms
from secfl.federation.releases import Announcement, Releases
from secfl.federation.unit_clips import layer_groups
from secfl.federation.work import local_work
from secfl.ledger.events import NonPrivate, leaves
from secfl.ledger.verify import load, verify_file
from secfl.randomness import SystemRng
from secfl.testing.tasks import LinearTask
from secfl.types import RoundId, SchemeSpec

PATIENT = {
    "mode": "patient",
    "nominal_patients": 60,
    "sampling_rate": 0.5,
    "steps": 3,
    "step_size": 0.05,
    "noise_multiplier": 2.0,
    "accept_weak": True,
}
CLIENT = {"mode": "client", "noise_multiplier": 2.0, "accept_weak": True}


def config(scheme="masking", *, rounds=3, clients=None, **privacy):
    settings = {
        "secure_agg": {"scheme": scheme, "coordinate_bound": 4.0},
        "training": {"rounds": rounds},
        "privacy": privacy,
        "evaluate_every": 1000,
    }
    return load_config(None, settings)


def task_of(**values):
    return LinearTask(**{"features": 10, "examples": 60, **values})


def simulate(path, settings, task=None):
    return simulation.simulate(settings, out=path, observer=SilentObserver(), task=task or task_of())


def clips(path):
    return [json.loads(line)["clip_norm"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def curious(summary):
    return next(
        row["epsilon"]
        for row in summary["privacy"]["views"]
        if (row["view"], row["adversary"]) == ("aggregator", "curious")
    )


def verified(path):
    """The ledger verifies and departs from its plan nowhere."""
    verdict = verify_file(path / "ledger.jsonl")
    assert verdict.findings == ()
    return verdict


# --- the clip follows a private quantile


class Steady(LinearTask):
    """Gradients that do not depend on the model: the quantile of their norms is known, and stays."""

    def patient_gradients(self, site, state, chosen):
        number = list(self.sites).index(site) * self.patients(site) + np.asarray(chosen)
        rows = np.zeros((len(chosen), 11), np.float32)
        rows[:, 3] = np.exp((number % 60 - 29.5) / 60)  # 60 norms around 1, whose median is 1
        yield rows


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_of_patients_converges_from_far_away(tmp_path, start):
    """ln(100) / (0.2 * 0.5) = 46 steps; the counts' noise is 4.5 of 90 patients, so it stays near 1 then.

    An inverted sign would run away: the direction of the first ten steps is checked alone.
    """
    settings = config("plain", **PATIENT | {"clip": start, "steps": 70, "quantile_clip": {}})
    simulate(tmp_path / "run", settings, Steady(features=10, examples=60))
    history = clips(tmp_path / "run")
    assert history[0] == start
    assert (history[10] > 2 * start) if start < 1 else (history[10] < start / 2)
    assert 36 <= next(i for i, c in enumerate(history) if 0.6 < c < 1.6) <= 58
    assert all(0.5 < c < 2.0 for c in history[62:])
    verified(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_of_clients_converges_inside_the_secure_sum(tmp_path, start):
    """Five clients need a multiplier below 0.5, which protects nobody; the mechanism still works."""
    quantile = {"learning_rate": 0.5}
    settings = config(
        rounds=30, **CLIENT | {"noise_multiplier": 0.3, "clip": start, "quantile_clip": quantile}
    )

    class Constant(LinearTask):
        def train(self, site, state, *, round_index):
            local = super().train(site, state, round_index=round_index)
            moved = dict(state) | {"bias": state["bias"] + np.float32(1 + int(site[-1]) / 100)}
            return type(local)(state=moved, examples=local.examples, loss=0.0)

    simulate(tmp_path / "run", settings, Constant(5, features=10, examples=4))
    history = clips(tmp_path / "run")
    assert (history[5] > start) if start < 1 else (history[5] < start)
    assert all(0.4 < c < 2.5 for c in history[24:])
    verified(tmp_path / "run")


def test_few_clients_cannot_have_a_private_quantile_at_useful_noise(tmp_path):
    with pytest.raises(ConfigError, match=r"privacy\.quantile_clip: .* too few units"):
        simulate(tmp_path / "run", config(**CLIENT | {"quantile_clip": {}}), task_of(sites=5))
    assert not (tmp_path / "run").exists()


def test_the_bits_cost_no_privacy_of_their_own(tmp_path):
    """Bit and update share the sensitivity G, so ε is that of a run without them (one coordinate more)."""
    with_bits = simulate(tmp_path / "bits", config(**PATIENT | {"quantile_clip": {}}))
    without = simulate(tmp_path / "fixed", config(**PATIENT))
    assert curious(with_bits) == pytest.approx(curious(without), rel=1e-6)
    terms = run_terms(config(**PATIENT | {"quantile_clip": {}}), task_of(), parameters=11, threshold=3)
    releases = terms.round_terms.releases
    assert releases.plan.dimension == 12
    for clip in (1e-4, 1.0, 1e4):
        assert releases.unit_clip(Announcement(clip_norm=clip)).sensitivity <= releases.plan.sensitivity


def test_one_patient_moves_bits_and_update_by_at_most_the_sensitivity():
    """Replay with frozen noise and everybody sampled, at a small and at a large announced clip."""
    settings = config(**PATIENT | {"sampling_rate": 1.0, "quantile_clip": {}, "insecure_test_noise": 5})

    class Without(LinearTask):
        def patient_gradients(self, site, state, chosen):
            return super().patient_gradients(site, state, chosen[chosen != 7])

    for clip in (0.01, 100.0):
        vectors = []
        for task in (task_of(), Without(features=10, examples=60)):
            terms, work = work_of(task, settings)
            vectors.append(signed(contribute(work, task, Announcement(clip_norm=clip)), terms))
        moved = np.linalg.norm((vectors[0] - vectors[1]).astype(float))
        assert abs((vectors[0] - vectors[1])[-1]) > 0  # the bit is there
        assert moved <= terms.plan.sensitivity


def test_a_resumed_run_goes_on_with_the_clip_it_had(tmp_path):
    settings = config(**PATIENT | {"quantile_clip": {}, "steps": 6, "insecure_test_noise": 3})

    class Stop(SilentObserver):
        calls = 0

        def phase(self, name, done, total):
            self.calls += 1
            if self.calls == 14:
                raise KeyboardInterrupt

    whole = simulate(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        simulation.simulate(settings, out=tmp_path / "cut", observer=Stop(), task=task_of())
    resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver(), task=task_of())
    assert resumed["final_model_sha256"] == whole["final_model_sha256"]
    assert clips(tmp_path / "cut") == clips(tmp_path / "whole")
    assert len(set(clips(tmp_path / "cut"))) == 6


@pytest.mark.parametrize(
    ("announced", "reason"),
    [
        (Announcement(), "exactly if"),
        (Announcement(clip_norm=math.inf), "outside its public limits"),
        (Announcement(clip_norm=math.nan), "outside its public limits"),
        (Announcement(clip_norm=1e9), "outside its public limits"),
        (Announcement(clip_norm=1.0, noise_multiplier=0.1), "a noise multiplier exactly if"),
    ],
)
def test_clients_refuse_announcements_beyond_their_terms(announced, reason):
    terms, _ = work_of(task_of(), config(**PATIENT | {"quantile_clip": {}}))
    with pytest.raises(RemoteProtocolError, match=reason):
        terms.round_terms.releases.check(announced)


def test_a_client_that_is_told_another_clip_is_in_another_round():
    directory = Directory.enroll(Identity.generate(f"site-0{i}", SystemRng()) for i in range(3))
    terms, _ = work_of(task_of(), config(**PATIENT | {"quantile_clip": {}}))
    specs = {
        offer_of(task_of(), Announcement(clip_norm=clip)).specification(terms.round_terms, directory).digest()
        for clip in (1.0, 1.1)
    }
    assert len(specs) == 2


# --- announced decay


def test_announced_decay_is_recorded_and_accounted_release_by_release(tmp_path):
    settings = config(**PATIENT | {"noise_decay": 0.9, "steps": 4})
    summary = simulate(tmp_path / "run", settings)
    recorded = [term.event.noise_multiplier for term in load(tmp_path / "run/ledger.jsonl").terms.values()]
    assert recorded == pytest.approx([2.0 * 0.9**i for i in range(4)])
    verified(tmp_path / "run")
    plan = run_terms(settings, task_of(), parameters=11, threshold=3).plan
    assert curious(summary) == pytest.approx(epsilon(plan.event(), delta=1e-5), rel=1e-3)


def test_decay_and_local_steps_go_together_and_epsilon_is_kept(tmp_path):
    changes = {"noise_decay": 0.97, "schedule": "round", "local_steps": 2, "steps": 4}
    settings = config(**PATIENT | changes | {"epsilon": 5.0, "noise_multiplier": None})
    summary = simulate(tmp_path / "run", settings)
    found = load(tmp_path / "run/ledger.jsonl")
    assert [len(leaves(term.event)) for term in found.terms.values()] == [2, 2]
    assert 4.0 < curious(summary) <= 5.0  # the plan rounds to the safe side, the ledger is tighter
    verified(tmp_path / "run")


def test_the_noise_that_decays_is_the_noise_that_is_added():
    """Chi-square of 200 first and 200 fifth rounds' noise; two-sided level 1e-6. It rejects exchanged rounds."""

    class Quiet(LinearTask):
        def patient_gradients(self, site, state, chosen):
            yield np.zeros((len(chosen), 11), np.float32)

    settings = config(**PATIENT | {"noise_decay": 0.8, "steps": 5})
    task = Quiet(features=10, examples=60)
    terms, work = work_of(task, settings)
    for index in (0, 4):
        noise = np.concatenate([signed(contribute(work, task, index=index), terms) for _ in range(200)])
        sigma = terms.plan.share_sigma() * 0.8**index
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], noise.size)
        assert low < ((noise / sigma) ** 2).sum() < high
        other = terms.plan.share_sigma() * 0.8 ** (4 - index)
        assert not low < ((noise / other) ** 2).sum() < high


@pytest.mark.parametrize("index", [4, 60, 2**63])
def test_an_aggregator_cannot_skip_to_rounds_without_noise(index, monkeypatch):
    """Noise shrinks with the round's number, and every client follows the offered number: 0.8^60 leaves nothing."""
    terms, work = work_of(task_of(), config(**PATIENT | {"noise_decay": 0.8, "steps": 4}))
    directory = Directory.enroll(Identity.generate(f"site-0{i}", SystemRng()) for i in range(3))
    offer = offer_of(task_of(), index=index)
    with pytest.raises(RemoteProtocolError, match="where 4 were planned"):
        offer.specification(terms.round_terms, directory)
    with pytest.raises(RemoteProtocolError, match="where 4 were planned"):
        contribute(work, task_of(), index=index)
    offer_of(task_of(), index=3).specification(terms.round_terms, directory)
    if index == 60:
        monkeypatch.setattr(Releases, "check_round", lambda *_: None)
        offer.specification(terms.round_terms, directory)
        (share,) = terms.round_terms.releases.noise(index)
        assert share.sigma < 2e-6 * terms.plan.share_sigma()


# --- clips of layers


def test_clips_of_layers_bound_each_layer_and_add_up(tmp_path):
    settings = config(**PATIENT | {"layer_clips": {"weight": 0.6, "bias": 0.8}})
    terms, _ = work_of(task_of(), settings)
    releases = terms.round_terms.releases
    clip = releases.unit_clip()
    assert [group.size for group in clip.groups] == [10, 1]
    assert terms.plan.clip_norm == pytest.approx(1.0)
    assert clip.sensitivity <= terms.plan.sensitivity
    wild = clip.clip(np.full(11, 1e3, np.float32)).values.astype(float)
    real = clip.to_real(wild.astype(np.int64))
    assert np.linalg.norm(real[:10]) == pytest.approx(0.6, rel=0.02)
    assert abs(real[10]) == pytest.approx(0.8, rel=0.02)
    # Σ (C_l/σ_l)² = 1/z² with the noise in units of each layer.
    sigmas = [terms.plan.total_sigma() * group.step for group in clip.groups]
    total = sum((group.clip_norm / s) ** 2 for group, s in zip(clip.groups, sigmas, strict=True))
    assert 0.98 / 2.0**2 < total <= 1 / 2.0**2  # grid norms are rounded down, to the safe side
    simulate(tmp_path / "run", settings)
    verified(tmp_path / "run")


@pytest.mark.parametrize("mode", [PATIENT | {"schedule": "round", "local_steps": 3}, CLIENT])
def test_clips_of_layers_work_in_rounds_and_for_clients(tmp_path, mode):
    settings = config(**mode | {"layer_clips": {"weight": 3.0, "": 4.0}})
    layered = simulate(tmp_path / "run", settings)
    verified(tmp_path / "run")
    assert curious(layered) == pytest.approx(curious(simulate(tmp_path / "one", config(**mode))), rel=1e-3)


def test_equal_clips_of_layers_open_the_mean_of_what_was_clipped(tmp_path):
    """Hardly any noise and clips beyond every update: the opened model is the float average."""
    settings = config(
        rounds=1,
        **{"mode": "client", "noise_multiplier": 1e-3, "accept_weak": True}
        | {"layer_clips": {"weight": 50.0, "bias": 20.0}},
    )
    simulate(tmp_path / "run", settings)
    opened = load_checkpoint(tmp_path / "run/checkpoints/final.safetensors").state
    task = task_of()
    trained = [task.train(site, task.initial_state(), round_index=0).state for site in task.sites]
    for name, tensor in opened.items():
        mean = sum(state[name].astype(float) for state in trained) / 3
        np.testing.assert_allclose(tensor, mean, atol=0.25)


@pytest.mark.parametrize(
    ("clips_given", "reason"),
    [
        ({"weight": 1.0}, "no clip for tensor 'bias'"),
        ({"weight": 1.0, "bias": 1.0, "head": 1.0}, "'head': no tensor of the model starts so"),
        ({"a": 1.0, "": 1.0}, "'': its tensors are not consecutive"),
    ],
)
def test_clips_that_do_not_fit_the_model_are_refused_by_name(clips_given, reason):
    names = ["b", "a", "c"] if "a" in clips_given else ["weight", "bias"]
    state = {name: np.zeros(2, np.float32) for name in names}
    with pytest.raises(ConfigError, match=reason):
        layer_groups(state, clips_given)


# --- the baseline without a guarantee


def test_the_baseline_is_recorded_as_non_private_and_has_no_epsilon(tmp_path):
    settings = config(percentile_laplace={"keep_fraction": 0.3, "stated_epsilon": 2.0})
    summary = simulate(tmp_path / "run", settings)
    (terms,) = load(tmp_path / "run/ledger.jsonl").terms.values()
    assert isinstance(terms.event, NonPrivate)
    assert "percentile" in terms.event.reason
    verdict = verify_file(tmp_path / "run/ledger.jsonl")
    seen = [row for row in verdict.statements if row.view.value != "network"]
    assert {row.epsilon for row in seen} == {None}
    assert {row["epsilon"] for row in summary["privacy"]["views"] if row["view"] != "network"} == {None}
    assert summary["privacy"]["noise_multiplier"] is None
    # It is noisy all the same, and reproducible, because its noise is not secret.
    again = simulate(tmp_path / "again", settings)
    assert again["final_model_sha256"] == summary["final_model_sha256"]
    assert simulate(tmp_path / "off", config())["final_model_sha256"] != summary["final_model_sha256"]


# --- what cannot be combined


@pytest.mark.parametrize(
    ("privacy", "named"),
    [
        ({"noise_decay": 0.9}, "privacy.noise_decay: needs --dp"),
        ({"layer_clips": {"": 1.0}}, "privacy.layer_clips: needs --dp"),
        ({"quantile_clip": {}}, "privacy.quantile_clip: needs --dp"),
        (PATIENT | {"layer_clips": {}}, "privacy.layer_clips: expected at least one"),
        (PATIENT | {"layer_clips": {"": -1.0}}, "privacy.layer_clips: expected at least one"),
        (PATIENT | {"layer_clips": {"": 1.0}, "clip": 1.0}, "privacy.layer_clips: give either"),
        (
            PATIENT | {"quantile_clip": {}, "schedule": "round"},
            "privacy.quantile_clip: needs --dp-schedule step",
        ),
        (PATIENT | {"quantile_clip": {}, "layer_clips": {"": 1.0}}, "remove layer_clips"),
        (CLIENT | {"percentile_laplace": {}}, "privacy.percentile_laplace: has no guarantee"),
        (CLIENT | {"site_weights": {"a": 1.0}}, "privacy.site_weights: needs --dp patient"),
        (
            PATIENT | {"schedule": "round", "site_weights": {"a": 1.0}},
            "privacy.site_weights: needs --dp patient",
        ),
        (PATIENT | {"site_weights": {"a": 0.0}}, "privacy.site_weights: expected positive"),
        (PATIENT | {"site_weights": {"a": 1.0}, "quantile_clip": {}}, "site_weights: .* quantile_clip"),
        (PATIENT | {"site_weights": {"a": 1.0}, "layer_clips": {"": 1.0}}, "site_weights: .* layer_clips"),
        (PATIENT | {"site_weights": {"a": 1.0}, "noise_decay": 0.9}, "site_weights: .* noise_decay"),
        (PATIENT | {"quantile_clip": {"speed": 1}}, "unknown key; allowed here: bit_noise"),
    ],
)
def test_impossible_combinations_are_refused_by_name(privacy, named):
    with pytest.raises(ConfigError, match=named):
        config(**privacy)


def test_a_first_clip_outside_its_limits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--clip 1e\\+06: expected within"):
        simulate(tmp_path / "run", config(**PATIENT | {"clip": 1e6, "quantile_clip": {}}))


@pytest.mark.parametrize("decay", [0.5, 2.0])
def test_decay_beyond_all_noise_is_refused(tmp_path, decay):
    with pytest.raises(ConfigError, match=r"privacy\.noise_decay"):
        simulate(tmp_path / "run", config(**PATIENT | {"noise_decay": decay, "steps": 60}))
    assert not (tmp_path / "run").exists()


# --- one site's part


def work_of(task, settings):
    terms = run_terms(settings, task, parameters=11, threshold=3)
    return terms, local_work("site-00", config=settings, task=task, terms=terms)


def offer_of(task, announced=None, *, index=0):
    return RoundOffer(
        run_id=bytes(16),
        round_id=RoundId(0),
        round_index=index,
        cohort=("site-00", "site-01", "site-02"),
        threshold=3,
        scheme=SchemeSpec(name="masking"),
        state=task.initial_state(),
        announced=announced or Announcement(),
    )


def contribute(work, task, announced=None, *, index=0):
    class Spec:
        model_digest = bytes(32)

    return work.contribute(offer_of(task, announced, index=index), Spec()).privatized.vectors["update"]


def signed(words, terms):
    bits = terms.round_terms.bits
    wide = words.astype(np.int64)
    return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)
