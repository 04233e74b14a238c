"""What a journal knows of its rounds, as it lies in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from secfl.federation.journal_file import StoredRecord

__all__ = ["Answer", "PhaseAfter", "Refusal", "RoundEntry"]


class PhaseAfter(StrEnum):
    """What an answer does to the phase in which it was given."""

    OPEN = "open"
    """The party waits for more of the same phase; what it still takes is the scheme's own rule."""

    CLOSED = "closed"
    """The party went on: any other request in this phase is a contradiction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request that was taken, and where what it caused is stored; ``None`` when that is forgotten.

    Attributes:
        phase: The phase in which the party was.
        request: `request_hash` of the request, or `START`.
        snapshot: SHA-256 of the sealed snapshot of the party after it; empty when the party was done.
        after: Whether another request in this phase is a contradiction.
    """

    phase: str
    request: bytes
    snapshot: bytes
    after: PhaseAfter
    record: StoredRecord | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that contradicted an answered one, kept as evidence."""

    phase: str
    request: bytes
    sender: str
    reason: str


@dataclass(slots=True, kw_only=True)
class RoundEntry:
    """What the journal knows of one round.

    Attributes:
        spec_digest: The only specification that this round can have for this client.
        noise_spent: Whether its noise was drawn.
        answers: Everything that was answered, by request.
        refusals: Contradictions, the first `MAX_REFUSALS`.
        abandoned: Why the client left the round; empty while it has not.
    """

    spec_digest: bytes
    noise_spent: bool = False
    answers: dict[bytes, Answer] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    abandoned: str = ""

    @property
    def snapshot(self) -> bytes:
        """SHA-256 of the one snapshot from which the party may go on; empty when there is none."""
        return self._last.snapshot if self._last else b""

    @property
    def finished(self) -> bool:
        """Whether the party gave its last answer."""
        return self._last is not None and not self._last.snapshot

    def closing(self, phase: str) -> Answer | None:
        """The answer that closed a phase, if one did."""
        for answer in self.answers.values():
            if answer.phase == phase and answer.after is PhaseAfter.CLOSED:
                return answer
        return None

    @property
    def _last(self) -> Answer | None:
        return next(reversed(self.answers.values()), None)
