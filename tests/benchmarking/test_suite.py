"""The benchmark measures real rounds, notices wrong sums, and leaves out what it cannot measure."""

from __future__ import annotations

import json
import re
import stat
import sys
from dataclasses import fields

import numpy as np
import pytest

from secfl.benchmarking import secagg, timing
from secfl.benchmarking.limits import Limits, measure_limits
from secfl.benchmarking.peers import PEERS, Peer, Skipped, benchmark_peer
from secfl.benchmarking.rows import Row
from secfl.benchmarking.suite import compare, run_suite
from secfl.benchmarking.timing import MemoryMeter, Span, stopwatch
from secfl.benchmarking.workload import Workload, benchmarked_schemes
from secfl.cli.main import main
from secfl.crypto.aggregation import Envelope
from secfl.crypto.packing import packed_size
from secfl.errors import BelowThreshold, ConfigError
from secfl.types import AGGREGATOR, ClientId, SchemeSpec

SMALL = Workload(parameters=3000, clients=4, repeats=1)
REQUIRED = {
    "scheme",
    "key_mode",
    "parameters",
    "clients",
    "client_ns_per_param",
    "encode_ns_per_param",
    "protect_ns_per_param",
    "pack_ns_per_param",
    "server_ns_per_param",
    "open_ns_per_param",
    "bytes_up_per_param",
    "bytes_down_per_param",
    "setup_bytes_per_client",
    "peak_mb",
    "exact",
}


@pytest.fixture(scope="module")
def report():
    return run_suite(SMALL, ["plain", "masking", "ckks"], peers=None, progress=lambda _: None)


def row(**changes) -> Row:
    values = {field.name: 1.0 for field in fields(Row)} | {
        "scheme": "masking",
        "key_mode": "pairwise",
        "clients": 10,
        "note": "",
    }
    return Row(**(values | changes))


class TestOurSchemes:
    def test_every_scheme_and_key_mode_is_measured_and_exact(self, report):
        assert [(one.scheme, one.key_mode) for one in report.rows] == [
            ("plain", "none"),
            ("masking", "pairwise"),
            ("ckks", "sum-key"),
            ("ckks", "shared"),
        ]
        assert all(one.exact for one in report.rows)
        assert all(one.survivors == 4 for one in report.rows)

    def test_times_are_positive_and_parts_are_parts(self, report):
        for one in report.rows:
            assert one.client_ns_per_param > 0
            assert one.server_ns_per_param > 0
            assert one.open_ns_per_param >= 0
            for part in (one.encode_ns_per_param, one.protect_ns_per_param, one.pack_ns_per_param):
                assert 0 < part < one.client_ns_per_param

    def test_bytes_are_those_on_the_wire(self, report):
        plain, masking, sum_key, shared = report.rows
        packed = packed_size(SMALL.parameters, bits=SMALL.bits)
        assert packed < plain.bytes_up_per_param * SMALL.parameters < packed + 300
        assert plain.bytes_up_per_param < masking.bytes_up_per_param
        assert plain.setup_bytes_per_client == 0
        assert 10_000 < masking.setup_bytes_per_client < 100_000
        assert {one.bytes_down_per_param for one in report.rows} == {4.0}
        assert masking.opener_bytes_down_per_param == sum_key.opener_bytes_down_per_param == 0
        # The client that opens gets every survivor's ciphertext, of the size that each of them sent.
        assert shared.opener_bytes_down_per_param > 4 * shared.bytes_up_per_param * 0.95

    def test_drop_outs_are_played(self):
        workload = Workload(parameters=500, clients=20, dropout=0.05, repeats=1)
        (masking,) = run_suite(workload, ["masking"], peers=None, progress=lambda _: None).rows
        assert masking.exact
        assert masking.survivors == 17  # one is lost before each of: advertise, share, input; two after it

    def test_too_many_drop_outs_end_the_round(self):
        workload = Workload(parameters=500, clients=10, dropout=0.2, repeats=1)
        with pytest.raises(BelowThreshold):
            run_suite(workload, ["masking"], peers=None, progress=lambda _: None)

    def test_a_wrong_sum_is_called_wrong(self, monkeypatch):
        honest = secagg._Pass._expected
        monkeypatch.setattr(secagg._Pass, "_expected", lambda self: honest(self) ^ np.uint32(1))
        (plain,) = run_suite(SMALL, ["plain"], peers=None, progress=lambda _: None).rows
        assert plain.exact is False

    def test_with_several_threads_packing_is_not_told_apart(self):
        workload = Workload(parameters=3000, clients=3, threads=2, repeats=1)
        (masking,) = run_suite(workload, ["masking"], peers=None, progress=lambda _: None).rows
        assert masking.pack_ns_per_param is None
        assert masking.exact

    @pytest.mark.parametrize(
        "changes",
        [
            {"parameters": 0},
            {"clients": 2},
            {"clients": 65},
            {"dropout": 0.3},
            {"threads": 0},
            {"repeats": 0},
        ],
    )
    def test_a_workload_out_of_range_is_refused(self, changes):
        with pytest.raises(ConfigError):
            Workload(**changes)

    def test_an_unknown_scheme_is_refused(self):
        with pytest.raises(ConfigError, match="expected some of plain, masking, ckks"):
            benchmarked_schemes(["rot13"])

    def test_vectors_are_reproducible_and_differ_by_client(self):
        np.testing.assert_array_equal(SMALL.values(1), SMALL.values(1))
        assert not np.array_equal(SMALL.values(1), SMALL.values(2))
        assert float(np.abs(SMALL.values(0)).max()) <= 1.0

    @pytest.mark.slow
    @pytest.mark.parametrize("scheme", ["masking", "ckks"])
    def test_64_clients_of_a_million_parameters_need_few_vectors_at_the_aggregator(self, scheme):
        parameters = () if scheme == "masking" else (("key_mode", "sum-key"),)
        workload = Workload(parameters=1_000_000, clients=64, dropout=0.1, threshold=33, repeats=1)
        one = secagg.benchmark_scheme(
            workload, SchemeSpec(name=scheme, parameters=parameters), key_mode="whichever"
        )
        assert one.exact
        assert one.survivors == 64 - 3 * 6
        assert one.peak_vectors < 8


