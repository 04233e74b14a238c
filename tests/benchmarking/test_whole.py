"""The whole suite of benchmarks: figures with a reference each, and a gate on their ratios."""

from __future__ import annotations

import copy
import json

import pytest

from secfl.benchmarking.ledgers import write_ledger
from secfl.benchmarking.whole import BenchPreset, gate, measure_all
from secfl.cli.main import main
from secfl.errors import DataError
from secfl.ledger.verify import verify_file


@pytest.fixture(scope="module")
def document() -> dict:
    return measure_all(BenchPreset.SMOKE, peers=None, progress=lambda _text: None)


class TestFigures:
    def test_each_scheme_and_each_part_of_the_core_has_its_figure(self, document):
        names = [row["name"] for row in document["figures"]]
        assert len(set(names)) == len(names)
        for word in ("masking", "ckks sum-key", "ckks shared", "noise", "clipped", "ledger"):
            assert any(word in name for name in names), word

    def test_every_figure_is_positive_and_compared_with_something(self, document):
        for row in document["figures"]:
            assert row["value"] > 0
            assert row["ratio"] > 0
            assert row["reference"]
            assert row["kind"] in {"time", "bytes"}

    def test_the_ledger_that_is_timed_is_a_whole_one(self, tmp_path):
        write_ledger(tmp_path / "ledger.jsonl", rounds=3)
        verdict = verify_file(tmp_path / "ledger.jsonl")
        assert (verdict.status.value, verdict.rounds["committed"]) == ("closed", 3)


class TestGate:
    def test_a_run_passes_against_itself(self, document):
        assert gate(document, document) == []

    def test_a_time_that_doubled_is_named(self, document):
        slower = copy.deepcopy(document)
        row = next(row for row in slower["figures"] if row["kind"] == "time")
        row["ratio"] *= 2
        (line,) = gate(slower, document)
        assert line.startswith(row["name"])
        assert gate(document, slower) == [], "faster is not worse"

    def test_two_percent_more_bytes_are_too_many(self, document):
        larger = copy.deepcopy(document)
        row = next(row for row in larger["figures"] if row["kind"] == "bytes")
        row["ratio"] *= 1.02
        assert len(gate(larger, document)) == 1

    @pytest.mark.parametrize(
        "damage",
        [{"preset": "full"}, {"format_version": 2}, {"figures": None}, {"figures": [{"name": "x"}]}],
        ids=["another preset", "another format", "no figures", "no ratio"],
    )
    def test_a_baseline_that_does_not_fit_is_refused(self, document, damage):
        with pytest.raises(DataError, match="baseline"):
            gate(document, document | damage)

    def test_the_command_ends_with_exit_code_5_when_something_got_worse(self, document, tmp_path, capsys):
        fast = copy.deepcopy(document)
        for row in fast["figures"]:
            row["ratio"] /= 100
        earlier = tmp_path / "earlier.json"
        earlier.write_text(json.dumps(fast))
        assert main(["bench", "all", "--json", "--gate", str(earlier)]) == 5
        printed = capsys.readouterr()
        assert len(json.loads(printed.out)["worse"]) == len(document["figures"])
        assert printed.err.count("worse: ") == len(document["figures"])

    @pytest.mark.parametrize("content", [None, "{", "[]"])
    def test_a_gate_that_cannot_be_read_is_refused_before_anything_is_measured(
        self, tmp_path, capsys, content
    ):
        path = tmp_path / "earlier.json"
        if content is not None:
            path.write_text(content)
        assert main(["bench", "all", "--gate", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: --gate {path}")

    def test_the_committed_baseline_is_of_this_format(self, project, document):
        earlier = json.loads((project / "benchmarks" / "baseline.json").read_text(encoding="utf-8"))
        assert {row["name"] for row in earlier["figures"]} == {row["name"] for row in document["figures"]}
        gate(document, earlier)
