"""The whole suite of benchmarks: figures with a reference each, and a gate on their ratios."""

from __future__ import annotations

import copy
import json

import pytest

from secfl.benchmarking import paired, whole
from secfl.benchmarking.gating import confirmed, gate
from secfl.benchmarking.ledgers import write_ledger
from secfl.benchmarking.whole import BenchPreset, measure_all
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
        assert gate(document, document) == {}

    def test_a_time_that_doubled_is_named(self, document):
        slower = copy.deepcopy(document)
        row = next(row for row in slower["figures"] if row["kind"] == "time")
        row["ratio"] *= 2
        row["spread"] = 0.1
        assert list(gate(slower, document)) == [row["name"]]
        assert gate(document, slower) == {}, "faster is not worse"

    def test_two_percent_more_bytes_are_too_many(self, document):
        larger = copy.deepcopy(document)
        row = next(row for row in larger["figures"] if row["kind"] == "bytes")
        row["ratio"] *= 1.02
        assert len(gate(larger, document)) == 1

    @pytest.mark.parametrize(
        "damage",
        [{"preset": "full"}, {"format_version": 1}, {"figures": None}, {"figures": [{"name": "x"}]}],
        ids=["another preset", "another format", "no figures", "no ratio"],
    )
    def test_a_baseline_that_does_not_fit_is_refused(self, document, damage):
        with pytest.raises(DataError, match="baseline"):
            gate(document, document | damage)

    def test_the_command_ends_with_exit_code_5_when_something_got_worse(self, document, tmp_path, capsys):
        fast = copy.deepcopy(document)
        for row in fast["figures"]:
            row["ratio"] /= 100
            row["spread"] = 0.0
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


class TestSoundness:
    """Whether the gate tells slowness from the noise of a shared machine."""

    @pytest.fixture(scope="class")
    def runs(self, project) -> list[dict]:
        """Ratios and spreads of smoke runs, measured one after the other on a machine with much other work."""
        path = project / "tests" / "fixtures" / "bench_runs.json"
        return json.loads(path.read_text(encoding="utf-8"))["runs"]

    @staticmethod
    def scaled(run, factor):
        rows = [row | {"ratio": row["ratio"] * factor} for row in run["figures"] if row["kind"] == "time"]
        return run | {"figures": rows}

    def test_no_run_fails_against_another_of_the_same_code(self, runs):
        assert len(runs) >= 5
        assert [gate(one, other) for one in runs for other in runs] == [{}] * len(runs) ** 2

    def test_every_figure_that_became_two_and_a_half_times_slower_is_found_in_every_run(self, runs):
        for one in runs:
            for other in runs:
                slower = self.scaled(one, 2.5)
                assert set(gate(slower, other)) == {row["name"] for row in slower["figures"]}

    def test_work_that_is_really_done_three_times_is_found(self, document, monkeypatch):
        """Measured, not computed: the function under the benchmark is slowed down."""
        original = whole.GridClip.clip

        def thrice(self, gradient):
            for _ in range(2):
                original(self, gradient)
            return original(self, gradient)

        monkeypatch.setattr(whole.GridClip, "clip", thrice)
        figures = [whole.as_row(one) for one in whole._clipping(whole._SIZES[BenchPreset.SMOKE])]
        slow = document | {"figures": figures}
        assert list(gate(slow, document)) == ["one patient clipped to the grid"]

    def test_an_unsteady_figure_needs_a_clear_difference_and_says_so(self, document):
        row = next(row for row in document["figures"] if row["kind"] == "time")
        before = document | {"figures": [row | {"ratio": 1.0, "spread": 0.0}]}
        after = row | {"ratio": 2.0}
        assert gate(document | {"figures": [after | {"spread": 1.2}]}, before) == {}
        ((_, line),) = gate(document | {"figures": [after | {"spread": 0.5}]}, before).items()
        assert "quarters 50% and 0% apart" in line

    def test_only_what_is_worse_twice_counts_and_good_runs_are_not_repeated(self, document):
        names = [row["name"] for row in document["figures"] if row["kind"] == "time"][:2]
        earlier = copy.deepcopy(document)
        for row in earlier["figures"]:
            row["ratio"] /= 10 if row["name"] in names else 1
            row["spread"] = 0.0
        steadier = copy.deepcopy(document)
        next(row for row in steadier["figures"] if row["name"] == names[0])["ratio"] /= 10
        (line,) = confirmed(gate(document, earlier), earlier, lambda: steadier)
        assert line.startswith(names[1])
        assert confirmed({}, earlier, lambda: pytest.fail("measured again")) == []


class TestPairs:
    def test_a_disturbance_that_hits_work_and_reference_alike_leaves_the_ratio(self):
        disturbed = paired.Paired.of([6.0, 12.0, 6.0], [1.0, 3.0, 1.0, 3.0])
        assert (disturbed.value, disturbed.ratio) == (6.0, 3.0)

    def test_one_bad_repetition_of_several_moves_the_median_little_and_the_spread_is_told(self):
        quiet = paired.Paired.of([3.0] * 7, [1.0] * 8)
        assert (quiet.ratio, quiet.spread) == (3.0, 0.0)
        assert paired.Paired.of([3.0] * 6 + [30.0], [1.0] * 8).ratio == 3.0
        assert paired.Paired.of([3.0, 3.0, 3.0, 6.0, 6.0, 6.0, 3.0], [1.0] * 8).spread == 1.0

    def test_the_command_names_what_is_unsteady(self, document):
        from secfl.cli.bench import _steadiness

        row = next(row for row in document["figures"] if row["kind"] == "time")
        assert _steadiness(row | {"spread": 0.05}) == "5%"
        assert _steadiness(row | {"spread": 0.5}) == "50% (unsteady)"
