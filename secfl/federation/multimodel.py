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

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secfl.config import RunConfig, check_cohort
from secfl.crypto import codec
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError, DataError
from secfl.federation import checkpoint, summary
from secfl.federation.accounts import RunAccounts
from secfl.federation.contributors import require_contributors, require_survivors
from secfl.federation.coordinator import RoundOutcome
from secfl.federation.evaluation import by_site, describe
from secfl.federation.members import Members
from secfl.federation.observer import Observer, RoundReport, RunInfo, Times
from secfl.federation.offer import RoundTerms
from secfl.federation.privacy import RunTerms
from secfl.federation.repeated_sum import RepeatedSum
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import key_mode_name, scheme_for, scheme_spec
from secfl.federation.state import count_parameters
from secfl.randomness import SystemRng
from secfl.segmentation.task import LocalResult, SegmentingTask, SiteMetrics, State
from secfl.types import PROTOCOL_VERSION, client_id, join_fields

if TYPE_CHECKING:
    from secfl.segmentation.family_task import FamilyTask

__all__ = ["averaged_families", "resume_families", "simulate_families"]

_MAPS = "consensus"
_BOUND_OF_MAPS = 0.5
_UNPROTECTED_MAPS = (
    "the mean class probabilities of all models on the proxy images, every round: no noise protects them, and they "
    "may tell which images the models were trained on"
)
_SENTENCE = "no differential privacy: ε is null; the mean probability maps on the proxy images are opened without noise"


def simulate_families(config: RunConfig, *, out: Path, observer: Observer) -> dict[str, Any]:
    """Run a federation of several model families from the start; see `secfl.federation.simulation.simulate`."""
    return _prepare(config, run=None, out=out, observer=observer).run_to_the_end()


def resume_families(run: RunDirectory, *, observer: Observer) -> dict[str, Any]:
    """Go on with an interrupted one; the models come out bit for bit as without the interruption."""
    prepared = _prepare(run.config(), run=run, out=run.root, observer=observer)
    prepared.go_back_to_checkpoint()
    return prepared.run_to_the_end()


