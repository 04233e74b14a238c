"""What the core of secfl costs, every time as a ratio to a reference operation measured in the same run.

Ratios compare between runs and machines where times do not; `gate` compares them with those of an earlier run.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from secfl._version import __version__
from secfl.benchmarking.ledgers import write_ledger
from secfl.benchmarking.suite import describe_machine, run_suite
from secfl.benchmarking.workload import Workload
from secfl.dp.clipping import GridClip
from secfl.dp.noise import NoiseFamily, NoiseShare, PatientSum, integer_sampler, privatize
from secfl.errors import DataError
from secfl.ledger.verify import verify_file
from secfl.randomness import SystemRng

__all__ = ["BenchPreset", "Figure", "Kind", "gate", "measure_all"]

FORMAT_VERSION: Final = 1
_SLOWER: Final = 1.6
"""A ratio of times may be so many times the earlier one: two runs on a shared machine differ by less."""
_LARGER: Final = 1.01


class BenchPreset(StrEnum):
    """Size of the suite."""

    SMOKE = "smoke"
    """About a minute."""
    FULL = "full"
    """Vectors of a million, and of ten million for masks."""


class Kind(StrEnum):
    """What a figure is, which says how far it may move."""

    TIME = "time"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        name: Unique.
        kind: Time or size.
        value: In ``unit``.
        unit: Of ``value``.
        reference: The operation, or the size, that it is compared with.
        ratio: ``value`` over the reference's, measured in the same run.
    """

    name: str
    kind: Kind
    value: float
    unit: str
    reference: str
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    draws: int
    entries: int
    repeats: int
    sums: tuple[tuple[str, int, int], ...]
    """Schemes, parameters and clients of each run of secure aggregation."""


_SIZES: Mapping[BenchPreset, _Size] = {
    BenchPreset.SMOKE: _Size(draws=200_000, entries=300, repeats=3, sums=(("masking,ckks", 200_000, 5),)),
    BenchPreset.FULL: _Size(
        draws=1_000_000,
        entries=3000,
        repeats=5,
        sums=(("plain,masking,ckks", 1_000_000, 10), ("masking", 10_000_000, 10)),
    ),
}


