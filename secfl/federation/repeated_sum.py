"""One secure sum that is repeated every round: its clients, terms, threshold and ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from secfl.config import RunConfig
from secfl.crypto.identity import Directory, Identity
from secfl.errors import BelowThreshold, RoundAborted
from secfl.federation.accounts import RunAccounts
from secfl.federation.client import SiteClient
from secfl.federation.coordinator import RoundOutcome, run_round
from secfl.federation.inprocess import InProcessDriver
from secfl.federation.local_work import LocalReport, TrainAndClip
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import RunTerms
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import scheme_for, scheme_spec, sends_before_input
from secfl.federation.server_optimizer import Average
from secfl.randomness import ExperimentSeed, SystemRng
from secfl.segmentation.task import State, Trainer
from secfl.types import ClientId

__all__ = ["RepeatedSum"]

_ATTEMPTS = 8


class RepeatedSum:
    """Opens the mean of what its clients make of one state, round after round.

    Args:
        name: For messages and for the public drop-outs.
        config: The run.
        run: Where envelopes are recorded.
        trainer: What a client does with the state.
        terms: Grid, modulus and digests.
        threshold: Fewest survivors.
        identities: The clients.
        accounts: The ledger of this sum.
        progress: Told how many clients are done.
    """

    def __init__(
        self,
        name: str,
        *,
        config: RunConfig,
        run: RunDirectory,
        trainer: Trainer,
        terms: RunTerms,
        threshold: int,
        identities: Sequence[Identity],
        accounts: RunAccounts,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.name = name
        self.terms = terms
        self.threshold = threshold
        self.accounts = accounts
        self._config = config
        self._run = run
        self._progress = progress
        self._directory = Directory.enroll(identities)
        self._clients = [
            SiteClient(
                identity,
                work=TrainAndClip(
                    identity.name, task=trainer, terms=terms.round_terms, noise_rng=SystemRng()
                ),
                scheme=scheme_for(scheme_spec(config.secure_agg)),
                directory=self._directory,
                terms=terms.round_terms,
                rng=SystemRng(),
            )
            for identity in identities
        ]

    @property
    def reports(self) -> Mapping[str, LocalReport]:
        """What each client reports of the last round."""
        return {client.identity.name: client.report for client in self._clients if client.report is not None}

    def open(self, state: State, *, round_index: int) -> tuple[RoundOutcome, list[ClientId]]:
        """One round, tried again with fresh keys while too few clients remain; also who dropped out.

        Raises:
            RoundAborted: Too few clients remained, again and again; nothing was opened.
        """
        for attempt in range(_ATTEMPTS):
            drops = self._drops(round_index, attempt)
            try:
                return self._attempt(state, round_index, drops), sorted(drops)
            except BelowThreshold:
                self.accounts.abort_round("fewer survivors than the threshold")
        raise RoundAborted(
            f"{self.name}, round {round_index + 1}: too few clients remained in {_ATTEMPTS} attempts; nothing was "
            f"opened; go on by --resume {self._run.root}"
        )

    def _attempt(self, state: State, round_index: int, drops: Mapping[ClientId, int]) -> RoundOutcome:
        round_id = self.accounts.next_round_id()
        recorder = self._run.recorder() if self._config.record else None
        scheme = scheme_spec(self._config.secure_agg)
        return run_round(
            RoundOffer(
                run_id=self.accounts.run_id,
                round_id=round_id,
                round_index=round_index,
                cohort=tuple(sorted(self._directory.keys)),
                threshold=self.threshold,
                scheme=scheme,
                state=state,
            ),
            clients=self._clients,
            scheme=scheme_for(scheme),
            directory=self._directory,
            terms=self.terms.round_terms,
            driver=InProcessDriver(
                drops=drops,
                record=None if recorder is None else lambda phase, sent: recorder(round_id, phase, sent),
            ),
            optimizer=Average(),
            account=self.accounts.round_account(round_index),
            progress=self._progress,
        )

    def _drops(self, round_index: int, attempt: int) -> dict[ClientId, int]:
        """Who falls silent, and after how many sends; from the public seed."""
        if not self._config.dropout:
            return {}
        draw = ExperimentSeed(self._config.seed).generator(f"dropout/{self.name}/{round_index}/{attempt}")
        last = sends_before_input(scheme_spec(self._config.secure_agg))
        names = sorted(self._directory.keys)
        return {
            name: int(draw.random() * (last + 1))
            for name, chance in zip(names, draw.random(len(names)), strict=True)
            if chance < self._config.dropout
        }
