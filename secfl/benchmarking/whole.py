"""What the core of secfl costs, every time as a ratio to a reference operation timed in turns with it.

Ratios compare between runs and machines where times do not; `secfl.benchmarking.gating` compares them with those of an
earlier run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from secfl._version import __version__
from secfl.benchmarking.ledgers import write_ledger
from secfl.benchmarking.limits import limiting_operations
from secfl.benchmarking.paired import Paired, PassRecorder, Yardstick, paired
from secfl.benchmarking.suite import describe_machine, run_suite
from secfl.benchmarking.workload import Workload
from secfl.dp.clipping import GridClip
from secfl.dp.noise import NoiseFamily, NoiseShare, PatientSum, integer_sampler, privatize
from secfl.ledger.verify import verify_file
from secfl.randomness import SystemRng

__all__ = ["FORMAT_VERSION", "BenchPreset", "Figure", "Kind", "measure_all"]

FORMAT_VERSION: Final = 2


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
        value: In ``unit``; of a time the least of the repetitions.
        unit: Of ``value``.
        reference: The operation, or the size, that it is compared with.
        ratio: To the reference's; of a time the median over repetitions, each beside a reference of its own.
        spread: Distance between the quarters of those ratios, over the median; 0 for a size.
    """

    name: str
    kind: Kind
    value: float
    unit: str
    reference: str
    ratio: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    draws: int
    entries: int
    repeats: int
    sums: tuple[tuple[str, int, int], ...]
    """Schemes, parameters and clients of each run of secure aggregation."""


_SIZES: Mapping[BenchPreset, _Size] = {
    BenchPreset.SMOKE: _Size(draws=200_000, entries=300, repeats=7, sums=(("masking,ckks", 200_000, 5),)),
    BenchPreset.FULL: _Size(
        draws=1_000_000,
        entries=3000,
        repeats=7,
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
        sums = _Sums(parameters)
        report = run_suite(
            Workload(parameters=parameters, clients=clients, repeats=size.repeats),
            schemes.split(","),
            peers=peers,
            progress=progress,
            recorder=sums.recorder,
        ).to_json()
        tables.append(report)
        figures += sums.figures(report)
    progress("noise, clipping")
    figures += [*_noise(size), *_clipping(size)]
    progress("ledger")
    figures += _ledger(size)
    return {
        "format_version": FORMAT_VERSION,
        "secfl": __version__,
        "preset": preset.value,
        "machine": describe_machine(),
        "figures": [as_row(figure) for figure in figures],
        "secagg": tables,
    }


def as_row(figure: Figure) -> dict[str, Any]:
    """A figure as it stands in the document."""
    return {**asdict(figure), "kind": figure.kind.value}


class _Sums:
    """Secure aggregation beside one mask and one addition, timed after every pass."""

    def __init__(self, parameters: int) -> None:
        expand, add = limiting_operations(parameters)
        self._yardsticks = {
            "one AES-256-CTR mask": Yardstick(expand, unit=parameters),
            "one addition": Yardstick(add, unit=parameters),
        }
        self._recorders: dict[tuple[str, str], PassRecorder] = {}

    def recorder(self, scheme: str, key_mode: str) -> Callable[[Mapping[str, float]], None]:
        recorder = self._recorders[scheme, key_mode] = PassRecorder(self._yardsticks)
        return lambda figures: recorder.take({name: value / 1e9 for name, value in figures.items()})

    def figures(self, report: Mapping[str, Any]) -> Iterator[Figure]:
        workload = report["workload"]
        for row in report["results"]:
            recorder = self._recorders.get((row["scheme"], row["key_mode"]))
            if recorder is None:  # another framework
                continue
            name = row["scheme"] if row["scheme"] != "ckks" else f"ckks {row['key_mode']}"
            where = f"{name}, {workload['parameters']:,} x {workload['clients']}"
            for part, reference in (
                ("client", "one AES-256-CTR mask"),
                ("server", "one addition"),
                ("open", "one addition"),
            ):
                yield _time(
                    f"{where}: {part}", recorder.beside(part, reference), "ns per parameter", reference
                )
            yield Figure(
                name=f"{where}: up",
                kind=Kind.BYTES,
                value=row["bytes_up_per_param"],
                unit="bytes per parameter",
                reference="a float32",
                ratio=round(row["bytes_up_per_param"] / 4, 4),
            )


def _noise(size: _Size) -> Iterator[Figure]:
    generator = np.random.default_rng(0)  # the yardstick; nothing private is drawn from it
    normal = Yardstick(lambda: generator.normal(0.0, 1000.0, size.draws), unit=size.draws)
    secret = SystemRng()
    for family in NoiseFamily:
        for sigma in (64.0, 1e5):
            draw = partial(integer_sampler(family, sigma).draw, size.draws, secret)
            yield _time(
                f"{family.value} noise, σ {sigma:g}",
                paired(draw, normal, repeats=size.repeats, unit=size.draws),
                "ns per draw",
                "NumPy's normal",
            )
    total = PatientSum(values=np.zeros(size.draws, np.int64), sensitivity=4096)
    share = NoiseShare(family=NoiseFamily.DISCRETE_GAUSSIAN, sigma=4096.0)
    yield _time(
        "noise added to an update",
        paired(
            lambda: privatize(total, noise=share, bits=24, rng=secret),
            normal,
            repeats=size.repeats,
            unit=size.draws,
        ),
        "ns per parameter",
        "NumPy's normal",
    )


def _clipping(size: _Size) -> Iterator[Figure]:
    gradient = np.random.default_rng(0).normal(0, 1, size.draws).astype(np.float32)
    scale = Yardstick(lambda: gradient * (1.0 / float(np.linalg.norm(gradient))), unit=size.draws)
    grid = GridClip.single(dimension=size.draws, clip_norm=1.0, grid_norm=2**16)
    yield _time(
        "one patient clipped to the grid",
        paired(lambda: grid.clip(gradient), scale, repeats=size.repeats, unit=size.draws),
        "ns per parameter",
        "NumPy's norm and scaling",
    )


def _ledger(size: _Size) -> Iterator[Figure]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        write_ledger(path, rounds=size.entries // 2)
        content = path.read_bytes()
        entries = content.count(b"\n")
        yield _time(
            f"ledger of {entries:,} entries verified",
            paired(
                lambda: verify_file(path),
                Yardstick(lambda: hashlib.sha256(content).digest(), unit=entries),
                repeats=size.repeats,
                unit=entries,
            ),
            "ns per entry",
            "SHA-256 of the file",
        )


def _time(name: str, found: Paired, unit: str, reference: str) -> Figure:
    return Figure(
        name=name,
        kind=Kind.TIME,
        value=round(found.value * 1e9, 3),
        unit=unit,
        reference=reference,
        ratio=round(found.ratio, 3),
        spread=round(found.spread, 3),
    )
