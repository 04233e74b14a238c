"""Other frameworks on the same vectors, each in an environment of its own, because their pins conflict.

``make peers`` puts them under ``.peers/``. A worker script runs in the peer's interpreter, which needs nothing
of secfl; vectors go there as ``.npy`` files and figures come back as JSON. What is not installed, or fails, is
left out with a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from secfl.benchmarking.rows import Row
from secfl.benchmarking.workload import Workload

__all__ = ["PEERS", "Peer", "Skipped", "benchmark_peer"]

_HERE: Final = Path(__file__).parent
_TIMEOUT_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A framework that secfl is compared with.

    Attributes:
        scheme: Its name in the results.
        key_mode: Who holds keys there.
        folder: Its environment under the peers' folder.
        worker: The script that measures it.
        most_clients: How many clients are run; the cost of each does not depend on their number.
    """

    scheme: str
    key_mode: str
    folder: str
    worker: str
    most_clients: int


PEERS: Final = (
    Peer(
        scheme="flower-secagg-plus",
        key_mode="pairwise",
        folder="flower",
        worker="worker_flower.py",
        most_clients=64,
    ),
    Peer(
        scheme="nvflare-he", key_mode="shared", folder="nvflare", worker="worker_nvflare.py", most_clients=3
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A peer that was not measured, and why."""

    scheme: str
    reason: str


def benchmark_peer(
    peer: Peer, workload: Workload, *, folder: Path, progress: Callable[[str], None]
) -> Row | Skipped:
    """Measure a peer on the workload's vectors, without drop-outs.

    Args:
        peer: One of `PEERS`.
        workload: As for our own schemes; its ``threads`` and ``dropout`` do not apply.
        folder: Where ``make peers`` installed the environments.
        progress: Told what is going on.
    """
    python = folder / peer.folder / "bin" / "python"
    if not python.is_file():
        return Skipped(scheme=peer.scheme, reason=f"not installed: no {python}; run make peers")
    clients = min(workload.clients, peer.most_clients)
    with tempfile.TemporaryDirectory(prefix="secfl-peer-") as exchange:
        progress(f"{peer.scheme}: writing {clients} vectors")
        for place in range(clients):
            np.save(Path(exchange) / f"{place}.npy", workload.values(place))
        job = {
            "clients": clients,
            "parameters": workload.parameters,
            "repeats": workload.repeats,
            "threshold": workload.threshold or max(3, workload.clients * 2 // 3 + 1),
        }
        Path(exchange, "job.json").write_text(json.dumps(job), encoding="utf-8")
        progress(f"{peer.scheme}: measuring")
        outcome = _run(python, peer, Path(exchange))
    if isinstance(outcome, str):
        return Skipped(scheme=peer.scheme, reason=outcome)
    return Row(scheme=peer.scheme, key_mode=peer.key_mode, threads=None, **outcome)


def _run(python: Path, peer: Peer, exchange: Path) -> dict[str, Any] | str:
    """The worker's figures, or why there are none."""
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - an interpreter that make peers installed, and a script of ours
            [python.absolute(), "-I", _HERE / peer.worker, exchange],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode:
            lines = done.stdout.strip().splitlines() or ["no output"]
            return f"exit code {done.returncode}: {lines[-1]}"
        figures: dict[str, Any] = json.loads(Path(exchange, "figures.json").read_text(encoding="utf-8"))
    except subprocess.TimeoutExpired:
        return f"gave up after {_TIMEOUT_SECONDS} seconds"
    except (OSError, ValueError) as error:
        return f"failed: {error}"
    return figures
