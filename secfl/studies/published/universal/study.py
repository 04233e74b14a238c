"""One backbone for eight tasks of unlike modality and anatomy (MedUniverse), against the same without a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from secfl.config import Scheme
from secfl.errors import ConfigError
from secfl.studies.jobs import Job
from secfl.studies.published.interface import Drawing, Prose, Request, Results, Row
from secfl.studies.published.runs import run_job
from secfl.studies.published.universal.sizes import (
    federated_settings,
    newcomer_settings,
    server_settings,
    size_of,
    tasks_of,
)

__all__ = ["UniversalStudy"]


class UniversalStudy:
    """See `secfl.studies.published.interface.PublishedStudy`."""

    name = "universal"
    title = "One backbone for eight unlike tasks (MedUniverse)"
    source = "MedUniverse, arXiv 2407.14719"
    libraries = ("torch", "monai", "numpy", "scipy")

    def stages(self, request: Request, runs: Path) -> Sequence[Sequence[Job]]:
        """Per seed: the server's pre-training; then no federation, one of all clients, and one without each.

        Raises:
            ConfigError: ``plain`` was asked for: this study averages securely.
        """
        tasks, size = tasks_of(request), size_of(request)
        if request.scheme is Scheme.PLAIN:
            raise ConfigError("--secure-agg plain: this study averages securely; expected masking or ckks")
        from secfl.studies.published.universal import work

        meeting = work.Unseen(
            tune_epochs=size.tune_epochs, probe_epochs=size.probe_epochs, probe_rate=size.probe_rate
        )
        first, second = [], []
        for seed in request.seeds:
            before = f"pretraining-{seed}"
            backbone = runs / before / work.BACKBONE
            first.append(work.pretraining_job(before, server_settings(request, tasks, seed=seed), runs=runs))
            everybody = federated_settings(request, tasks, seed=seed, pretrained=backbone)
            second.append(
                run_job(f"all-{seed}", everybody, runs=runs, collect=work.after_federation(size.final_epochs))
            )
            newcomers = {
                name: newcomer_settings(request, name, own, seed=seed, pretrained=backbone)
                for name, own in tasks.items()
            }
            second.append(
                work.alone_job(
                    f"alone-{seed}",
                    everybody,
                    newcomers=newcomers,
                    epochs=size.rounds * size.local_epochs + size.final_epochs,
                    meeting=meeting,
                    runs=runs,
                )
            )
            for left in tasks:
                others = {name: own for name, own in tasks.items() if name != left}
                second.append(
                    run_job(
                        f"without-{left}-{seed}",
                        federated_settings(request, others, seed=seed, pretrained=backbone),
                        runs=runs,
                        collect=work.unseen(newcomers[left], meeting=meeting),
                    )
                )
        return [first, second]

    def expected_seconds(self, request: Request, job: Job) -> float:
        """From stored figures."""
        before, federation, alone = size_of(request).seconds
        kind = job.name.partition("-")[0]
        return {"pretraining": before, "alone": alone}.get(kind, federation)

    def rows(self, request: Request, results: Results) -> Sequence[Row]:
        """Dice by task and arm, the tests, and the cost."""
        from secfl.studies.published.universal.tables import rows_of

        return rows_of(request, results)

    def figures(
        self,
        request: Request,
        rows: Sequence[Row],  # noqa: ARG002 - the protocol's
        results: Results,
    ) -> Mapping[str, Drawing]:
        """Dice by task and arm."""
        from secfl.studies.published.universal.figures import drawings

        return drawings(request, results)

    def prose(
        self,
        request: Request,
        rows: Sequence[Row],  # noqa: ARG002 - the protocol's
        results: Results,
    ) -> Prose:
        """What was run, what is known, what is ours, and what came out."""
        from secfl.studies.published.universal.prose import prose_of

        return prose_of(request, results)