class TestLimits:
    def test_they_are_positive_and_the_better_of_two(self):
        measured = measure_limits(10_000, repeats=3)
        assert measured.aes_ctr_ns_per_param > 0
        assert measured.add_ns_per_param > 0
        other = Limits(aes_ctr_ns_per_param=1e-9, add_ns_per_param=1e9)
        assert measured.least(other) == Limits(
            aes_ctr_ns_per_param=1e-9, add_ns_per_param=measured.add_ns_per_param
        )


class TestComparison:
    def test_ratios_are_the_peers_figures_over_ours(self):
        ours = row(client_ns_per_param=20.0, server_ns_per_param=2.0, bytes_up_per_param=2.0)
        peer = row(
            scheme="nvflare-he", client_ns_per_param=100.0, server_ns_per_param=3.0, bytes_up_per_param=58.0
        )
        (entry,) = compare([ours, peer], Limits(aes_ctr_ns_per_param=0.5, add_ns_per_param=0.1))
        assert entry["masks"] == 10
        assert entry["times_limit"] == 4.0
        assert entry["server_times_add"] == 20.0
        ratios = entry["peers"]["nvflare-he"]
        assert ratios["client_faster"] == 5.0
        assert ratios["server_faster"] == 1.5
        assert ratios["upload_smaller"] == 29.0

    def test_nothing_is_divided_by_zero(self):
        ours = row(open_ns_per_param=0.0)
        peer = row(scheme="nvflare-he")
        (entry,) = compare([ours, peer], Limits(aes_ctr_ns_per_param=0.5, add_ns_per_param=0.1))
        assert entry["peers"]["nvflare-he"]["open_faster"] is None


