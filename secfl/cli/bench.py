"""``secfl bench``: what secure aggregation costs on this machine, measured now."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from secfl.benchmarking.suite import Report

__all__ = ["app"]

_FAILED = 5


class PresetName(StrEnum):
    """Size of the suite."""

    SMOKE = "smoke"
    FULL = "full"


_COLUMNS = (
    ("client", 8),
    ("encode", 8),
    ("protect", 9),
    ("pack", 7),
    ("server", 8),
    ("open", 8),
    ("up B", 7),
    ("down B", 8),
    ("setup kB", 10),
    ("peak MB", 9),
    ("exact", 8),
)

app = typer.Typer(help="Measure what things cost on this machine.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure what things cost on this machine."""


@app.command("secagg")
def secagg(
    params: Annotated[int, typer.Option(help="Parameters of the model.")] = 1_000_000,
    clients: Annotated[int, typer.Option(help="Clients, 3 to 64.")] = 10,
    schemes: Annotated[str, typer.Option(help="plain, masking, ckks; several with commas.")] = "masking,ckks",
    peers: Annotated[bool, typer.Option("--peers", help="Also other frameworks, where installed.")] = False,
    peers_dir: Annotated[Path, typer.Option(help="Where make peers put them.")] = Path(".peers"),
    value_bits: Annotated[int, typer.Option(help="Bits of one client's values, 2 to 32.")] = 16,
    threshold: Annotated[int | None, typer.Option(help="Fewest survivors; default as in simulate.")] = None,
    dropout: Annotated[float, typer.Option(help="Share of clients lost before each message, to 0.2.")] = 0.0,
    threads: Annotated[int, typer.Option(help="Threads that a party may use.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes; the least counts.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Time and size of secure aggregation: every party in this process, sums compared with the exact ones.

    Other frameworks run on the same vectors in the same run, with the functions of their own workflows. Machines
    are never alone: compare within one run, and repeat where a figure matters.

    Example: secfl bench secagg --params 1000000 --clients 10
    """
    from secfl.benchmarking.suite import run_suite
    from secfl.benchmarking.workload import Workload

    workload = Workload(
        parameters=params,
        clients=clients,
        value_bits=value_bits,
        threshold=threshold,
        dropout=dropout,
        threads=threads,
        repeats=repeats,
    )
    names = [name.strip() for name in schemes.split(",") if name.strip()]
    report = run_suite(
        workload,
        names,
        peers=peers_dir if peers else None,
        progress=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report)


@app.command("all")
def everything(
    preset: Annotated[
        PresetName, typer.Option(help="smoke: about a minute; full: large vectors.")
    ] = PresetName.SMOKE,
    peers: Annotated[bool, typer.Option("--peers", help="Also other frameworks, where installed.")] = False,
    peers_dir: Annotated[Path, typer.Option(help="Where make peers put them.")] = Path(".peers"),
    against: Annotated[
        Path | None,
        typer.Option(
            "--gate", metavar="FILE", help="An earlier --json: exit 5 where a ratio became much worse."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Secure aggregation, noise, clipping and ledger, each as a ratio to a reference operation of the same run.

    Example: secfl bench all --json > bench.json; later: secfl bench all --gate bench.json
    """
    from secfl.benchmarking.gating import confirmed, gate
    from secfl.benchmarking.whole import BenchPreset, measure_all

    def progress(text: str) -> None:
        typer.echo(text, err=True)

    def again() -> dict[str, Any]:
        progress("everything once more, because only what is worse twice counts")
        return measure_all(BenchPreset(preset.value), peers=None, progress=progress)

    earlier = None if against is None else _earlier(against)
    document = measure_all(BenchPreset(preset.value), peers=peers_dir if peers else None, progress=progress)
    worse = [] if earlier is None else confirmed(gate(document, earlier), earlier, again)
    if as_json:
        typer.echo(json.dumps(document | ({} if earlier is None else {"worse": worse}), indent=2))
    else:
        _print_figures(document)
    for line in worse:
        typer.echo(f"worse: {line}", err=True)
    if worse:
        raise typer.Exit(_FAILED)


def _earlier(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--gate {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"--gate {path}: expected what `secfl bench all --json` prints") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--gate {path}: expected what `secfl bench all --json` prints")
    return found


def _print_figures(document: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (
        ("", "left"),
        ("figure", "right"),
        ("", "left"),
        ("times", "right"),
        ("of", "left"),
        ("steady within", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type] - rich names the words
    for row in document["figures"]:
        table.add_row(
            row["name"],
            f"{row['value']:.2f}",
            row["unit"],
            f"{row['ratio']:.2f}",
            row["reference"],
            _steadiness(row),
        )
    Console(highlight=False).print(table)
    machine = document["machine"]
    typer.echo(
        f"{machine['processor']}, Python {machine['python']}; processor time; compare ratios, not times"
    )


def _steadiness(row: dict[str, Any]) -> str:
    from secfl.benchmarking.paired import UNSTEADY

    if row["kind"] != "time":
        return "exact"
    return f"{row['spread']:.0%}" + (" (unsteady)" if row["spread"] > UNSTEADY else "")


def _print(report: Report) -> None:
    from secfl.benchmarking.suite import STATISTIC, describe_machine

    workload, machine = report.workload, describe_machine()
    typer.echo(
        f"{workload.parameters:,} parameters, {workload.clients} clients, {workload.value_bits}-bit values; "
        f"{machine['processor']}, {machine['cores']} cores, {workload.threads} thread(s) a party"
    )
    typer.echo()
    typer.echo(f"{'':20}" + "".join(f"{heading:>{width}}" for heading, width in _COLUMNS))
    for row in report.rows:
        cells = (
            row.client_ns_per_param,
            row.encode_ns_per_param,
            row.protect_ns_per_param,
            row.pack_ns_per_param,
            row.server_ns_per_param,
            row.open_ns_per_param,
            row.bytes_up_per_param,
            row.bytes_down_per_param,
            row.setup_bytes_per_client / 1e3,
            row.peak_mb,
        )
        texts = [
            ("" if cell is None else f"{cell:.{2 if 6 <= place < 8 else 1}f}")
            for place, cell in enumerate(cells)
        ]
        texts.append("yes" if row.exact else f"±{row.largest_error:.0e}")
        name = f"{row.scheme} {row.key_mode}" if row.scheme == "ckks" else row.scheme
        typer.echo(
            f"{name:20}"
            + "".join(f"{text:>{width}}" for text, (_, width) in zip(texts, _COLUMNS, strict=True))
        )
    typer.echo()
    typer.echo(
        f"limits of this machine: AES-256-CTR {report.limits.aes_ctr_ns_per_param:.2f} a mask, "
        f"uint32 addition {report.limits.add_ns_per_param:.2f}"
    )
    for line in _comparisons(report):
        typer.echo(line)
    for one in report.skipped:
        typer.echo(f"{one.scheme}: skipped, {one.reason}")
    typer.echo(STATISTIC)


def _comparisons(report: Report) -> list[str]:
    """One sentence for each of our schemes against each yardstick."""
    from secfl.benchmarking.suite import compare

    lines = []
    for entry in compare(report.rows, report.limits):
        name = f"ckks {entry['key_mode']}" if entry["scheme"] == "ckks" else entry["scheme"]
        if entry.get("times_limit") is not None:
            lines.append(f"{name}: {entry['times_limit']:.2f} times the limit of {entry['masks']} masks")
        for peer, ratio in entry["peers"].items():
            words = ", ".join(
                f"{label} {ratio[key]:.1f} times {word}"
                for label, key, word in (
                    ("client", "client_faster", "faster"),
                    ("server", "server_faster", "faster"),
                    ("upload", "upload_smaller", "smaller"),
                )
                if ratio[key] is not None
            )
            lines.append(f"{name} against {peer}: {words}")
    return lines
