"""Runs that chose their noise as they went: the filter's cap, carried over to every adversary."""

from __future__ import annotations

import pytest

from secfl.dp.plan import PrivacyPlan
from secfl.guarantees import UnitOfPrivacy
from secfl.ledger import Budget, Exposure, event_from_plan

PLAN = PrivacyPlan(
    unit=UnitOfPrivacy.PATIENT,
    clip_norm=1.0,
    grid_norm=4096,
    dimension=10,
    noise_multiplier=8.0,
    levels=(4.0,),
    releases=20,
    cohort_size=5,
    threshold=4,
    delta=1e-5,
)


@pytest.fixture
def rows(make_ledger, workshop):
    """Rows of a run with one committed round and so many that ended after inputs were sent."""

    def of(aborted: int):
        header = workshop.header(plan=PLAN.to_dict(), budget=Budget(epsilon=4.0, delta=1e-5, order=8))
        ledger = make_ledger(workshop, header, name=f"{aborted}.jsonl")
        event = event_from_plan(PLAN.at_level(8.0))
        ledger.commit(ledger.reserve(event, workshop.guarantee()))
        for _ in range(aborted):
            reservation = ledger.reserve(event, workshop.guarantee())
            ledger.abort(reservation, exposure=Exposure.INPUTS_SENT, reason="too few answered")
        return {(row.view.value, row.adversary.value, row.colluders): row for row in ledger.statements()}

    return of


def test_attempts_that_the_filter_was_not_charged_for_cost_who_saw_them(rows):
    few, many = rows(1), rows(30)
    broken = ("crypto_broken", "curious", 0)
    for key in few:
        if few[key].broken or key == broken:
            assert many[key].epsilon > few[key].epsilon * 1.2, key
        else:
            assert many[key].epsilon == few[key].epsilon, key
    # The filter's own adversary gets its cap, whatever was spent.
    assert few["aggregator", "malicious", 0].epsilon == pytest.approx(4.0, abs=1e-6)
    assert many[broken].broken
