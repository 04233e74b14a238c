"""Runs a published study: estimate, jobs that are not done yet, report. Interrupted, it goes on where it was."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from secfl.config import Scheme
from secfl.errors import ConfigError, DataError
from secfl.studies.jobs import Job, Listener, read_result, run_jobs, store_result
from secfl.studies.published.interface import Preset, PublishedStudy, Request
from secfl.studies.published.report import write_report

__all__ = ["command_line", "read_request", "run_published"]

REQUEST_FORMAT_VERSION = 1
_START_SECONDS = 6.0
"""Of a job's process: loading torch and MONAI."""


def run_published(
    study: PublishedStudy,
    request: Request,
    *,
    out: Path,
    processes: int,
    listener: Listener,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run what is missing, then write the table, the pictures and ``README.md``.

    Args:
        study: The published system.
        request: What is asked for; the same again, with more seeds or not, goes on with what is there.
        out: Where everything goes.
        processes: Jobs at once, with one thread each.
        listener: Told about progress.
        say: Told the estimated time, before the first job and again after the first that ends.

    Returns:
        The content of ``table.json``.

    Raises:
        ConfigError: The folder holds another study, or the study cannot be done as asked.
        DataError: The data, or a result on disk.
        LedgerCorrupted: A ledger of a run does not verify.
    """
    runs = out / "runs"
    _keep_request(study, request, out)
    stages = study.stages(request, runs)
    jobs = [job for stage in stages for job in stage]
    watch = _Watch(study, request, stages, processes=processes, listener=listener, say=say)
    watch.estimate()
    for stage in stages:
        run_jobs(stage, processes=processes, listener=watch)
        watch.passed(stage)
    results = {job.name: read_result(job.result) for job in jobs}
    return write_report(study, request, results, out=out, command=command_line(study, request, out))


def command_line(study: PublishedStudy, request: Request, out: Path) -> str:
    """The command that asks for this."""
    words = ["secfl", "study", study.name, "--preset", request.preset.value]
    words += [] if request.data == "phantom" else ["--data", request.data]
    words += [] if request.scheme is Scheme.MASKING else ["--secure-agg", request.scheme.value]
    words += ["--seeds", str(len(request.seeds))]
    words += ["--first-seed", str(request.seeds[0])] if request.seeds[0] else []
    return shlex.join([*words, "--out", str(out)])


def _kept(out: Path) -> Path:
    return out / "runs" / "study.json"


def _keep_request(study: PublishedStudy, request: Request, out: Path) -> None:
    row = {
        "format_version": REQUEST_FORMAT_VERSION,
        "study": study.name,
        "preset": request.preset.value,
        "data": request.data,
        "secure_agg": request.scheme.value,
        "seeds": list(request.seeds),
    }
    path = _kept(out)
    if path.exists():
        found = read_result(path)
        if any(found.get(name) != row[name] for name in row if name != "seeds"):
            raise ConfigError(f"--out {out}: holds another study or another preset; expected a new folder")
    store_result(path, row)


def read_request(study: PublishedStudy, out: Path) -> Request:
    """What an interrupted study was asked for.

    Raises:
        ConfigError: The folder holds no study of this name.
        DataError: Its ``runs/study.json`` is damaged, or newer than this secfl reads.
    """
    path = _kept(out)
    if not path.is_file():
        raise ConfigError(f"--resume {out}: expected the folder of a study, with {path.relative_to(out)}")
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        version, name = int(row["format_version"]), str(row["study"])
        request = Request(
            preset=Preset(row["preset"]),
            seeds=tuple(int(seed) for seed in row["seeds"]),
            data=str(row["data"]),
            scheme=Scheme(row["secure_agg"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged; expected what a study was asked for") from None
    if version > REQUEST_FORMAT_VERSION:
        raise DataError(f"{path}: format_version {version} is newer than this secfl reads; upgrade secfl")
    if name != study.name:
        raise ConfigError(f"--resume {out}: holds the study {name}; expected {study.name}")
    return request


class _Watch:
    """One progress over all stages, and the estimate of what is left."""

    def __init__(
        self,
        study: PublishedStudy,
        request: Request,
        stages: Sequence[Sequence[Job]],
        *,
        processes: int,
        listener: Listener,
        say: Callable[[str], None],
    ) -> None:
        self._study, self._request = study, request
        self._jobs = [job for stage in stages for job in stage]
        self._processes = processes
        self._listener, self._say = listener, say
        self._before = 0
        self._remade = not self._left()
        listener.began(sum(job.rounds for job in self._jobs), len(self._jobs))

    def began(self, rounds: int, runs: int) -> None:
        """A stage began; the whole was announced before."""

    def moved(self, rounds: int) -> None:
        """So many rounds of this stage are done."""
        self._listener.moved(self._before + rounds)

    def finished(self, job: Job) -> None:
        """A job is done: what it took makes the estimate better."""
        self._listener.finished(job)
        if not self._remade and self._left():
            self._remade = True
            self.estimate()

    def passed(self, stage: Sequence[Job]) -> None:
        """A stage is over."""
        self._before += sum(job.rounds for job in stage)

    def estimate(self) -> None:
        """Say how long what is left may take."""
        left = self._left()
        if not left:
            return
        seconds = [self._study.expected_seconds(self._request, job) for job in left]
        at_once = min(self._processes, len(left))
        factor, basis = self._factor()
        total = factor * max(sum(seconds) / at_once, *seconds, 0.0) + _START_SECONDS * len(left) / at_once
        self._say(
            f"{len(left)} of {len(self._jobs)} jobs left: about {math.ceil(total / 6) / 10:g} minutes with {at_once} "
            f"at once ({basis})"
        )

    def _left(self) -> list[Job]:
        return [job for job in self._jobs if not job.result.exists()]

    def _factor(self) -> tuple[float, str]:
        """How much slower than the stored figures this machine is, from jobs that have ended."""
        ratios = [
            float(took) / self._study.expected_seconds(self._request, job)
            for job in self._jobs
            if job.result.exists() and (took := read_result(job.result).get("seconds"))
        ]
        if ratios:
            return median(ratios), "by the jobs that have ended here"
        return 1.0, "by stored figures of another machine"
