"""The whole error tree.

An error names parties, phases, files and sizes, never values: messages end up in logs and reports.
``exit_code`` is what the command line returns when the error reaches it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BelowThreshold",
    "BudgetExhausted",
    "CapacityError",
    "ConfigError",
    "DataError",
    "LedgerCorrupted",
    "LedgerOpen",
    "LocalProtocolError",
    "PrivacyError",
    "ProtocolError",
    "RemoteProtocolError",
    "RoundAborted",
    "SecflError",
    "SitesDecline",
    "UnsupportedEvent",
]


class SecflError(Exception):
    """Root of everything that secfl raises on purpose."""

    exit_code: ClassVar[int] = 2


class ConfigError(SecflError):
    """A flag, a key or a combination of them that cannot be carried out."""


class DataError(ConfigError):
    """An input file or folder that cannot be used; the message names it and says what was expected."""


class CapacityError(SecflError):
    """The sum would not fit its modulus or its error bound. Raised before anything is sent."""


class ProtocolError(SecflError):
    """Something went wrong between parties."""

    exit_code = 4


class LocalProtocolError(ProtocolError):
    """The caller misused a party: a call in the wrong phase, or arguments that contradict the round."""


class RemoteProtocolError(ProtocolError):
    """A peer sent something malformed, replayed, unsigned, oversized or inconsistent.

    Args:
        peer: Name of the party that is blamed (a client id or ``aggregator``).
        reason: What was wrong, without values.
    """

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason


class RoundAborted(ProtocolError):
    """The round ended without a result; nothing was opened."""


class BelowThreshold(RoundAborted):
    """Fewer parties than the threshold remained, so no sum may be revealed."""


class SitesDecline(BelowThreshold):
    """Fewer sites than the threshold allow the round, because of their policies or budgets."""


class PrivacyError(SecflError):
    """The privacy plan or policy forbids this."""

    exit_code = 3


class BudgetExhausted(PrivacyError):
    """The next release would exceed the privacy budget."""


class UnsupportedEvent(PrivacyError):
    """A mechanism for which no sound accounting is known here."""


class LedgerCorrupted(SecflError):
    """The ledger does not verify.

    Args:
        entry: Index of the first wrong entry (0-based), or ``None`` for the file as a whole.
        reason: Which field is wrong and what was expected.
    """

    exit_code = 5

    def __init__(self, entry: int | None, reason: str) -> None:
        where = "ledger" if entry is None else f"ledger entry {entry}"
        super().__init__(f"{where}: {reason}")
        self.entry = entry
        self.reason = reason


class LedgerOpen(SecflError):
    """The ledger verifies so far, but has no closing entry: it may have been cut off."""

    exit_code = 6