def measure_all(
    preset: BenchPreset, *, peers: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure everything of a preset.

    Args:
        preset: Its size.
        peers: The folder of ``make peers``, or ``None`` to leave other frameworks out.
        progress: Told what comes next.

    Returns:
        The document of ``secfl bench all --json``: the figures, the whole tables of secure aggregation, the machine.
    """
    size = _SIZES[preset]
    figures: list[Figure] = []
    tables = []
    for schemes, parameters, clients in size.sums:
        report = run_suite(
            Workload(parameters=parameters, clients=clients, repeats=size.repeats),
            schemes.split(","),
            peers=peers,
            progress=progress,
        ).to_json()
        tables.append(report)
        figures += _sums(report)
    progress("noise, clipping")
    figures += _privacy(size)
    progress("ledger")
    figures += _ledger(size)
    return {
        "format_version": FORMAT_VERSION,
        "secfl": __version__,
        "preset": preset.value,
        "machine": describe_machine(),
        "figures": [{**asdict(figure), "kind": figure.kind.value} for figure in figures],
        "secagg": tables,
    }


def gate(document: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """What became slower or larger than in an earlier run of the same preset, one sentence each.

    Args:
        document: From `measure_all`.
        earlier: The same of an earlier version. Figures that one of them lacks are not compared.

    Raises:
        DataError: ``earlier`` is of another preset or format.
    """
    try:
        if (earlier["format_version"], earlier["preset"]) != (FORMAT_VERSION, document["preset"]):
            raise DataError(
                f"baseline: format {earlier['format_version']}, preset {earlier['preset']}; "
                f"expected {FORMAT_VERSION} and {document['preset']}"
            )
        before = {row["name"]: float(row["ratio"]) for row in earlier["figures"]}
    except (KeyError, TypeError, ValueError):
        raise DataError("baseline: expected what `secfl bench all --json` prints") from None
    found = []
    for row in document["figures"]:
        allowed = _SLOWER if row["kind"] == Kind.TIME.value else _LARGER
        if row["name"] in before and row["ratio"] > allowed * before[row["name"]]:
            found.append(
                f"{row['name']}: {row['ratio']:.2f} times {row['reference']}, was {before[row['name']]:.2f}"
            )
    return found


def _sums(report: Mapping[str, Any]) -> Iterator[Figure]:
    mask, add = report["limits"]["aes_ctr_ns_per_param"], report["limits"]["add_ns_per_param"]
    workload = report["workload"]
    for row in report["results"]:
        if row["scheme"] not in {"plain", "masking", "ckks"}:
            continue
        name = row["scheme"] if row["scheme"] != "ckks" else f"ckks {row['key_mode']}"
        where = f"{name}, {workload['parameters']:,} x {workload['clients']}"
        for part, reference, least in (
            ("client", "one AES-256-CTR mask", mask),
            ("server", "one addition", add),
            ("open", "one addition", add),
        ):
            value = row[f"{part}_ns_per_param"]
            yield Figure(
                name=f"{where}: {part}",
                kind=Kind.TIME,
                value=value,
                unit="ns per parameter",
                reference=reference,
                ratio=round(value / least, 3),
            )
        yield Figure(
            name=f"{where}: up",
            kind=Kind.BYTES,
            value=row["bytes_up_per_param"],
            unit="bytes per parameter",
            reference="a float32",
            ratio=round(row["bytes_up_per_param"] / 4, 4),
        )


def _privacy(size: _Size) -> Iterator[Figure]:
    generator = np.random.default_rng(0)  # the yardstick; nothing private is drawn from it
    normal = _best(lambda: generator.normal(0.0, 1000.0, size.draws), size.repeats) / size.draws
    secret = SystemRng()
    for family in NoiseFamily:
        for sigma in (64.0, 1e5):
            sampler = integer_sampler(family, sigma)
            seconds = _best(lambda: sampler.draw(size.draws, secret), size.repeats) / size.draws  # noqa: B023 - at once
            yield _time(
                f"{family.value} noise, σ {sigma:g}", seconds, "ns per draw", "NumPy's normal", normal
            )
    total = PatientSum(values=np.zeros(size.draws, np.int64), sensitivity=4096)
    share = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=4096.0)
    seconds = _best(lambda: privatize(total, noise=share, bits=24, rng=secret), size.repeats) / size.draws
    yield _time("noise added to an update", seconds, "ns per parameter", "NumPy's normal", normal)
    gradient = generator.normal(0, 1, size.draws).astype(np.float32)
    scale = _best(lambda: gradient * (1.0 / float(np.linalg.norm(gradient))), size.repeats) / size.draws
    grid = GridClip.single(dimension=size.draws, clip_norm=1.0, grid_norm=2**16)
    seconds = _best(lambda: grid.clip(gradient), size.repeats) / size.draws
    yield _time(
        "one patient clipped to the grid", seconds, "ns per parameter", "NumPy's norm and scaling", scale
    )


def _ledger(size: _Size) -> Iterator[Figure]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        write_ledger(path, rounds=size.entries // 2)
        content = path.read_bytes()
        digest = _best(lambda: hashlib.sha256(content).digest(), max(size.repeats, 20))
        seconds = _best(lambda: verify_file(path), size.repeats)
    entries = content.count(b"\n")
    yield _time(
        f"ledger of {entries:,} entries verified",
        seconds / entries,
        "ns per entry",
        "SHA-256 of the file",
        digest / entries,
    )


def _time(name: str, seconds: float, unit: str, reference: str, least: float) -> Figure:
    return Figure(
        name=name,
        kind=Kind.TIME,
        value=round(seconds * 1e9, 3),
        unit=unit,
        reference=reference,
        ratio=round(seconds / least, 3),
    )


def _best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of processor time of the best of some passes, after one that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return max(min(seconds), 1e-9)
