"""A study's jobs: run in a few processes of one thread each, and skipped when their result is on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from secfl.errors import DataError
from secfl.federation.checkpoint import write_atomically

__all__ = ["Job", "Listener", "read_result", "run_jobs", "store_result"]

_POLL_SECONDS = 2.0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of a study.

    Attributes:
        name: Also the name of its result file and of its run directory.
        result: Its result; a job whose result exists is done.
        rounds: Size of its work, for progress.
        work: A function of a module and its arguments: another process runs it, and it writes ``result``.
        arguments: What ``work`` is called with.
        done_rounds: How many rounds its files show to be done.
    """

    name: str
    result: Path
    rounds: int
    work: Callable[..., None]
    arguments: tuple[Any, ...]
    done_rounds: Callable[[], int]


class Listener(Protocol):
    """Is told how a study goes on."""

    def began(self, rounds: int, runs: int) -> None:
        """How much work there is, finished work included."""
        ...

    def moved(self, rounds: int) -> None:
        """So many rounds of all jobs are done."""
        ...

    def finished(self, job: Job) -> None:
        """A job's result is on disk."""
        ...


def run_jobs(jobs: Sequence[Job], *, processes: int, listener: Listener) -> None:
    """Run the jobs that have no result yet.

    Args:
        jobs: Independent of each other.
        processes: How many at once, each with one thread.
        listener: Told about progress.

    Raises:
        SecflError: A job's error. Jobs that have not begun are left out; those under way end first.
    """
    waiting = [job for job in jobs if not job.result.exists()]
    done = sum(job.rounds for job in jobs) - sum(job.rounds for job in waiting)
    listener.began(sum(job.rounds for job in jobs), len(jobs))
    listener.moved(done)
    if not waiting:
        return
    with _one_thread(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running: dict[Future[None], Job] = {pool.submit(job.work, *job.arguments): job for job in waiting}
        try:
            while running:
                ended, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in ended:
                    job = running.pop(future)
                    future.result()
                    done += job.rounds
                    listener.finished(job)
                listener.moved(done + sum(min(job.done_rounds(), job.rounds) for job in running.values()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """Numerical libraries read their number of threads from the environment when they load."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def store_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        DataError: Missing or damaged.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise DataError(f"{path}: expected a result written by secfl; remove it to run its job again")
    return result
