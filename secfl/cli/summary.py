"""A run's summary for people."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["print_summary"]


def print_summary(summary: Mapping[str, Any], run: Path, *, console: Console | None = None) -> None:
    """Print what a run reached, what it cost and what is promised to whom."""
    console = console or Console(highlight=False)
    quoted = shlex.quote(str(run))
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(summary):
        facts.add_row(name, escape(value))
    console.print(_scores(summary["evaluation_only"], summary["sites"]))
    console.print(facts)
    console.print(escape(f"next: secfl ledger show {quoted}; secfl ledger verify {quoted}"), soft_wrap=True)


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    time, codec, scheme = summary["time_s"], summary["codec"], summary["secure_agg"]
    bytes_up = summary["bytes_per_parameter"]["up"]
    key = "" if scheme["key_mode"] in ("none", "pairwise") else f" ({scheme['key_mode']})"
    parts = ", ".join(f"{name} {time[name]:.1f}" for name in ("train", "protect", "aggregate", "open"))
    rounds = f"{summary['rounds_completed']} of {summary['rounds_planned']}, {summary['stopped_because']}"
    upload = f"{bytes_up:.2f} bytes per parameter and round, {summary['megabytes']['up']:.1f} MB in all"
    clipped = f"{codec['clipped_fraction']:.2%} clipped, relative error {codec['relative_error']:.1e}"
    return [
        ("model", f"{summary['parameters']:,} parameters, SHA-256 {summary['final_model_sha256'][:16]}…"),
        ("rounds", f"{rounds}; drop-outs: {summary['dropouts']['total']}"),
        ("scheme", f"{scheme['scheme']}{key}, threshold {scheme['threshold']}"),
        ("upload", upload),
        ("codec", f"{codec['bits']} bits, {clipped}"),
        ("seconds", f"{parts}; total {time['total']:.1f}, protection {time['protection_share']:.1%}"),
        ("privacy", _privacy(summary["privacy"])),
    ]


def _privacy(privacy: Mapping[str, Any]) -> str:
    aggregator = next(
        (
            row
            for row in privacy["views"]
            if row["view"] == "aggregator" and row["adversary"] == "curious" and row["colluders"] == 0
        ),
        None,
    )
    if aggregator is None or aggregator["epsilon"] is None:
        return str(privacy.get("statement", "no noise was added: ε is null"))
    return (
        f"ε = {aggregator['epsilon']:.2f} at δ = {privacy['delta']:g} per {privacy['unit']} towards an "
        "honest-but-curious aggregator"
    )


def _scores(scores: Mapping[str, Any], sites: list[str]) -> Table:
    """Dice by test site: the federated model, and the references where they were trained."""
    table = Table(title="Dice on each site's test images (simulation only)", title_justify="left")
    table.add_column("model")
    for site in sites:
        table.add_column(escape(site), justify="right")
    table.add_column("mean", justify="right")
    table.add_column("worst", justify="right")
    clients = scores.get("clients", {})
    rows = [("student" if clients else "federated", scores["dice"])]
    rows += [(f"{site}'s model", row) for site, row in sorted(clients.items())]
    references = scores.get("references")
    if references:
        rows += [(f"{site} alone", row) for site, row in sorted(references["local"].items())]
        rows += [("pooled", references["pooled"])] if "pooled" in references else []
    for name, row in rows:
        cells = [_number(row["per_site"].get(site)) for site in sites]
        table.add_row(escape(name), *cells, _number(row["mean"]), _number(row.get("worst")))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
