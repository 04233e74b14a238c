"""What a coordinator asks a site and what the site replies: the same over every engine.

A request is one of `OpenRun`, `OfferRound`, `Deliver`, `AskWitness`, `CoSign`; a reply is one of `Opened`,
`Sent`, `Refused`, `Failed`, `Declined`, `WitnessAt`, `Signature`. `secfl.federation.request_codec` makes bytes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.ledger.checkpoints import Checkpoint
from secfl.types import ClientId, RoundId, SchemeSpec

__all__ = [
    "AskWitness",
    "CoSign",
    "Declined",
    "Deliver",
    "Failed",
    "OfferRound",
    "OpenRun",
    "Opened",
    "Refused",
    "Reply",
    "Request",
    "Sent",
    "Signature",
    "WitnessAt",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """Tells a site which run begins; a site joins one run in its life, unless people say otherwise.

    Attributes:
        run_id: 16 bytes.
        config_digest: SHA-256 of the run's configuration, which the site has on its own disk.
    """

    run_id: bytes
    config_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The site is in the run."""

    run_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRound:
    """An invitation to a round, with the global model.

    Attributes:
        run_id: 16 bytes.
        round_id: Rises with every attempt.
        round_index: Which round of training.
        cohort: The invited clients, sorted.
        threshold: Fewest survivors.
        scheme: Scheme and parameters.
        announced: What was chosen for this round because of earlier sums.
        model: The global model's elements in the order of the site's own model, float32, shape ``(d,)``.
    """

    run_id: bytes
    round_id: RoundId
    round_index: int
    cohort: tuple[ClientId, ...]
    threshold: int
    scheme: SchemeSpec
    model: NDArray[np.float32] = field(repr=False)
    announced: Announcement = NOTHING_ANNOUNCED


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Envelopes of the aggregator for this site."""

    round_id: RoundId
    payloads: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskWitness:
    """Asks for the size of the last ledger checkpoint that the site signed."""

    run_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CoSign:
    """Asks for a signature under a ledger checkpoint, with the proof that it extends the last one."""

    checkpoint: Checkpoint
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Envelopes of this site for the aggregator, and where its party stands.

    Attributes:
        round_id: The round they belong to.
        phase: Name of the party's phase; ``end`` when it has said everything.
        payloads: In order.
        seconds: Time that the site's party took.
        report: Figures of local work, in a simulation only; empty in deployment.
    """

    round_id: RoundId
    phase: str
    payloads: tuple[bytes, ...] = field(repr=False)
    seconds: float = 0.0
    report: dict[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The site blames the request: malformed, replayed, unsigned or inconsistent."""

    round_id: RoundId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The site cannot take part in this round any more; its reason names no values."""

    round_id: RoundId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """The site's policy or budget does not allow this; nothing was touched and nothing was sent."""

    round_id: RoundId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessAt:
    """Size of the last checkpoint that the site signed; 0 for none."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """64 bytes under a checkpoint."""

    value: bytes = field(repr=False)


Request: TypeAlias = OpenRun | OfferRound | Deliver | AskWitness | CoSign
Reply: TypeAlias = Opened | Sent | Refused | Failed | Declined | WitnessAt | Signature
