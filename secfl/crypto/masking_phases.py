"""The course of a masking round, as data: who waits for what, in which phase, and what follows.

Both parties look their next step up here; nothing else decides which message is acceptable. A message whose
type is not the one of the current phase is refused, in every phase and for every type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from secfl.crypto.wire import MessageType, Phase

__all__ = ["AGGREGATOR_STEPS", "CLIENT_STEPS", "Step", "phase_accepting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One row of a transition table.

    Attributes:
        accepts: The only message type that is acceptable in this phase; ``None`` when none is, because the
            party speaks first.
        sends: What the party sends when the phase is complete; ``None`` when it sends nothing.
        following: The next phase; ``None`` when the party is finished.
    """

    accepts: MessageType | None
    sends: MessageType | None
    following: Phase | None


CLIENT_STEPS: Final[Mapping[Phase, Step]] = MappingProxyType(
    {
        Phase.ADVERTISE: Step(accepts=None, sends=MessageType.ADVERTISE, following=Phase.SHARE),
        Phase.SHARE: Step(
            accepts=MessageType.DIRECTORY, sends=MessageType.SHARES, following=Phase.MASKED_INPUT
        ),
        Phase.MASKED_INPUT: Step(
            accepts=MessageType.DELIVERY, sends=MessageType.MASKED_INPUT, following=Phase.CONSISTENCY
        ),
        Phase.CONSISTENCY: Step(
            accepts=MessageType.SURVIVORS, sends=MessageType.CONSISTENCY, following=Phase.UNMASK
        ),
        Phase.UNMASK: Step(accepts=MessageType.SIGNERS, sends=MessageType.UNMASK, following=None),
    }
)
"""A client makes one step for each message of the aggregator."""

AGGREGATOR_STEPS: Final[Mapping[Phase, Step]] = MappingProxyType(
    {
        Phase.ADVERTISE: Step(
            accepts=MessageType.ADVERTISE, sends=MessageType.DIRECTORY, following=Phase.SHARE
        ),
        Phase.SHARE: Step(
            accepts=MessageType.SHARES, sends=MessageType.DELIVERY, following=Phase.MASKED_INPUT
        ),
        Phase.MASKED_INPUT: Step(
            accepts=MessageType.MASKED_INPUT, sends=MessageType.SURVIVORS, following=Phase.CONSISTENCY
        ),
        Phase.CONSISTENCY: Step(
            accepts=MessageType.CONSISTENCY, sends=MessageType.SIGNERS, following=Phase.UNMASK
        ),
        Phase.UNMASK: Step(accepts=MessageType.UNMASK, sends=None, following=None),
    }
)
"""The aggregator makes a step when everybody it waits for has answered, or when the deadline has passed."""


def phase_accepting(steps: Mapping[Phase, Step], kind: MessageType) -> Phase | None:
    """The phase in which a party takes messages of this type; ``None`` if it never does."""
    for phase, step in steps.items():
        if step.accepts is kind:
            return phase
    return None
