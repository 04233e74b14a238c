"""A site's policy: what a run may be, and attacks by a coordinator that announces one run and executes another."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secfl.cli.main import main
from secfl.config import load_config
from secfl.crypto.identity import Directory, Identity
from secfl.errors import BudgetExhausted, ConfigError, PrivacyError, RemoteProtocolError
from secfl.federation import simulation
from secfl.federation.attempts import Attempts
from secfl.federation.budgets import fitting_terms
from secfl.federation.client import SiteClient
from secfl.federation.guard import Agreement, Guard
from secfl.federation.observer import SilentObserver
from secfl.federation.offer import RoundOffer
from secfl.federation.policy import Policy, load_policy
from secfl.federation.privacy import RunTerms
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.federation.request_codec import decode_reply, encode
from secfl.federation.requests import (
    Declined,
    OfferRound,
    Refused,
    Sent,
)
from secfl.federation.schemes import scheme_for, scheme_spec
from secfl.ledger.verify import load
from secfl.randomness import SystemRng
from secfl.testing.tasks import LinearTask
from secfl.types import RoundId, SchemeSpec

STEPS = 4
NOISE = {
    "mode": "patient",
    "nominal_patients": 40,
    "sampling_rate": 0.2,
    "steps": STEPS,
    "step_size": 0.05,
    "epsilon": 4.0,
}
SITES = 4
THRESHOLD = 3


def config(scheme="masking", *, key=None, **privacy):
    secure = {"scheme": scheme} | ({"ckks_key": key} if key else {})
    return load_config(None, {"secure_agg": secure, "privacy": NOISE | privacy})


def task(sites=SITES):
    return LinearTask(sites, features=10)


def announced(settings=None, *, sites=SITES, threshold=THRESHOLD) -> Agreement:
    settings = settings or config()
    identities = [Identity.generate(site, SystemRng()) for site in task(sites).sites]
    return Agreement(
        directory=Directory.enroll(identities),
        threshold=threshold,
        scheme=scheme_spec(settings.secure_agg),
        terms=fitting_terms(settings, task(sites), parameters=11, threshold=threshold),
    )


def policy(**changes) -> Policy:
    return Policy.model_validate({"epsilon": {"aggregator": 4.0}} | changes)


class Untouched:
    """Work that fails the test when a site does it."""

    def contribute(self, offer, spec):
        raise AssertionError("the site trained")


def site(agreement: Agreement, allowed: Policy | None = None, *, work=None) -> SiteClient:
    name = min(agreement.directory.keys)
    return SiteClient(
        Identity.generate(name, SystemRng()),
        work=work or Untouched(),
        scheme=scheme_for(agreement.scheme),
        directory=agreement.directory,
        terms=agreement.terms.round_terms,
        rng=SystemRng(),
        guard=Guard(allowed or policy(), agreement, name="policy"),
    )


def offer(agreement: Agreement, **changes) -> RoundOffer:
    values = {
        "run_id": bytes(16),
        "round_id": RoundId(0),
        "round_index": 0,
        "cohort": tuple(sorted(agreement.directory.keys)),
        "threshold": agreement.threshold,
        "scheme": agreement.scheme,
        "state": task().initial_state(),
    }
    return RoundOffer(**(values | changes))


class TestWhatIsAllowed:
    def test_a_run_within_the_limits(self):
        Guard(policy(), announced())
        limits = {"aggregator": 4.0, "aggregator_colluders": 6.0, "client": 6.0, "final_model": 4.0}
        Guard(policy(epsilon=limits, colluders=1), announced())

    def test_the_strict_values_are_the_defaults(self):
        Guard(Policy(), announced())
        for settings in (config("plain"), config("ckks", key="shared"), config(insecure_test_noise=1)):
            with pytest.raises(PrivacyError):
                Guard(Policy(), announced(settings))

    @pytest.mark.parametrize(
        ("settings", "changes", "words"),
        [
            (
                {},
                {"epsilon": {"aggregator": 3.9}},
                r"epsilon.aggregator: found (3\.9\d+|4\.000) \((curious|malicious)\), allowed at most 3\.9",
            ),
            ({}, {"epsilon": {"crypto_broken": 4.0}}, "epsilon.crypto_broken: found"),
            (
                {},
                {"epsilon": {"aggregator_colluders": 4.0}, "colluders": 2},
                "epsilon.aggregator_colluders: found .* 2 colluding",
            ),
            ({}, {"epsilon": {"network": 1.0}}, "epsilon.network"),
            ({}, {"units": ["client"]}, "units: found patient, allowed client"),
            ({}, {"largest_delta": 1e-6}, "largest_delta: found 1e-05, allowed at most 1e-06"),
            ({}, {"least_clients": 5}, "least_clients: found 4, allowed 5 or more"),
            ({}, {"least_threshold": 4}, "least_threshold: found 3, allowed 4 or more"),
            ({}, {"schemes": ["ckks"]}, "schemes: found masking, allowed ckks"),
            ({"scheme": "plain"}, {}, "schemes: found plain, allowed masking or ckks"),
            (
                {"scheme": "ckks", "key": "shared"},
                {},
                "key_modes: found shared, allowed pairwise or sum-key",
            ),
            ({"insecure_test_noise": 1}, {}, "accept_non_private: found a run without a guarantee .*seed"),
            ({"mode": "off", "epsilon": None}, {}, "accept_non_private: found a run without a guarantee .*--dp off"),
            (
                {"epsilon": 25.0, "accept_weak": True},
                {"epsilon": {}},
                r"accept_weak: found epsilon \d\d\.\d+, allowed at most 20",
            ),
        ],
    )  # fmt: skip
    def test_each_limit_is_named_with_what_was_found_and_what_is_allowed(self, settings, changes, words):
        with pytest.raises(PrivacyError, match=f"^policy: {words}") as caught:
            Guard(policy(**changes), announced(config(**settings)))
        assert "\n" not in str(caught.value)

    def test_what_is_refused_by_default_can_be_accepted(self):
        Guard(policy(accept_non_private=True), announced(config(insecure_test_noise=1)))
        Guard(policy(accept_weak=True, epsilon={}), announced(config(epsilon=25.0, accept_weak=True)))
        plain = policy(schemes=["plain"], epsilon={"aggregator": 4.0, "crypto_broken": 4.0})
        Guard(plain, announced(config("plain")))
        shared = policy(key_modes=["shared"], adversary="curious")
        Guard(shared, announced(config("ckks", key="shared")))

    def test_a_malicious_aggregator_counts_unless_the_policy_says_curious(self):
        shared = announced(config("ckks", key="shared"))
        with pytest.raises(PrivacyError, match=r"epsilon.aggregator: found .* \(malicious\)"):
            Guard(policy(key_modes=["shared"]), shared)


class TestTheFile:
    def write(self, tmp_path, text) -> Path:
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return path

    def test_the_example_is_read_and_shows_the_defaults(self, project):
        read = load_policy(project / "examples/policy.toml")
        assert read == Policy(epsilon=read.epsilon)
        assert read.epsilon

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("least_client = 3", "least_client: unknown key; allowed here: .*least_clients"),
            ("units = []", "units"),
            ('units = ["everybody"]', "units.0"),
            ("[epsilon]\naggregators = 3", "aggregators"),
            ("[epsilon]\naggregator = -1", "epsilon.aggregator: -1, expected 0 or more"),
            ("[epsilon]\naggregator = nan", "aggregator"),
            ("format_version = 2", "newer"),
            ("= 3", "not valid TOML"),
        ],
    )
    def test_what_cannot_be_meant_is_refused_in_one_line(self, tmp_path, text, words):
        with pytest.raises(ConfigError, match=words) as caught:
            load_policy(self.write(tmp_path, text))
        assert "\n" not in str(caught.value)
        assert "policy.toml" in str(caught.value)

    def test_a_missing_file_is_no_policy_and_stops_the_run(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            simulate(tmp_path / "run", config(policy=str(tmp_path / "absent.toml")))
        assert not (tmp_path / "run").exists()


def simulate(path, settings):
    return simulation.simulate(settings, out=path, observer=SilentObserver(), task=task())


class TestRuns:
    def settings(self, tmp_path, text="[epsilon]\naggregator = 4\n", **privacy):
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return config(policy=str(path), **privacy)

    def test_a_run_that_is_allowed_is_run(self, tmp_path):
        summary = simulate(tmp_path / "run", self.settings(tmp_path))
        assert (summary["stopped"], summary["rounds_completed"]) == ("completed", STEPS)

    def test_a_run_that_is_not_allowed_leaves_nothing(self, tmp_path):
        with pytest.raises(PrivacyError, match=r"policy.*policy\.toml: epsilon\.aggregator: found"):
            simulate(tmp_path / "run", self.settings(tmp_path, "[epsilon]\naggregator = 3.5\n"))
        assert not (tmp_path / "run").exists()
        assert PrivacyError.exit_code == 3

    def test_the_policy_of_the_day_holds_for_a_resumed_run(self, tmp_path):
        class Stop(SilentObserver):
            def round_finished(self, report):
                raise KeyboardInterrupt

        settings = self.settings(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            simulation.simulate(settings, out=tmp_path / "run", observer=Stop(), task=task())
        (tmp_path / "policy.toml").write_text("[epsilon]\naggregator = 3\n")
        with pytest.raises(PrivacyError, match="allowed at most 3"):
            simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        (tmp_path / "policy.toml").write_text("[epsilon]\naggregator = 4\n")
        summary = simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        assert summary["rounds_completed"] == STEPS

    def test_attempts_that_failed_count_against_the_policy(self, tmp_path):
        """Without a budget of the run, the sites themselves stop it; the refused attempt released nothing."""
        settings = self.settings(tmp_path, epsilon=None, noise_multiplier=3.0)
        free = simulate(tmp_path / "free", config(epsilon=None, noise_multiplier=3.0))
        reached = next(
            row["epsilon"]
            for row in free["privacy"]["views"]
            if (row["view"], row["adversary"]) == ("aggregator", "malicious")
        )
        (tmp_path / "policy.toml").write_text(f"[epsilon]\naggregator = {reached + 1e-3}\n")

        class Crash(SilentObserver):
            def phase(self, name, done, total):
                if name == "training" and done == 1:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            simulation.simulate(settings, out=tmp_path / "run", observer=Crash(), task=task())
        summary = simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        assert (summary["stopped"], summary["rounds_completed"]) == ("budget", STEPS - 1)
        assert "epsilon.aggregator" in summary["stopped_because"]
        rows = summary["privacy"]["views"]
        assert all(
            row["epsilon"] <= reached + 1e-3
            for row in rows
            if (row["view"], row["adversary"]) == ("aggregator", "malicious")
        )
        state = load(tmp_path / "run/ledger.jsonl")
        assert len(state.reservations) == STEPS + 1
        assert [exposure.value for exposure in state.aborts.values()] == ["nothing_sent"]


class TestDishonestCoordinator:
    """It announces one run and executes another. The site refuses before it touches its data."""

    def lower_noise(self, agreement: Agreement, **changes):
        """Releases of another plan under the announced one."""
        releases = agreement.terms.round_terms.releases
        other = replace(agreement.terms.plan, **changes)
        terms = replace(agreement.terms.round_terms, releases=replace(releases, plan=other))
        return replace(agreement, terms=replace(agreement.terms, round_terms=terms))

    @pytest.mark.parametrize(
        "changes", [{"noise_multiplier": 1.0}, {"sampling_rate": 0.9}, {"releases": 400}, {"clip_norm": 9.0}]
    )
    def test_less_noise_more_sampling_or_another_clip_than_announced(self, changes):
        honest = announced(config(epsilon=None, noise_multiplier=4.0))
        Guard(policy(), honest)
        with pytest.raises(PrivacyError, match="plan: found another than is announced"):
            Guard(policy(), self.lower_noise(honest, **changes))

    def test_a_plan_under_another_plan_s_digest(self):
        honest = announced()
        terms = replace(honest.terms.round_terms, plan_digest=bytes(32))
        with pytest.raises(PrivacyError, match="plan_digest: found 0000"):
            Guard(policy(), replace(honest, terms=replace(honest.terms, round_terms=terms)))

    def test_a_plan_for_a_higher_threshold_or_a_larger_cohort(self):
        """Noise that is enough for more survivors than will be asked for."""
        larger = announced(sites=5, threshold=4)
        with pytest.raises(PrivacyError, match="threshold: found 4, allowed 3, as announced"):
            Guard(policy(), replace(larger, threshold=3))
        fewer = replace(larger, directory=Directory(dict(list(larger.directory.keys.items())[:4])))
        with pytest.raises(PrivacyError, match="cohort_size: found 5, allowed 4"):
            Guard(policy(), fewer)

    def test_more_rounds_than_planned(self):
        honest = announced()
        longer = replace(honest, terms=replace(honest.terms, rounds=STEPS + 1))
        with pytest.raises(PrivacyError, match=f"rounds: found {STEPS + 1}, allowed {STEPS}"):
            Guard(policy(), longer)

    def test_a_plan_without_noise_behind_it(self):
        honest = announced()
        bare = replace(honest.terms.round_terms, releases=None)
        with pytest.raises(PrivacyError, match="neither clip nor noise"):
            Guard(policy(), replace(honest, terms=replace(honest.terms, round_terms=bare)))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"threshold": 2}, "the offer's threshold: found 2, allowed 3, as announced"),
            ({"scheme": SchemeSpec(name="plain")}, "the offer's scheme: found plain, allowed masking"),
            (
                {"scheme": SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))},
                "the offer's scheme: found ckks key_mode=shared",
            ),
            ({"cohort": ("site-00", "site-01", "site-02")}, "the offer's cohort"),
            ({"round_index": STEPS}, f"the offer's round: found {STEPS + 1}, allowed {STEPS}"),
        ],
    )
    def test_offers_other_than_announced(self, changes, words):
        agreement = announced()
        with pytest.raises(PrivacyError, match=words):
            site(agreement).join(offer(agreement, **changes))

    @pytest.mark.parametrize(
        "announcement", [Announcement(noise_multiplier=0.1), Announcement(clip_norm=100.0)]
    )
    def test_noise_or_clip_that_the_plan_does_not_know(self, announcement):
        agreement = announced()
        with pytest.raises(RemoteProtocolError, match="announces a"):
            site(agreement).join(offer(agreement, announced=announcement))

    def test_the_same_round_again_and_again(self):
        """Every attempt draws fresh noise; averaged over attempts, noise would vanish."""
        agreement = announced()
        guard = Guard(policy(), agreement)
        for attempt in range(STEPS):
            guard.admit(offer(agreement, round_id=RoundId(attempt)))
        with pytest.raises(BudgetExhausted, match=rf"epsilon.aggregator: .*after {STEPS + 1} attempts"):
            guard.admit(offer(agreement, round_id=RoundId(STEPS)))

    def test_attempts_before_a_restart_are_not_forgotten(self):
        """Round numbers rise with every attempt, so a high one tells how many there may have been."""
        agreement = announced()
        guard = Guard(policy(), agreement)
        with pytest.raises(BudgetExhausted, match=r"epsilon\.aggregator"):
            guard.admit(offer(agreement, round_id=RoundId(STEPS)))
        Guard(policy(), agreement).admit(offer(agreement, round_id=RoundId(STEPS - 1)))

    def test_the_round_with_the_least_noise_again_and_again(self):
        agreement = announced(config(noise_decay=0.8))
        allowed = policy(epsilon={"aggregator": 3.9})
        guard = Guard(allowed, agreement)
        last, admitted = STEPS - 1, 0
        with contextlib.suppress(BudgetExhausted):
            for attempt in range(STEPS):
                guard.admit(offer(agreement, round_id=RoundId(attempt), round_index=last))
                admitted += 1
        assert 0 < admitted < STEPS
        honest = Guard(allowed, agreement)
        for number in range(STEPS):
            honest.admit(offer(agreement, round_id=RoundId(number), round_index=number))


def test_a_counted_attempt_that_is_offered_again_must_still_fit():
    """It was counted, the disk refused to begin it, and the attempt before it was finished in the meantime."""
    agreement = announced()
    sent = tuple((number, (number, NOTHING_ANNOUNCED)) for number in range(STEPS))
    again = offer(agreement, round_id=RoundId(STEPS), round_index=STEPS - 1)
    guard = Guard(None, agreement)
    guard.remember(Attempts(entries=sent), unsent={STEPS - 1})
    guard.admit(again)
    counted = guard.attempts
    guard.remember(counted, unsent={STEPS - 1, STEPS})
    guard.admit(again)
    assert guard.attempts == counted
    guard.remember(counted, unsent={STEPS})
    with pytest.raises(BudgetExhausted, match="after 5 attempts"):
        guard.admit(again)


def test_a_site_elsewhere_refuses_before_it_works(tmp_path):
    """The agent of a site holds offers to its policy like a site in this process."""
    spec = importlib.util.spec_from_file_location("remote_stage", Path(__file__).with_name("remote_stage.py"))
    remote = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(remote)
    with contextlib.closing(remote.Stage(tmp_path, "masking")) as stage:
        terms = RunTerms(
            round_terms=stage.round_terms, plan=None, rounds=2, sentence="", non_private="no noise"
        )
        agreement = Agreement(
            directory=stage.terms.directory, threshold=3, scheme=stage.terms.scheme, terms=terms
        )
        guard = Guard(Policy(accept_non_private=True), agreement)
        agent = stage.agents["a"]
        agent._prepared = replace(agent._training(), guard=guard)
        for round_id, round_index, kind in ((1, 1, Sent), (2, 2, Declined)):
            request = OfferRound(
                run_id=remote.RUN,
                round_id=RoundId(round_id),
                round_index=round_index,
                cohort=tuple(sorted(stage.terms.directory.keys)),
                threshold=3,
                scheme=stage.terms.scheme,
                model=np.zeros(remote.LENGTH, np.float32),
            )
            reply = decode_reply(agent.handle(encode(request)), peer="a", most_bytes=1 << 20)
            assert isinstance(reply, kind)
        assert "the offer's round: found 3, allowed 2" in reply.reason
        assert stage.work["a"].calls == 1


def test_going_back_after_a_restart_would_hide_what_was_spent():
    """A guard in a new process counts attempts that it does not know of at the noise of the offered round.

    So an aggregator would spend the last round, which has the least noise, as often as it may, and then go back.
    """
    agreement = announced(config(noise_decay=0.8))

    def admitted(guard, *, first, round_index):
        count = 0
        with contextlib.suppress(BudgetExhausted):
            for attempt in range(first, 3 * STEPS):
                guard.admit(offer(agreement, round_id=RoundId(attempt), round_index=round_index))
                count += 1
        return count

    allowed = policy(epsilon={"aggregator": 3.9})
    guard = Guard(allowed, agreement)
    spent = admitted(guard, first=0, round_index=STEPS - 1)
    remembered = admitted(guard, first=spent, round_index=0)
    assert admitted(Guard(allowed, agreement), first=spent, round_index=0) > remembered


def test_a_site_elsewhere_does_not_go_back_after_a_restart(tmp_path):
    spec = importlib.util.spec_from_file_location("remote_stage", Path(__file__).with_name("remote_stage.py"))
    remote = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(remote)
    with contextlib.closing(remote.Stage(tmp_path, "masking")) as stage:
        terms = RunTerms(
            round_terms=stage.round_terms, plan=None, rounds=3, sentence="", non_private="no noise"
        )
        agreement = Agreement(
            directory=stage.terms.directory, threshold=3, scheme=stage.terms.scheme, terms=terms
        )
        for round_id, round_index, kind in ((1, 1, Sent), (2, 0, Refused), (3, 1, Sent), (4, 2, Sent)):
            stage.agents["a"].close()
            agent = stage.agents["a"] = stage.agent("a")
            guard = Guard(Policy(accept_non_private=True), agreement)
            agent._prepared = replace(agent._training(), guard=guard)
            request = OfferRound(
                run_id=remote.RUN,
                round_id=RoundId(round_id),
                round_index=round_index,
                cohort=tuple(sorted(stage.terms.directory.keys)),
                threshold=3,
                scheme=stage.terms.scheme,
                model=np.zeros(remote.LENGTH, np.float32),
            )
            reply = decode_reply(agent.handle(encode(request)), peer="a", most_bytes=1 << 20)
            assert isinstance(reply, kind), reply
            if kind is Refused:
                assert "goes back to round 1 of training after round 2" in reply.reason


@pytest.mark.slow
def test_the_command_ends_with_code_3_and_one_line(tmp_path, capsys):
    path = tmp_path / "policy.toml"
    path.write_text("[epsilon]\naggregator = 2\n")
    small = tmp_path / "small.toml"
    small.write_text(
        "[data]\nphantom_images = 8\nimage_size = 32\n[model]\nchannels = [2, 4, 8]\n"
        '[privacy]\nmode = "patient"\nepsilon = 8\nsteps = 3\nsampling_rate = 0.5\n'
    )
    out = tmp_path / "run"
    code = main(["simulate", "--config", str(small), "--policy", str(path), "--out", str(out)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 3, lines
    assert len(lines) == 1
    assert "epsilon.aggregator: found" in lines[0]
    assert "allowed at most 2" in lines[0]
    assert not out.exists()
