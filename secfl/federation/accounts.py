"""A run's pages of the privacy ledger, in the order in which the federation writes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from secfl._version import __version__
from secfl.config import RunConfig
from secfl.crypto.identity import Identity
from secfl.errors import LedgerCorrupted, LocalProtocolError
from secfl.federation.budgets import run_budget
from secfl.federation.members import Members
from secfl.federation.privacy import RunTerms
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.federation.rundir import RunDirectory
from secfl.federation.schemes import key_mode_name, scheme_for
from secfl.guarantees import Behaviour, View
from secfl.ledger.checkpoints import Panel
from secfl.ledger.entry import Exposure, RunHeader
from secfl.ledger.events import Event
from secfl.ledger.log import PrivacyLedger
from secfl.ledger.reader import replay
from secfl.ledger.site_accounts import SiteAccounts
from secfl.ledger.state import LedgerState, Reservation
from secfl.ledger.views import statements
from secfl.randomness import SystemRng
from secfl.types import PROTOCOL_VERSION, ClientId, RoundId, RoundSpec, join_fields

__all__ = ["RoundAccount", "RunAccounts"]

_PUBLIC = (
    "who took part, who dropped out and when",
    "the model's size and the timing of messages",
    "the global model after every round",
)


class RunAccounts:
    """Opens, resumes and closes the ledger of one simulated run.

    Build it with `create` or `resume`.
    """

    def __init__(
        self,
        ledger: PrivacyLedger | None,
        state: LedgerState,
        *,
        terms: RunTerms,
        members: Members,
    ) -> None:
        self._ledger = ledger
        self._finished_state = state
        self._terms = terms
        self._members = members
        self.signers: Sequence[Identity] | Panel = members.identities
        self._current: RoundAccount | None = None

    @classmethod
    def create(
        cls,
        run: RunDirectory,
        config: RunConfig,
        terms: RunTerms,
        *,
        members: Members,
        threshold: int,
        shared: SiteAccounts | None = None,
        unprotected: Sequence[str] = (),
    ) -> RunAccounts:
        """Start the ledger of a new run, which is charged to the sites' shared accounts where there are any.

        ``unprotected`` says what the run shows without protection, one sentence each; see `evaluation.shown`.
        """
        unprotected = list(unprotected)
        if config.training.drift == "measured":
            unprotected.append("the sum of the squared norms of all updates, every round")
        plan = terms.plan
        header = RunHeader(
            run_id=SystemRng().bytes(16),
            directory=members.directory,
            threshold=threshold,
            scheme=config.secure_agg.scheme.value,
            key_mode=key_mode_name(config.secure_agg),
            custody=members.custody,
            unit=None if plan is None else plan.unit,
            relation=None if plan is None else plan.relation,
            delta=None if plan is None else plan.delta,
            plan=None if plan is None else plan.to_dict(),
            parameters=_parameters(terms, shared),
            digests={
                "code": hashlib.sha256(join_fields(PROTOCOL_VERSION, __version__.encode())).digest(),
                "config": config.digest(),
                "task": terms.round_terms.task_digest,
            },
            public=_PUBLIC,
            unprotected=tuple(unprotected),
            budget=run_budget(config, terms),
            account=None if shared is None else shared.identity,
            software=f"secfl {__version__}",
        )
        ledger = PrivacyLedger.create(run.ledger, header, account=shared)
        return cls(ledger, ledger.state, terms=terms, members=members)

    @classmethod
    def resume(
        cls,
        run: RunDirectory,
        terms: RunTerms,
        *,
        members: Members,
        shared: SiteAccounts | None = None,
    ) -> RunAccounts:
        """Go on with the ledger of an interrupted run; a closed one can still be read.

        Raises:
            ConfigError: The sites' accounts are not those that the run was charged to.
            LedgerCorrupted: The file is missing or does not verify.
        """
        try:
            content = run.ledger.read_bytes()
        except OSError as error:
            raise LedgerCorrupted(None, f"{run.ledger} cannot be read ({error.strerror})") from None
        found = replay(content)
        if found.state.closed is not None and not found.fragment:
            return cls(None, found.state, terms=terms, members=members)
        ledger = PrivacyLedger.open(run.ledger, account=shared)
        return cls(ledger, ledger.state, terms=terms, members=members)

    @property
    def run_id(self) -> bytes:
        """The run's 16 random bytes."""
        return self._state.header.run_id

    @property
    def directory_digest(self) -> bytes:
        """Of the keys that the ledger was begun with."""
        return self._state.header.directory.digest()

    @property
    def attempts(self) -> int:
        """Attempts at rounds so far."""
        return self._state.latest_attempt[0] + 1

    @property
    def aborted(self) -> int:
        """Attempts that ended without a sum."""
        return len(self._state.aborts)

    def next_round_id(self) -> RoundId:
        """One above every round that was ever reserved: keys and noise are never used twice."""
        return RoundId(self._state.latest_attempt[0] + 1)

    def reserved_events(self) -> list[Event]:
        """What each attempt so far was reserved for, whatever became of it."""
        state = self._state
        return [state.terms[one.terms].event for one in state.reservations.values()]

    def round_account(self, round_index: int, announced: Announcement = NOTHING_ANNOUNCED) -> RoundAccount:
        """The pages of the next attempt at a round.

        Raises:
            LocalProtocolError: The ledger is closed.
        """
        if self._ledger is None:
            raise LocalProtocolError("the ledger is closed")
        self._current = RoundAccount(self._ledger, self._terms, round_index=round_index, announced=announced)
        return self._current

    def abort_round(self, reason: str, *, exposure: Exposure = Exposure.INPUTS_SENT) -> None:
        """Settle the attempt that has just ended without a sum."""
        if self._current is not None:
            self._current.abort(reason, exposure=exposure)

    def sign(self) -> None:
        """Have every client co-sign the ledger so far."""
        if self._ledger is not None:
            self._ledger.checkpoint(self.signers)

    def epsilon_so_far(self) -> float | None:
        """ε of the curious aggregator alone; ``None`` without differential privacy."""
        if self._terms.non_private:
            return None
        found = [
            row.epsilon
            for row in statements(self._state)
            if row.view is View.AGGREGATOR and row.adversary is Behaviour.CURIOUS
        ]
        # Where sites differ there is a row for each of them.
        finite = [one for one in found if one is not None and math.isfinite(one)]
        return max(finite) if finite and len(finite) == len(found) else None

    def statements(self) -> list[Mapping[str, Any]]:
        """The ledger's rows, one per adversary."""
        return [row.to_json() for row in statements(self._state)]

    def close(self, reason: str) -> None:
        """Write the co-signed last entry; nothing happens when it is there already."""
        if self._ledger is not None:
            self._ledger.close(co_signers=self.signers, reason=reason)
            self._finished_state = self._ledger.state
            self._ledger = None

    def release(self) -> None:
        """Let the file go without closing the ledger: the run can be resumed."""
        if self._ledger is not None:
            self._ledger.release()

    @property
    def _state(self) -> LedgerState:
        return self._finished_state if self._ledger is None else self._ledger.state


