"""What a run decides from round to round because of what it has opened: the next clip, and the next noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secfl.config import PlateauConfig, RunConfig
from secfl.dp.adaptive import PlateauSpending, QuantileClip, ValidationSource
from secfl.dp.events import DpEvent, SelfComposed
from secfl.errors import ConfigError, DataError
from secfl.federation.releases import Announcement, Releases
from secfl.federation.settled import filter_of, planned_event
from secfl.ledger.events import Event, Noise, leaves
from secfl.segmentation.task import PublicTask, State, Task

__all__ = ["AdaptiveRun", "public_validation"]

_PREFIX: Final = "adaptive."


def public_validation(task: Task) -> PublicTask:
    """The task as one with public images to validate on.

    Raises:
        ConfigError: It has none: a score on patients would be a release that nobody paid for.
    """
    if isinstance(task, PublicTask) and task.public_score(task.initial_state()) is not None:
        return task
    raise ConfigError(
        "privacy.plateau: needs validation images that show nobody in the federation; expected their sites in "
        "data.public, because scores of patients would be releases"
    )


@dataclass(slots=True, kw_only=True)
class _Spending:
    """Noise that follows a validation score, under a filter."""

    settings: PlateauConfig
    plan: Releases
    task: PublicTask
    rule: PlateauSpending
    charges: Counter[float] = field(default_factory=Counter)

    def next(self) -> float:
        multiplier = self.rule.next_multiplier(self.event_of)
        self.charges[multiplier] += 1
        return multiplier

    def event_of(self, multiplier: float) -> DpEvent:
        """One round with this multiplier, as the filter counts it."""
        return SelfComposed(planned_event(self.plan.plan, multiplier), self.plan.local_steps)

    def charge_again(self, counts: Mapping[float, int]) -> None:
        """Charge what an earlier process charged and this one does not know of."""
        for multiplier, count in counts.items():
            for _ in range(count - self.charges[multiplier]):
                self.rule.budget.charge(self.event_of(multiplier))
                self.charges[multiplier] += 1


class AdaptiveRun:
    """The aggregator's side of adaptive mechanisms, between rounds.

    It sees opened sums and public data alone, so what it decides costs nothing more than the releases themselves; the
    noise that it chooses is charged to a Rényi filter first, and again to the ledger's. Every client checks what is
    announced against its own terms (`Releases.check`).

    Args:
        config: The run.
        releases: What the run's rounds release; ``None`` without a privacy plan.
        task: Scores models on public data, where spending follows a score.

    Raises:
        ConfigError: Spending follows a score, and the task has no public data.
    """

    def __init__(self, config: RunConfig, releases: Releases | None, task: Task) -> None:
        self._quantile: QuantileClip | None = None if releases is None else releases.quantile
        self._spending: _Spending | None = None
        plateau = config.privacy.plateau
        if releases is not None and plateau is not None:
            self._spending = _Spending(
                settings=plateau,
                plan=releases,
                task=public_validation(task),
                rule=PlateauSpending(
                    budget=filter_of(releases.plan, config),
                    multipliers=plateau.multipliers,
                    validation=ValidationSource.PUBLIC,
                    patience=plateau.patience,
                    least_gain=plateau.least_gain,
                ),
            )

    def announce(self) -> Announcement:
        """What to announce for the next attempt; its noise is charged now.

        Raises:
            BudgetExhausted: No noise that was announced beforehand fits the cap any more.
        """
        return Announcement(
            clip_norm=None if self._quantile is None else self._quantile.clip_norm,
            noise_multiplier=None if self._spending is None else self._spending.next(),
        )

    def observe(self, state: State, *, round_index: int, clip_bits: int | None) -> None:
        """Learn from a finished round.

        Args:
            state: The model after it.
            round_index: The round.
            clip_bits: The noisy sum of the clip bits' slots, grid units.
        """
        if self._quantile is not None and clip_bits is not None:
            self._quantile = self._quantile.after(clip_bits)
        if self._spending is not None and (round_index + 1) % self._spending.settings.every == 0:
            score = self._spending.task.public_score(state)
            if score is not None:
                self._spending.rule.observe(lambda: score)

    def report(self, announced: Announcement) -> dict[str, Any]:
        """What a round's line of metrics says about it; empty where nothing adapts."""
        values = {"clip_norm": announced.clip_norm, "noise_multiplier": announced.noise_multiplier}
        return {name: value for name, value in values.items() if value is not None}

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """The state between rounds, by name, to be kept beside the server optimizer's."""
        kept: dict[str, NDArray[np.float64]] = {}
        if self._quantile is not None:
            kept["clip_norm"] = np.array([self._quantile.clip_norm])
        if self._spending is not None:
            kept["progress"] = np.array(self._spending.rule.progress, np.float64)
            kept["charges"] = np.array([self._spending.charges[z] for z in self._levels()], np.float64)
        return {_PREFIX + name: array for name, array in kept.items()}

    def take(self, arrays: Mapping[str, NDArray[np.float64]]) -> Mapping[str, NDArray[np.float64]]:
        """Take back what `arrays` gave; returns the rest, which is the server optimizer's.

        Raises:
            DataError: The arrays belong to another run.
        """
        mine = {name: kept for name, kept in arrays.items() if name.startswith(_PREFIX)}
        if {name: kept.shape for name, kept in mine.items()} != {
            name: kept.shape for name, kept in self.arrays().items()
        }:
            raise DataError("the checkpoint holds the state of other adaptive mechanisms")
        if self._quantile is not None:
            self._quantile = replace(self._quantile, clip_norm=float(mine[f"{_PREFIX}clip_norm"][0]))
        if self._spending is not None:
            level, best, waited = mine[f"{_PREFIX}progress"].tolist()
            try:
                self._spending.rule.go_on_from((int(level), best, int(waited)))
            except ConfigError as error:
                raise DataError(f"the checkpoint holds another state: {error}") from None
            counts = mine[f"{_PREFIX}charges"].astype(int).tolist()
            self._spending.charge_again(dict(zip(self._levels(), counts, strict=True)))
        return {name: kept for name, kept in arrays.items() if name not in mine}

    def charge_again(self, recorded: Iterable[Event]) -> None:
        """Charge every round that a ledger has reserved, also those after the last checkpoint.

        Args:
            recorded: The event of each reservation.
        """
        if self._spending is None:
            return
        levels = set(self._levels())
        found = Counter(
            leaf.noise_multiplier
            for event in recorded
            for leaf in leaves(event)[:1]
            if isinstance(leaf, Noise) and leaf.noise_multiplier in levels
        )
        self._spending.charge_again(found)

    def _levels(self) -> tuple[float, ...]:
        return () if self._spending is None else self._spending.rule.multipliers
