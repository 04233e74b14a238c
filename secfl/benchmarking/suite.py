"""The whole benchmark: limits of the machine, our schemes, other frameworks, and the ratios between them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from secfl._version import __version__
from secfl.benchmarking.limits import Limits, measure_limits
from secfl.benchmarking.peers import PEERS, Skipped, benchmark_peer
from secfl.benchmarking.rows import Row
from secfl.benchmarking.secagg import benchmark_scheme
from secfl.benchmarking.timing import keep_freed_memory
from secfl.benchmarking.workload import Workload, benchmarked_schemes

__all__ = ["FORMAT_VERSION", "Report", "compare", "run_suite"]

FORMAT_VERSION: Final = 1
STATISTIC: Final = (
    "Times are nanoseconds of processor time per parameter: median over the clients of one pass, least of the "
    "passes, figure by figure. Compare within one run only."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of the benchmark.

    Attributes:
        workload: What was summed.
        limits: Of this machine, measured before and after everything else.
        rows: Our schemes first, then the peers.
        skipped: Peers that were asked for and not measured.
    """

    workload: Workload
    limits: Limits
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that ``secfl bench secagg --json`` prints."""
        return {
            "format_version": FORMAT_VERSION,
            "secfl": __version__,
            "machine": describe_machine(),
            "statistic": STATISTIC,
            "workload": asdict(self.workload),
            "limits": {name: round(value, 4) for name, value in asdict(self.limits).items()},
            "results": [row.to_json() for row in self.rows],
            "skipped": [asdict(one) for one in self.skipped],
            "ratios": compare(self.rows, self.limits),
        }


def run_suite(
    workload: Workload,
    schemes: Sequence[str],
    *,
    peers: Path | None,
    progress: Callable[[str], None],
    recorder: Callable[[str, str], Callable[[Mapping[str, float]], None]] | None = None,
) -> Report:
    """Measure everything, one after the other.

    Args:
        workload: What is summed.
        schemes: Names of our schemes; ``ckks`` stands for both key modes.
        peers: The folder of ``make peers``, or ``None`` to leave other frameworks out.
        progress: Told what comes next.
        recorder: Given a scheme's name and key mode, returns who is told the figures of each of its passes.

    Raises:
        ConfigError: An unknown scheme, or a workload that a scheme refuses.
        ProtocolError: A round did not end.
    """
    chosen = benchmarked_schemes(list(schemes))
    keep_freed_memory()
    progress("limits of this machine")
    repeats = max(3, workload.repeats)
    limits = measure_limits(workload.parameters, repeats=repeats)
    rows: list[Row] = []
    for key_mode, scheme in chosen:
        progress(f"{scheme.name} ({key_mode})")
        listener = None if recorder is None else recorder(scheme.name, key_mode)
        rows.append(benchmark_scheme(workload, scheme, key_mode=key_mode, after_pass=listener))
    skipped = []
    for peer in PEERS if peers is not None else ():
        assert peers is not None
        outcome = benchmark_peer(peer, workload, folder=peers, progress=progress)
        if isinstance(outcome, Row):
            rows.append(outcome)
        else:
            skipped.append(outcome)
    limits = limits.least(measure_limits(workload.parameters, repeats=repeats))
    return Report(workload=workload, limits=limits, rows=tuple(rows), skipped=tuple(skipped))


def compare(rows: Sequence[Row], limits: Limits) -> list[dict[str, Any]]:
    """Each of our rows against the limits and against every peer in the same run.

    ``times_limit`` is the client's time over (masks x the AES limit): masks are the client's own and one for
    every other client. ``faster`` and ``smaller`` are the peer's figure over ours.
    """
    peers = {peer.scheme for peer in PEERS}
    ours = [row for row in rows if row.scheme not in peers]
    ratios: list[dict[str, Any]] = []
    for row in ours:
        entry: dict[str, Any] = {"scheme": row.scheme, "key_mode": row.key_mode}
        if row.scheme == "masking":
            limit = row.clients * limits.aes_ctr_ns_per_param
            entry["masks"] = row.clients
            entry["times_limit"] = _ratio(row.client_ns_per_param, limit)
        entry["server_times_add"] = _ratio(row.server_ns_per_param, limits.add_ns_per_param)
        entry["peers"] = {
            peer.scheme: {
                "client_faster": _ratio(peer.client_ns_per_param, row.client_ns_per_param),
                "client_elapsed_faster": _ratio(
                    peer.client_elapsed_ns_per_param, row.client_elapsed_ns_per_param
                ),
                "server_faster": _ratio(peer.server_ns_per_param, row.server_ns_per_param),
                "open_faster": _ratio(peer.open_ns_per_param, row.open_ns_per_param),
                "upload_smaller": _ratio(peer.bytes_up_per_param, row.bytes_up_per_param),
            }
            for peer in rows
            if peer.scheme in peers
        }
        ratios.append(entry)
    return ratios


def describe_machine() -> dict[str, Any]:
    """Enough to know whether two runs were made on the same kind of machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": usable,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _ratio(numerator: float, denominator: float) -> float | None:
    return round(numerator / denominator, 2) if denominator else None