def _parameters(terms: RunTerms, shared: SiteAccounts | None) -> dict[str, Any]:
    """Codec parameters for people (a bound that is not set is left out), and which accounts are charged."""
    grid, weighting = terms.round_terms.grid, terms.round_terms.weighting
    values = {
        "modulus_bits": terms.round_terms.bits,
        "dimension": grid.length,
        "grid_norm": grid.grid_norm,
        "clip_norm": grid.clip_norm,
        "coordinate_bound": grid.coordinate_bound,
        "largest_weight": 1 if weighting is None else weighting.largest,
    }
    stated: dict[str, Any] = {name: value for name, value in values.items() if math.isfinite(value)}
    if shared is not None:
        stated["accounts"] = dict(shared.identities)
    return stated


class RoundAccount:
    """The pages of one attempt at a round: reserve, then commit or abort."""

    def __init__(
        self, ledger: PrivacyLedger, terms: RunTerms, *, round_index: int, announced: Announcement
    ) -> None:
        self._ledger = ledger
        self._terms = terms
        self._round_index = round_index
        self._announced = announced
        self._reservation: Reservation | None = None
        self._committed = False

    def reserve(self, spec: RoundSpec) -> None:
        """Before anybody trains. Planned at the threshold: the aggregator chooses who drops out.

        Raises:
            BudgetExhausted: The budget does not allow another round.
        """
        guarantee = scheme_for(spec.scheme).guarantee(spec, survivors=spec.threshold)
        self._reservation = self._ledger.reserve(
            self._terms.event(self._round_index, self._announced),
            guarantee,
            round_id=spec.round_id,
            spec_digest=spec.digest(),
            digests={"model": spec.model_digest},
        )

    def commit(self, survivors: Sequence[ClientId], *, inputs_digest: bytes) -> None:
        """Before the sum is opened; a second call for the same round does nothing.

        Raises:
            LocalProtocolError: Nothing was reserved.
        """
        if self._reservation is None:
            raise LocalProtocolError("commit before reserve")
        if self._committed:
            return
        releases = self._terms.round_terms.releases
        error = 0.0
        if releases is not None:
            error = releases.sampler_error(self._round_index, self._announced, clients=len(survivors))
        self._ledger.commit(
            self._reservation,
            survivors=survivors,
            sum_digest=inputs_digest,
            wrap_probability=0.0 if releases is None else 2.0**-40,
            total_variation=error,
        )
        self._committed = True

    def abort(self, reason: str, *, exposure: Exposure = Exposure.INPUTS_SENT) -> None:
        """Settle an attempt without a sum; one that was committed stays committed, and spent."""
        if self._reservation is not None and not self._committed:
            self._ledger.abort(self._reservation, exposure=exposure, reason=reason)
