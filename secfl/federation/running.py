"""The rounds of a simulated run, from the last checkpoint to the closed ledger and the summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from secfl.config import DpMode, RunConfig, Scheme
from secfl.errors import (
    BelowThreshold,
    BudgetExhausted,
    ConfigError,
    PrivacyError,
    RoundAborted,
    SitesDecline,
)
from secfl.federation import checkpoint, early_stopping, evaluation, personal, summary
from secfl.federation.accounts import RunAccounts
from secfl.federation.adaptive_run import AdaptiveRun
from secfl.federation.coordinator import RoundOutcome, run_round
from secfl.federation.engines import RoundEngine, RunSetting, open_engine
from secfl.federation.guard import Guard
from secfl.federation.local_work import LocalReport
from secfl.federation.members import Members
from secfl.federation.observer import Observer, RoundReport, RunInfo, Times
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import RunTerms
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import key_mode_name, scheme_for, scheme_spec, sends_before_input
from secfl.federation.server_optimizer import ServerOptimizer
from secfl.federation.state import count_parameters
from secfl.ledger.entry import Exposure
from secfl.randomness import ExperimentSeed
from secfl.segmentation.task import SiteMetrics, State, Task
from secfl.types import ClientId

__all__ = ["Simulation"]

_ATTEMPTS = 8
"""How often a round of training is tried again when too few clients remain."""


@dataclass(slots=True, kw_only=True)
class Simulation:
    """The state of one run between rounds."""

    config: RunConfig
    run: RunDirectory
    task: Task
    terms: RunTerms
    threshold: int
    members: Members
    accounts: RunAccounts
    observer: Observer
    state: State
    optimizer: ServerOptimizer
    task_factory: str | None = None
    opener: Callable[[RunSetting], AbstractContextManager[RoundEngine]] = open_engine
    guard: Guard | None = None
    rounds_completed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    adaptive: AdaptiveRun = field(init=False)
    announced: Announcement = field(init=False, default=NOTHING_ANNOUNCED)

    def __post_init__(self) -> None:
        self.adaptive = AdaptiveRun(self.config, self.terms.round_terms.releases, self.task)

    def go_back_to_checkpoint(self) -> None:
        """Load the last checkpoint and forget what came after it.

        Raises:
            ConfigError: The checkpoint belongs to another configuration.
        """
        path = checkpoint.latest_checkpoint(self.run.checkpoints)
        if path is not None:
            loaded = checkpoint.load(path)
            if loaded.config_digest != self.config.digest().hex():
                raise ConfigError(f"{path}: belongs to another configuration than config.toml")
            self.state = loaded.state
            self.optimizer.load(self.adaptive.take(loaded.optimizer))
            self.rounds_completed = loaded.rounds_completed
            personal.load_personal(self.task, self.run.sites, rounds=self.rounds_completed)
        self.adaptive.charge_again(self.accounts.reserved_events())
        self.rows = self.run.keep_metrics(self.rounds_completed)

    def run_to_the_end(self) -> dict[str, Any]:
        """The remaining rounds, then evaluation, summary and the ledger's close."""
        config, task = self.config, self.task
        rounds = self.terms.rounds
        scheme = config.secure_agg.scheme
        self.observer.run_started(
            RunInfo(
                run=self.run.root,
                sites=tuple(task.sites),
                rounds=rounds,
                first_round=self.rounds_completed,
                parameters=count_parameters(self.state),
                scheme=scheme.value,
                key_mode=key_mode_name(config.secure_agg),
                threshold=self.threshold,
                privacy=self.terms.sentence,
            )
        )
        self._say(self.terms.sentence)
        for text in evaluation.describe(task):
            self._say(text)
        if scheme is Scheme.PLAIN:
            self._say("plain: the aggregator reads every update; for comparison only")
        for note in self.notes:
            self._say(note)
        try:
            return self._finish(*self._rounds())
        finally:
            self.accounts.release()

    def _rounds(self) -> tuple[str, str]:
        """Round after round; returns why it stopped, in one word and in a sentence."""
        setting = RunSetting(
            config=self.config,
            run=self.run,
            run_id=self.accounts.run_id,
            task=self.task,
            task_factory=self.task_factory,
            terms=self.terms,
            members=self.members,
            guard=self.guard,
            entered=self.accounts.attempts,
        )
        stopped = "completed", "all rounds completed"
        patience = self.config.training.early_stopping
        with self.opener(setting) as engine:
            self.accounts.signers = self.members.identities or engine.panel
            while self.rounds_completed < self.terms.rounds:
                if patience is not None and early_stopping.is_over(self.rows, patience=patience):
                    stopped = "early", f"no better Dice on public images for {patience} rounds"
                    self._say(stopped[1])
                    break
                try:
                    self._round(engine)
                except BudgetExhausted as refusal:
                    stopped = "budget", f"the privacy budget is spent: {refusal}"
                    self._say(stopped[1])
                    break
        return stopped

    def _say(self, text: str) -> None:
        self.run.log(text)
        self.observer.message(text)

    def _round(self, engine: RoundEngine) -> None:
        """One round of training, tried again with fresh keys while too few clients remain."""
        index = self.rounds_completed
        began = time.perf_counter()
        outcome: RoundOutcome | None = None
        for attempt in range(_ATTEMPTS):
            drops = self._drops(index, attempt)
            try:
                outcome = self._attempt(engine, index, drops)
                break
            except PrivacyError:
                # A site refuses before it works, and nothing is carried before all have worked.
                self.accounts.abort_round("a site refused it", exposure=Exposure.NOTHING_SENT)
                raise
            except SitesDecline as refusal:
                # Those that did not decline may have sent what the scheme's first message holds.
                self.accounts.abort_round("too few sites allow it")
                raise BudgetExhausted(str(refusal)) from None
            except BelowThreshold as reason:
                self.accounts.abort_round("fewer survivors than the threshold")
                self._say(f"round {index + 1}: aborted, nothing was opened ({reason}); trying again")
        if outcome is None:
            raise RoundAborted(
                f"round {index + 1}: too few clients remained in {_ATTEMPTS} attempts; nothing was opened; "
                f"go on by --resume {self.run.root}"
            )
        self._keep(outcome, engine, index=index, began=began)

    def _attempt(self, engine: RoundEngine, index: int, drops: dict[ClientId, int]) -> RoundOutcome:
        directory = self.members.directory
        round_id = self.accounts.next_round_id()
        recorder = self.run.recorder() if self.config.record else None
        self.announced = self.adaptive.announce()
        return run_round(
            RoundOffer(
                run_id=self.accounts.run_id,
                round_id=round_id,
                round_index=index,
                cohort=tuple(sorted(directory.keys)),
                threshold=self.threshold,
                scheme=scheme_spec(self.config.secure_agg),
                state=self.state,
                announced=self.announced,
            ),
            clients=engine.clients,
            scheme=scheme_for(scheme_spec(self.config.secure_agg)),
            directory=directory,
            terms=self.terms.round_terms,
            driver=engine.driver(
                drops=drops,
                record=None if recorder is None else lambda phase, sent: recorder(round_id, phase, sent),
            ),
            optimizer=self.optimizer,
            account=self.accounts.round_account(index, self.announced),
            progress=self.observer.phase,
        )

    def _drops(self, index: int, attempt: int) -> dict[ClientId, int]:
        """Who falls silent before it has sent its input, and after how many sends; from the public seed."""
        if not self.config.dropout:
            return {}
        generator = ExperimentSeed(self.config.seed).generator(f"dropout/{index}/{attempt}")
        last, names = sends_before_input(scheme_spec(self.config.secure_agg)), self.members.names
        return {
            name: int(generator.random() * (last + 1))
            for name, chance in zip(names, generator.random(len(names)), strict=True)
            if chance < self.config.dropout
        }

    def _keep(
        self,
        outcome: RoundOutcome,
        engine: RoundEngine,
        *,
        index: int,
        began: float,
    ) -> None:
        """Write down a finished round. The checkpoint comes last: without it the round is run again."""
        self.state = outcome.state
        dropped = sorted(set(self.members.names) - set(outcome.survivors))
        self.adaptive.observe(self.state, round_index=index, clip_bits=outcome.clip_bits)
        self.rounds_completed = index + 1
        reports = {client.name: client.report or LocalReport() for client in engine.clients}
        error = summary.encoding_error(outcome, {name: reports[name] for name in outcome.survivors})
        evaluated = self._evaluates(index)
        metrics = self._metrics() if evaluated else {}
        carriage = outcome.carriage
        times = Times(
            train=sum(report.train_seconds for report in reports.values()),
            protect=sum(report.protect_seconds for report in reports.values()) + carriage.client_seconds,
            aggregate=carriage.aggregator_seconds,
            open=carriage.opening_seconds,
            total=time.perf_counter() - began,
        )
        row: dict[str, Any] = {
            "round": index,
            "evaluation_only": summary.evaluation_only(metrics) if evaluated else None,
            "survivors": list(outcome.survivors),
            "dropped": dropped,
            "bytes_up": dict(sorted(carriage.bytes_up.items())),
            "bytes_down": dict(sorted(carriage.bytes_down.items())),
            "seconds": times.as_dict(),
            "clipped_fraction": max(report.clipped_fraction for report in reports.values()),
            "relative_error": error,
            **self.adaptive.report(self.announced),
            **({} if outcome.drift is None else {"drift": round(outcome.drift, 6)}),
            **early_stopping.measure(self.config, self.task, self.state, evaluated=evaluated),
        }
        self.run.add_metrics(row)
        self.rows.append(row)
        digest = self.config.digest().hex()
        early_stopping.keep_best(self.rows, self.run, self.state, config_digest=digest)
        personal.store_personal(self.task, self.run.sites, rounds=self.rounds_completed, config_digest=digest)
        checkpoint.store(
            self.run.checkpoints / f"round-{index + 1:05d}.safetensors",
            checkpoint.Checkpoint(
                state=self.state,
                rounds_completed=self.rounds_completed,
                config_digest=digest,
                optimizer={**self.optimizer.arrays(), **self.adaptive.arrays()},
            ),
        )
        self._forget_old_checkpoints()
        dice = row["evaluation_only"]["dice"]["mean"] if evaluated else None
        drift = "" if outcome.drift is None else f", RMS drift {outcome.drift:.3f}"
        self.run.log(f"round {index + 1}: Dice {dice}, survivors {len(outcome.survivors)}{drift}")
        if evaluated:
            self.accounts.sign()
        self.observer.round_finished(
            RoundReport(
                round_index=index,
                rounds=self.terms.rounds,
                dice=dice,
                bytes_up=sum(carriage.bytes_up.values()),
                epsilon=self.accounts.epsilon_so_far() if evaluated else None,
                survivors=outcome.survivors,
                dropped=tuple(dropped),
                seconds=times,
            )
        )

    def _evaluates(self, index: int) -> bool:
        """Whether the model is evaluated, and the ledger co-signed, after this round."""
        private = self.config.privacy.mode is DpMode.PATIENT
        every = self.config.evaluate_every or (20 if private else 1)
        return (index + 1) % every == 0 or index + 1 == self.terms.rounds

    def _metrics(self) -> dict[str, SiteMetrics]:
        """Metrics of the current model on every site."""
        self.observer.phase("evaluating", 0, 1)
        return evaluation.evaluate(self.task, self.state)

    def _forget_old_checkpoints(self) -> None:
        for path in sorted(self.run.checkpoints.glob("round-*.safetensors"))[:-2]:
            path.unlink()

    def _finish(self, reason: str, stopped: str) -> dict[str, Any]:
        """References, previews, the final model, the ledger's close and the summary, in this order."""
        config, run = self.config, self.run
        digest = config.digest().hex()
        self.state = early_stopping.best(config, self.rows, self.run, otherwise=self.state)
        found = None
        if config.references:
            found = evaluation.references(
                self.task,
                run,
                rounds=config.training.rounds,
                config_digest=digest,
                progress=self.observer.phase,
            )
            if found is None:
                self._say("no references: masks are at the sites, this process reads none")
        if self.task.is_phantom or config.include_images:
            evaluation.write_previews(self.task, run, self.state)
        else:
            self._say("no previews: the images are not a phantom (--include-images writes them)")
        checkpoint.store(
            run.checkpoints / "final.safetensors",
            checkpoint.Checkpoint(
                state=self.state, rounds_completed=self.rounds_completed, config_digest=digest
            ),
        )
        self.accounts.close(stopped)
        document = summary.build(
            config=config,
            terms=self.terms,
            threshold=self.threshold,
            sites=self.task.sites,
            state=self.state,
            rows=self.rows,
            metrics=evaluation.evaluate(self.task, self.state),
            references=found,
            statements=self.accounts.statements(),
            rounds_aborted=self.accounts.aborted,
            reason=reason,
            stopped=stopped,
        )
        document |= {"simulated": bool(self.members.identities), **self.facts}
        run.write_summary(document)
        run.forget_identities()
        self.run.log(f"finished: {stopped}")
        return document
