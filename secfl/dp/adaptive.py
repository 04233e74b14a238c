"""Mechanisms that adapt during training without hiding the cost.

A clip that follows a private quantile is paid for inside the same integer vector; spending that follows the
validation score is capped by a Rényi filter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from secfl.dp.clipping import GridClip
from secfl.dp.events import DpEvent, NoOp
from secfl.dp.filters import RenyiFilter
from secfl.errors import BudgetExhausted, ConfigError

__all__ = ["PlateauSpending", "QuantileClip", "ValidationSource", "bit_slot_size"]


def bit_slot_size(*, grid_norm: int, noise_multiplier: float, bit_sigma: float) -> int:
    """Slot size g with ``σ_b = σ/(2g)``, the noise on the count of clip bits.

    The update keeps ``sqrt(G² - g²)``, that is the multiplier ``z_Δ = (z^-2 - (2σ_b)^-2)^(-1/2)`` of Andrew et
    al. 2021, Theorem 1, which needs ``z < 2σ_b``.

    Args:
        grid_norm: G.
        noise_multiplier: z, so that σ = z·G.
        bit_sigma: σ_b, in bits; Andrew et al. use a twentieth of the expected number of units.

    Raises:
        ConfigError: The bits would need the whole sensitivity: z is not below 2σ_b (five clients with
            σ_b = 5/20 need z < 0.5), or the grid is too coarse.
    """
    if noise_multiplier >= 2 * bit_sigma:
        raise ConfigError(
            f"clip bits with noise {bit_sigma:g} need a noise multiplier below {2 * bit_sigma:g}, got "
            f"{noise_multiplier:g}: too few units for adaptive clipping"
        )
    size = math.floor(noise_multiplier * grid_norm / (2 * bit_sigma))
    if size < 1:
        raise ConfigError("clip bits: raise grid_norm, the slot would be empty")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileClip:
    """Clip norm that follows a quantile of the units' norms (Andrew, Thakkar, McMahan, Ramaswamy 2021).

    Every unit sends b = 1[norm <= C] as one slot of ±g in its integer vector (`GridClip.bit_slot`), so the bit
    shares sensitivity G and noise σ with the update and costs no event of its own. From the sum S of the slots,

        b̃ = 1/2 + S/(2g) / B,    C <- C·exp(-η·(b̃ - γ)):

    more units below the clip than wanted (b̃ > γ) makes it smaller. G, σ and q do not change, so C is not an
    adaptive privacy parameter.

    Attributes:
        clip_norm: C of the coming release.
        quantile: γ, the wanted share of unclipped units.
        learning_rate: η.
        expected_units: B, a public constant, never the true number of units.
        grid: The grid clip of one unit; its ``clip_norm`` follows this one.
        smallest: Public lower limit of C.
        largest: Public upper limit of C.
    """

    clip_norm: float
    expected_units: float
    grid: GridClip
    quantile: float = 0.5
    learning_rate: float = 0.2
    smallest: float = 1e-6
    largest: float = 1e6

    def __post_init__(self) -> None:
        if self.grid.bit_slot < 1 or len(self.grid.groups) != 1:
            raise ConfigError("quantile clip: expected a grid with one group and a bit slot")
        if not (0 < self.quantile < 1 and self.learning_rate > 0 and self.expected_units > 0):
            raise ConfigError("quantile clip: expected a quantile between 0 and 1 and positive rates")
        if not 0 < self.smallest <= self.clip_norm <= self.largest:
            raise ConfigError("quantile clip: clip_norm outside its limits")

    def unit_clip(self) -> GridClip:
        """The grid clip at the current C."""
        group = replace(self.grid.groups[0], clip_norm=self.clip_norm)
        return replace(self.grid, groups=(group,))

    def share_below(self, slot_sum: int) -> float:
        """b̃, the noisy share of unclipped units; may lie outside 0..1."""
        return 0.5 + slot_sum / (2 * self.grid.bit_slot) / self.expected_units

    def after(self, slot_sum: int) -> QuantileClip:
        """The state for the next release, from the decoded sum of the slots (signed, grid units)."""
        share = min(max(self.share_below(slot_sum), -1.0), 2.0)
        factor = math.exp(-self.learning_rate * (share - self.quantile))
        return replace(self, clip_norm=min(max(self.clip_norm * factor, self.smallest), self.largest))


class ValidationSource(StrEnum):
    """Where a score comes from that steers spending: public data, or private data paid for by an event."""

    PUBLIC = "public"
    PAID = "paid"


@dataclass(slots=True, kw_only=True)
class PlateauSpending:
    """Spend more of the budget when the validation score stops rising.

    Each release uses one of the announced noise multipliers. A plateau moves on to the next, less noisy one;
    what cannot be afforded falls back to a noisier one. Because the choice depends on earlier outputs, every
    release is charged to a `RenyiFilter`, whose cap is the guarantee; no FFT accountant is asked.

    Attributes:
        budget: The filter. Shared with nothing else.
        multipliers: Decreasing, announced before the run.
        validation: Source of the scores.
        validation_event: Cost of one score when it is paid for; charged by `observe`.
        patience: Scores without progress that make a plateau.
        least_gain: Smaller improvements do not count as progress.
    """

    budget: RenyiFilter
    multipliers: tuple[float, ...]
    validation: ValidationSource
    validation_event: DpEvent = NoOp()  # noqa: RUF009 - frozen, without state
    patience: int = 3
    least_gain: float = 1e-3
    _level: int = field(init=False, default=0)
    _best: float = field(init=False, default=-math.inf)
    _waited: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.multipliers, self.multipliers[1:], strict=False))
        if not self.multipliers or not falling or self.multipliers[-1] <= 0:
            raise ConfigError("plateau spending: expected positive, strictly decreasing multipliers")
        paid = self.validation is ValidationSource.PAID
        if paid == isinstance(self.validation_event, NoOp):
            raise ConfigError("plateau spending: paid validation needs an event, public validation has none")
        if self.patience < 1 or self.least_gain < 0:
            raise ConfigError("plateau spending: patience of at least 1 and a gain of at least 0 expected")

    @property
    def level(self) -> int:
        """Index of the multiplier that the next release would like to use."""
        return self._level

    @property
    def progress(self) -> tuple[int, float, int]:
        """Level, best score and scores waited since: what a checkpoint keeps beside the filter's charges."""
        return self._level, self._best, self._waited

    def go_on_from(self, progress: tuple[int, float, int]) -> None:
        """Take back what `progress` gave.

        Raises:
            ConfigError: It belongs to other multipliers.
        """
        level, _, waited = progress
        if not (0 <= level < len(self.multipliers) and waited >= 0):
            raise ConfigError("plateau spending: the progress belongs to other multipliers")
        self._level, self._best, self._waited = progress

    def observe(self, score: Callable[[], float]) -> None:
        """Charge for one validation score, then compute it and look for a plateau.

        Args:
            score: Called only after the charge; higher is better.

        Raises:
            BudgetExhausted: The score cannot be afforded; it was not computed.
        """
        if self.validation is ValidationSource.PAID:
            self.budget.charge(self.validation_event)
        value = score()
        if value > self._best + self.least_gain:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience and self._level + 1 < len(self.multipliers):
            self._level, self._waited = self._level + 1, 0

    def next_multiplier(self, event_of: Callable[[float], DpEvent]) -> float:
        """Charge for the coming release and return its noise multiplier.

        Args:
            event_of: The event of one release with a given multiplier.

        Raises:
            BudgetExhausted: Not even the noisiest multiplier can be afforded: training ends here.
        """
        for multiplier in reversed(self.multipliers[: self._level + 1]):
            event = event_of(multiplier)
            if self.budget.admits(event):
                self.budget.charge(event)
                return multiplier
        raise BudgetExhausted(f"no release with multiplier {self.multipliers[0]:g} or less fits the budget")
