"""Measures NVFlare's homomorphic encryption with its own classes; runs in NVFlare's environment.

Usage: ``python -I worker_nvflare.py FOLDER`` with ``job.json`` and one ``.npy`` file per client in FOLDER.

Keys and parameters are what its provisioning makes (``HEBuilder`` with its defaults). A client encrypts with
``HEModelEncryptor`` and serialises with the decomposer that its transport uses; the aggregator deserialises and
adds with ``WeightedAggregationHelper``; a client decrypts with ``HEModelDecryptor``. Every layer is a vector of
its own and travels with a context; layers of 2^20 parameters are kind to it. The sum is made of few clients,
because the cost of each does not depend on their number.
"""

from __future__ import annotations

import ctypes
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_opt.he import homomorphic_encrypt
from nvflare.app_opt.he.decomposers import CKKSVectorDecomposer
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.lighter.impl.he import HEBuilder

LAYER = 1 << 20


def _peak() -> int:
    """The most memory that this process has had, bytes; `ru_maxrss` keeps that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


class Clock:
    """Adds up wall and processor time."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clock during a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu


class Round:
    """Encrypt, add, decrypt."""

    def __init__(self, job: dict[str, int], folder: Path) -> None:
        self.job, self.folder = job, folder
        self.builder = HEBuilder()
        self.builder.initialize(None, None)
        self.decomposer = CKKSVectorDecomposer()
        self.context = FLContext()
        contexts = homomorphic_encrypt.ts
        secret = self.builder.get_serialized_context(is_client=True)
        self.encryptor = HEModelEncryptor()
        self.encryptor.tenseal_context = contexts.context_from(secret)
        self.encryptor.encrypt_layers = [True]
        self.encryptor.n_iter = 1
        self.decryptor = HEModelDecryptor()
        self.decryptor.tenseal_context = contexts.context_from(secret)

    def run(self) -> dict[str, float]:
        """One round; nanoseconds of processor time per parameter."""
        aggregate = WeightedAggregationHelper(weigh_by_local_iter=False)
        clients, servers, opening = [], [], Clock()
        exact = np.zeros(self.job["parameters"])
        before = _peak()
        self.largest_message = 0
        for place in range(self.job["clients"]):
            values = np.load(self.folder / f"{place}.npy")
            exact += values
            layers = {
                f"layer-{start}": values[start : start + LAYER] for start in range(0, values.size, LAYER)
            }
            protect, pack, server = Clock(), Clock(), Clock()
            with protect.running():
                encrypted, _ = self.encryptor.encryption(layers, self.context)
            with pack.running():
                message = {name: self.decomposer.decompose(vector) for name, vector in encrypted.items()}
            del encrypted, layers
            self.up = sum(len(data) for data, _ in message.values())
            self.setup = sum(len(context) for _, context in message.values())
            with server.running():
                received = {name: self.decomposer.recompose(data) for name, data in message.items()}
                aggregate.add(received, 1.0, str(place), 0)
            del received, message
            clients.append((protect, pack))
            servers.append(server.cpu)
        result = aggregate.get_result()
        down = {name: self.decomposer.decompose(vector) for name, vector in result.items()}
        # What the process needed at its largest, clients included: SEAL's memory is not told apart.
        self.peak = _peak() - before
        self.down = sum(len(data) for data, _ in down.values())
        with opening.running():
            received = {name: self.decomposer.recompose(data) for name, data in down.items()}
            opened: dict[str, Any] = self.decryptor.decryption(
                received, dict.fromkeys(received, True), self.context
            )
        mean_vector = np.concatenate([np.asarray(opened[name]) for name in down])
        self.error = float(np.abs(mean_vector - exact / self.job["clients"]).max())
        to_ns = 1e9 / self.job["parameters"]
        return {
            "client": to_ns * median(protect.cpu + pack.cpu for protect, pack in clients),
            "elapsed": to_ns * median(protect.wall + pack.wall for protect, pack in clients),
            "protect": to_ns * median(protect.cpu for protect, _ in clients),
            "pack": to_ns * median(pack.cpu for _, pack in clients),
            "server": to_ns * median(servers),
            "open": to_ns * opening.cpu,
        }


def keep_freed_memory() -> None:
    """As secfl does for its own schemes: let the process keep what it frees, where glibc allocates."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(-4, 0)
    mallopt(-1, 2**31 - 1)


def main(folder: Path) -> None:
    """Measure and write ``figures.json``."""
    keep_freed_memory()
    logging.disable(logging.CRITICAL)
    job = json.loads((folder / "job.json").read_text())
    passes, peaks = [], []
    for _ in range(job["repeats"]):
        one = Round(job, folder)
        passes.append(one.run())
        peaks.append(one.peak)
    best = {name: min(figures[name] for figures in passes) for name in passes[0]}
    parameters = job["parameters"]
    builder = one.builder
    figures = {
        "version": f"nvflare {version('nvflare')}, tenseal {version('tenseal')}",
        "parameters": parameters,
        "clients": job["clients"],
        "survivors": job["clients"],
        "bits": None,
        "client_ns_per_param": best["client"],
        "encode_ns_per_param": 0.0,
        "protect_ns_per_param": best["protect"],
        "pack_ns_per_param": best["pack"],
        "client_elapsed_ns_per_param": best["elapsed"],
        "server_ns_per_param": best["server"],
        "open_ns_per_param": best["open"],
        "bytes_up_per_param": one.up / parameters,
        "bytes_down_per_param": one.down / parameters,
        "opener_bytes_down_per_param": 0.0,
        "setup_bytes_per_client": one.setup,
        "peak_mb": peaks[0] / 1e6,
        "peak_vectors": peaks[0] / (4 * parameters),
        "exact": one.error == 0.0,
        "largest_error": one.error,
        "note": (
            f"N = {builder.poly_modulus_degree}, {builder.coeff_mod_bit_sizes}, layers of at most 2^20 parameters, "
            "as many threads as TenSEAL likes; peak memory of the whole process"
        ),
    }
    (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
