"""Times one scheme on one workload: every party in this process, one after the other.

A pass is a whole round. Each client's vector is made, rounded, protected and sent when it is its turn, and the
aggregator takes every input as it comes, so that the process never holds two inputs on their way. Before the
timed passes comes one that watches the aggregator's memory and is not timed.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from types import ModuleType
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from secfl._version import __version__
from secfl.benchmarking.rows import Row
from secfl.benchmarking.timing import Best, MemoryMeter, Span, stopwatch
from secfl.benchmarking.workload import VECTOR, Stage, Workload
from secfl.crypto.aggregation import (
    Aborted,
    Envelope,
    Finished,
    Party,
    RoundResult,
    Running,
    SecureAggregation,
)
from secfl.crypto.codec import dequantise, quantise, to_residues
from secfl.errors import ProtocolError
from secfl.randomness import SystemRng
from secfl.types import AGGREGATOR, ClientId, PrivatizedUpdate, SchemeSpec, Update

__all__ = ["benchmark_scheme"]

_T = TypeVar("_T")
_INPUT_PHASES: Final = ("masked-input", "ckks-input", "plain-input")
_OPENING_PHASES: Final = ("ckks-open",)


def benchmark_scheme(
    workload: Workload,
    scheme: SchemeSpec,
    *,
    key_mode: str,
    after_pass: Callable[[Mapping[str, float]], None] | None = None,
) -> Row:
    """Measure one scheme.

    Args:
        workload: What is summed.
        scheme: By which scheme.
        key_mode: Its name for the table.
        after_pass: Called after every timed pass with its figures, nanoseconds per parameter.

    Returns:
        Processor times, medians over the clients of one pass; of several passes the least counts, figure by
        figure.

    Raises:
        ProtocolError: The round did not end, for example because more clients fell silent than the threshold
            allows.
    """
    aggregation = _scheme(scheme, threads=workload.threads)
    best: dict[str, Best] = {}
    with MemoryMeter() as meter:  # first, so that the timed passes find the process's memory made
        _Pass(workload, aggregation, scheme, meter=meter).run()
    for _ in range(workload.repeats):
        one = _Pass(workload, aggregation, scheme)
        one.run()
        figures = one.figures()
        for name, value in figures.items():
            best.setdefault(name, Best()).take(value)
        if after_pass is not None:
            after_pass(figures)
    times = {name: figure.value for name, figure in best.items()}
    apart = workload.threads == 1  # the time of several threads in one function says nothing
    return Row(
        scheme=scheme.name,
        key_mode=key_mode,
        version=__version__,
        parameters=workload.parameters,
        clients=workload.clients,
        survivors=len(one.result.survivors),
        bits=workload.bits,
        threads=workload.threads,
        client_ns_per_param=times["client"],
        encode_ns_per_param=times["encode"],
        protect_ns_per_param=times["protect"] if apart else times["party"],
        pack_ns_per_param=times["pack"] if apart else None,
        client_elapsed_ns_per_param=times["elapsed"],
        server_ns_per_param=times["server"],
        open_ns_per_param=times["open"],
        bytes_up_per_param=one.books.bytes_up / workload.parameters,
        bytes_down_per_param=one.bytes_down() / workload.parameters,
        opener_bytes_down_per_param=one.books.opener_bytes / workload.parameters,
        setup_bytes_per_client=round(mean(one.books.setup_bytes.values())),
        peak_mb=meter.peak / 1e6,
        peak_vectors=meter.peak / (4 * workload.parameters),
        exact=one.exact,
    )


def _scheme(scheme: SchemeSpec, *, threads: int) -> SecureAggregation:
    if scheme.name == "ckks":
        from secfl.crypto.ckks import Ckks

        return Ckks(threads=threads)
    if scheme.name == "masking":
        from secfl.crypto.masking import Masking

        return Masking(threads=threads)
    from secfl.crypto.plain import Plain

    return Plain()  # it packs and adds in as many threads as it likes


@dataclass(slots=True)
class _Books:
    """Who spent what in one pass."""

    encode: dict[ClientId, Span] = field(default_factory=dict)
    party: dict[ClientId, Span] = field(default_factory=dict)
    pack: dict[ClientId, Span] = field(default_factory=dict)
    inputs: list[float] = field(default_factory=list)
    opening: float = 0.0
    bytes_up: int = 0
    opener_bytes: int = 0
    setup_bytes: dict[ClientId, int] = field(default_factory=dict)


class _Pass:
    """One round."""

    def __init__(
        self,
        workload: Workload,
        aggregation: SecureAggregation,
        scheme: SchemeSpec,
        *,
        meter: MemoryMeter | None = None,
    ) -> None:
        self.books = _Books()
        self.result = RoundResult(sums={}, survivors=())
        self.exact = False
        self._workload = workload
        self._aggregation = aggregation
        self._stage = Stage.make(workload, scheme)
        self._meter = meter
        self._parties: dict[ClientId, Party] = {}
        self._queue: deque[Envelope] = deque()
        drops = workload.drops()
        self._sends_left = {
            name: drops[place] for place, name in enumerate(self._stage.spec.cohort) if place in drops
        }

    def run(self) -> None:
        """Carry the round to its end and compare the sum with the exact one."""
        stage = self._stage
        self._aggregator = self._aggregation.aggregator(stage.spec, directory=stage.directory)
        self._ask_aggregator(self._aggregator.start)
        for place, name in enumerate(stage.spec.cohort):
            self._join(place, name)
            while self._queue:
                self._deliver(self._queue.popleft())
        while not isinstance(self._aggregator.state, Finished):
            if isinstance(self._aggregator.state, Aborted):
                raise self._aggregator.state.reason
            if self._queue:
                self._deliver(self._queue.popleft())
            else:
                before = self._aggregator.state
                self._ask_aggregator(self._aggregator.phase_over)
                if not self._queue and self._aggregator.state == before:
                    raise ProtocolError(f"benchmark: the round stopped in {before}")
        assert self._aggregator.state.result is not None
        self.result = self._aggregator.state.result
        self.exact = bool(np.array_equal(self.result.sums[VECTOR], self._expected()))

    def figures(self) -> dict[str, float]:
        """Nanoseconds per parameter."""
        books, to_ns = self.books, 1e9 / self._workload.parameters
        names = self.result.survivors
        return {
            "client": to_ns * median(books.encode[name].cpu + books.party[name].cpu for name in names),
            "elapsed": to_ns * median(books.encode[name].wall + books.party[name].wall for name in names),
            "encode": to_ns * median(books.encode[name].cpu for name in names),
            "party": to_ns * median(books.party[name].cpu for name in names),
            "protect": to_ns * median(books.party[name].cpu - books.pack[name].cpu for name in names),
            "pack": to_ns * median(books.pack[name].cpu for name in names),
            "server": to_ns * median(books.inputs),
            "open": to_ns * books.opening,
        }

    def bytes_down(self) -> int:
        """The size of the next model's update, as every client would receive it: float32."""
        workload = self._workload
        step = dequantise(
            self.result.sums[VECTOR], workload.grid, bits=workload.bits, divisor=len(self.result.survivors)
        )
        return len(step.astype(np.float32).tobytes())

    def _join(self, place: int, name: ClientId) -> None:
        """One client rounds its vector and enters the round."""
        books, stage, bits = self.books, self._stage, self._workload.bits
        books.encode[name] = Span()
        books.party[name] = Span()
        books.pack[name] = Span()
        books.setup_bytes[name] = 0
        values = self._workload.values(place)
        update = Update(values=values, names=("all",), sizes=(values.size,))
        residues = books.encode[name].run(
            lambda: to_residues(quantise(update, self._workload.grid).values, bits=bits)
        )
        privatized = PrivatizedUpdate.without_noise({VECTOR: residues})
        self._parties[name] = self._ask_client(
            name,
            lambda: self._aggregation.client(
                stage.spec,
                stage.identities[place],
                directory=stage.directory,
                update=privatized,
                rng=SystemRng(),
            ),
        )
        self._queue_from(name, self._ask_client(name, self._parties[name].start))

    def _expected(self) -> NDArray[np.uint32] | NDArray[np.uint64]:
        """The exact sum of the survivors' integers, computed again from their vectors."""
        workload = self._workload
        total = np.zeros(workload.parameters, np.int64)
        for place, name in enumerate(self._stage.spec.cohort):
            if name in self.result.survivors:
                values = workload.values(place)
                update = Update(values=values, names=("all",), sizes=(values.size,))
                total += quantise(update, workload.grid).values
        return to_residues(total, bits=workload.bits)

    def _deliver(self, envelope: Envelope) -> None:
        if envelope.recipient == AGGREGATOR:
            self._ask_aggregator(
                partial(self._aggregator.receive, envelope),
                given=len(envelope.payload),
                sender=envelope.sender,
            )
        elif self._sends_left.get(envelope.recipient, 1) > 0:
            name = envelope.recipient
            if isinstance(self._parties[name].state, Running):
                answer = self._ask_client(name, partial(self._parties[name].receive, envelope))
                self._queue_from(name, answer)

    def _queue_from(self, name: ClientId, sent: list[Envelope]) -> None:
        """Let a client's envelopes overtake everything, so that one input at a time is on its way."""
        left = self._sends_left.get(name)
        if left is not None and sent:
            self._sends_left[name] = max(0, left - 1)
            if left == 0:
                return
        for envelope in reversed(sent):
            self._queue.appendleft(envelope)
            if self._phase() in _INPUT_PHASES:
                self.books.bytes_up = len(envelope.payload)
            elif self._phase() not in _OPENING_PHASES:
                self.books.setup_bytes[name] += len(envelope.payload)

    def _ask_client(self, name: ClientId, work: Callable[[], _T]) -> _T:
        with stopwatch(_packers()) as packing:
            span = Span()
            answer = span.run(work)
        if self._phase() in _OPENING_PHASES:
            self.books.opening += span.cpu
        else:
            self.books.party[name] += span
            self.books.pack[name] += packing
        return answer

    def _ask_aggregator(
        self, work: Callable[[], list[Envelope]], *, given: int = 0, sender: ClientId | None = None
    ) -> None:
        phase, span = self._phase(), Span()
        sent = span.run(work) if self._meter is None else self._meter.call(work, given=given)
        state = self._aggregator.state
        if phase in _INPUT_PHASES and sender is not None:
            self.books.inputs.append(span.cpu)
        elif isinstance(state, Finished) or (isinstance(state, Running) and state.survivors):
            self.books.opening += span.cpu
        for envelope in sent:
            if self._phase() in _OPENING_PHASES:
                self.books.opener_bytes = max(self.books.opener_bytes, len(envelope.payload))
            elif envelope.recipient in self.books.setup_bytes:
                self.books.setup_bytes[envelope.recipient] += len(envelope.payload)
        self._queue.extend(sent)

    def _phase(self) -> str:
        state = self._aggregator.state
        return state.phase if isinstance(state, Running) else "end"


def _packers() -> list[tuple[ModuleType, str]]:
    """Where schemes look the packing function up."""
    places = [(sys.modules["secfl.crypto.inputs"], "pack")]
    if "secfl.crypto.ckks_ring" in sys.modules:
        places.append((sys.modules["secfl.crypto.ckks_ring"], "pack"))
    return places
