"""What a site remembers of the attempts that it entered: each was a release, whatever became of it.

A coordinator may try a round again, with fresh noise each time. Enough attempts would average the noise out, so a site
counts them itself and keeps the count on its own disk, from before it works until the run is over.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.federation.checkpoint import write_atomically
from secfl.federation.offer import RoundOffer
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.types import AGGREGATOR

__all__ = ["Attempt", "Attempts", "AttemptsFile"]

_FORMAT_VERSION: Final = 1

Attempt = tuple[int, Announcement]
"""A round of training, and what was announced for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Attempts that were entered.

    Attributes:
        entries: Round id and attempt, in order.
    """

    entries: tuple[tuple[int, Attempt], ...] = ()

    @property
    def last_id(self) -> int:
        """Round id of the last one; -1 before the first."""
        return self.entries[-1][0] if self.entries else -1

    @property
    def reached(self) -> int:
        """The latest round of training; -1 before the first."""
        return max((index for _, (index, _) in self.entries), default=-1)

    def of_round(self, round_index: int) -> int:
        """How often a round of training was attempted."""
        return sum(index == round_index for _, (index, _) in self.entries)

    def spent(self, *, unsent: Collection[int] = ()) -> Counter[Attempt]:
        """How often each counts; those with the round ids in ``unsent`` do not."""
        return Counter(attempt for number, attempt in self.entries if number not in unsent)

    def entering(self, offer: RoundOffer) -> Self:
        """The same and one more; the same object when it is the last one, offered again.

        Raises:
            RemoteProtocolError: Its number is not above the last one's, or belongs to another attempt.
        """
        entry = (int(offer.round_id), (offer.round_index, offer.announced))
        if self.entries and self.entries[-1] == entry:
            return self
        if offer.round_id <= self.last_id:
            raise RemoteProtocolError(
                AGGREGATOR, f"offers round {offer.round_id} after round {self.last_id}; rounds rise"
            )
        return type(self)(entries=(*self.entries, entry))


class AttemptsFile:
    """Attempts of one run on the site's disk.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, *, journaled: int | None) -> Attempts:
        """What was entered before.

        Args:
            journaled: The last round of this run in the site's journal; ``None`` when there is none.

        Raises:
            LocalProtocolError: Damaged, newer than this secfl reads, or one of the two was set back: the journal
                knows of later rounds, or not even of those that it held at the last `write`.
        """
        try:
            found, seen = _from_json(self._path.read_bytes())
        except FileNotFoundError:
            found, seen = Attempts(), -1
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise LocalProtocolError(
                f"{self._path}: damaged; expected the attempts that were entered"
            ) from None
        last = -1 if journaled is None else journaled
        if last > found.last_id:
            raise LocalProtocolError(
                f"{self._path}: knows of no attempt after round {found.last_id}, the journal of round {last}"
            )
        if last < seen:
            # The journal tells in which attempts nothing was sent; one that forgot would make sent ones free.
            raise LocalProtocolError(
                f"{self._path}: has seen round {seen} in the journal, which ends before it; it was set back or lost"
            )
        return found

    def write(self, attempts: Attempts, *, journaled: int | None) -> None:
        """Keep them; they are on the disk when this returns.

        Args:
            attempts: That were entered, the newest one too.
            journaled: As for `read`.

        Raises:
            ConfigError: The disk refuses.
        """
        rows = [[number, *_row(attempt)] for number, attempt in attempts.entries]
        document = {"format_version": _FORMAT_VERSION, "entered": rows, "journaled": journaled}
        write_atomically(self._path, json.dumps(document).encode())


def _row(attempt: Attempt) -> list[int | str | None]:
    index, announced = attempt
    values = (announced.clip_norm, announced.noise_multiplier)
    return [index, *(None if value is None else value.hex() for value in values)]


def _attempt(row: list[int | str | None]) -> Attempt:
    index, *values = row
    clip_norm, noise_multiplier = (None if one is None else float.fromhex(str(one)) for one in values)
    if not isinstance(index, int):
        raise ValueError("not the number of a round")  # noqa: TRY004 - the file is wrong, not a type in the program
    announced = Announcement(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    return index, NOTHING_ANNOUNCED if announced == NOTHING_ANNOUNCED else announced


def _from_json(data: bytes) -> tuple[Attempts, int]:
    """What was entered, and the last round that the journal held then; -1 for none."""
    document = json.loads(data)
    if document["format_version"] != _FORMAT_VERSION:
        raise ValueError("another format version")
    entered = Attempts(entries=tuple((int(number), _attempt(row)) for number, *row in document["entered"]))
    seen = document.get("journaled")
    return entered, -1 if seen is None else int(seen)
