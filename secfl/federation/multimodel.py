"""Unlike models in one federation: each client its own family, one global student.

A round has three parts. Cohorts of one family with enough clients average their weights through a secure sum;
clients of other families train for themselves. Then every client's class probabilities on the proxy images, which
belong to nobody, go through the same kind of sum, and their mean is opened. At last the mean is distilled into
every model and into the student. Nothing else of a model leaves its client.

Every tensor that is opened comes from at least ``min_contributors`` clients: a configuration in which one would not
is refused by the tensor's name, and the threshold of each sum keeps it so when clients drop out. Each sum has a
ledger of its own: that of the maps is the run's, those of the cohorts lie under ``cohorts/<family>``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secfl.config import RunConfig
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError, DataError
from secfl.federation import checkpoint, summary
from secfl.federation.contributors import require_survivors
from secfl.federation.coordinator import RoundOutcome
from secfl.federation.evaluation import describe
from secfl.federation.family_results import FamilyResults
from secfl.federation.family_sums import CONSENSUS, SENTENCE, Maps, open_sums, plan_sums
from secfl.federation.observer import Observer, RoundReport, RunInfo, Times
from secfl.federation.repeated_sum import RepeatedSum
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import key_mode_name, scheme_for, scheme_spec
from secfl.federation.state import count_parameters
from secfl.randomness import SystemRng
from secfl.segmentation.task import SegmentingTask, State
from secfl.types import client_id

if TYPE_CHECKING:
    from secfl.segmentation.family_task import FamilyTask

__all__ = ["resume_families", "simulate_families"]


def simulate_families(config: RunConfig, *, out: Path, observer: Observer) -> dict[str, Any]:
    """Run a federation of several model families from the start; see `secfl.federation.simulation.simulate`."""
    return _prepare(config, run=None, out=out, observer=observer).run_to_the_end()


def resume_families(run: RunDirectory, *, observer: Observer) -> dict[str, Any]:
    """Go on with an interrupted one; the models come out bit for bit as without the interruption."""
    prepared = _prepare(run.config(), run=run, out=run.root, observer=observer)
    prepared.go_back_to_checkpoint()
    return prepared.run_to_the_end()


def _prepare(config: RunConfig, *, run: RunDirectory | None, out: Path, observer: Observer) -> _FamilyRun:
    """Everything that can be refused is refused in here, before anything is written."""
    from secfl.segmentation.family_task import build_family_tasks

    settings = config.multi_model
    tasks = build_family_tasks(config)
    student = tasks[settings.student]
    sites = student.task.sites
    for site in sites:
        client_id(site)
    family_of = dict(zip(sites, settings.families, strict=True))
    planned = plan_sums(config, tasks, family_of)
    scheme_for(scheme_spec(config.secure_agg))
    resumed = run is not None
    if run is None:
        run = RunDirectory.create(out, config)
        if isinstance(student.task, SegmentingTask):
            run.write_inputs(student.task.inputs)
        run.keep_identities([Identity.generate(client_id(site), SystemRng()) for site in sites])
    maps = Maps(tasks, family_of)
    sums = open_sums(
        planned, config=config, run=run, tasks=tasks, maps=maps, resumed=resumed, progress=observer.phase
    )
    return _FamilyRun(
        config=config,
        run=run,
        tasks=tasks,
        family_of=family_of,
        sums=sums,
        maps=maps,
        undecided=student.undecided(),
        observer=observer,
        student=student.task.initial_state(),
        models={site: tasks[family].task.initial_state() for site, family in family_of.items()},
    )


@dataclass(slots=True, kw_only=True)
class _FamilyRun:
    """The state of one run between rounds."""

    config: RunConfig
    run: RunDirectory
    tasks: Mapping[str, FamilyTask]
    family_of: Mapping[str, str]
    sums: Mapping[str, RepeatedSum]
    maps: Maps
    undecided: State
    observer: Observer
    student: State
    models: dict[str, State]
    rounds_completed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def _consensus(self) -> RepeatedSum:
        return self.sums[CONSENSUS]

    @property
    def _student_task(self) -> FamilyTask:
        return self.tasks[self.config.multi_model.student]

    @property
    def _results(self) -> FamilyResults:
        return FamilyResults(self.config, self.tasks, self.family_of)

    def go_back_to_checkpoint(self) -> None:
        """Load all models as they were after the last finished round."""
        path = checkpoint.latest_checkpoint(self.run.checkpoints)
        if path is not None:
            loaded = checkpoint.load(path)
            if loaded.config_digest != self.config.digest().hex():
                raise ConfigError(f"{path}: belongs to another configuration than config.toml")
            self.student = _part(loaded.state, "student/")
            self.models = {site: _part(loaded.state, f"site/{site}/") for site in self.models}
            if not self.student or not all(self.models.values()):
                raise DataError(f"{path}: the models of some sites are missing")
            self.rounds_completed = loaded.rounds_completed
        self.rows = self.run.keep_metrics(self.rounds_completed)

    def run_to_the_end(self) -> dict[str, Any]:
        """The remaining rounds, then evaluation, the ledgers' close and the summary."""
        config = self.config
        self.observer.run_started(
            RunInfo(
                run=self.run.root,
                sites=tuple(self.family_of),
                rounds=config.training.rounds,
                first_round=self.rounds_completed,
                parameters=count_parameters(self.student),
                scheme=config.secure_agg.scheme.value,
                key_mode=key_mode_name(config.secure_agg),
                threshold=self._consensus.threshold,
                privacy=SENTENCE,
            )
        )
        self._say(SENTENCE)
        for text in describe(self._student_task.task):
            self._say(text)
        averaged = [name for name in self.sums if name != CONSENSUS]
        self._say(
            "families: "
            + ", ".join(f"{site} {family}" for site, family in self.family_of.items())
            + f"; weights are averaged in: {', '.join(averaged) or 'none'}; student: {config.multi_model.student}"
        )
        try:
            while self.rounds_completed < config.training.rounds:
                self._round()
            return self._finish()
        finally:
            for one in self.sums.values():
                one.accounts.release()

    def _say(self, text: str) -> None:
        self.run.log(text)
        self.observer.message(text)

    def _round(self) -> None:
        index, began = self.rounds_completed, time.perf_counter()
        least = self.config.multi_model.min_contributors
        outcomes: list[tuple[RepeatedSum, RoundOutcome]] = []
        dropped: set[str] = set()
        alone = set(self.models)
        for name, one in self.sums.items():
            if name == CONSENSUS:
                continue
            members = [site for site, family in self.family_of.items() if family == name]
            outcome, missing = one.open(self.models[members[0]], round_index=index)
            require_survivors(name, outcome.survivors, least=least)
            self.models.update(dict.fromkeys(members, outcome.state))
            outcomes.append((one, outcome))
            dropped |= set(missing)
            alone -= set(members)
        training = time.perf_counter()
        for site in sorted(alone):
            task = self.tasks[self.family_of[site]].task
            self.models[site] = task.train(site, self.models[site], round_index=index).state
        training = time.perf_counter() - training
        self.maps.models = self.models
        outcome, missing = self._consensus.open(self.undecided, round_index=index)
        require_survivors(CONSENSUS, outcome.survivors, least=least)
        outcomes.append((self._consensus, outcome))
        dropped |= set(missing)
        distilling = time.perf_counter()
        self._distill(self._student_task.consensus(outcome.state), index)
        training += time.perf_counter() - distilling
        self._keep(outcomes, index=index, dropped=sorted(dropped), training=training, began=began)

    def _distill(self, consensus: State, index: int) -> None:
        """Into every model, one for each cohort that shares it, and into the student."""
        settings = self.config.multi_model
        self.observer.phase("distilling", 0, 1)
        done: dict[str, State] = {}
        for site, family in self.family_of.items():
            owner = family if family in self.sums else site
            if owner not in done:
                done[owner] = self.tasks[family].distill(
                    self.models[site],
                    consensus,
                    epochs=settings.distill_epochs,
                    round_index=index,
                    label=owner,
                )
            self.models[site] = done[owner]
        self.student = self._student_task.distill(
            self.student, consensus, epochs=settings.student_epochs, round_index=index, label="student"
        )

    def _keep(
        self,
        outcomes: Sequence[tuple[RepeatedSum, RoundOutcome]],
        *,
        index: int,
        dropped: Sequence[str],
        training: float,
        began: float,
    ) -> None:
        self.rounds_completed = index + 1
        reports = [report for one, _ in outcomes for report in one.reports.values()]
        carriages = [outcome.carriage for _, outcome in outcomes]
        times = Times(
            train=training + sum(report.train_seconds for report in reports),
            protect=sum(report.protect_seconds for report in reports)
            + sum(carriage.client_seconds for carriage in carriages),
            aggregate=sum(carriage.aggregator_seconds for carriage in carriages),
            open=sum(carriage.opening_seconds for carriage in carriages),
        )
        every = self.config.evaluate_every or 1
        evaluated = (index + 1) % every == 0 or index + 1 == self.config.training.rounds
        metrics = self._results.metrics(self.student) if evaluated else {}
        times = replace(times, total=time.perf_counter() - began)
        row: dict[str, Any] = {
            "round": index,
            "evaluation_only": summary.evaluation_only(metrics) if evaluated else None,
            "survivors": list(outcomes[-1][1].survivors),
            "dropped": list(dropped),
            "bytes_up": _added([carriage.bytes_up for carriage in carriages]),
            "bytes_down": _added([carriage.bytes_down for carriage in carriages]),
            "seconds": times.as_dict(),
            "clipped_fraction": max(report.clipped_fraction for report in reports),
            "relative_error": max(
                summary.encoding_error(outcome, {name: one.reports[name] for name in outcome.survivors})
                for one, outcome in outcomes
            ),
        }
        self.run.add_metrics(row)
        self.rows.append(row)
        state = {f"student/{name}": tensor for name, tensor in self.student.items()}
        for site, model in self.models.items():
            state |= {f"site/{site}/{name}": tensor for name, tensor in model.items()}
        self._store(f"round-{index + 1:05d}", state)
        for path in sorted(self.run.checkpoints.glob("round-*.safetensors"))[:-2]:
            path.unlink()
        dice = row["evaluation_only"]["dice"]["mean"] if evaluated else None
        self.run.log(f"round {index + 1}: Dice of the student {dice}")
        if evaluated:
            for one in self.sums.values():
                one.accounts.sign()
        self.observer.round_finished(
            RoundReport(
                round_index=index,
                rounds=self.config.training.rounds,
                dice=dice,
                bytes_up=sum(row["bytes_up"].values()),
                epsilon=None,
                survivors=outcomes[-1][1].survivors,
                dropped=tuple(client_id(name) for name in dropped),
                seconds=times,
            )
        )

    def _store(self, name: str, state: State, *, folder: Path | None = None) -> None:
        checkpoint.store(
            (folder or self.run.checkpoints) / f"{name}.safetensors",
            checkpoint.Checkpoint(
                state=state,
                rounds_completed=self.rounds_completed,
                config_digest=self.config.digest().hex(),
            ),
        )

    def _finish(self) -> dict[str, Any]:
        config = self.config
        metrics = self._results.metrics(self.student)
        compared, references = self._results.compared(metrics, self.models, trained=self._trained)
        self._store("final", self.student)
        for site, model in self.models.items():
            self.run.sites.mkdir(exist_ok=True)
            self._store(site, model, folder=self.run.sites)
        for one in self.sums.values():
            one.accounts.close("all rounds completed")
        document = summary.build(
            config=config,
            terms=self._consensus.terms,
            threshold=self._consensus.threshold,
            sites=tuple(self.family_of),
            state=self.student,
            rows=self.rows,
            metrics=metrics,
            references=references,
            statements=self._consensus.accounts.statements(),
            rounds_aborted=sum(one.accounts.aborted for one in self.sums.values()),
            reason="completed",
            stopped="all rounds completed",
        )
        document["model"] = config.multi_model.student
        document["families"] = dict(self.family_of)
        document["evaluation_only"] |= compared
        self.run.write_summary(document)
        self.run.forget_identities()
        self.run.log("finished: all rounds completed")
        return document

    def _trained(self, name: str, train: Callable[[], State]) -> State:
        """A reference, kept so that an interrupted run does not train it again."""
        path = self.run.checkpoints / f"reference-{name}.safetensors"
        if not path.exists():
            self.observer.phase("references", 0, 1)
            self._store(path.stem, train())
        return checkpoint.load(path).state


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _added(books: Sequence[Mapping[Any, int]]) -> dict[str, int]:
    names = sorted({name for book in books for name in book})
    return {name: sum(book.get(name, 0) for book in books) for name in names}
