"""What a run decides from round to round because of what it has opened: the next clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError
from secfl.federation.releases import Announcement, Releases

__all__ = ["AdaptiveRun"]

_PREFIX: Final = "adaptive."


class AdaptiveRun:
    """The aggregator's side of adaptive mechanisms, between rounds.

    It sees opened sums alone, which are private already, so what it decides costs nothing more; every client
    checks what is announced against its own terms (`Releases.check`).

    Args:
        releases: What the run's rounds release; ``None`` without a privacy plan.
    """

    def __init__(self, releases: Releases | None) -> None:
        self._quantile = None if releases is None else releases.quantile

    def announce(self) -> Announcement:
        """What to announce for the next attempt."""
        return Announcement(clip_norm=None if self._quantile is None else self._quantile.clip_norm)

    def observe(self, clip_bits: int | None) -> None:
        """Learn from a finished round.

        Args:
            clip_bits: The noisy sum of the clip bits' slots, grid units.
        """
        if self._quantile is not None and clip_bits is not None:
            self._quantile = self._quantile.after(clip_bits)

    def report(self, announced: Announcement) -> dict[str, Any]:
        """What a round's line of metrics says about it; empty where nothing adapts."""
        return {} if announced.clip_norm is None else {"clip_norm": announced.clip_norm}

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """The state between rounds, by name, to be kept beside the server optimizer's."""
        if self._quantile is None:
            return {}
        return {f"{_PREFIX}clip_norm": np.array([self._quantile.clip_norm])}

    def take(self, arrays: Mapping[str, NDArray[np.float64]]) -> Mapping[str, NDArray[np.float64]]:
        """Take back what `arrays` gave; returns the rest, which is the server optimizer's.

        Raises:
            DataError: The arrays belong to another run.
        """
        mine = {name: kept for name, kept in arrays.items() if name.startswith(_PREFIX)}
        if set(mine) != set(self.arrays()):
            raise DataError("the checkpoint holds the state of other adaptive mechanisms")
        if self._quantile is not None:
            self._quantile = replace(self._quantile, clip_norm=float(mine[f"{_PREFIX}clip_norm"][0]))
        return {name: kept for name, kept in arrays.items() if name not in mine}
