"""How a run tells people what it is doing, without knowing who listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["Observer", "RoundReport", "RunInfo", "SilentObserver", "Times"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds spent in one round (or summed over a run).

    Attributes:
        train: Local training of all clients.
        protect: Clipping, noise, encoding, masking or encrypting, of all clients.
        aggregate: The aggregator's work on inputs.
        open: Opening the sum: unmasking or decrypting, and decoding.
        total: Wall time, evaluation included.
    """

    train: float = 0.0
    protect: float = 0.0
    aggregate: float = 0.0
    open: float = 0.0
    total: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(
            train=self.train + other.train,
            protect=self.protect + other.protect,
            aggregate=self.aggregate + other.aggregate,
            open=self.open + other.open,
            total=self.total + other.total,
        )

    def as_dict(self) -> dict[str, float]:
        """Seconds by part, rounded to a tenth of a millisecond."""
        names = ("train", "protect", "aggregate", "open", "total")
        return {name: round(getattr(self, name), 4) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What is known when a run starts."""

    run: Path
    sites: tuple[str, ...]
    rounds: int
    first_round: int
    parameters: int
    scheme: str
    key_mode: str
    threshold: int
    privacy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What is known when a round ends.

    Attributes:
        round_index: From 0.
        dice: Mean over sites of the federated model's Dice; ``None`` when this round was not evaluated.
        bytes_up: Payload bytes that clients sent to the aggregator in this round.
        epsilon: ε of the curious aggregator so far; ``None`` without differential privacy.
    """

    round_index: int
    rounds: int
    dice: float | None
    bytes_up: int
    epsilon: float | None
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    seconds: Times = field(default_factory=Times)


class Observer(Protocol):
    """Listens to a run. Exceptions raised here stop the run, which stays resumable."""

    def run_started(self, info: RunInfo) -> None:
        """The configuration is valid, the data is read and the run directory exists."""
        ...

    def phase(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the named piece of work (training, protecting, references …)."""
        ...

    def round_finished(self, report: RoundReport) -> None:
        """A round ended and its checkpoint is on disk."""
        ...

    def message(self, text: str) -> None:
        """One sentence for people."""
        ...


class SilentObserver:
    """Listens and says nothing."""

    def run_started(self, info: RunInfo) -> None:
        """Ignore."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Ignore."""

    def round_finished(self, report: RoundReport) -> None:
        """Ignore."""

    def message(self, text: str) -> None:
        """Ignore."""
