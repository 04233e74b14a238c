"""Who takes part in a run, and who holds their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from secfl.crypto.identity import Directory, Identity
from secfl.ledger.entry import KeyCustody
from secfl.types import ClientId

__all__ = ["Members"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The enrolled sites of a run.

    Attributes:
        directory: Their public keys.
        identities: Their signing keys, in a simulation; empty where each site holds its own.
    """

    directory: Directory
    identities: tuple[Identity, ...] = ()

    @classmethod
    def simulated(cls, identities: Sequence[Identity]) -> Self:
        """Sites whose keys are all in this process."""
        return cls(directory=Directory.enroll(identities), identities=tuple(identities))

    @property
    def names(self) -> tuple[ClientId, ...]:
        """The sites, sorted."""
        return tuple(sorted(self.directory.keys))

    @property
    def custody(self) -> KeyCustody:
        """What the ledger says about their keys."""
        return KeyCustody.ONE_PROCESS if self.identities else KeyCustody.SEPARATE
