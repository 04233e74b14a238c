"""What carriage costs: the same rounds in one process, in a process for each site, and over Flower's simulation.

    python benchmarks/engines.py [--params 1000000] [--clients 4] [--rounds 3] [--repeats 3] [--schemes masking,ckks]
                                 [--json FILE]

Every engine runs the same protocol on the same model (`secfl.testing.tasks.DriftTask`, which costs next to nothing to
train); the models must come out alike. In the same run: Flower's own SecAgg+ workflow (its legacy API, which is the one
that it has) on the same model over the same simulation engine.

Milliseconds of wall time for each phase at the coordinator, from the change of its state into the phase to the change
out of it: the first one holds the offer of the model, the site's training and its first message. The median over the
rounds after the first, in which processes start and load libraries, and over the repeats, which go through all engines
in turn so that other work on the machine falls on all of them. All processes run at the same priority (Ray would give
Flower's workers a lower one). Bytes are those of the records that Flower carries,
model included, for all sites together; without Flower, the payloads and the offered model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from engine_tables import report

from secfl.config import Engine, RunConfig
from secfl.crypto.aggregation import Running
from secfl.federation.accounts import RoundAccount
from secfl.federation.books import RoundBooks
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.randomness import ExperimentSeed

FACTORY = "secfl.testing.tasks:drift_task"
PARAMETERS = "SECFL_DRIFT_PARAMETERS"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Environment of a measurement: no telemetry, and Ray's workers at the priority of everybody else."""


@dataclass
class Clock:
    """When the coordinator entered which phase, round by round."""

    rounds: list[list[tuple[str, float]]] = field(default_factory=list)

    def begin(self) -> None:
        """A round begins."""
        self.rounds.append([("start", time.perf_counter())])

    def phase(self, name: str) -> None:
        """The coordinator is in a phase now."""
        if self.rounds and self.rounds[-1][-1][0] != name:
            self.rounds[-1].append((name, time.perf_counter()))

    def milliseconds(self) -> dict[str, float]:
        """By phase; medians over the rounds after the first."""
        found: dict[str, list[float]] = {}
        for marks in self.rounds[1:] or self.rounds:
            begun = marks[0][1]
            names = [name for name, _ in marks[1:]]
            times = [begun, *(at for _, at in marks[2:])]
            for name, since, until in zip(names[:-1], times, times[1:], strict=False):
                found.setdefault(name, []).append(1e3 * (until - since))
            found.setdefault("round", []).append(1e3 * (marks[-1][1] - begun))
        return {name: round(median(values), 1) for name, values in found.items()}


@dataclass
class Traffic:
    """Bytes of the records that a Flower grid carries."""

    down: int = 0
    up: int = 0
    messages: int = 0

    def through(self, grid: Any) -> Any:
        """The same grid, with what it carries counted."""
        return _Counted(grid, self)


class _Counted:
    """A grid that counts; everything else is the grid's own."""

    def __init__(self, grid: Any, traffic: Traffic) -> None:
        self._grid, self._traffic = grid, traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Any, **more: Any) -> Any:
        sent = list(messages)
        self._traffic.down += sum(map(size, sent))
        self._traffic.messages += sum(map(belongs_to_a_round, sent))
        received = list(self._grid.send_and_receive(sent, **more))
        self._traffic.up += sum(size(one) for one in received if not one.has_error())
        return received


def belongs_to_a_round(message: Any) -> bool:
    """Whether it is an offer or a delivery, not about the run or its ledger."""
    if "secfl" not in message.content:
        return True
    request = message.content["secfl"].get("request", b"")
    return bool(request[4:5] in (b"\1", b"\2"))  # after the four bytes of the format


def size(message: Any) -> int:
    """Bytes of the values in the records of a message; `count_bytes` of Flower does not take empty lists."""
    records = message.content.values()
    return sum(
        record.count_bytes() if hasattr(record, "to_numpy_ndarrays") else weigh(record) for record in records
    )


def weigh(value: Any) -> int:
    """Bytes of a value of a record, or of all of them; numbers have eight."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, list):
        return sum(map(weigh, value))
    return sum(map(weigh, value.values())) if hasattr(value, "values") else 8


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """Tell the clock of every round and phase of secfl's coordinator in this process."""
    reserve, observe = RoundAccount.reserve, RoundBooks.observe

    def reserved(account: Any, spec: Any) -> None:
        clock.begin()
        reserve(account, spec)

    def observed(books: Any) -> Any:
        state = observe(books)
        clock.phase(state.phase if isinstance(state, Running) else "end")
        return state

    with (
        mock.patch.object(RoundAccount, "reserve", reserved),
        mock.patch.object(RoundBooks, "observe", observed),
    ):
        yield


