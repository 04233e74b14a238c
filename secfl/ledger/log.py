"""The privacy ledger as a program uses it: reserve before a round, commit before its sum is opened, close.

    with PrivacyLedger.create(path, header) as ledger:
        reservation = ledger.reserve(event, guarantee)
        ...                                     # the round, up to the point where the sum could be opened
        ledger.commit(reservation, survivors=("a", "b", "c"))
        ...                                     # open the sum
        ledger.close(co_signers=identities)

Whatever is not settled counts as spent: a crash after `reserve` costs the round's privacy whether or not
anything was opened.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from secfl.crypto.identity import Identity
from secfl.errors import ConfigError, LedgerCorrupted, LocalProtocolError, PrivacyError
from secfl.guarantees import Adversary, Guarantee
from secfl.ledger.accounts import Account
from secfl.ledger.canonical import canonical
from secfl.ledger.checkpoints import Checkpoint, CoSigner, Panel
from secfl.ledger.entry import (
    EntryType,
    Exposure,
    RunHeader,
    guarantee_to_json,
)
from secfl.ledger.events import Event
from secfl.ledger.sights import sampler_error
from secfl.ledger.signing import CoSigners
from secfl.ledger.site_accounts import SiteAccounts
from secfl.ledger.state import LedgerState, Reservation, Terms, check_terms
from secfl.ledger.statement import Statement
from secfl.ledger.storage import LedgerFile
from secfl.ledger.views import planned_charge, statements, statements_about
from secfl.ledger.writing import check_account, check_resumable, make_entry, meter_of, recover
from secfl.types import join_fields

__all__ = ["PrivacyLedger", "utc_now"]


def utc_now() -> str:
    """The time in UTC, to the second, as the ledger writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class PrivacyLedger:
    """One run's ledger, held by one writer. Make it with `create` or `open`; use it as a context manager.

    Every method that writes returns after the entry is on the disk.
    """

    def __init__(
        self,
        file: LedgerFile,
        state: LedgerState,
        *,
        account: Account | SiteAccounts | None,
        clock: Callable[[], str],
    ) -> None:
        self._file = file
        self._state = state
        self._clock = clock
        self._account = account
        self._meter = meter_of(state)
        self._co_signers = CoSigners(state.header.run_id)

    @classmethod
    def create(
        cls,
        path: Path | str,
        header: RunHeader,
        *,
        account: Account | SiteAccounts | None = None,
        clock: Callable[[], str] = utc_now,
    ) -> PrivacyLedger:
        """Start the ledger of a new run.

        Args:
            path: The file.
            header: What holds for the whole run; names the account, if there is one.
            account: Every reservation is charged to it (or to each site's) first, across runs.
            clock: Gives the time of entries.

        Raises:
            ConfigError: The file exists, cannot be written, or is held by another process; or header and
                account do not belong together.
        """
        path = Path(path)
        check_account(header, account)
        state = LedgerState()
        line, entry = make_entry(state, EntryType.OPEN, header.to_json(), clock())
        state.apply(entry)
        file = LedgerFile(path)
        try:
            file.create(line)
        except BaseException:
            file.release()
            raise
        return cls(file, state, account=account, clock=clock)

    @classmethod
    def open(
        cls,
        path: Path | str,
        header: RunHeader | None = None,
        *,
        account: Account | SiteAccounts | None = None,
        clock: Callable[[], str] = utc_now,
    ) -> PrivacyLedger:
        """Go on with a ledger, after a clean stop or a crash; with a header, create it when it is missing.

        A torn last line becomes a ``recovered`` entry, which counts as one spent round under the latest
        terms. Nothing is ever dropped.

        Raises:
            ConfigError: No such file, it is held by another process, or its header differs from ``header``.
            LedgerCorrupted: The file does not verify.
            LocalProtocolError: The ledger is closed.
        """
        path = Path(path)
        if not path.exists():
            if header is None:
                raise ConfigError(f"{path}: no such ledger")
            return cls.create(path, header, account=account, clock=clock)
        file = LedgerFile(path)
        try:
            state = recover(file, clock)
            check_resumable(state, header, path)
            check_account(state.header, account)
        except BaseException:
            file.release()
            raise
        return cls(file, state, account=account, clock=clock)

    @property
    def header(self) -> RunHeader:
        """What holds for the whole run."""
        return self._state.header

    @property
    def state(self) -> LedgerState:
        """Everything recorded so far; read only."""
        return self._state

    def reserve(
        self,
        event: Event,
        guarantee: Guarantee,
        *,
        round_id: int | None = None,
        attempt: int = 0,
        spec_digest: bytes | None = None,
        digests: Mapping[str, bytes] | None = None,
        unprotected: Sequence[str] = (),
    ) -> Reservation:
        """Write down what a round is about to release. Call it before anything is sent.

        The same attempt again (same round, attempt and spec digest), as after a crash, returns the
        reservation that exists: a byte-identical resend counts once.

        Args:
            event: What the round releases, with the noise that all planned clients add together.
            guarantee: What the scheme promises; its number of survivors is not used, the commit's is.
            round_id: The round; by default the one after the last.
            attempt: Anything but a byte-identical resend is a new attempt with fresh noise.
            spec_digest: Digest of the round's specification, 32 bytes; by default of run, round and attempt.
            digests: Further digests by name, for example ``model``.
            unprotected: What this round uses or shows without protection, one sentence each.

        Raises:
            BudgetExhausted: The run's budget, or that of its account, does not allow it.
            UnsupportedEvent: No sound accounting is known for the event.
            PrivacyError: The guarantee claims more than its scheme gives, or contradicts the header.
            LocalProtocolError: The attempt exists with another spec digest or other terms, or comes out of order.
        """
        state = self._state
        round_id = state.latest_attempt[0] + 1 if round_id is None else round_id
        if spec_digest is None:
            spec_digest = hashlib.sha256(
                join_fields(b"ledger-round", self.header.run_id, struct.pack("<QQ", round_id, attempt))
            ).digest()
        terms = _terms_body(Terms(index=-1, event=event, guarantee=guarantee, unprotected=tuple(unprotected)))
        existing = state.by_attempt.get((round_id, attempt))
        if existing is not None:
            return self._resend(existing, spec_digest, terms)
        check_terms(self.header, event, guarantee)
        terms_index = self._find_terms(terms)
        if terms_index is None:
            # Terms alone release nothing, so they may stay even if the reservation is refused.
            terms_index = state.size
            self._append((EntryType.TERMS, terms))
        body = {
            "round": round_id,
            "attempt": attempt,
            "terms": terms_index,
            "spec_digest": spec_digest.hex(),
            "digests": {name: digest.hex() for name, digest in (digests or {}).items()},
        }
        try:
            state.check_reserve(state.size, body)
        except LedgerCorrupted as error:
            raise LocalProtocolError(f"ledger: {error.reason}") from None
        with self._charged(state.terms[terms_index], round_id, attempt, spec_digest):
            self._append((EntryType.RESERVE, body))
        return state.by_attempt[round_id, attempt]

    @contextmanager
    def _charged(self, terms: Terms, round_id: int, attempt: int, spec_digest: bytes) -> Iterator[None]:
        """Check both budgets and charge the account, all while the account is held."""
        header = self.header
        charge = None if header.budget is None else planned_charge(terms, header.budget)
        if charge is not None and self._meter is not None:
            self._meter.require(charge)
        if self._account is None:
            yield
        else:
            with self._account.charging(
                lambda budget: planned_charge(terms, budget),
                run_id=header.run_id,
                round_id=round_id,
                attempt=attempt,
                spec_digest=spec_digest,
            ):
                yield
        if charge is not None and self._meter is not None:
            self._meter.add(charge)

    def commit(
        self,
        reservation: Reservation,
        *,
        survivors: Sequence[str] | None = None,
        sum_digest: bytes = bytes(32),
        wrap_probability: float = 0.0,
        total_variation: float = 0.0,
    ) -> None:
        """Write down whose inputs the sum holds. Call it before the sum is opened.

        Args:
            reservation: From `reserve`.
            survivors: The clients whose inputs are summed; the whole cohort by default.
            sum_digest: SHA-256 of the sum as it will be opened, where it is known beforehand, else zeros.
            wrap_probability: Probability that the sum wrapped (costs utility, not privacy).
            total_variation: Distance of all drawn noise of this round from the ideal noise.

        Raises:
            PrivacyError: There is a budget, and the noise was further from ideal than reserved.
            LocalProtocolError: The reservation was settled otherwise before (the same commit again is fine), or
                the survivors are too few or not of the cohort.
        """
        body = {
            "reservation": reservation.index,
            "survivors": sorted(self.header.cohort if survivors is None else survivors),
            "sum_digest": sum_digest.hex(),
            "wrap_probability": wrap_probability,
            "total_variation": total_variation,
        }
        done = self._state.commits.get(reservation.index)
        if done is not None:
            if list(done.survivors) == body["survivors"] and done.sum_digest == sum_digest:
                return
            raise LocalProtocolError(f"round {reservation.round_id}: committed before with another result")
        self._check_variation(reservation, total_variation)
        self._append((EntryType.COMMIT, body))

    def abort(self, reservation: Reservation, *, exposure: Exposure, reason: str) -> None:
        """Settle an attempt that was given up.

        It is free for everybody only if nothing was sent. Inputs that were sent count for those who could
        read single inputs; after unmasking shares were sent it counts like an opened sum.
        """
        self._append(
            (
                EntryType.ABORT,
                {"reservation": reservation.index, "exposure": exposure.value, "reason": reason},
            )
        )
        self._meter = meter_of(self._state)

    def checkpoint(self, co_signers: Sequence[CoSigner | Identity] | Panel) -> Checkpoint:
        """Have the log so far signed, by a panel or one client after the other; they keep what they sign.

        Raises:
            RemoteProtocolError: A client refuses, because it signed something that does not fit.
        """
        return self._sign_and_append("checkpoint", co_signers, "")

    def close(
        self, *, co_signers: Sequence[CoSigner | Identity] | Panel, reason: str = "the run is finished"
    ) -> Checkpoint:
        """Write the co-signed last entry and let the file go.

        Raises:
            LocalProtocolError: Fewer signers than the threshold; nothing is written.
        """
        checkpoint = self._sign_and_append("close", co_signers, reason)
        self.release()
        return checkpoint

    def statements(self, delta: float | None = None) -> list[Statement]:
        """One row per adversary, as things stand; see `secfl.ledger.views.statements`."""
        return statements(self._state, delta)

    def statement(self, adversary: Adversary, delta: float | None = None) -> Statement:
        """One adversary's row, which is quicker than all; that of the first site where sites differ."""
        return statements_about(self._state, [adversary], delta)[0]

    def release(self) -> None:
        """Stop writing without closing the ledger: the run can be resumed."""
        self._file.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _check_variation(self, reservation: Reservation, total_variation: float) -> None:
        """What a budget was charged for must not grow afterwards."""
        if self.header.budget is None and self._account is None:
            return
        terms = self._state.terms[self._state.reservations[reservation.index].terms]
        if total_variation > sampler_error(terms.event, shares=len(self.header.cohort)) * (1 + 1e-9):
            raise PrivacyError("commit: total_variation exceeds what the event's sampler_error reserved")

    def _find_terms(self, wanted: Mapping[str, Any]) -> int | None:
        latest = self._state.latest_terms
        if latest is None:
            return None
        return latest.index if canonical(_terms_body(latest)) == canonical(wanted) else None

    def _resend(self, existing: Reservation, spec_digest: bytes, terms: Mapping[str, Any]) -> Reservation:
        name = f"round {existing.round_id}, attempt {existing.attempt}"
        if existing.spec_digest != spec_digest:
            raise LocalProtocolError(f"{name}: reserved before with another specification; use a new attempt")
        if existing.index in self._state.aborts:
            raise LocalProtocolError(f"{name}: given up before; use a new attempt")
        if canonical(_terms_body(self._state.terms[existing.terms])) != canonical(terms):
            raise LocalProtocolError(f"{name}: reserved before under other terms; use a new attempt")
        return existing

    def _sign_and_append(
        self, kind: str, co_signers: Sequence[CoSigner | Identity] | Panel, reason: str
    ) -> Checkpoint:
        signed = self._co_signers.sign(self._state, co_signers, kind=kind, time=self._clock(), reason=reason)
        self._append((EntryType(kind), signed.body()), time=signed.time)
        return signed

    def _append(self, *bodies: tuple[EntryType, dict[str, Any]], time: str | None = None) -> None:
        """Check against everything before, write, and wait for the disk.

        Entries that were accepted are written even if a later one is refused: the file follows the state.
        """
        self._file.require_held()
        time = self._clock() if time is None else time
        lines: list[bytes] = []
        try:
            for kind, body in bodies:
                line, entry = make_entry(self._state, kind, body, time)
                self._state.apply(entry)
                lines.append(line + b"\n")
        except LedgerCorrupted as error:
            raise LocalProtocolError(f"ledger: {error.reason}") from None
        finally:
            if lines:
                self._file.append(b"".join(lines))


def _terms_body(terms: Terms) -> dict[str, Any]:
    return {
        "event": terms.event.to_json(),
        "guarantee": guarantee_to_json(terms.guarantee),
        "unprotected": list(terms.unprotected),
    }
