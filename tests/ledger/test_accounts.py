from __future__ import annotations

import importlib.util
import math
import multiprocessing
import sys
from pathlib import Path

import pytest

from secfl.dp.accounting import Relation
from secfl.dp.events import Gaussian, PoissonSampled
from secfl.errors import (
    BudgetExhausted,
    ConfigError,
    LedgerCorrupted,
    LocalProtocolError,
    PrivacyError,
    UnsupportedEvent,
)
from secfl.guarantees import Behaviour, UnitOfPrivacy
from secfl.ledger import Account, Budget, Exposure, PrivacyLedger, Sampling
from secfl.ledger.accounts import ACCOUNT_FILE
from secfl.ledger.budget import Charge, Meter, suggested_order
from secfl.ledger.canonical import parse_line
from secfl.ledger.storage import LedgerFile
from secfl.ledger.views import planned_charge
from secfl.randomness import InsecureSeededRng

BUDGET = Budget(epsilon=8.0, delta=1e-5)
RNG = InsecureSeededRng(7)


def release(workshop, **changes):
    """Without sampling, so that the accountants are quick."""
    plain = {"noise_multiplier": 4.0, "sampling": Sampling.NONE, "sampling_rate": 1.0, "count": 1}
    return workshop.noise(**(plain | changes))


def count_until_refused(ledger, workshop, survivors="abcde", **changes) -> int:
    for done in range(10_000):
        try:
            reservation = ledger.reserve(release(workshop, **changes), workshop.guarantee())
            ledger.commit(reservation, survivors=survivors)
        except BudgetExhausted:
            return done
    raise AssertionError("never refused")


def how_many(charge: Charge, budget: Budget) -> int:
    """Equal charges until the meter refuses one."""
    meter, count = Meter(budget), 0
    while True:
        try:
            meter.require(charge)
        except BudgetExhausted:
            return count
        meter.add(charge)
        count += 1


