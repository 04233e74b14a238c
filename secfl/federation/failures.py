"""What a site tells its coordinator when it cannot go on: why, but in deployment nothing about its disk or its data.

Messages about files name them, and files name patients. The whole reason goes to the site's own log (logger
``secfl.site``, on standard error unless somebody configures it).
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Final

from secfl.errors import (
    CapacityError,
    DataError,
    LocalProtocolError,
    PrivacyError,
    RemoteProtocolError,
    RoundAborted,
    SecflError,
)
from secfl.federation.requests import (
    Declined,
    Failed,
    Refused,
    Reply,
)
from secfl.types import RoundId

__all__ = ["Reports", "reply_to"]

_LOG: Final = logging.getLogger("secfl.site")
_FILES: Final = "cannot use its own files; its own log says why"
_SPEAKING: Final = (LocalProtocolError, RoundAborted, CapacityError, PrivacyError)
"""Errors of the protocol. Their texts name rounds, phases, limits and sizes; those about files have a path in them."""


class Reports(StrEnum):
    """Whether a site tells times, clipping and troubles of its own work."""

    NOTHING = "nothing"
    """Nothing about a single site leaves it: deployment."""
    SIMULATION = "simulation"
    """Everything runs on one host anyway."""


def reply_to(error: Exception, *, round_id: RoundId, reports: Reports) -> Reply:
    """The reply in place of an answer; logs the whole error here.

    Args:
        error: What happened; also what nobody foresaw, such as an error of somebody's training code.
        round_id: The round that was asked about; 0 for none.
        reports: What the site tells of itself.
    """
    foreseen = isinstance(error, SecflError | OSError)
    _LOG.error("round %d: %s", round_id, error, exc_info=None if foreseen else error)
    if isinstance(error, RemoteProtocolError):
        return Refused(round_id=round_id, reason=error.reason)
    reason = str(error) if reports is Reports.SIMULATION else _without_names(error)
    if isinstance(error, PrivacyError):
        return Declined(round_id=round_id, reason=reason)
    return Failed(round_id=round_id, reason=reason)


def _without_names(error: Exception) -> str:
    if isinstance(error, DataError):
        return "its data cannot be used; its own log says why"
    if isinstance(error, OSError):
        return _FILES
    if not isinstance(error, SecflError):
        return "it failed; its own log says why"
    if not isinstance(error, _SPEAKING):
        return "its configuration cannot be used; its own log says why"
    text = str(error)
    return _FILES if "/" in text or "\\" in text else text
