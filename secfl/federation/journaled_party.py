"""A client's party that can be killed after any message and goes on in another process.

Order of every step: the scheme's party takes the request; its new snapshot is sealed and on the disk; the
journal notes request, answer and the snapshot's hash in one record, on the disk; only then the answer leaves.
A process that dies in between either answered (the record is there, and the same request gets the same bytes)
or did not (the record is missing, the snapshot before it is still the pinned one, and nobody has seen anything).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Self

from secfl.crypto.aggregation import (
    Aborted,
    Envelope,
    Finished,
    Party,
    PartyState,
    Running,
    SecureAggregation,
)
from secfl.crypto.identity import Directory, Identity
from secfl.errors import LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.federation.journal import START, Journal, PhaseAfter, request_hash
from secfl.federation.snapshot_vault import SnapshotVault
from secfl.randomness import Rng
from secfl.types import PrivatizedUpdate, RoundSpec

__all__ = ["JournaledParty"]


class JournaledParty:
    """Any scheme's client party under a journal. Make it with `enter`, or with `restore` after a restart.

    It is a `Party`. One process at a time: the journal's lock sees to it.
    """

    def __init__(
        self, spec: RoundSpec, *, journal: Journal, vault: SnapshotVault, inner: Party | None, end: PartyState
    ) -> None:
        self._spec = spec
        self._journal = journal
        self._vault = vault
        self._inner = inner
        self._end = end
        self._sealed = b""

    @classmethod
    def enter(
        cls,
        scheme: SecureAggregation,
        spec: RoundSpec,
        identity: Identity,
        *,
        directory: Directory,
        draw_update: Callable[[], PrivatizedUpdate],
        rng: Rng,
        journal: Journal,
        vault: SnapshotVault,
    ) -> Self:
        """Enter a round: once, with fresh keys and noise that is drawn once.

        Args:
            scheme: How updates are added.
            spec: The round, as this client computed it from what it executes.
            identity: The client's signing key.
            directory: The enrolled keys.
            draw_update: Clips, rounds and adds noise. Called once, after the journal has noted that this
                round's noise is spent; a process that dies after that never draws for this round again.
            rng: Source of the round's keys.
            journal: The client's journal.
            vault: The client's snapshots; those of the run's earlier rounds are destroyed.

        Raises:
            LocalProtocolError: The round was entered before, or the journal cannot be written.
        """
        if journal.client != identity.name:
            raise LocalProtocolError(f"the journal of {journal.client}, expected that of {identity.name}")
        journal.enter(spec)
        vault.destroy_run(spec.run_id)
        journal.spend_noise(spec)
        inner = scheme.client(spec, identity, directory=directory, update=draw_update(), rng=rng)
        return cls(spec, journal=journal, vault=vault, inner=inner, end=inner.state)

    @classmethod
    def restore(
        cls,
        scheme: SecureAggregation,
        spec: RoundSpec,
        *,
        directory: Directory,
        journal: Journal,
        vault: SnapshotVault,
        snapshot: bytes | None = None,
    ) -> Self:
        """Go on with a round that this client entered, in this or another process.

        Args:
            scheme: As when it was entered.
            spec: The same specification as then.
            directory: The enrolled keys.
            journal: The client's journal.
            vault: The client's snapshots.
            snapshot: From `snapshot`, by callers that keep it themselves; by default the vault has it.

        Returns:
            A party that is `Running` where it stood; or `Finished`, which still answers known requests with
            the stored bytes; or `Aborted` when the snapshot is missing or not the one that the journal pins.

        Raises:
            LocalProtocolError: The round was not entered or was entered under another specification.
        """
        entry = journal.entry(spec)
        party = cls(spec, journal=journal, vault=vault, inner=None, end=Finished())
        if entry.finished:
            vault.keep_only(spec, b"")
            return party
        if reason := journal.why_closed(spec):
            return party._abort(reason)
        if not entry.snapshot:
            return party._abort("the process ended before anything was sent; a retry is a new round")
        sealed = vault.load(spec, entry.snapshot) if snapshot is None else snapshot
        if sealed is None or not hmac.compare_digest(hashlib.sha256(sealed).digest(), entry.snapshot):
            return party._abort("the snapshot is not the one that belongs to the journal's last entry")
        party._inner = scheme.restore(spec, directory=directory, snapshot=vault.open(spec, sealed))
        party._end = party._inner.state
        party._sealed = sealed
        vault.keep_only(spec, entry.snapshot)
        return party

    def __repr__(self) -> str:
        return f"JournaledParty({self._journal.client}, {self.state!r})"

    @property
    def state(self) -> PartyState:
        """Where the party stands; `Aborted` also when the journal does not let it go on."""
        return self._end

    def start(self) -> list[Envelope]:
        """The first envelopes; from the journal when they were made before."""
        stored = self._journal.stored(self._spec, START)
        if stored is not None:
            return stored
        return self._step(START, self._journal.client, lambda inner: inner.start())

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Take one request, or answer a known one with the stored bytes.

        Raises:
            RemoteProtocolError: The scheme refuses it, or it contradicts an answered one: kept as evidence.
            LocalProtocolError: It is addressed to somebody else, or the disk refuses; nothing is sent then,
                and the round goes on after `restore`.
        """
        if envelope.recipient != self._journal.client:
            raise LocalProtocolError(
                f"{self._journal.client}: an envelope for {envelope.recipient} was delivered here"
            )
        request = request_hash(envelope)
        stored = self._journal.stored(self._spec, request)
        if stored is not None:
            return stored
        if isinstance(self._end, Finished):
            raise RemoteProtocolError(envelope.sender, "a new request after everything was said")
        return self._step(request, envelope.sender, lambda inner: inner.receive(envelope))

    def phase_over(self) -> list[Envelope]:
        """Pass a deadline on; clients have none in the schemes of secfl."""
        if self._inner is None or isinstance(self._end, Finished | Aborted):
            return []
        request = hashlib.sha256(b"secfl/v1/journal/phase-over/" + _phase(self._inner).encode()).digest()
        stored = self._journal.stored(self._spec, request)
        if stored is not None:
            return stored
        return self._step(request, self._journal.client, lambda inner: inner.phase_over())

    def snapshot(self) -> bytes:
        """The sealed snapshot that the journal pins.

        Raises:
            LocalProtocolError: Nothing was sent yet, or the round's secrets are destroyed.
        """
        if not self._sealed:
            raise LocalProtocolError(f"{self._journal.client}: there is nothing to go on from")
        return self._sealed

    def _step(self, request: bytes, sender: str, act: Callable[[Party], list[Envelope]]) -> list[Envelope]:
        if self._inner is None or isinstance(self._end, Aborted):
            return []  # it says nothing any more; its state tells why
        phase = _phase(self._inner)
        self._journal.check_new(self._spec, phase=phase, request=request, sender=sender)
        try:
            envelopes = act(self._inner)
        except RemoteProtocolError as error:
            self._journal.refuse(
                self._spec, phase=phase, request=request, sender=error.peer, reason=error.reason
            )
            raise
        try:
            self._commit(phase, request, envelopes)
        except BaseException as error:
            # The scheme's party has gone on and the disk has not: only the pinned snapshot may continue.
            self._inner, self._sealed = None, b""
            self._end = Aborted(RoundAborted(f"{self._journal.client}: {str(error) or 'interrupted'}"))
            raise
        return envelopes

    def _commit(self, phase: str, request: bytes, envelopes: list[Envelope]) -> None:
        assert self._inner is not None
        state = self._inner.state
        if isinstance(state, Aborted):
            self._abort(str(state.reason))
            return
        sealed, pinned = b"", b""
        if isinstance(state, Running):
            sealed = self._vault.seal(self._spec, self._inner.snapshot())
            pinned = self._vault.store(self._spec, sealed)
        went_on = _phase(self._inner) != phase  # else the scheme's party says what it still takes
        self._journal.record(
            self._spec,
            phase=phase,
            request=request,
            envelopes=envelopes,
            snapshot=pinned,
            after=PhaseAfter.CLOSED if went_on else PhaseAfter.OPEN,
        )
        self._end, self._sealed = state, sealed
        self._vault.keep_only(self._spec, pinned)
        if isinstance(state, Finished):
            self._inner = None

    def _abort(self, reason: str) -> Self:
        self._journal.abandon(self._spec, reason)
        self._vault.keep_only(self._spec, b"")
        self._inner, self._sealed = None, b""
        self._end = Aborted(RoundAborted(f"{self._journal.client}: {reason}"))
        return self


def _phase(party: Party) -> str:
    state = party.state
    return state.phase if isinstance(state, Running) else "end"
