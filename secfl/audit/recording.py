"""What was recorded of a run: every envelope as its recipient got it, and a driver that records.

`RecordingDriver` wraps any driver. A run with ``--record`` leaves the same as files (`read_run_recording`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secfl.crypto.aggregation import Envelope, Party, PartyState, Running
from secfl.errors import DataError
from secfl.federation.driver import Carriage, Driver, Watch
from secfl.federation.rundir import RUN_FORMAT_VERSION
from secfl.types import AGGREGATOR, ClientId

__all__ = ["Recorded", "Recording", "RecordingDriver", "read_run_recording"]

_MOST_BYTES = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One envelope.

    Attributes:
        round_id: Of which round.
        sender: Who sent it.
        recipient: To whom.
        payload: Its bytes.
    """

    round_id: int
    sender: str
    recipient: str
    payload: bytes = field(repr=False)


@dataclass(slots=True)
class Recording:
    """Envelopes in the order in which they were sent."""

    envelopes: list[Recorded] = field(default_factory=list)

    def seen_by(self, party: str) -> list[Recorded]:
        """What one party received."""
        return [one for one in self.envelopes if one.recipient == party]

    @property
    def rounds(self) -> list[int]:
        """Round ids in order."""
        return sorted({one.round_id for one in self.envelopes})


class RecordingDriver:
    """Carries with another driver and keeps exactly what each party was sent.

    Args:
        inner: The driver that carries.
        recording: Where envelopes are kept; one recording may serve many rounds.
        round_id: Of the round to be carried.
    """

    def __init__(self, inner: Driver, recording: Recording, *, round_id: int) -> None:
        self._inner = inner
        self._recording = recording
        self._round_id = round_id

    def carry(self, aggregator: Party, clients: Mapping[ClientId, Party], *, watch: Watch) -> Carriage:
        """Carry one round; see `Driver.carry`."""
        heard = {name: _Listening(party, self._keep) for name, party in clients.items()}
        return self._inner.carry(_Listening(aggregator, self._keep), heard, watch=watch)

    def _keep(self, envelope: Envelope) -> None:
        self._recording.envelopes.append(
            Recorded(
                round_id=self._round_id,
                sender=envelope.sender,
                recipient=envelope.recipient,
                payload=envelope.payload,
            )
        )


class _Listening:
    """A party whose incoming envelopes are kept."""

    def __init__(self, inner: Party, keep: object) -> None:
        self._inner = inner
        self._keep = keep

    @property
    def state(self) -> PartyState:
        """As inside."""
        return self._inner.state

    def start(self) -> list[Envelope]:
        """As inside."""
        return self._inner.start()

    def receive(self, envelope: Envelope) -> list[Envelope]:
        """Keep, then as inside."""
        assert callable(self._keep)
        self._keep(envelope)
        return self._inner.receive(envelope)

    def phase_over(self) -> list[Envelope]:
        """As inside."""
        return self._inner.phase_over()

    def snapshot(self) -> bytes:
        """As inside."""
        return self._inner.snapshot()


def read_run_recording(run: Path) -> Recording:
    """The recording of a run with ``--record``.

    Raises:
        DataError: The run was not recorded, or the recording is damaged; the message names the file.
    """
    folder = run / "transcript"
    manifest = folder / "manifest.jsonl"
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{manifest}: missing; expected a run with --record") from None
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{manifest}: cannot be read") from None
    recording = Recording()
    for number, line in enumerate(lines, start=1):
        recording.envelopes.append(_one(folder, manifest, number, line))
    if not recording.envelopes:
        raise DataError(f"{manifest}: empty; expected one line per envelope")
    return recording


def _one(folder: Path, manifest: Path, number: int, line: str) -> Recorded:
    try:
        row = json.loads(line)
        version, name, size = row["format_version"], row["file"], row["bytes"]
        sender, recipient, round_id = row["sender"], row["recipient"], row["round"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{manifest}: line {number} is damaged") from None
    if not isinstance(version, int) or version > RUN_FORMAT_VERSION:
        raise DataError(f"{manifest}: line {number}: a newer format than this secfl reads; upgrade secfl")
    strings = all(isinstance(value, str) for value in (name, sender, recipient))
    numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in (size, round_id))
    if not strings or not numbers or Path(name).name != name or not 0 <= size <= _MOST_BYTES:
        raise DataError(f"{manifest}: line {number} is damaged")
    path = folder / name
    try:
        payload = path.read_bytes()
    except OSError:
        raise DataError(f"{path}: cannot be read; the manifest names it in line {number}") from None
    if len(payload) != size:
        raise DataError(f"{path}: {len(payload)} bytes, the manifest says {size}")
    return Recorded(round_id=round_id, sender=sender, recipient=recipient, payload=payload)


def is_from_client(one: Recorded) -> bool:
    """Whether a client sent it (not the aggregator, which only relays)."""
    return one.sender != AGGREGATOR


def phase_of(state: PartyState) -> str:
    """The phase of a running party, for people."""
    return state.phase if isinstance(state, Running) else "end"
