"""Spending that follows public validation, under a Rényi filter, in whole runs."""

import json
import math
from dataclasses import replace

import pytest

from secfl.config import load_config
from secfl.dp.accounting import epsilon
from secfl.dp.events import SelfComposed, compose
from secfl.errors import ConfigError, PrivacyError, RemoteProtocolError
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver
from secfl.federation.privacy import run_terms
from secfl.federation.releases import Announcement
from secfl.federation.settled import filter_of, planned_event
from secfl.guarantees import Behaviour
from secfl.ledger.adaptive import filter_cap
from secfl.ledger.plans import plan_findings
from secfl.ledger.sights import releases
from secfl.ledger.verify import load, verify_file
from secfl.ledger.views import planned_charge, statements
from secfl.testing.tasks import LinearTask

LEVELS = [3.0, 2.0, 1.2]
CAP = 3.0
PLATEAU = {
    "mode": "patient",
    "nominal_patients": 40,
    "sampling_rate": 0.2,
    "steps": 60,
    "step_size": 0.05,
    "epsilon": CAP,
    "plateau": {"multipliers": LEVELS, "patience": 2, "least_gain": 0.02},
}


def config(scheme="masking", **privacy):
    settings = {"secure_agg": {"scheme": scheme, "coordinate_bound": 4.0}, "evaluate_every": 1000}
    return load_config(None, settings | {"privacy": PLATEAU | privacy})


class Flat(LinearTask):
    """Validation that never rises, so that the levels do not depend on the noise."""

    def public_score(self, state):
        return 0.5


def task_of():
    return Flat(4, features=10)


def simulate(path, settings, task=None, observer=None):
    return simulation.simulate(
        settings, out=path, observer=observer or SilentObserver(), task=task or task_of()
    )


def noise_of(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["noise_multiplier"] for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("plateau") / "run"
    return path, simulate(path, config())


def rows_of(summary):
    return {(v["view"], v["adversary"], v["colluders"]): v["epsilon"] for v in summary["privacy"]["views"]}


def test_spending_rises_on_plateaus_and_ends_before_the_cap(run):
    path, summary = run
    used = noise_of(path)
    assert used[:6] == [3.0, 3.0, 3.0, 2.0, 2.0, 1.2]
    # What no longer fits falls back to more noise before training ends.
    assert used[-1] > 1.2
    assert summary["stopped_because"].startswith("the privacy budget is spent")
    assert summary["rounds_completed"] == len(used) < 60
    # Nothing fits any more, not even the most noise.
    plan = run_terms(config(), task_of(), parameters=11, threshold=3).plan
    spending = filter_of(plan, config())
    for multiplier in used:
        spending.charge(planned_event(plan, multiplier))
    assert not spending.admits(planned_event(plan, 3.0))


def test_the_stated_epsilon_is_the_cap_whatever_was_chosen(run):
    """The reading of the tight accountant is lower, and is not what the ledger states as ε."""
    path, summary = run
    rows = rows_of(summary)
    assert rows["aggregator", "malicious", 0] == pytest.approx(CAP, rel=1e-6)
    plan = run_terms(config(), task_of(), parameters=11, threshold=3).plan
    reading = epsilon(compose(planned_event(plan, z) for z in noise_of(path)), delta=1e-5)
    assert reading < CAP
    assert rows["aggregator", "curious", 0] < CAP < rows["aggregator_colluders", "malicious", 1]
    assert rows["aggregator_colluders", "malicious", 1] < rows["crypto_broken", "curious", 0] + 1e-9


def test_the_ledger_verifies_and_computes_the_cap_again(run):
    path, summary = run
    verdict = verify_file(path / "ledger.jsonl")
    assert verdict.findings == ()
    mine = {(row.view.value, row.adversary.value, row.colluders): row for row in verdict.statements}
    for key, value in rows_of(summary).items():
        assert mine[key].epsilon == pytest.approx(value)
    assert "filter's cap at order" in mine["aggregator", "malicious", 0].holds_if
    header = load(path / "ledger.jsonl").header
    assert header.budget is not None
    assert (header.budget.epsilon, header.budget.adversary) == (CAP, Behaviour.MALICIOUS)


def test_other_adversaries_are_bounded_for_every_choice_that_might_have_been_made(run):
    """Against any sequence of levels that the filter admits, the row of each adversary is an upper bound."""
    path, summary = run
    state = load(path / "ledger.jsonl")
    plan = run_terms(config(), task_of(), parameters=11, threshold=3).plan
    rows = rows_of(summary)
    for level in LEVELS:
        spending = filter_of(plan, config())
        count = 0
        while spending.admits(planned_event(plan, level)):
            spending.charge(planned_event(plan, level))
            count += 1
        one = plan.at_level(level)
        for colluders in (0, 1, 2, 3):
            z = one.z_aggregator(Behaviour.CURIOUS, colluders=colluders)
            reached = epsilon(SelfComposed(one.event_of_release(z), count), delta=1e-5)
            view = "aggregator_colluders" if colluders else "aggregator"
            assert reached <= rows[view, "curious", colluders]
    assert state.header.plan["levels"] == LEVELS[1:]


def test_a_plan_with_levels_and_no_filter_states_nothing(run):
    path, _ = run
    state = load(path / "ledger.jsonl")
    state._header = replace(state.header, budget=None)
    rows = [row for row in statements(state) if row.view.value != "network"]
    assert {row.epsilon for row in rows} == {None}
    assert "no filter capped it" in rows[0].holds_if
    assert any("no budget with a Rényi order" in finding for finding in plan_findings(state))


def test_a_budget_that_was_exceeded_is_found_and_what_was_charged_is_stated(run):
    path, _ = run
    state = load(path / "ledger.jsonl")
    state._header = replace(state.header, budget=replace(state.header.budget, epsilon=1.0))
    cap = filter_cap(state.header, releases(state), planned_charge)
    assert cap.exceeded
    assert any("more was charged" in finding for finding in plan_findings(state))
    malicious = next(
        row
        for row in statements(state)
        if (row.view.value, row.adversary.value) == ("aggregator", "malicious")
    )
    assert 2.0 < malicious.epsilon <= CAP * (1 + 1e-6)


def test_a_resumed_run_has_spent_what_its_ledger_says(tmp_path):
    """Interrupted between reservation and checkpoint: that attempt stays charged, and the cap holds."""

    class Stop(SilentObserver):
        rounds = 0

        def round_finished(self, report):
            self.rounds += 1

        def phase(self, name, done, total):
            if self.rounds == 4 and name == "aggregating":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "run", config(), observer=Stop())
    summary = simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task_of())
    state = load(tmp_path / "run/ledger.jsonl")
    assert len(state.reservations) == summary["rounds_completed"] + 1
    assert verify_file(tmp_path / "run/ledger.jsonl").findings == ()
    assert rows_of(summary)["aggregator", "malicious", 0] == pytest.approx(CAP, rel=1e-6)