def timed(settings: RunConfig, factory: str) -> tuple[dict[str, Any], Clock, Traffic]:
    """A run of secfl with its clock and, over Flower, its traffic."""
    clock, traffic = Clock(), Traffic()
    with contextlib.ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        stack.enter_context(clocked(clock))
        if settings.engine is Engine.FLOWER:
            from secfl.federation.flower import FlowerExchange

            begin = FlowerExchange.__init__

            def counted(self: Any, grid: Any, names: Any, *, patience: float) -> None:
                begin(self, traffic.through(grid), names, patience=patience)

            stack.enter_context(mock.patch.object(FlowerExchange, "__init__", counted))
        summary = simulate(settings, out=out, observer=SilentObserver(), task_factory=factory)
    return summary, clock, traffic


def private_steps(engine: str, *, clients: int, steps: int) -> dict[str, Any]:
    """Patient-level steps of a small model: every step is a secure sum of its own, and carriage is all of its cost."""
    settings = RunConfig.model_validate(
        {
            "clients": clients,
            "engine": engine,
            "threads": 1,
            "secure_agg": {"scheme": "masking"},
            "evaluate_every": steps,
            "privacy": {
                "mode": "patient",
                "schedule": "step",
                "nominal_patients": 40,
                "sampling_rate": 0.2,
                "steps": steps,
                "step_size": 0.05,
                "noise_multiplier": 4.0,
                "accept_weak": True,
            },
        }
    )
    _, clock, traffic = timed(settings, "secfl.testing.tasks:linear_task")
    each = round(traffic.messages / (clients * steps), 2) if traffic.messages else None
    return {"engine": engine, "step_ms": clock.milliseconds()["round"], "messages_per_site_and_step": each}


def secfl(engine: str, scheme: str, *, parameters: int, clients: int, rounds: int) -> dict[str, Any]:
    """One run of secfl over an engine."""
    settings = RunConfig.model_validate(
        {
            "clients": clients,
            "engine": engine,
            "threads": 1,
            "training": {"rounds": rounds},
            "secure_agg": {"scheme": scheme},
            "evaluate_every": rounds,
        }
    )
    os.environ[PARAMETERS] = str(parameters)
    summary, clock, traffic = timed(settings, FACTORY)
    up, down = traffic.up, traffic.down
    if engine != "flower":
        megabytes = summary["megabytes"]
        up = int(1e6 * megabytes["up"])
        down = int(1e6 * megabytes["down"]) + 4 * parameters * clients * rounds
    if summary["dropouts"]["total"]:
        raise SystemExit(f"{engine}: sites dropped out")
    return {
        "engine": engine,
        "scheme": scheme,
        "milliseconds": clock.milliseconds(),
        "bytes_up_per_param": round(up / (parameters * clients * rounds), 3),
        "bytes_down_per_param": round(down / (parameters * clients * rounds), 3),
        "model": summary["final_model_sha256"],
    }


