"""Clocks around parts of a computation, and the memory of one party among several in a process."""

from __future__ import annotations

import ctypes
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self, TypeVar

from secfl.crypto.aggregation import Envelope

__all__ = ["Best", "MemoryMeter", "Span", "keep_freed_memory", "stopwatch"]

_T = TypeVar("_T")


@dataclass(slots=True)
class Span:
    """Elapsed time and processor time of this process, in seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def run(self, work: Callable[[], _T]) -> _T:
        """Do something and add what it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return work()
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu

    def __add__(self, other: Self) -> Span:
        return Span(self.wall + other.wall, self.cpu + other.cpu)


@dataclass(slots=True)
class Best:
    """The least of repeated measurements: what other programs on the machine disturbed least."""

    value: float = float("inf")

    def take(self, value: float) -> None:
        """One more measurement."""
        self.value = min(self.value, value)


@contextmanager
def stopwatch(places: Sequence[tuple[ModuleType, str]]) -> Iterator[Span]:
    """Time every call of functions while the block runs, wherever modules look them up by these names.

    The functions do what they always do. One thread only: times of several would be added up.
    """
    span = Span()
    originals = [(module, name, getattr(module, name)) for module, name in places]

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: span.run(lambda: original(*args, **kwargs))

    for module, name, original in originals:
        setattr(module, name, timed(original))
    try:
        yield span
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, where glibc allocates; returns whether it does.

    Otherwise every large array comes fresh from the kernel, and on virtual machines that hand freed pages back to
    their host touching it first costs several times the arithmetic on it. The peers' workers do the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # From malloc.h: M_MMAP_MAX = -4, M_TRIM_THRESHOLD = -1.
    return bool(mallopt(-4, 0)) and bool(mallopt(-1, 2**31 - 1))


class MemoryMeter:
    """The memory of one party, told apart from everybody else's in the process.

    Counts what Python and NumPy allocate while the party works (tracemalloc): what it keeps from call to call,
    what it needs on top during a call, and the message that it was given. Use it as a context manager; it slows
    Python down, so timings are taken in another pass.
    """

    def __init__(self) -> None:
        self.kept = 0
        self.peak = 0

    def __enter__(self) -> Self:
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()

    def call(self, work: Callable[[], list[Envelope]], *, given: int = 0) -> list[Envelope]:
        """Let the party work.

        Args:
            work: One call of the party.
            given: Bytes of the message that it was given, which somebody else allocated.
        """
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        sent = work()
        after, peak = tracemalloc.get_traced_memory()
        self.peak = max(self.peak, self.kept + peak - before + given)
        leaving = {id(envelope.payload): len(envelope.payload) for envelope in sent}
        self.kept += after - before - sum(leaving.values())
        return sent
