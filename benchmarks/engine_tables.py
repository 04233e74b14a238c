"""What `engines.py` prints, and what the documentation shows of its JSON; needs nothing but the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "inprocess": "in process",
        "multiprocess": "a process for each site",
        "flower": "Flower's simulation",
        "ckks": "ckks, sum-key",
    }
)


def report(document: Mapping[str, Any]) -> str:
    """The tables, what was measured and how the rows compare."""
    rows, steps = document["rows"], document["steps"]
    told = (
        f"A model of {document['parameters']:,} parameters, {document['clients']} sites, {document['rounds']} rounds, "
        f"{document['repeats']} repeats, on one machine of {document['cores']} cores with a load of "
        f"{document['load']:.0f}; all processes at the same priority. Compare the rows with one another."
    )
    parts = [told, table(rows), "\n".join(f"- {sentence}" for sentence in sentences(rows))]
    return "\n\n".join([*parts, step_table(steps)] if steps else parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rounds by scheme and engine."""
    lines = [
        "| scheme | engine | round, ms | by phase, ms | up, B/param | down, B/param |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        phases = dict(row["milliseconds"])
        total = phases.pop("round")
        told = ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in phases.items())
        lines.append(
            f"| {_named(row['scheme'])} | {_named(row['engine'])} | {total:.0f} | {told} | "
            f"{row['bytes_up_per_param']:.2f} | {row['bytes_down_per_param']:.2f} |"
        )
    return "\n".join(lines)


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How long each scheme takes over Flower: beside one process, and beside Flower's own SecAgg+."""
    times = {(row["scheme"], row["engine"]): row["milliseconds"]["round"] for row in rows}
    others = {scheme: time for (scheme, _), time in times.items() if scheme.startswith("SecAgg+")}
    found = []
    for (scheme, engine), time in times.items():
        if engine == "flower" and scheme not in others:
            beside = {"in one process": times.get((scheme, "inprocess"))} | others
            told = " and ".join(
                f"{time / other:.1f} times as long as {name}" for name, other in beside.items() if other
            )
            if told:
                found.append(f"{_named(scheme)}: a round over Flower takes {told}")
    return found


def step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Patient-level steps by engine."""
    lines = [
        "| engine | a patient-level step of a small model, ms | messages to each site |",
        "|---|---|---|",
    ]
    lines += [
        f"| {_named(row['engine'])} | {row['step_ms']:.0f} | {row['messages_per_site_and_step'] or '-'} |"
        for row in rows
    ]
    return "\n".join(lines)


def _named(name: str) -> str:
    return NAMES.get(name, name)
