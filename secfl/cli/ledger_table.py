"""The ledger as tables for people: in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secfl.ledger.words import SIMULATED, plural

if TYPE_CHECKING:
    from secfl.ledger.compare import Comparison
    from secfl.ledger.statement import Statement
    from secfl.ledger.verify import Verdict

__all__ = ["account_text", "markdown", "print_comparison", "print_table"]


def print_table(verdict: Verdict, *, name: str, console: Console | None = None) -> None:
    """One row per adversary, then in words what each sees and on what its row rests."""
    console = console or Console(highlight=False)
    console.print(escape(f"{name}: {_headline(verdict)}"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "view", "adversary", "k", "ε", "z", "PQ"):
        numeric = column in {"", "k", "ε", "z"}
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for number, row in enumerate(verdict.statements, start=1):
        table.add_row(str(number), *(escape(cell) for cell in _cells(row)[:-1]))
    console.print(table)
    console.print(
        "k: colluding clients; z: least noise multiplier faced; PQ: rests on post-quantum cryptography"
    )
    console.print("what it sees; what must hold:")
    for number, row in enumerate(verdict.statements, start=1):
        console.print(escape(f"{number:>3}  {_cells(row)[-1]}"))
    for line in _footer(verdict):
        console.print(escape(line))


def markdown(verdict: Verdict) -> str:
    """The same as a Markdown table."""
    lines = [
        _headline(verdict),
        "",
        "| view | adversary | colluders | ε | z | post-quantum | sees; holds if |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |"
        for row in verdict.statements
    ]
    lines += ["", *_footer(verdict)]
    return "\n".join(lines)


def print_comparison(
    comparison: Comparison, *, left: str, right: str, console: Console | None = None
) -> None:
    """Two ledgers side by side."""
    console = console or Console(highlight=False)
    table = Table("", left, right, box=box.SIMPLE_HEAD, pad_edge=False)
    for name, pair in comparison.header.items():
        table.add_row(name, *(escape(str(value)) for value in pair))
    for name, counts in comparison.rounds.items():
        table.add_row(name, str(counts[0]), str(counts[1]))
    for (view, adversary, colluders, site), epsilons in comparison.views.items():
        about = f" {site}" if site else ""
        table.add_row(f"ε {view} {adversary} k={colluders}{about}", *(_number(value) for value in epsilons))
    console.print(table)


def account_text(reading: Mapping[str, Any]) -> str:
    """An account in three lines."""
    budget = reading["budget"]
    return (
        f"account {reading['account']}: {plural(reading['charges'], 'attempt')} of "
        f"{plural(reading['runs'], 'run')}\n"
        f"cap: epsilon {budget['epsilon']:g} at delta {budget['delta']:g}, Renyi order {budget['order']}, "
        f"{budget['adversary']} aggregator with {plural(budget['colluders'], 'colluder')}\n"
        f"reading: epsilon {reading['epsilon']:.4f} if all mechanisms had been fixed beforehand; the cap is the "
        "guarantee"
    )


def _headline(verdict: Verdict) -> str:
    row = verdict.statements[0]
    rounds = ", ".join(f"{count} {name}" for name, count in verdict.rounds.items() if count) or "no rounds"
    unit = "no unit of privacy" if row.unit is None else f"unit: one {row.unit} ({row.relation})"
    delta = "" if row.delta is None else f", δ = {row.delta:g}"
    simulated = f"; {SIMULATED}" if row.simulated else ""
    return (
        f"{verdict.status}, {rounds}; {unit}{delta}; key mode {row.key_mode}, "
        f"{plural(row.dropouts_tolerated, 'drop-out')} tolerated{simulated}"
    )


def _cells(row: Statement) -> tuple[str, ...]:
    view = row.view.value if row.site is None else f"{row.view.value} ({row.site})"
    holds = row.holds_if.removesuffix(f" ({SIMULATED})")
    return (
        view,
        row.adversary.value,
        str(row.colluders),
        _number(row.epsilon),
        _number(row.z_effective),
        "yes" if row.post_quantum else "no",
        f"{row.sees}; {holds}",
    )


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"


def _footer(verdict: Verdict) -> list[str]:
    row = verdict.statements[0]
    lines = []
    assumptions = {item.name: item for other in verdict.statements for item in other.assumptions}
    if assumptions:
        lines.append("assumptions:")
        lines += [f"- {item.name}: {item.statement}" for item in assumptions.values()]
    if verdict.depth == "quick":
        lines.append(
            "a large ledger: hashes, chain and signatures hold; secfl ledger verify checks each line's form"
        )
    if row.unprotected:
        lines.append("unprotected:")
        lines += [f"- {sentence}" for sentence in row.unprotected]
    return lines
