"""A run's own budget (`--epsilon`) and the accounts that several runs share (`--ledger-dir`)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import pytest

from secfl.cli.main import main
from secfl.config import load_config
from secfl.crypto.identity import Directory
from secfl.errors import BudgetExhausted, ConfigError, PrivacyError
from secfl.federation import simulation
from secfl.federation.accounts import RunAccounts
from secfl.federation.members import Members
from secfl.federation.observer import SilentObserver
from secfl.federation.rundir import RunDirectory, read_summary
from secfl.ledger import Account, Exposure, PrivacyLedger
from secfl.ledger.verify import load
from secfl.testing.tasks import LinearTask

STEPS = 6
NOISE = {
    "mode": "patient",
    "nominal_patients": 40,
    "sampling_rate": 0.2,
    "steps": STEPS,
    "step_size": 0.05,
    "epsilon": 4.0,
}


def config(scheme="masking", *, key=None, dropout=0.0, seed=0, **privacy):
    secure = {"scheme": scheme} | ({"ckks_key": key} if key else {})
    return load_config(
        None,
        {"secure_agg": secure, "privacy": NOISE | privacy, "dropout": dropout, "seed": seed},
    )


@dataclass
class Crash(SilentObserver):
    """Stops the process in the middle of a round: it is reserved, and nothing is known to be opened."""

    after: int
    finished: int = 0

    def phase(self, name, done, total):
        if name == "training" and self.finished == self.after:
            raise KeyboardInterrupt

    def round_finished(self, report):
        self.finished += 1


@dataclass
class Listener(SilentObserver):
    said: str = ""

    def message(self, text):
        self.said += text + "\n"


def task(**changes):
    return LinearTask(**({"features": 10} | changes))


def simulate(path, settings, *, observer=None, data=None):
    return simulation.simulate(settings, out=path, observer=observer or SilentObserver(), task=data or task())


def epsilon_of(summary, adversary="malicious"):
    rows = summary["privacy"]["views"]
    return next(r["epsilon"] for r in rows if (r["view"], r["adversary"]) == ("aggregator", adversary))


class TestRunBudget:
    def test_a_run_whose_steps_fit_just_ends(self, tmp_path):
        summary = simulate(tmp_path / "run", config())
        assert (summary["stopped"], summary["rounds_completed"]) == ("completed", STEPS)
        assert 3.9 < epsilon_of(summary) <= 4.0
        state = load(tmp_path / "run/ledger.jsonl")
        assert state.header.budget is not None
        assert (state.header.budget.epsilon, state.header.budget.delta) == (4.0, 1e-5)

    def test_no_step_more_would_have_fitted(self, tmp_path):
        """The ledger itself refuses the reservation, whoever asks for it."""
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "run", config(), observer=Crash(after=STEPS - 1))
        state = load(tmp_path / "run/ledger.jsonl")
        assert len(state.reservations) == STEPS
        terms = state.latest_terms
        with (
            PrivacyLedger.open(tmp_path / "run/ledger.jsonl") as ledger,
            pytest.raises(BudgetExhausted, match="epsilon 4"),
        ):
            ledger.reserve(terms.event, terms.guarantee)
        assert len(load(tmp_path / "run/ledger.jsonl").reservations) == STEPS

    @pytest.mark.parametrize("crashes", [1, 3])
    def test_every_crash_is_spent_so_that_the_run_halts_earlier(self, tmp_path, crashes):
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "run", config(), observer=Crash(after=2))
        for _ in range(crashes - 1):
            with pytest.raises(KeyboardInterrupt):
                simulation.resume(tmp_path / "run", observer=Crash(after=0), task=task())
        listener = Listener()
        summary = simulation.resume(tmp_path / "run", observer=listener, task=task())
        assert (summary["stopped"], summary["rounds_completed"]) == ("budget", STEPS - crashes)
        assert epsilon_of(summary) <= 4.0
        assert "the privacy budget is spent" in listener.said
        assert "one more release would exceed epsilon 4 at delta 1e-05" in summary["stopped_because"]
        assert read_summary(tmp_path / "run")["stopped"] == "budget"
        assert main(["ledger", "verify", str(tmp_path / "run")]) == 0, "the ledger is closed"

    def test_an_attempt_in_which_unmasking_shares_were_sent_is_spent(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "run", config(), observer=Crash(after=1))
        run = RunDirectory.open(tmp_path / "run")
        with PrivacyLedger.open(run.ledger) as ledger:
            reservation = max(ledger.state.reservations.values(), key=lambda one: one.index)
            ledger.abort(reservation, exposure=Exposure.SHARES_SENT, reason="too few shares came")
        summary = simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        assert (summary["stopped"], summary["rounds_completed"]) == ("budget", STEPS - 1)

    def test_where_single_updates_are_seen_an_aborted_attempt_is_spent(self, tmp_path):
        """Under `plain` the aggregator has read what was sent; under `masking` it holds masked vectors only."""
        outcomes = {}
        for scheme in ("plain", "masking"):
            settings = config(scheme, dropout=0.3, seed=3)
            summary = simulate(tmp_path / scheme, settings, data=task(sites=4))
            assert summary["rounds_aborted"] > 0
            outcomes[scheme] = summary["rounds_completed"]
        assert outcomes["masking"] == STEPS
        assert outcomes["plain"] < STEPS

    @pytest.mark.parametrize(
        ("scheme", "key"), [("plain", None), ("masking", None), ("ckks", "shared"), ("ckks", "sum-key")]
    )
    def test_planned_steps_fit_under_every_scheme(self, tmp_path, scheme, key):
        summary = simulate(tmp_path / "run", config(scheme, key=key, steps=3), data=task(sites=5))
        assert (summary["stopped"], summary["rounds_completed"]) == ("completed", 3)

    @pytest.mark.parametrize("decay", [0.98, 1.05])
    def test_announced_decay_fits_too(self, tmp_path, decay):
        summary = simulate(tmp_path / "run", config(noise_decay=decay))
        assert (summary["stopped"], summary["rounds_completed"]) == ("completed", STEPS)
        assert 3.0 < epsilon_of(summary) <= 4.0
        assert load(tmp_path / "run/ledger.jsonl").header.budget.order is not None

    def test_rounds_of_local_steps_stop_as_well(self, tmp_path):
        settings = config(schedule="round", local_steps=2)
        whole = simulate(tmp_path / "whole", settings)
        assert (whole["stopped"], whole["rounds_completed"]) == ("completed", STEPS // 2)
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "run", settings, observer=Crash(after=1))
        summary = simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        assert (summary["stopped"], summary["rounds_completed"]) == ("budget", STEPS // 2 - 1)

    def test_client_level_rounds_stop_as_well(self, tmp_path):
        settings = load_config(
            None, {"training": {"rounds": 4}, "privacy": {"mode": "client", "epsilon": 8.0}}
        )
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "run", settings, observer=Crash(after=2))
        summary = simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        assert (summary["stopped"], summary["rounds_completed"]) == ("budget", 3)

    def test_a_target_at_which_nothing_can_be_proved_is_refused(self, tmp_path):
        with pytest.raises(PrivacyError, match="--epsilon 90: nothing can be proved"):
            simulate(tmp_path / "run", config(epsilon=90.0, accept_weak=True))
        assert not (tmp_path / "run").exists()

    def test_without_a_target_there_is_no_budget(self, tmp_path):
        summary = simulate(tmp_path / "run", config(epsilon=None, noise_multiplier=2.0))
        assert summary["stopped"] == "completed"
        assert load(tmp_path / "run/ledger.jsonl").header.budget is None

    def test_seeded_noise_has_no_budget_because_it_promises_nothing(self, tmp_path):
        summary = simulate(tmp_path / "run", config(insecure_test_noise=1))
        assert summary["stopped"] == "completed"
        assert load(tmp_path / "run/ledger.jsonl").header.budget is None


class TestAccounts:
    def test_a_second_run_on_the_same_patients_is_refused(self, tmp_path):
        settings = config(ledger_dir=str(tmp_path / "accounts"))
        first = simulate(tmp_path / "first", settings)
        assert (first["stopped"], first["rounds_completed"]) == ("completed", STEPS)
        with pytest.raises(BudgetExhausted, match="the account of site-00 is spent"):
            simulate(tmp_path / "second", settings)
        assert not (tmp_path / "second").exists()

    def test_one_more_image_does_not_reset_it(self, tmp_path):
        settings = config(ledger_dir=str(tmp_path / "accounts"))
        simulate(tmp_path / "first", settings)
        before = Account.read(tmp_path / "accounts/site-00").identity
        with pytest.raises(BudgetExhausted, match="spent"):
            simulate(tmp_path / "second", settings, data=task(examples=41))
        assert Account.read(tmp_path / "accounts/site-00").identity == before

    def test_a_run_halts_where_the_account_ends(self, tmp_path):
        """The cap holds over both runs together."""
        shared = {"ledger_dir": str(tmp_path / "accounts"), "account_epsilon": 4.5}
        first = simulate(tmp_path / "first", config(**shared))
        assert first["stopped"] == "completed"
        listener = Listener()
        second = simulate(tmp_path / "second", config(**shared), observer=listener)
        done = second["rounds_completed"]
        assert second["stopped"] == "budget"
        assert 0 < done < STEPS
        assert f"admits {done} of {STEPS} rounds" in listener.said
        assert "account of site-0" in second["stopped_because"]
        reading = Account.read(tmp_path / "accounts/site-02").reading()
        assert (reading.runs, reading.charges) == (2, STEPS + done)
        assert reading.epsilon <= 4.5
        for run in ("first", "second"):
            assert main(["ledger", "verify", str(tmp_path / run)]) == 0

    def test_a_new_site_keeps_its_own_account(self, tmp_path):
        settings = config(ledger_dir=str(tmp_path / "accounts"), account_epsilon=9.0)
        simulate(tmp_path / "first", settings)
        simulate(tmp_path / "second", settings, data=task(sites=4))
        charges = {
            folder.name: Account.read(folder).reading().charges
            for folder in sorted((tmp_path / "accounts").iterdir())
        }
        assert charges == {"site-00": 12, "site-01": 12, "site-02": 12, "site-03": 6}

    def test_the_ledger_names_the_accounts(self, tmp_path):
        simulate(tmp_path / "run", config(ledger_dir=str(tmp_path / "accounts")))
        header = load(tmp_path / "run/ledger.jsonl").header
        assert header.account is not None
        assert header.parameters["accounts"] == {
            folder.name: Account.read(folder).identity for folder in (tmp_path / "accounts").iterdir()
        }

    def test_a_resumed_run_goes_on_with_its_accounts(self, tmp_path):
        settings = config(ledger_dir=str(tmp_path / "accounts"))
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "run", settings, observer=Crash(after=2))
        summary = simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        assert (summary["stopped"], summary["rounds_completed"]) == ("budget", STEPS - 1)
        assert Account.read(tmp_path / "accounts/site-01").reading().charges == STEPS

    def test_a_run_does_not_go_on_without_its_accounts_or_with_others(self, tmp_path):
        folder = tmp_path / "accounts"
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "run", config(ledger_dir=str(folder)), observer=Crash(after=2))
        folder.rename(tmp_path / "hidden")
        with pytest.raises(ConfigError, match="no such account"):
            simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())
        with pytest.raises(KeyboardInterrupt):
            simulate(tmp_path / "other", config(ledger_dir=str(folder)), observer=Crash(after=0))
        with pytest.raises(ConfigError, match="account"):
            simulation.resume(tmp_path / "run", observer=SilentObserver(), task=task())

    def test_nothing_is_charged_to_any_account_when_one_refuses(self, tmp_path):
        settings = config(ledger_dir=str(tmp_path / "accounts"), account_epsilon=4.0)
        simulate(tmp_path / "first", settings)
        for name in ("site-00", "site-01"):
            shutil.rmtree(tmp_path / "accounts" / name)  # these two start anew, the third is spent
        with pytest.raises(BudgetExhausted, match="site-02"):
            simulate(tmp_path / "second", settings)
        assert Account.read(tmp_path / "accounts/site-00").reading().charges == 0

    @pytest.mark.parametrize(
        ("privacy", "words"),
        [
            ({"epsilon": None, "noise_multiplier": 2.0}, "--account-epsilon"),
            ({"insecure_test_noise": 1}, "does not promise"),
            ({"mode": "off", "epsilon": None}, "--dp off"),
        ],
    )
    def test_what_an_account_cannot_be_opened_for(self, tmp_path, privacy, words):
        with pytest.raises(ConfigError, match=words):
            simulate(tmp_path / "run", config(ledger_dir=str(tmp_path / "accounts"), **privacy))
        assert list(tmp_path.iterdir()) == []

    def test_a_cap_is_fixed_when_the_account_is_started(self, tmp_path):
        simulate(tmp_path / "run", config(ledger_dir=str(tmp_path / "accounts"), account_epsilon=9.0))
        with pytest.raises(ConfigError, match="cap of 9, which cannot be changed"):
            simulate(tmp_path / "more", config(ledger_dir=str(tmp_path / "accounts"), account_epsilon=90.0))

    def test_a_cap_needs_a_folder(self):
        with pytest.raises(ConfigError, match="--account-epsilon needs --ledger-dir"):
            config(account_epsilon=3.0)


def test_the_accounts_of_a_run_belong_to_its_header(tmp_path):
    """A run cannot be opened on the accounts of other sites."""
    settings = config(ledger_dir=str(tmp_path / "accounts"))
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "run", settings, observer=Crash(after=1))
    run = RunDirectory.open(tmp_path / "run")
    with pytest.raises(ConfigError, match="account"):
        RunAccounts.resume(run, None, members=Members.simulated(run.identities()))
    document = json.loads(run.ledger.read_text().splitlines()[0])
    assert document["body"]["cohort"] == sorted(Directory.enroll(run.identities()).keys)
