"""Federated medical image segmentation with secure aggregation and a privacy ledger.

``import secfl`` is light: each public name is loaded from its room when it is first used, so neither torch
nor TenSEAL is imported until something needs them.

The shortest way in is `secure_sum`; the whole way is `load_config`, `simulate` and `resume`. A scheme of your
own implements `SecureAggregation`; a task of your own implements `Task`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from secfl._version import __version__

if TYPE_CHECKING:
    from secfl.config import RunConfig, load_config
    from secfl.crypto.aggregation import Envelope, Party, RoundResult, SecureAggregation
    from secfl.crypto.identity import Directory, Identity
    from secfl.errors import SecflError
    from secfl.federation.observer import Observer
    from secfl.federation.secure_sum import secure_sum
    from secfl.federation.simulation import resume, simulate
    from secfl.guarantees import Adversary, Guarantee
    from secfl.ledger.log import PrivacyLedger
    from secfl.randomness import ExperimentSeed, Rng, SystemRng
    from secfl.segmentation.task import Task
    from secfl.types import ClientId, PrivatizedUpdate, RoundSpec, SchemeSpec, VectorSpec

__all__ = [
    "Adversary",
    "ClientId",
    "Directory",
    "Envelope",
    "ExperimentSeed",
    "Guarantee",
    "Identity",
    "Observer",
    "Party",
    "PrivacyLedger",
    "PrivatizedUpdate",
    "Rng",
    "RoundResult",
    "RoundSpec",
    "RunConfig",
    "SchemeSpec",
    "SecflError",
    "SecureAggregation",
    "SystemRng",
    "Task",
    "VectorSpec",
    "__version__",
    "load_config",
    "resume",
    "secure_sum",
    "simulate",
]

_ROOMS = {
    "secfl.config": ("RunConfig", "load_config"),
    "secfl.crypto.aggregation": ("Envelope", "Party", "RoundResult", "SecureAggregation"),
    "secfl.crypto.identity": ("Directory", "Identity"),
    "secfl.errors": ("SecflError",),
    "secfl.federation.observer": ("Observer",),
    "secfl.federation.secure_sum": ("secure_sum",),
    "secfl.federation.simulation": ("resume", "simulate"),
    "secfl.guarantees": ("Adversary", "Guarantee"),
    "secfl.ledger.log": ("PrivacyLedger",),
    "secfl.randomness": ("ExperimentSeed", "Rng", "SystemRng"),
    "secfl.segmentation.task": ("Task",),
    "secfl.types": ("ClientId", "PrivatizedUpdate", "RoundSpec", "SchemeSpec", "VectorSpec"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'secfl' has no attribute {name!r}")
    value = getattr(importlib.import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