class TestPeers:
    FIGURES = {field.name: 2.0 for field in fields(Row)} | {"version": "fake 1", "exact": True, "note": ""}

    def install(self, tmp_path, script: str) -> Peer:
        """A peer whose interpreter is a script of ours."""
        python = tmp_path / "fake" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!{sys.executable}\nimport json, sys\nfrom pathlib import Path\n{script}\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        return Peer(scheme="fake", key_mode="none", folder="fake", worker="worker_flower.py", most_clients=2)

    def measure(self, peer, tmp_path):
        return benchmark_peer(peer, SMALL, folder=tmp_path, progress=lambda _: None)

    def test_one_that_is_not_installed_is_left_out_with_the_way_to_get_it(self, tmp_path):
        for peer in PEERS:
            outcome = self.measure(peer, tmp_path)
            assert isinstance(outcome, Skipped)
            assert "run make peers" in outcome.reason

    def test_it_gets_the_same_vectors_and_its_figures_become_a_row(self, tmp_path):
        figures = {
            name: value
            for name, value in self.FIGURES.items()
            if name not in {"scheme", "key_mode", "threads"}
        }
        peer = self.install(
            tmp_path,
            "folder = Path(sys.argv[-1])\n"
            f"(folder / 'figures.json').write_text(json.dumps({json.loads(json.dumps(figures))!r}))\n"
            f"Path({str(tmp_path)!r}, 'seen').write_bytes((folder / '1.npy').read_bytes())\n"
            f"Path({str(tmp_path)!r}, 'job').write_bytes((folder / 'job.json').read_bytes())\n"
            "assert not (folder / '2.npy').exists()",
        )
        outcome = self.measure(peer, tmp_path)
        assert isinstance(outcome, Row), outcome
        assert outcome.client_ns_per_param == 2.0
        np.testing.assert_array_equal(np.load(tmp_path / "seen"), SMALL.values(1))
        assert json.loads((tmp_path / "job").read_text())["clients"] == 2

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ("print('first'); sys.exit('no such module')", "exit code 1: no such module"),
            ("sys.exit(3)", "exit code 3: no output"),
            ("pass", "failed: .*figures.json"),
            ("Path(sys.argv[-1], 'figures.json').write_text('{')", "failed: Expecting"),
        ],
    )
    def test_one_that_fails_is_left_out_with_its_last_words(self, tmp_path, script, reason):
        outcome = self.measure(self.install(tmp_path, script), tmp_path)
        assert isinstance(outcome, Skipped)
        assert re.search(reason, outcome.reason)

    @pytest.mark.slow
    @pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.scheme)
    def test_the_installed_ones_run(self, project, peer):
        outcome = benchmark_peer(peer, SMALL, folder=project / ".peers", progress=lambda _: None)
        if isinstance(outcome, Skipped) and "not installed" in outcome.reason:
            pytest.skip(outcome.reason)
        assert isinstance(outcome, Row), outcome
        assert outcome.client_ns_per_param > 0
        assert outcome.largest_error < 1e-5
        assert outcome.exact is (peer.scheme == "flower-secagg-plus")


class TestTiming:
    def test_a_stopwatch_puts_functions_back(self, monkeypatch):
        original = timing.tracemalloc.start
        with stopwatch([(timing.tracemalloc, "start")]) as span:
            assert timing.tracemalloc.start is not original
            timing.tracemalloc.start()
            timing.tracemalloc.stop()
        assert timing.tracemalloc.start is original
        assert span.wall > 0
        with pytest.raises(ZeroDivisionError), stopwatch([(timing.tracemalloc, "start")]):
            1 / 0  # noqa: B018 - raises
        assert timing.tracemalloc.start is original

    def test_spans_add_up(self):
        total = Span(1.0, 2.0) + Span(3.0, 4.0)
        assert (total.wall, total.cpu) == (4.0, 6.0)

    def test_memory_is_the_partys_own(self):
        kept = []

        def party() -> list[Envelope]:
            kept.append(np.ones(100_000, np.uint8))
            np.ones(500_000, np.uint8).max()
            return [Envelope(ClientId("a"), AGGREGATOR, bytes(50_000))]

        with MemoryMeter() as meter:
            others = np.ones(3_000_000, np.uint8)
            sent = meter.call(party, given=1000)
            del sent, others
            more = np.ones(3_000_000, np.uint8)
            meter.call(party)
            del more
        assert 200_000 <= meter.kept < 220_000
        assert 700_000 <= meter.peak < 730_000


class TestCommandLine:
    def test_json_has_what_it_promises(self, capsys):
        arguments = ["--params", "2000", "--clients", "3", "--schemes", "masking,ckks", "--repeats", "1"]
        assert main(["bench", "secagg", *arguments, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["format_version"] == 1
        assert {"machine", "statistic", "workload", "limits", "results", "skipped", "ratios"} <= set(document)
        assert len(document["results"]) == len(document["ratios"]) == 3
        for one in document["results"]:
            assert set(one) >= REQUIRED
            assert one["exact"] is True

    def test_the_table_names_rows_limits_and_skipped_peers(self, capsys, tmp_path):
        arguments = ["--params", "2000", "--clients", "3", "--schemes", "masking", "--repeats", "1"]
        assert main(["bench", "secagg", *arguments, "--peers", "--peers-dir", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        for words in (
            "2,000 parameters, 3 clients",
            "masking  ",
            "limits of this machine",
            "times the limit of 3 masks",
            "flower-secagg-plus: skipped, not installed",
            "nvflare-he: skipped, not installed",
        ):
            assert words in out

    def test_bad_input_is_an_error_with_code_2(self, capsys):
        assert main(["bench", "secagg", "--clients", "2"]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == "error: --clients 2: expected 3 to 64"
