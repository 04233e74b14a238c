"""The ledger in words, in other formats, and side by side with another."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from secfl.errors import UnsupportedEvent
from secfl.ledger import Exposure, Family, NonPrivate
from secfl.ledger.compare import compare
from secfl.ledger.explain import explain
from secfl.ledger.export import ExportFormat, export


@pytest.fixture
def ledger(make_ledger, workshop):
    ledger = make_ledger(workshop)
    for survivors in ("abcde", "abcd"):
        ledger.commit(ledger.reserve(workshop.discrete(count=20), workshop.guarantee()), survivors=survivors)
    return ledger


def sentences(ledger):
    return {(row.view.value, row.adversary.value, row.colluders): explain(row) for row in ledger.statements()}


class TestExplain:
    def test_every_row_is_one_sentence(self, ledger):
        for text in sentences(ledger).values():
            assert text[0].isupper()
            assert text.endswith(".")
            assert ". " not in text.replace("1.0 %", "")
            assert len(text) < 600

    def test_a_clinician_reads_odds_and_conditions(self, ledger):
        text = sentences(ledger)["aggregator", "curious", 0]
        assert "at even odds" in text
        assert "except with probability 1e-05" in text
        assert "3 clients or more colluded" in text
        assert "x25519, ml-kem-768" in text

    def test_the_odds_are_those_of_epsilon(self, make_ledger, workshop):
        ledger = make_ledger(workshop, name="one.jsonl")
        ledger.commit(ledger.reserve(workshop.noise(noise_multiplier=2.0, count=20), workshop.guarantee()))
        row = next(row for row in ledger.statements() if row.view == "final_model")
        assert f"{100 * math.exp(row.epsilon) / (1 + math.exp(row.epsilon)):.1f} % sure" in explain(row)

    def test_a_shared_key_and_one_colluder(self, make_ledger, workshop):
        shared = workshop.variant(scheme="ckks", key_mode="shared")
        ledger = make_ledger(shared, name="shared.jsonl")
        ledger.commit(ledger.reserve(shared.noise(count=5), shared.guarantee()))
        found = sentences(ledger)
        assert "one client gave the shared CKKS key to the aggregator" in found["aggregator", "curious", 0]
        assert "as in the row crypto_broken" in found["aggregator_colluders", "curious", 1]
        assert "every single client's update" in found["aggregator_colluders", "curious", 1]

    def test_quantum_computers_are_mentioned_where_they_matter(self, make_ledger, workshop):
        safe = workshop.variant(assumptions=workshop.assumptions[1:])
        ledger = make_ledger(safe, name="safe.jsonl")
        ledger.commit(ledger.reserve(safe.noise(count=5), safe.guarantee()))
        assert "quantum" not in sentences(ledger)["aggregator", "curious", 0]

    def test_without_privacy(self, make_ledger, workshop):
        ledger = make_ledger(
            workshop, workshop.header(unit=None, relation=None, delta=None), name="off.jsonl"
        )
        off = NonPrivate(reason="differential privacy is off")
        ledger.commit(ledger.reserve(off, workshop.guarantee()))
        for text in sentences(ledger).values():
            assert "nothing limits what this reveals" in text
            assert "differential privacy is off" in text

    def test_nothing_was_released(self, make_ledger, workshop):
        ledger = make_ledger(workshop, name="empty.jsonl")
        assert all("reveals nothing" in text for text in sentences(ledger).values())


class TestExport:
    def test_csv_holds_every_row(self, ledger):
        rows = list(csv.DictReader(io.StringIO(export(ledger.state, ExportFormat.CSV))))
        statements = ledger.statements()
        assert len(rows) == len(statements)
        for row, statement in zip(rows, statements, strict=True):
            assert float(row["epsilon"]) == statement.epsilon
            assert set(row) == set(statement.to_json())

    def test_dp_accounting_reproduces_the_figures(self, ledger):
        import dp_accounting
        from dp_accounting.pld import PLDAccountant

        def build(node):
            arguments = {name: value for name, value in node.items() if name != "class"}
            if "event" in arguments:
                arguments["event"] = build(arguments["event"])
            if "events" in arguments:
                arguments["events"] = [build(part) for part in arguments["events"]]
            return getattr(dp_accounting, node["class"])(**arguments)

        exported = json.loads(export(ledger.state, ExportFormat.DP_ACCOUNTING))
        known = {}
        for view, row in zip(exported["views"], ledger.statements(), strict=True):
            assert (view["view"], view["colluders"]) == (row.view, row.colluders)
            if row.epsilon not in known:
                accountant = PLDAccountant(value_discretization_interval=1e-3).compose(build(view["event"]))
                rest = row.delta * math.exp(-view["remainder"])
                known[row.epsilon] = accountant.get_epsilon(rest) + 2 * view["remainder"]
            assert known[row.epsilon] == pytest.approx(row.epsilon, rel=5e-3)

    def test_skellam_cannot_be_exported_as_what_it_is_not(self, make_ledger, workshop):
        ledger = make_ledger(workshop, name="skellam.jsonl")
        noise = workshop.noise(family=Family.SKELLAM, sensitivity=4096.0, dimension=10, count=1)
        ledger.commit(ledger.reserve(noise, workshop.guarantee()))
        with pytest.raises(UnsupportedEvent):
            export(ledger.state, ExportFormat.DP_ACCOUNTING)

    @pytest.mark.parametrize("form", [ExportFormat.REGISTRY, ExportFormat.NIST])
    def test_reports_name_the_figures_of_the_released_model(self, ledger, form):
        report = json.loads(export(ledger.state, form))
        row = next(row for row in ledger.statements() if row.view == "final_model")
        found = (
            report["deployment"]["privacy_loss"]["privacy_parameters"]
            if form is ExportFormat.REGISTRY
            else report["privacy_parameters"]
        )
        assert (found["epsilon"], found["delta"]) == (row.epsilon, 1e-5)
        assert "per-site metrics" in json.dumps(report)

    @pytest.mark.parametrize("form", list(ExportFormat))
    def test_runs_without_privacy_are_exported_as_such(self, make_ledger, workshop, form):
        ledger = make_ledger(
            workshop, workshop.header(unit=None, relation=None, delta=None), name="off.jsonl"
        )
        ledger.commit(ledger.reserve(NonPrivate(reason="off"), workshop.guarantee()))
        text = export(ledger.state, form)
        assert "NonPrivateDpEvent" in text or "null" in text or ",,," in text


class TestCompare:
    def test_a_ledger_equals_itself(self, ledger):
        found = compare(ledger.state, ledger.state)
        assert not found.header
        assert all(left == right for left, right in found.rounds.values())
        assert all(left == right for left, right in found.views.values())

    def test_differences_are_shown(self, ledger, make_ledger, workshop):
        other = make_ledger(
            workshop, workshop.header(delta=1e-6, run_id=b"another run id!!"), name="other.jsonl"
        )
        reservation = other.reserve(workshop.discrete(count=20), workshop.guarantee())
        other.abort(reservation, exposure=Exposure.INPUTS_SENT, reason="x")
        found = compare(ledger.state, other.state)
        assert dict(found.header) == {"delta": (1e-5, 1e-6)}
        assert found.rounds["committed"] == (2, 0)
        assert found.rounds["aborted"] == (0, 1)
        assert found.rounds["dropouts"] == (1, 0)
        left, right = found.views["aggregator", "curious", 0, ""]
        assert left > right == 0.0

    def test_rows_that_only_one_has_are_kept(self, ledger, make_ledger, workshop):
        small = workshop.variant(cohort=("a", "b", "c"), threshold=3)
        other = make_ledger(small, name="small.jsonl")
        views = compare(other.state, ledger.state).views
        assert views["aggregator_colluders", "curious", 4, ""][0] is None
        assert compare(other.state, ledger.state).to_json()["views"]
