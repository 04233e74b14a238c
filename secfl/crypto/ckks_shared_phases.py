"""The course of a round with one shared CKKS key, as data: who waits for what, in which phase, and what follows.

Both parties look their next step up here. A message whose type is none of the current phase's is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from secfl.crypto.masking_phases import Step
from secfl.crypto.wire import MessageType, Phase

__all__ = ["SHARED_AGGREGATOR_STEPS", "SHARED_CLIENT_STEPS"]

SHARED_CLIENT_STEPS: Final[Mapping[Phase, tuple[Step, ...]]] = MappingProxyType(
    {
        Phase.ADVERTISE: (Step(accepts=None, sends=MessageType.CKKS_ADVERTISE, following=Phase.CKKS_KEY),),
        Phase.CKKS_KEY: (
            Step(accepts=MessageType.CKKS_DIRECTORY, sends=MessageType.CKKS_KEYS, following=Phase.CKKS_KEY),
            Step(accepts=MessageType.CKKS_DELIVERY, sends=MessageType.CKKS_INPUT, following=Phase.CKKS_OPEN),
        ),
        Phase.CKKS_OPEN: (
            Step(accepts=MessageType.CKKS_OPEN, sends=MessageType.CKKS_SUMS, following=None),
            Step(accepts=MessageType.CKKS_CLOSE, sends=None, following=None),
        ),
    }
)
"""A client makes one of its phase's steps for each message of the aggregator; it deals a key at most once."""

SHARED_AGGREGATOR_STEPS: Final[Mapping[Phase, Step]] = MappingProxyType(
    {
        Phase.ADVERTISE: Step(
            accepts=MessageType.CKKS_ADVERTISE, sends=MessageType.CKKS_DIRECTORY, following=Phase.CKKS_KEY
        ),
        Phase.CKKS_KEY: Step(
            accepts=MessageType.CKKS_KEYS, sends=MessageType.CKKS_DELIVERY, following=Phase.CKKS_INPUT
        ),
        Phase.CKKS_INPUT: Step(
            accepts=MessageType.CKKS_INPUT, sends=MessageType.CKKS_OPEN, following=Phase.CKKS_OPEN
        ),
        Phase.CKKS_OPEN: Step(accepts=MessageType.CKKS_SUMS, sends=MessageType.CKKS_CLOSE, following=None),
    }
)
"""The aggregator makes a step when it has what it waits for. A deadline in the phases of the lead and of the opener
asks the next client with the same message; see `secfl.crypto.ckks_shared_aggregator`."""