class TestRunBudget:
    def run(self, make_ledger, workshop, budget, name="run.jsonl", **changes):
        ledger = make_ledger(workshop, workshop.header(budget=budget), name=name)
        return ledger, count_until_refused(ledger, workshop, **changes)

    def test_the_tight_accountant_spends_the_budget_and_no_more(self, make_ledger, workshop):
        ledger, rounds = self.run(make_ledger, workshop, BUDGET)
        # Planned against the malicious aggregator: t survivors of which none colludes.
        assert _malicious(ledger, 0) <= 8.0
        more = make_ledger(workshop, name="more.jsonl")
        for _ in range(rounds + 1):
            more.commit(more.reserve(release(workshop), workshop.guarantee()))
        assert _malicious(more, 0) > 8.0

    def test_the_renyi_filter_is_close_to_its_order(self, make_ledger, workshop):
        sampled = {"noise_multiplier": 1.0, "sampling": Sampling.POISSON, "sampling_rate": 0.04, "count": 40}
        _, tight = self.run(make_ledger, workshop, BUDGET, "tight.jsonl", **sampled)
        order = suggested_order(8.0, 1e-5, planned=PoissonSampled(0.04, Gaussian(0.8944)))
        budget = Budget(epsilon=8.0, delta=1e-5, order=order)
        ledger, filtered = self.run(make_ledger, workshop, budget, "filter.jsonl", **sampled)
        assert 0.7 * tight < filtered <= tight
        assert _malicious(ledger, 0) <= 8.0

    def test_colluders_and_behaviour_are_planned_for(self, make_ledger, workshop):
        planned = [
            (Behaviour.CURIOUS, 0),
            (Behaviour.MALICIOUS, 0),
            (Behaviour.CURIOUS, 2),
            (Behaviour.MALICIOUS, 3),
        ]
        counts = []
        for adversary, k in planned:
            budget = Budget(epsilon=20.0, delta=1e-5, adversary=adversary, colluders=k)
            counts.append(self.run(make_ledger, workshop, budget, f"{adversary}{k}")[1])
        # Drop-outs are the aggregator's choice, so a curious one is planned at t survivors as well.
        assert counts[0] == counts[1] > counts[2] > counts[3]

    def test_dropping_clients_gains_nothing(self, make_ledger, workshop):
        ledger = make_ledger(workshop, workshop.header(budget=BUDGET))
        count_until_refused(ledger, workshop, survivors="abcd")
        assert _malicious(ledger, 0) <= 8.0

    def test_a_resumed_run_has_spent_what_it_spent(self, make_ledger, workshop, tmp_path):
        _, rounds = self.run(make_ledger, workshop, BUDGET)
        parts = make_ledger(workshop, workshop.header(budget=BUDGET), name="parts.jsonl")
        for _ in range(rounds // 2):
            parts.commit(parts.reserve(release(workshop), workshop.guarantee()))
        parts.release()
        with PrivacyLedger.open(tmp_path / "parts.jsonl") as resumed:
            assert count_until_refused(resumed, workshop) == rounds - rounds // 2

    def test_an_attempt_that_sent_nothing_is_given_back(self, make_ledger, workshop):
        _, rounds = self.run(make_ledger, workshop, BUDGET)
        ledger = make_ledger(workshop, workshop.header(budget=BUDGET), name="other.jsonl")
        for exposure in (Exposure.NOTHING_SENT, Exposure.INPUTS_SENT, Exposure.SHARES_SENT):
            reservation = ledger.reserve(release(workshop), workshop.guarantee())
            ledger.abort(reservation, exposure=exposure, reason="x")
        assert count_until_refused(ledger, workshop) == rounds - 1

    def test_changing_mechanisms_need_an_order(self, make_ledger, workshop):
        ledger = make_ledger(workshop, workshop.header(budget=BUDGET))
        ledger.reserve(release(workshop), workshop.guarantee())
        with pytest.raises(UnsupportedEvent, match="Rényi order"):
            ledger.reserve(release(workshop, count=2), workshop.guarantee())
        adaptive = make_ledger(
            workshop, workshop.header(budget=Budget(epsilon=8.0, delta=1e-5, order=4)), name="adaptive.jsonl"
        )
        adaptive.reserve(release(workshop), workshop.guarantee())
        adaptive.reserve(release(workshop, count=2), workshop.guarantee())

    def test_what_has_no_accounting_never_fits(self, make_ledger, workshop):
        from secfl.ledger import NonPrivate

        for order in (None, 4):
            budget = Budget(epsilon=8.0, delta=1e-5, order=order)
            ledger = make_ledger(workshop, workshop.header(budget=budget), name=f"{order}.jsonl")
            with pytest.raises(BudgetExhausted):
                ledger.reserve(NonPrivate(reason="no noise"), workshop.guarantee())

    def test_sampler_and_cryptography_use_up_the_budget_too(self, make_ledger, workshop):
        for order in (None, 4):
            budget = Budget(epsilon=8.0, delta=1e-5, order=order)
            ledger = make_ledger(workshop, workshop.header(budget=budget), name=f"{order}.jsonl")
            with pytest.raises(BudgetExhausted):
                ledger.reserve(workshop.noise(count=1, sampler_error=1e-9), workshop.guarantee())
            with pytest.raises(BudgetExhausted):
                ledger.reserve(workshop.noise(count=1), workshop.guarantee(advantage_log2=-20.0))

    def test_a_commit_cannot_outgrow_what_was_charged(self, make_ledger, workshop):
        ledger = make_ledger(workshop, workshop.header(budget=BUDGET))
        noise = workshop.noise(count=1, sampler_error=1e-20)
        ledger.commit(ledger.reserve(noise, workshop.guarantee()), total_variation=5e-20)
        with pytest.raises(PrivacyError, match="total_variation"):
            ledger.commit(ledger.reserve(noise, workshop.guarantee()), total_variation=6e-20)

    @pytest.mark.parametrize(
        "changes",
        [{"epsilon": 0.0}, {"epsilon": float("inf")}, {"delta": 0.0}, {"delta": 1.0}, {"order": 1}, {"colluders": -1}],
    )  # fmt: skip
    def test_impossible_budgets(self, changes):
        with pytest.raises(ConfigError, match="budget"):
            Budget(**({"epsilon": 1.0, "delta": 1e-5} | changes))


def _malicious(ledger, colluders):
    view = "aggregator_colluders" if colluders else "aggregator"
    rows = {(row.view.value, row.adversary.value, row.colluders): row for row in ledger.statements()}
    return rows[view, "malicious", colluders].epsilon


@pytest.fixture
def account(tmp_path) -> Account:
    return Account.open(tmp_path / "account", budget=BUDGET, rng=RNG)


def with_account(make_ledger, workshop, account, name, run_id=None):
    header = workshop.header(account=account.identity, run_id=run_id or name.encode().ljust(16, b".")[:16])
    return make_ledger(workshop, header, name=name, account=account)


class TestAccount:
    def test_several_runs_share_one_budget(self, make_ledger, workshop, account):
        alone = count_until_refused(with_account(make_ledger, workshop, account, "first.jsonl"), workshop)
        assert alone > 2
        with pytest.raises(BudgetExhausted):
            with_account(make_ledger, workshop, account, "second.jsonl").reserve(
                release(workshop), workshop.guarantee()
            )
        reading = account.reading()
        assert (reading.charges, reading.runs) == (alone, 1)
        assert 0 < reading.epsilon <= 8.0

    def test_two_runs_together_get_what_one_gets(self, make_ledger, workshop, tmp_path):
        one = Account.open(tmp_path / "one", budget=BUDGET, rng=RNG)
        alone = count_until_refused(with_account(make_ledger, workshop, one, "alone.jsonl"), workshop)
        both = Account.open(tmp_path / "both", budget=BUDGET, rng=RNG)
        left = with_account(make_ledger, workshop, both, "left.jsonl")
        for _ in range(alone // 3):
            left.commit(left.reserve(release(workshop), workshop.guarantee()))
        right = with_account(make_ledger, workshop, both, "right.jsonl")
        assert count_until_refused(right, workshop) == alone - alone // 3

    def test_one_more_image_does_not_reset_it(self, make_ledger, workshop, account, tmp_path):
        """The identity is the site's and does not depend on its data, nor on the run."""
        first = with_account(make_ledger, workshop, account, "first.jsonl")
        first.reserve(release(workshop), workshop.guarantee())
        again = Account.open(tmp_path / "account", budget=BUDGET)
        assert again.identity == account.identity
        changed_data = workshop.header(
            account=again.identity, run_id=b"after new images", digests={"task": b"\7" * 32}
        )
        second = make_ledger(workshop, changed_data, name="second.jsonl", account=again)
        second.reserve(release(workshop), workshop.guarantee())
        assert again.reading().charges == 2

    def test_identities_are_random(self, tmp_path):
        names = {Account.open(tmp_path / str(i), budget=BUDGET, rng=RNG).identity for i in range(3)}
        assert len(names) == 3

    def test_nothing_is_charged_when_the_round_is_refused(self, make_ledger, workshop, account):
        ledger = with_account(make_ledger, workshop, account, "run.jsonl")
        count_until_refused(ledger, workshop)
        charges = account.reading().charges
        for _ in range(3):
            with pytest.raises(BudgetExhausted):
                ledger.reserve(release(workshop), workshop.guarantee())
        assert account.reading().charges == charges
        assert len(ledger.state.reservations) == charges

    def test_a_crash_between_account_and_ledger_counts_as_spent(
        self, make_ledger, workshop, account, monkeypatch, tmp_path
    ):
        ledger = with_account(make_ledger, workshop, account, "run.jsonl")
        ledger.reserve(release(workshop), workshop.guarantee(), round_id=0)

        def crash(*_args, **_kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(ledger, "_append", crash)
        with pytest.raises(KeyboardInterrupt):
            ledger.reserve(release(workshop), workshop.guarantee(), round_id=1)
        ledger.release()
        assert account.reading().charges == 2
        with PrivacyLedger.open(tmp_path / "run.jsonl", account=account) as resumed:
            resumed.reserve(release(workshop), workshop.guarantee(), round_id=1)
            assert account.reading().charges == 3  # whether it was opened nobody knows
            resumed.reserve(release(workshop), workshop.guarantee(), round_id=1)  # a resend
            assert account.reading().charges == 3
            resumed.reserve(release(workshop), workshop.guarantee(), round_id=1, attempt=1)
        assert account.reading().charges == 4

    def test_a_ledger_that_was_set_back_does_not_get_rounds_for_nothing(
        self, make_ledger, workshop, account, tmp_path
    ):
        """Restore the run's ledger from a copy and do its rounds once more: fresh noise, the same specification."""
        path = tmp_path / "run.jsonl"
        ledger = with_account(make_ledger, workshop, account, "run.jsonl")
        copy = path.read_bytes()
        opened = 0
        for _ in range(3):
            for _ in range(2):
                ledger.commit(ledger.reserve(release(workshop), workshop.guarantee()))
                opened += 1
            ledger.release()
            path.write_bytes(copy)
            ledger = PrivacyLedger.open(path, account=account)
        ledger.release()
        assert account.reading().charges == opened == 6

    def test_an_account_that_became_shorter_is_refused(self, make_ledger, workshop, account, tmp_path):
        ledger = with_account(make_ledger, workshop, account, "run.jsonl")
        ledger.reserve(release(workshop), workshop.guarantee())
        path = tmp_path / "account" / ACCOUNT_FILE
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        with pytest.raises(LedgerCorrupted, match="cut off while it was in use"):
            ledger.reserve(release(workshop), workshop.guarantee())

    def test_a_reservation_that_is_refused_is_not_charged(self, make_ledger, workshop, account):
        ledger = with_account(make_ledger, workshop, account, "run.jsonl")
        ledger.reserve(release(workshop), workshop.guarantee(), round_id=5)
        with pytest.raises(LocalProtocolError, match="must increase"):
            ledger.reserve(release(workshop), workshop.guarantee(), round_id=3)
        assert account.reading().charges == 1

    def test_two_names_of_an_account_have_one_lock(self, make_ledger, workshop, account, tmp_path):
        alias = tmp_path / "alias"
        alias.mkdir()
        (alias / ACCOUNT_FILE).symlink_to(tmp_path / "account" / ACCOUNT_FILE)
        with (
            LedgerFile(tmp_path / "account" / ACCOUNT_FILE),
            pytest.raises(ConfigError, match="another process"),
        ):
            LedgerFile(alias / ACCOUNT_FILE)

    def test_header_and_account_belong_together(self, make_ledger, workshop, account, tmp_path):
        with pytest.raises(ConfigError, match="account"):
            make_ledger(workshop, account=account)
        header = workshop.header(account=account.identity)
        with pytest.raises(ConfigError, match="account"):
            make_ledger(workshop, header)
        with_account(make_ledger, workshop, account, "run.jsonl").release()
        with pytest.raises(ConfigError, match="account"):
            PrivacyLedger.open(tmp_path / "run.jsonl")
        clinics = Account.open(
            tmp_path / "clinics",
            budget=BUDGET,
            rng=RNG,
            unit=UnitOfPrivacy.CLIENT,
            relation=Relation.ZERO_OUT,
        )
        with pytest.raises(ConfigError, match="counts client"):
            with_account(make_ledger, workshop, clinics, "clinics.jsonl")

    def test_opening(self, tmp_path, account):
        with pytest.raises(ConfigError, match="no such account"):
            Account.open(tmp_path / "nothing")
        with pytest.raises(ConfigError, match="no such account"):
            Account.read(tmp_path / "nothing")
        with pytest.raises(ConfigError, match="another budget"):
            Account.open(tmp_path / "account", budget=Budget(epsilon=9.0, delta=1e-5))
        with pytest.raises(ConfigError, match="counts patient"):
            Account.open(tmp_path / "account", unit=UnitOfPrivacy.CLIENT)
        assert Account.read(tmp_path / "account").budget.order == suggested_order(8.0, 1e-5)

    def test_a_torn_charge_is_spent(self, make_ledger, workshop, account, tmp_path):
        with_account(make_ledger, workshop, account, "run.jsonl").reserve(
            release(workshop), workshop.guarantee()
        )
        path = tmp_path / "account" / ACCOUNT_FILE
        with path.open("ab") as stream:
            stream.write(b'{"body":{"attempt":1,')
        assert Account.read(tmp_path / "account").reading().charges == 2
        assert parse_line(path.read_bytes().splitlines()[-1])["type"] == "recovered"
        assert account.reading().charges == 2

    def test_a_changed_account_is_refused(self, make_ledger, workshop, account, tmp_path):
        ledger = with_account(make_ledger, workshop, account, "run.jsonl")
        for _ in range(2):
            ledger.reserve(release(workshop), workshop.guarantee())
        path = tmp_path / "account" / ACCOUNT_FILE
        lines = path.read_bytes().splitlines(keepends=True)
        for damaged in (
            [lines[0], lines[1].replace(b'"noise_multiplier":3.5', b'"noise_multiplier":9.5'), lines[2]],
            [lines[0], lines[2]],
            [lines[0], lines[1], lines[1]],
            [lines[1], lines[2]],
            [],
        ):
            path.write_bytes(b"".join(damaged))
            with pytest.raises(LedgerCorrupted):
                Account.read(tmp_path / "account")

    def test_unknown_events_are_refused(self, account, tmp_path):
        from secfl.ledger.entry import encode_entry

        path = tmp_path / "account" / ACCOUNT_FILE
        head = parse_line(path.read_bytes().strip())
        body = {"run_id": "00" * 16, "round": 0, "attempt": 0, "spec_digest": "00" * 32}
        body |= {"event": {"event": "Magic"}, "error": 0}
        line, _ = encode_entry(index=1, kind="charge", body=body, time=head["time"], previous=head["hash"])
        with path.open("ab") as stream:
            stream.write(line + b"\n")
        with pytest.raises(LedgerCorrupted, match=r"body\.event"):
            Account.read(tmp_path / "account")

    @pytest.mark.parametrize(
        ("kind", "reason"), [("account", "index: expected 0"), ("recovered", "expected the latest charge")]
    )
    def test_entries_that_would_give_back_what_was_spent(
        self, make_ledger, workshop, account, tmp_path, kind, reason
    ):
        """A second head has a fresh budget; a lost charge that names none was for nothing."""
        from secfl.ledger.entry import encode_entry

        with_account(make_ledger, workshop, account, "run.jsonl").reserve(
            release(workshop), workshop.guarantee()
        )
        path = tmp_path / "account" / ACCOUNT_FILE
        head, last = map(parse_line, path.read_bytes().splitlines())
        body = head["body"] if kind == "account" else {"fragment": b"{".hex(), "charge": None}
        line, _ = encode_entry(index=2, kind=kind, body=body, time=head["time"], previous=last["hash"])
        with path.open("ab") as stream:
            stream.write(line + b"\n")
        with pytest.raises(LedgerCorrupted, match=reason) as caught:
            Account.read(tmp_path / "account")
        assert caught.value.entry == 2

    def test_an_account_starts_with_its_budget(self, account, tmp_path):
        from secfl.ledger.entry import GENESIS, encode_entry

        path = tmp_path / "account" / ACCOUNT_FILE
        time = parse_line(path.read_bytes().strip())["time"]
        body = {"fragment": "", "charge": None}
        line, _ = encode_entry(index=0, kind="recovered", body=body, time=time, previous=GENESIS)
        path.write_bytes(line + b"\n")
        with pytest.raises(LedgerCorrupted, match="only the first, is of type account"):
            Account.read(tmp_path / "account")

    def test_folders_that_cannot_be_made_are_named(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match="file/account: "):
            Account.open(tmp_path / "file" / "account", budget=BUDGET, rng=RNG)


def _spender(job) -> int:
    """One process: its own run, the shared account. Returns how many rounds it got."""
    folder, path, run_id, workshop_file = job
    spec = importlib.util.spec_from_file_location("ledger_workshop", workshop_file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ledger_workshop"] = module
    spec.loader.exec_module(module)
    workshop = module.Workshop()
    account = Account.open(folder, budget=BUDGET, rng=InsecureSeededRng(7))
    header = workshop.header(account=account.identity, run_id=run_id)
    with PrivacyLedger.create(path, header, account=account) as ledger:
        return count_until_refused(ledger, workshop)


def test_reservations_are_transactions_across_processes(make_ledger, workshop, tmp_path):
    """Three processes race for one account; together they get exactly what one would get."""
    single = Account.open(tmp_path / "single", budget=BUDGET, rng=RNG)
    alone = count_until_refused(with_account(make_ledger, workshop, single, "alone.jsonl"), workshop)
    source = str(Path(__file__).with_name("conftest.py"))
    jobs = [
        (str(tmp_path / "shared"), str(tmp_path / f"run{i}.jsonl"), bytes([i]) * 16, source) for i in range(3)
    ]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        counts = pool.map(_spender, jobs)
    assert sum(counts) == alone
    assert Account.read(tmp_path / "shared").reading().charges == alone


class TestMeter:
    @pytest.mark.parametrize(
        ("epsilon", "planned", "order"),
        [
            (8.0, None, 4),
            (2.0, None, 10),
            (8.0, PoissonSampled(0.04, Gaussian(0.894)), 3),
            (2.0, PoissonSampled(0.04, Gaussian(1.5)), 9),
        ],
    )
    def test_suggested_orders(self, epsilon, planned, order):
        assert suggested_order(epsilon, 1e-5, planned=planned) == order

    def test_the_probing_of_counts_agrees_with_counting(self, make_ledger, workshop):
        ledger = make_ledger(workshop)
        ledger.reserve(
            workshop.noise(sampling=Sampling.NONE, sampling_rate=1.0, count=1), workshop.guarantee()
        )
        charge = planned_charge(ledger.state.latest_terms, BUDGET)
        fits = how_many(charge, BUDGET)
        from secfl.dp.accounting import epsilon
        from secfl.dp.events import SelfComposed

        assert epsilon(SelfComposed(charge.event, fits), delta=1e-5) <= 8.0
        assert epsilon(SelfComposed(charge.event, fits + 1), delta=1e-5) > 8.0

    def test_a_filter_sets_a_fixed_part_of_delta_aside_for_errors(self):
        """What one path spends on errors must not change how much divergence another path may spend."""
        budget = Budget(epsilon=8.0, delta=1e-5, order=8)
        fitting = [
            how_many(Charge(event=Gaussian(20.0), error=error), budget) for error in (0.0, 1e-15, 4e-14)
        ]
        assert fitting[0] == fitting[1] == fitting[2]
        too_much = Charge(event=Gaussian(1e6), error=0.011 * 1e-5 / (1 + math.exp(8.0)))
        with pytest.raises(BudgetExhausted):
            Meter(budget).require(too_much)

    def test_a_filter_does_not_care_about_the_order_of_charges(self, workshop, make_ledger):
        budget = Budget(epsilon=8.0, delta=1e-5, order=4)
        charges: list[Charge] = []
        ledger = make_ledger(workshop)
        for z in (1.0, 2.0, 3.0):
            ledger.reserve(workshop.noise(noise_multiplier=z, count=20), workshop.guarantee())
            charges.append(planned_charge(ledger.state.latest_terms, budget))
        left, right = Meter(budget), Meter(budget)
        for charge in charges * 3:
            left.add(charge)
        for charge in reversed(charges * 3):
            right.add(charge)
        assert left._divergence == pytest.approx(right._divergence)