def averaged_families(config: RunConfig, family_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Family -> its clients, for the families whose weights are averaged."""
    settings = config.multi_model
    cohorts: dict[str, tuple[str, ...]] = {}
    for site, family in sorted(family_of.items()):
        cohorts[family] = (*cohorts.get(family, ()), site)
    wanted = settings.average
    if wanted is None:
        wanted = tuple(family for family in cohorts if len(cohorts[family]) >= settings.min_contributors)
    return {family: cohorts[family] for family in sorted(set(wanted))}


class _Maps:
    """What a client does in the sum of maps: look at the proxy images with the model that it has now."""

    def __init__(self, tasks: Mapping[str, FamilyTask], family_of: Mapping[str, str]) -> None:
        self._tasks = tasks
        self._family_of = family_of
        self.models: dict[str, State] = {}

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:  # noqa: ARG002 - see the protocol
        """The client's maps in place of the undecided ones."""
        maps = self._tasks[self._family_of[site]].maps(self.models[site])
        return LocalResult(state={name: maps[name] for name in state}, examples=1, loss=0.0)


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
    cohorts = averaged_families(config, family_of)
    first = {family: task.task.initial_state() for family, task in tasks.items()}
    undecided = student.undecided()
    opened: dict[str, Sequence[str]] = {f"{_MAPS}/{name}": sites for name in undecided}
    for family, members in cohorts.items():
        opened |= {f"{family}/{name}": members for name in first[family]}
    require_contributors(opened, least=settings.min_contributors)
    thresholds = {
        name: _threshold(config, len(members), name=name)
        for name, members in {_MAPS: sites, **cohorts}.items()
    }
    terms = {_MAPS: _terms(config, undecided, clients=len(sites), digest=student.task.digest(), maps=True)}
    for family, members in cohorts.items():
        digest = tasks[family].task.digest()
        terms[family] = _terms(config, first[family], clients=len(members), digest=digest, maps=False)
    scheme_for(scheme_spec(config.secure_agg))
    resumed = run is not None
    if run is None:
        run = RunDirectory.create(out, config)
        if isinstance(student.task, SegmentingTask):
            run.write_inputs(student.task.inputs)
        run.keep_identities([Identity.generate(client_id(site), SystemRng()) for site in sites])
    identities = {identity.name: identity for identity in run.identities()}
    maps = _Maps(tasks, family_of)
    sums: dict[str, RepeatedSum] = {}
    for name, members in {_MAPS: sites, **cohorts}.items():
        chosen = [identities[client_id(site)] for site in members]
        place = run if name == _MAPS else RunDirectory(run.root / "cohorts" / name.replace(":", "-"))
        sums[name] = RepeatedSum(
            name,
            config=config,
            run=run,
            trainer=maps if name == _MAPS else tasks[name].task,
            terms=terms[name],
            threshold=thresholds[name],
            identities=chosen,
            accounts=_accounts(
                place,
                config,
                terms[name],
                chosen,
                threshold=thresholds[name],
                resumed=resumed,
                unprotected=(_UNPROTECTED_MAPS,) if name == _MAPS else (),
            ),
            progress=observer.phase,
        )
    return _FamilyRun(
        config=config,
        run=run,
        tasks=tasks,
        family_of=family_of,
        sums=sums,
        maps=maps,
        undecided=undecided,
        observer=observer,
        student=first[settings.student],
        models={site: first[family] for site, family in family_of.items()},
    )


def _threshold(config: RunConfig, clients: int, *, name: str) -> int:
    """At least ``min_contributors``, so that drop-outs never open a sum of fewer."""
    least = config.multi_model.min_contributors
    try:
        asked = config.secure_agg.threshold if name == _MAPS else None
        found = check_cohort(clients, config.secure_agg.scheme, asked, config.dropout)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    if name == _MAPS and asked is not None and asked < least:
        raise ConfigError(f"--threshold {asked}: expected at least min_contributors ({least})")
    return max(found, least)


def _terms(config: RunConfig, state: State, *, clients: int, digest: bytes, maps: bool) -> RunTerms:
    settings = config.secure_agg
    grid = codec.Grid.for_coordinates(
        count_parameters(state),
        coordinate_bound=_BOUND_OF_MAPS if maps else settings.coordinate_bound,
        value_bits=config.multi_model.probability_bits if maps else settings.value_bits,
    )
    kind = b"maps" if maps else b"weights"
    public = config.multi_model.model_dump_json().encode()
    return RunTerms(
        round_terms=RoundTerms(
            grid=grid,
            bits=codec.required_bits(grid, clients=clients),
            weighting=None,
            task_digest=hashlib.sha256(join_fields(b"families", kind, digest, public)).digest(),
            plan_digest=hashlib.sha256(join_fields(PROTOCOL_VERSION, b"plan", b"none")).digest(),
        ),
        plan=None,
        rounds=config.training.rounds,
        non_private="no noise is added (--dp off)",
        sentence=_SENTENCE,
    )


def _accounts(
    place: RunDirectory,
    config: RunConfig,
    terms: RunTerms,
    identities: Sequence[Identity],
    *,
    threshold: int,
    resumed: bool,
    unprotected: Sequence[str],
) -> RunAccounts:
    # A run that was cut off before this ledger existed has released nothing under it.
    if resumed and place.ledger.exists():
        return RunAccounts.resume(place, terms, members=Members.simulated(identities))
    place.root.mkdir(parents=True, exist_ok=True)
    return RunAccounts.create(
        place,
        config,
        terms,
        members=Members.simulated(identities),
        threshold=threshold,
        unprotected=unprotected,
    )


@dataclass(slots=True, kw_only=True)
class _FamilyRun:
    """The state of one run between rounds."""

    config: RunConfig
    run: RunDirectory
    tasks: Mapping[str, FamilyTask]
    family_of: Mapping[str, str]
    sums: Mapping[str, RepeatedSum]
    maps: _Maps
    undecided: State
    observer: Observer
    student: State
    models: dict[str, State]
    rounds_completed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def _consensus(self) -> RepeatedSum:
        return self.sums[_MAPS]

    @property
    def _student_task(self) -> FamilyTask:
        return self.tasks[self.config.multi_model.student]

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
                privacy=_SENTENCE,
            )
        )
        self._say(_SENTENCE)
        for text in describe(self._student_task.task):
            self._say(text)
        averaged = [name for name in self.sums if name != _MAPS]
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
            if name == _MAPS:
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
        require_survivors(_MAPS, outcome.survivors, least=least)
        outcomes.append((self._consensus, outcome))
        dropped |= set(missing)
        distilling = time.perf_counter()
        self._distill(outcome.state, index)
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
        metrics = self._metrics(self.student) if evaluated else {}
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

    def _metrics(self, state: State, family: str | None = None) -> dict[str, SiteMetrics]:
        task = self.tasks[family or self.config.multi_model.student].task
        return {site: task.evaluate(site, state) for site in task.sites}

    def _finish(self) -> dict[str, Any]:
        config = self.config
        metrics = self._metrics(self.student)
        clients = {site: self._metrics(model, self.family_of[site]) for site, model in self.models.items()}
        union: dict[str, Any] = {
            "student": _over_all_cases(metrics),
            "clients": {site: _over_all_cases(found) for site, found in clients.items()},
        }
        references = None
        if config.references:
            local = {site: self._metrics(self._alone(site), self.family_of[site]) for site in self.models}
            pooled = self._metrics(self._pooled())
            references = {
                "local": {site: by_site(found, "dice") for site, found in local.items()},
                "pooled": by_site(pooled, "dice"),
            }
            union["local"] = {site: _over_all_cases(found) for site, found in local.items()}
            union["pooled"] = _over_all_cases(pooled)
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
        document["evaluation_only"]["clients"] = {
            site: by_site(found, "dice") for site, found in clients.items()
        }
        document["evaluation_only"]["union"] = union
        self.run.write_summary(document)
        self.run.forget_identities()
        self.run.log("finished: all rounds completed")
        return document

    def _alone(self, site: str) -> State:
        """What a site would have without a federation: its family on its own images."""
        return self._reference(f"reference-{site}", self.family_of[site], [site])

    def _pooled(self) -> State:
        return self._reference("reference-pooled", self.config.multi_model.student, list(self.family_of))

    def _reference(self, name: str, family: str, sites: Sequence[str]) -> State:
        path = self.run.checkpoints / f"{name}.safetensors"
        if not path.exists():
            self.observer.phase("references", 0, 1)
            rounds = self.config.training.rounds
            self._store(name, self.tasks[family].task.train_reference(sites, rounds=rounds))
        return checkpoint.load(path).state


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _added(books: Sequence[Mapping[Any, int]]) -> dict[str, int]:
    names = sorted({name for book in books for name in book})
    return {name: sum(book.get(name, 0) for book in books) for name in names}


def _over_all_cases(metrics: Mapping[str, SiteMetrics]) -> float:
    """Mean Dice over the test cases of all sites together."""
    cases = sum(row.cases for row in metrics.values())
    return round(sum(row.dice * row.cases for row in metrics.values()) / cases, 6)
