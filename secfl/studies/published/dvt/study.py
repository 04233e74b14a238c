"""The study as `secfl.studies.published.runner` runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from secfl.studies.jobs import Job
from secfl.studies.published.dvt import pictures, tables, words
from secfl.studies.published.dvt.facts import collect
from secfl.studies.published.dvt.names import job_name, second_scheme
from secfl.studies.published.dvt.phases import SIZES, phases_of, settings
from secfl.studies.published.interface import Drawing, Prose, PublishedStudy, Request, Results, Row
from secfl.studies.published.runs import run_job

__all__ = ["STUDY", "DvtStudy"]


class DvtStudy:
    """Three phases of 3, 5 and 7 clients, each with an architecture of its own, and one global student."""

    name = "dvt"
    title = "Deep veins of the leg, segmented by unlike models"
    source = tables.SOURCE
    libraries = ("torch", "monai", "numpy")

    def stages(self, request: Request, runs: Path) -> Sequence[Sequence[Job]]:
        """Every phase with every seed; then, with the first seed, the same under the other scheme."""
        size, phases = SIZES[request.preset], phases_of(request)
        first, other = request.seeds[0], second_scheme(request.scheme)
        asked = [
            run_job(
                job_name(phase, seed, request.scheme),
                settings(request, phase, seed=seed, scheme=request.scheme, references=True),
                runs=runs,
                collect=collect,
            )
            for seed in request.seeds
            for phase in phases
        ]
        compared = [
            run_job(
                job_name(phase, first, other),
                settings(request, phase, seed=first, scheme=other, references=False),
                runs=runs,
            )
            for phase in phases
            if phase.number in size.compared
        ]
        return [[*asked, *compared]]

    def expected_seconds(self, request: Request, job: Job) -> float:
        """From what each phase took.

        Raises:
            ValueError: The job is none of this study.
        """
        size = SIZES[request.preset]
        for phase in phases_of(request):
            for seed in request.seeds:
                if job.name == job_name(phase, seed, request.scheme):
                    return size.seconds[phase.number - 1]
            if job.name == job_name(phase, request.seeds[0], second_scheme(request.scheme)):
                return size.compared_share * size.seconds[phase.number - 1]
        raise ValueError(f"{job.name}: no job of this study")

    def rows(self, request: Request, results: Results) -> Sequence[Row]:
        """By phase: the student, its rivals, traffic, time, heterogeneity, schemes."""
        return tables.rows(request, results)

    def figures(
        self,
        request: Request,
        rows: Sequence[Row],
        results: Results,  # noqa: ARG002 - see the protocol
    ) -> Mapping[str, Drawing]:
        """The trend beside the published one, and the student beside every model trained alone."""
        return pictures.drawings(request, rows)

    def prose(self, request: Request, rows: Sequence[Row], results: Results) -> Prose:
        """What was run, what is known, what is ours, what came out."""
        return words.prose(request, rows, results)


STUDY: PublishedStudy = DvtStudy()