def secaggplus(*, parameters: int, clients: int, rounds: int) -> dict[str, Any]:
    """Flower's own workflow over its simulation engine, with its default settings."""
    import logging

    from flwr.client import NumPyClient
    from flwr.client.mod import secaggplus_mod
    from flwr.clientapp import ClientApp
    from flwr.common import ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)

    class Site(NumPyClient):
        """A tenth of the way to the site's point, as `DriftTask` does."""

        def __init__(self, number: int) -> None:
            self.number = number

        def fit(self, parameters: Any, config: Any) -> Any:  # noqa: ARG002 - Flower's signature
            return [drifted(parameters[0], self.number)], 1, {}

    client = ClientApp(
        client_fn=lambda context: Site(int(context.node_config["partition-id"])).to_client(),
        mods=[secaggplus_mod],
    )
    clock, traffic, server = Clock(), Traffic(), ServerApp()
    stages = ("setup_stage", "share_keys_stage", "collect_masked_vectors_stage", "unmask_stage")

    class Timed(SecAggPlusWorkflow):
        """The workflow, which says when a stage begins."""

        def __call__(self, grid: Any, context: Any) -> None:
            clock.begin()
            super().__call__(grid, context)
            clock.phase("end")

    for name in stages:

        def stage(self: Any, grid: Any, context: Any, state: Any, *, name: str = name) -> bool:
            clock.phase(name.removesuffix("_stage"))
            done: bool = getattr(SecAggPlusWorkflow, name)(self, grid, context, state)
            return done

        setattr(Timed, name, stage)
    finals: list[Any] = []

    @server.main()
    def main(grid: Any, context: Any) -> None:
        legacy = LegacyContext(
            context=context,
            config=ServerConfig(num_rounds=rounds),
            strategy=FedAvg(
                fraction_evaluate=0.0,
                min_fit_clients=clients,
                min_available_clients=clients,
                initial_parameters=ndarrays_to_parameters([np.zeros(parameters, np.float32)]),
            ),
        )
        threshold = 2 * clients // 3 + 1
        DefaultWorkflow(fit_workflow=Timed(num_shares=clients, reconstruction_threshold=threshold))(
            traffic.through(grid), legacy
        )
        finals.append(legacy.state)

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count(), "logging_level": "ERROR", "log_to_driver": False},
        },
    )
    if not finals or len(clock.rounds) != rounds:
        raise SystemExit("SecAgg+ did not run all rounds")
    return {
        "engine": "flower",
        "scheme": "SecAgg+ (Flower's own)",
        "milliseconds": clock.milliseconds(),
        "bytes_up_per_param": round(traffic.up / (parameters * clients * rounds), 3),
        "bytes_down_per_param": round(traffic.down / (parameters * clients * rounds), 3),
    }


def drifted(point: Any, number: int) -> Any:
    """The step of `secfl.testing.tasks.DriftTask`."""
    source = ExperimentSeed(0).generator(f"drift-task/site-{number:02d}")
    return point + np.float32(0.1) * (source.uniform(-1, 1, point.size).astype(np.float32) - point)


def measure(
    *,
    parameters: int,
    clients: int,
    rounds: int,
    schemes: Sequence[str],
    engines: Sequence[str],
    repeats: int = 1,
) -> list[dict[str, Any]]:
    """All rows, measured in turn ``repeats`` times; every engine must end in the same model."""
    passes: list[list[dict[str, Any]]] = []
    for _ in range(repeats):
        rows = []
        for scheme in schemes:
            found = [
                secfl(engine, scheme, parameters=parameters, clients=clients, rounds=rounds)
                for engine in engines
            ]
            if len({row["model"] for row in found}) != 1:
                raise SystemExit(f"{scheme}: the engines end in different models")
            rows += found
        if "flower" in engines:
            rows.append(secaggplus(parameters=parameters, clients=clients, rounds=rounds))
        passes.append(rows)
    return [middle(same) for same in zip(*passes, strict=True)]


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several of the same engine and scheme: medians, and the rounds of all of them."""
    phases = rows[0]["milliseconds"]
    return rows[0] | {
        "milliseconds": {
            name: round(median(row["milliseconds"][name] for row in rows), 1) for name in phases
        },
        "rounds_ms": [row["milliseconds"]["round"] for row in rows],
    }


def main() -> int:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--schemes", default="masking,ckks")
    parser.add_argument("--engines", default="inprocess,multiprocess,flower")
    parser.add_argument(
        "--steps", type=int, default=8, help="patient-level steps of the second table; 0 for none"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ |= QUIET
    rows = measure(
        parameters=given.params,
        clients=given.clients,
        rounds=given.rounds,
        repeats=given.repeats,
        schemes=given.schemes.split(","),
        engines=given.engines.split(","),
    )
    turns = [
        [
            private_steps(engine, clients=given.clients, steps=given.steps)
            for engine in given.engines.split(",")
        ]
        for _ in range(given.repeats if given.steps else 0)
    ]
    steps = [
        same[0] | {"step_ms": median(row["step_ms"] for row in same)} for same in zip(*turns, strict=True)
    ]
    document = {
        "parameters": given.params,
        "clients": given.clients,
        "rounds": given.rounds,
        "repeats": given.repeats,
        "load": round(os.getloadavg()[1], 1),
        "cores": os.cpu_count(),
        "rows": rows,
        "steps": steps,
    }
    sys.stdout.write(f"{report(document)}\n")
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
