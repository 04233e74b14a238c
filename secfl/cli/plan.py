"""``secfl plan``: what a privacy plan would promise, before any training."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from secfl.dp.plan import PrivacyPlan, Schedule
from secfl.dp.what_if import ViewRow, plan_table, what_if_plan
from secfl.errors import ConfigError
from secfl.guarantees import Behaviour, UnitOfPrivacy

__all__ = ["plan"]

_FORMAT_VERSION = 1


def plan(
    clients: Annotated[int, typer.Option(metavar="N", help="Clients in the cohort.")],
    steps: Annotated[int, typer.Option(metavar="T", help="Secure sums in the whole run: steps or rounds.")],
    delta: Annotated[float, typer.Option(metavar="D", help="δ of every statement.")] = 1e-5,
    sampling_rate: Annotated[
        float, typer.Option(metavar="Q", help="Chance of each patient to be in a step.")
    ] = 1.0,
    noise_multiplier: Annotated[
        float | None, typer.Option(metavar="Z", help="Noise deviation of all shares over sensitivity.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(metavar="E", help="Find the noise for this ε instead (malicious aggregator)."),
    ] = None,
    unit: Annotated[UnitOfPrivacy, typer.Option(help="Whose presence is hidden.")] = UnitOfPrivacy.PATIENT,
    threshold: Annotated[int | None, typer.Option(metavar="T", help="Fewest survivors.")] = None,
    schedule: Annotated[
        Schedule,
        typer.Option(
            help="What is summed: each step, or rounds of local steps with each client's own noise."
        ),
    ] = Schedule.STEP,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """What each adversary could learn under a plan, or the noise that a wanted ε needs.

    Example: secfl plan --clients 3 --steps 120 --sampling-rate 0.04 --epsilon 8
    """
    if (noise_multiplier is None) == (epsilon is None):
        raise ConfigError("secfl plan: give exactly one of --noise-multiplier and --epsilon")
    found = what_if_plan(
        clients=clients,
        steps=steps,
        noise_multiplier=1.0 if noise_multiplier is None else noise_multiplier,
        delta=delta,
        sampling_rate=sampling_rate,
        unit=unit,
        threshold=threshold,
        schedule=schedule,
    )
    if epsilon is not None:
        found = found.calibrated(epsilon, behaviour=Behaviour.MALICIOUS)
    rows = plan_table(found)
    if as_json:
        typer.echo(json.dumps(_document(found, rows), indent=2))
    else:
        _print(found, rows)


def _document(found: PrivacyPlan, rows: list[ViewRow]) -> dict[str, Any]:
    return {
        "format_version": _FORMAT_VERSION,
        "noise_multiplier": found.noise_multiplier,
        "unit": found.unit.value,
        "relation": found.relation.value,
        "delta": found.delta,
        "clients": found.cohort_size,
        "threshold": found.threshold,
        "schedule": found.schedule.value,
        "steps": found.releases,
        "sampling_rate": found.sampling_rate,
        "views": [row.to_dict() for row in rows],
    }


def _print(found: PrivacyPlan, rows: list[ViewRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    what = "sums" if found.schedule is Schedule.STEP else "local steps"
    table = Table(
        title=f"noise multiplier {found.noise_multiplier:.4f}, {found.releases} {what} of {found.cohort_size} "
        f"clients (threshold {found.threshold}), q = {found.sampling_rate:g}, δ = {found.delta:g}, "
        f"unit {found.unit.value}, relation {found.relation.value}",
        caption="ε is proved for the integer noise; the reference is the continuous Gaussian's",
    )
    for name in ("view", "adversary", "colluders", "z left", "ε reference", "ε"):
        table.add_column(name, justify="left" if name in ("view", "adversary") else "right")
    for row in rows:
        values = row.to_dict()
        table.add_row(
            str(values["view"]),
            str(values["adversary"]),
            str(values["colluders"]),
            f"{values['z_effective']:.4f}",
            _figure(values["epsilon_reference"]),
            _figure(values["epsilon"]),
        )
    Console().print(table)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
