"""Several sites' accounts, charged together or not at all."""

from __future__ import annotations

import multiprocessing

import pytest

from secfl.dp.accounting import Relation
from secfl.dp.events import Gaussian, PoissonSampled
from secfl.errors import BudgetExhausted, ConfigError
from secfl.guarantees import UnitOfPrivacy
from secfl.ledger import Account, Budget, PrivacyLedger, Sampling, SiteAccounts
from secfl.ledger.accounts import ACCOUNT_FILE
from secfl.ledger.budget import Charge, Meter
from secfl.randomness import SystemRng

CAP = Budget(epsilon=8.0, delta=1e-5)


def accounts(folder, *, small=()) -> SiteAccounts:
    """One account for each of five sites; those in ``small`` admit less."""
    return SiteAccounts(
        {
            site: Account.open(
                folder / site,
                budget=Budget(epsilon=2.0, delta=1e-5) if site in small else CAP,
                rng=SystemRng(),
            )
            for site in "abcde"
        }
    )


def charges(folder) -> dict[str, int]:
    return {site: Account.read(folder / site).reading().charges for site in "abcde"}


def release(workshop):
    return workshop.noise(noise_multiplier=4.0, sampling=Sampling.NONE, sampling_rate=1.0, count=1)


def ledger_on(shared, make_ledger, workshop, **kwargs) -> PrivacyLedger:
    return make_ledger(workshop, workshop.header(account=shared.identity), account=shared, **kwargs)


def test_a_reservation_charges_every_site(make_ledger, workshop, tmp_path):
    shared = accounts(tmp_path / "sites")
    ledger = ledger_on(shared, make_ledger, workshop)
    ledger.reserve(release(workshop), workshop.guarantee())
    assert set(charges(tmp_path / "sites").values()) == {1}


def test_one_spent_account_stops_all_and_none_is_charged(make_ledger, workshop, tmp_path):
    shared = accounts(tmp_path / "sites", small="d")
    ledger = ledger_on(shared, make_ledger, workshop)
    site, room = shared.room(lambda _: Charge(event=Gaussian(3.5), error=0.0), 100)
    assert site == "d"
    done = 0
    refusal = ""
    while not refusal:
        try:
            ledger.reserve(release(workshop), workshop.guarantee())
            done += 1
        except BudgetExhausted as error:
            refusal = str(error)
    assert refusal.startswith("account of d: ")
    assert 0 < room <= done < 100
    assert set(charges(tmp_path / "sites").values()) == {done}
    assert len(ledger.state.reservations) == done


def test_a_crash_among_the_charges_is_spent(make_ledger, workshop, tmp_path, monkeypatch):
    """Some accounts are charged, others not yet: what was charged is spent, and the resumed run charges all."""
    shared = accounts(tmp_path / "sites")
    ledger = ledger_on(shared, make_ledger, workshop)
    written = []
    encode = Account._encode

    def crash_at_third(self, kind, body):
        written.append(kind)
        if len(written) == 3:
            raise KeyboardInterrupt
        return encode(self, kind, body)

    monkeypatch.setattr(Account, "_encode", crash_at_third)
    with pytest.raises(KeyboardInterrupt):
        ledger.reserve(release(workshop), workshop.guarantee(), round_id=0)
    monkeypatch.undo()
    ledger.release()
    assert sum(charges(tmp_path / "sites").values()) == 2
    again = SiteAccounts({site: Account.read(tmp_path / "sites" / site) for site in "abcde"})
    with PrivacyLedger.open(tmp_path / "ledger.jsonl", account=again) as resumed:
        assert not resumed.state.reservations
        resumed.reserve(release(workshop), workshop.guarantee(), round_id=0)
    assert sorted(charges(tmp_path / "sites").values()) == [1, 1, 1, 2, 2]


def test_the_identity_tells_sites_and_accounts(tmp_path):
    first, second = accounts(tmp_path / "one"), accounts(tmp_path / "two")
    assert first.identity == accounts(tmp_path / "one").identity
    assert first.identity != second.identity
    by_site = {site: Account.read(tmp_path / "one" / site) for site in "abcde"}
    swapped = by_site | {"a": by_site["b"], "b": by_site["a"]}
    assert SiteAccounts(swapped).identity != first.identity


def test_impossible_sets_of_accounts(tmp_path):
    one = Account.open(tmp_path / "one", budget=CAP, rng=SystemRng())
    clinics = Account.open(
        tmp_path / "two", budget=CAP, unit=UnitOfPrivacy.CLIENT, relation=Relation.ZERO_OUT, rng=SystemRng()
    )
    with pytest.raises(ConfigError, match="one for each site"):
        SiteAccounts({})
    with pytest.raises(ConfigError, match="same account"):
        SiteAccounts({"a": one, "b": Account.read(tmp_path / "one")})
    with pytest.raises(ConfigError, match="different units"):
        SiteAccounts({"a": one, "b": clinics})


def _charge_often(folder, names, times):
    """In a process of its own, with the sites in an order of its own."""
    shared = SiteAccounts({site: Account.read(folder / site) for site in names})
    run_id = SystemRng().bytes(16)
    for number in range(times):
        with shared.charging(
            lambda _: Charge(event=Gaussian(50.0), error=0.0),
            run_id=run_id,
            round_id=number,
            attempt=0,
            spec_digest=bytes(32),
        ):
            pass


def test_runs_in_two_processes_neither_lose_charges_nor_wait_for_each_other(tmp_path):
    accounts(tmp_path)
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_charge_often, args=(tmp_path, names, 10)) for names in ("abcde", "edcba")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert charges(tmp_path) == dict.fromkeys("abcde", 20)
    for site in "abcde":
        assert len((tmp_path / site / ACCOUNT_FILE).read_bytes().splitlines()) == 21


@pytest.mark.parametrize("order", [None, 8])
def test_the_room_is_what_require_admits(order):
    charge = Charge(event=PoissonSampled(0.1, Gaussian(1.5)), error=0.0)
    meter = Meter(Budget(epsilon=1.5, delta=1e-5, order=order))
    room = meter.room(charge, 10_000)
    assert meter.room(charge, 3) == 3
    assert room > 3
    meter.add(charge, room)
    assert meter.room(charge, 10) == 0
    with pytest.raises(BudgetExhausted):
        meter.require(charge)