@pytest.mark.slow
def test_seeded_runs_are_repeated_by_a_resumed_one(tmp_path):
    class Stop(SilentObserver):
        calls = 0

        def phase(self, name, done, total):
            self.calls += 1
            if self.calls == 25:
                raise KeyboardInterrupt

    settings = config(insecure_test_noise=3)
    whole = simulate(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "cut", settings, observer=Stop())
    resumed = simulation.resume(tmp_path / "cut", observer=SilentObserver(), task=task_of())
    assert resumed["final_model_sha256"] == whole["final_model_sha256"]
    assert noise_of(tmp_path / "cut") == noise_of(tmp_path / "whole")
    assert {row["epsilon"] for row in whole["privacy"]["views"] if row["view"] != "network"} == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "round", "local_steps": 4},
        {"quantile_clip": {"bit_noise": 0.2}},
        {"layer_clips": {"weight": 1.0, "bias": 1.0}},
        {"mode": "client", "epsilon": 12.0},
    ],
)
def test_spending_goes_together_with_rounds_clips_and_clients(tmp_path, changes):
    summary = simulate(tmp_path / "run", config(**changes))
    assert verify_file(tmp_path / "run/ledger.jsonl").findings == ()
    cap = changes.get("epsilon", CAP)
    assert rows_of(summary)["aggregator", "malicious", 0] == pytest.approx(cap, rel=1e-6)
    assert summary["rounds_completed"] >= 3


class Private(LinearTask):
    """As images of people: nothing to validate on."""

    def public_score(self, state):
        return None


@pytest.mark.parametrize(
    ("changes", "task", "error", "reason"),
    [
        ({}, Private(4, features=10), ConfigError, "needs validation images that show nobody"),
        ({"epsilon": 0.05}, None, ConfigError, "privacy.plateau: not one release"),
        ({"epsilon": 30.0}, None, PrivacyError, "accept-weak"),
    ],
)
def test_runs_that_cannot_spend_are_refused_before_anything_is_written(
    tmp_path, changes, task, error, reason
):
    with pytest.raises(error, match=reason):
        simulate(tmp_path / "run", config(**changes), task)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "off", "epsilon": None}, "privacy.plateau: needs --dp"),
        ({"epsilon": None, "noise_multiplier": 1.0}, "privacy.plateau: needs --epsilon"),
        ({"plateau": {"multipliers": [1.0, 2.0]}}, "privacy.plateau.multipliers: expected positive"),
        ({"plateau": {"multipliers": [1.0, 0.0]}}, "privacy.plateau.multipliers: expected positive"),
        ({"plateau": {"multipliers": [1.0]}}, "privacy.plateau.multipliers"),
        ({"plateau": {"multipliers": [2.0, 1.0], "validation": "private"}}, "privacy.plateau.validation"),
        ({"noise_decay": 0.9}, "privacy.plateau: noise follows one rule"),
        ({"site_weights": {"a": 1.0}}, "privacy.plateau: cannot be combined with site_weights"),
    ],
)
def test_impossible_spending_is_refused_by_name(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        config(**changes)


@pytest.mark.parametrize("multiplier", [None, 0.5, math.nan])
def test_clients_refuse_noise_that_was_not_announced_beforehand(multiplier):
    terms = run_terms(config(), task_of(), parameters=11, threshold=3)
    with pytest.raises(RemoteProtocolError, match="a noise multiplier"):
        terms.round_terms.releases.check(Announcement(noise_multiplier=multiplier))
    for level in LEVELS:
        terms.round_terms.releases.check(Announcement(noise_multiplier=level))
        (share,) = terms.round_terms.releases.noise(0, Announcement(noise_multiplier=level))
        assert share.sigma == pytest.approx(level * terms.plan.grid_norm / 2)


@pytest.mark.slow
def test_the_phantom_validates_on_a_clinic_that_takes_no_part():
    from secfl.federation.adaptive_run import public_validation
    from secfl.segmentation.segmentation_task import build_task

    settings = {
        "clients": 3,
        "threads": 1,
        "data": {"phantom_images": 8, "image_size": 32, "public": ["atlas"]},
        "model": {"channels": [4, 8, 8]},
    }
    task = build_task(load_config(None, settings))
    assert "atlas" not in task.sites
    assert 0 <= public_validation(task).public_score(task.initial_state()) <= 1
    settings["data"]["public"] = []
    with pytest.raises(ConfigError, match=r"data\.public"):
        public_validation(build_task(load_config(None, settings)))
