"""Measures Flower's SecAgg+ with its own functions; runs in Flower's environment and needs nothing of secfl.

Usage: ``python -I worker_flower.py FOLDER`` with ``job.json`` and one ``.npy`` file per client in FOLDER.

A client runs the four stages of ``secaggplus_mod`` as they are, on a complete graph, like secfl's masking. The
aggregator does what ``SecAggPlusWorkflow`` does between two stages, with the same functions in the same order:
the workflow itself is tied to Flower's messages. Clips, ranges and the modulus are its defaults; every client
has the largest weight, so that the weighting multiplies by 1. Reading the model from Flower's serialised
parameters is not counted; secfl starts from an array, too.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.server.workflow import SecAggPlusWorkflow

# The package hides the module behind a function of the same name.
stages: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")


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


@contextmanager
def timed(names: list[str], *, results: list[Any] | None = None) -> Iterator[Clock]:
    """Time functions where the mod looks them up; they do what they always do."""
    clock = Clock()

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with clock.running():
                result = original(*args, **kwargs)
            if results is not None:
                results.append(result)
            return result

        return call

    originals = {name: getattr(stages, name) for name in names}
    for name, original in originals.items():
        setattr(stages, name, wrap(original))
    try:
        yield clock
    finally:
        for name, original in originals.items():
            setattr(stages, name, original)


class Round:
    """One round without drop-outs."""

    def __init__(self, job: dict[str, int], folder: Path) -> None:
        self.job, self.folder = job, folder
        self.nodes = list(range(1, job["clients"] + 1))
        defaults = inspect.signature(SecAggPlusWorkflow.__init__).parameters
        self.clipping = defaults["clipping_range"].default
        self.target = defaults["quantization_range"].default
        self.modulus = defaults["modulus_range"].default
        self.weight = defaults["max_weight"].default
        self.up: dict[int, int] = dict.fromkeys(self.nodes, 0)
        self.down: dict[int, int] = dict.fromkeys(self.nodes, 0)
        self.clients: dict[int, dict[str, float]] = {}
        self.expected = np.zeros(job["parameters"], np.int64)

    def run(self) -> dict[str, float]:
        """All four stages; nanoseconds of processor time per parameter."""
        setup = self.set_up()
        messages = [self.collect(node, setup) for node in self.nodes]
        self.bytes_up = sum(map(len, messages[0]))
        shares = self.unmask(setup)
        server, opening = Clock(), Clock()
        with server.running():
            total = self.add(messages)
        with opening.running():
            integers, vector = self.open(total, shares)
        self.exact = bool(np.array_equal(integers[0], self.expected % self.modulus))
        self.bytes_down = sum(map(len, ndarrays_to_parameters(vector).tensors))
        del total, integers, vector
        tracemalloc.start()
        self.open(self.add(messages), dict(list(shares.items())[:2]))
        self.peak = tracemalloc.get_traced_memory()[1] + sum(len(part) for one in messages for part in one)
        tracemalloc.stop()
        to_ns = 1e9 / self.job["parameters"]
        figures = {
            name: to_ns * median(client[name] for client in self.clients.values())
            for name in ("client", "elapsed", "encode", "protect", "pack")
        }
        figures["server"] = to_ns * server.cpu / len(self.nodes)
        figures["open"] = to_ns * opening.cpu
        return figures

    def set_up(self) -> dict[int, tuple[Any, Clock]]:
        """Stages 0 and 1: keys and shares."""
        states = {}
        settings = {
            Key.SAMPLE_NUMBER: len(self.nodes),
            Key.SHARE_NUMBER: len(self.nodes),
            Key.THRESHOLD: self.job["threshold"],
            Key.CLIPPING_RANGE: self.clipping,
            Key.TARGET_RANGE: self.target,
            Key.MOD_RANGE: self.modulus,
            Key.MAX_WEIGHT: self.weight,
        }
        keys = {}
        for node in self.nodes:
            clock, state = Clock(), stages.SecAggPlusState(nid=node)
            with clock.running():
                sent = stages._setup(state, dict(settings))
            keys[str(node)] = [sent[Key.PUBLIC_KEY_1], sent[Key.PUBLIC_KEY_2]]
            states[node] = state, clock
        boxes: dict[int, list[tuple[int, bytes]]] = {node: [] for node in self.nodes}
        for node, (state, clock) in states.items():
            with clock.running():
                sent = stages._share_keys(state, dict(keys))
            for recipient, box in zip(sent[Key.DESTINATION_LIST], sent[Key.CIPHERTEXT_LIST], strict=True):
                boxes[recipient].append((node, box))
                self.up[node] += len(box)
                self.down[recipient] += len(box)
            self.up[node] += sum(map(len, keys[str(node)]))
            self.down[node] += sum(len(part) for pair in keys.values() for part in pair)
        self.boxes = boxes
        return states

    def collect(self, node: int, setup: dict[int, tuple[Any, Clock]]) -> list[bytes]:
        """Stage 2 of one client: weight, quantise, mask, serialise."""
        state, earlier = setup[node]
        parameters = ndarrays_to_parameters([np.load(self.folder / f"{node - 1}.npy")])
        request = {
            Key.SOURCE_LIST: [source for source, _ in self.boxes[node]],
            Key.CIPHERTEXT_LIST: [box for _, box in self.boxes[node]],
        }
        whole = Clock()
        quantised: list[Any] = []
        with ExitStack() as stack:
            reading = stack.enter_context(timed(["parameters_to_ndarrays"]))
            encode = stack.enter_context(timed(["parameters_multiply", "factor_combine"]))
            rounding = stack.enter_context(timed(["quantize"], results=quantised))
            pack = stack.enter_context(timed(["ndarray_to_bytes"]))
            with whole.running():
                answer = stages._collect_masked_vectors(state, request, int(self.weight), parameters)
        self.expected += quantised[0][0]
        client = whole.cpu + earlier.cpu - reading.cpu
        self.clients[node] = {
            "client": client,
            "elapsed": whole.wall + earlier.wall - reading.wall,
            "encode": encode.cpu + rounding.cpu,
            "pack": pack.cpu,
            "protect": client - encode.cpu - rounding.cpu - pack.cpu,
        }
        masked: list[bytes] = answer[Key.MASKED_PARAMETERS]
        return masked

    def unmask(self, setup: dict[int, tuple[Any, Clock]]) -> dict[int, list[bytes]]:
        """Stage 3 of all clients."""
        shares: dict[int, list[bytes]] = {node: [] for node in self.nodes}
        for node, (state, _) in setup.items():
            answer = stages._unmask(
                state, {Key.ACTIVE_NODE_ID_LIST: list(self.nodes), Key.DEAD_NODE_ID_LIST: []}
            )
            for owner, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
                shares[owner].append(share)
                self.up[node] += len(share)
        return shares

    def add(self, messages: list[list[bytes]]) -> list[Any]:
        """The aggregator after stage 2."""
        total: list[Any] = []
        for message in messages:
            vector = [bytes_to_ndarray(part) for part in message]
            total = parameters_addition(total, vector) if total else vector
        return parameters_mod(total, self.modulus)

    def open(self, total: list[Any], shares: dict[int, list[bytes]]) -> tuple[list[Any], list[Any]]:
        """The aggregator after stage 3: the summed integers, and the mean."""
        for owned in shares.values():
            mask = pseudo_rand_gen(combine_shares(owned), self.modulus, get_parameters_shape(total))
            total = parameters_subtraction(total, mask)
        ratio, integers = factor_extract(parameters_mod(total, self.modulus))
        mean_vector = dequantize(integers, self.clipping, self.target)
        for vector in mean_vector:
            np.add(vector, -(len(self.nodes) - 1) * self.clipping, out=vector)
            np.multiply(vector, self.target / ratio, out=vector)
        return integers, mean_vector


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
    job = json.loads((folder / "job.json").read_text())
    passes = []
    for _ in range(job["repeats"]):
        one = Round(job, folder)
        passes.append(one.run())
    best = {name: min(figures[name] for figures in passes) for name in passes[0]}
    parameters = job["parameters"]
    figures = {
        "version": "flwr " + version("flwr"),
        "parameters": parameters,
        "clients": job["clients"],
        "survivors": job["clients"],
        "bits": (one.modulus - 1).bit_length(),
        "client_ns_per_param": best["client"],
        "encode_ns_per_param": best["encode"],
        "protect_ns_per_param": best["protect"],
        "pack_ns_per_param": best["pack"],
        "client_elapsed_ns_per_param": best["elapsed"],
        "server_ns_per_param": best["server"],
        "open_ns_per_param": best["open"],
        "bytes_up_per_param": one.bytes_up / parameters,
        "bytes_down_per_param": one.bytes_down / parameters,
        "opener_bytes_down_per_param": 0.0,
        "setup_bytes_per_client": round(mean(one.up[node] + one.down[node] for node in one.nodes)),
        "peak_mb": one.peak / 1e6,
        "peak_vectors": one.peak / (4 * parameters),
        "exact": one.exact,
        "note": "complete graph, default ranges; the aggregator keeps all inputs until the last has come",
    }
    (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
