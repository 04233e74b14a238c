"""Keys of the mechanisms that adapt during a run; each is off unless its table or key is given."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from secfl.config.base import Section

__all__ = ["PercentileLaplaceConfig", "PlateauConfig", "QuantileClipConfig", "Validation"]


class Validation(StrEnum):
    """Where the score comes from that steers spending: data that show nobody, or patients, paid by the filter."""

    PUBLIC = "public"


class QuantileClipConfig(Section):
    """The clip follows a private quantile of the units' norms (`secfl.dp.adaptive.QuantileClip`).

    Attributes:
        quantile: γ, the wanted share of units below the clip.
        learning_rate: η of the geometric update.
        bit_noise: Noise on the number of units below the clip over the expected number of units. It needs a noise
            multiplier below twice ``bit_noise`` times that number, so a few whole clinics cannot have it.
        smallest: Public lower limit of the clip.
        largest: Public upper limit of the clip.
    """

    quantile: float = Field(default=0.5, gt=0, lt=1)
    learning_rate: float = Field(default=0.2, gt=0, le=10)
    bit_noise: float = Field(default=0.05, gt=0, le=1)
    smallest: float = Field(default=1e-4, gt=0)
    largest: float = Field(default=1e4, gt=0)


class PlateauConfig(Section):
    """Spend more of a fixed budget when validation stops rising (`secfl.dp.adaptive.PlateauSpending`).

    ``epsilon`` is then the cap of a Rényi filter and not a target: training stops before it would be exceeded.

    Attributes:
        multipliers: Noise multipliers, decreasing and announced; a plateau moves on to the next.
        patience: Scores without progress that make a plateau.
        least_gain: Smaller improvements do not count as progress.
        every: Rounds between two scores.
        validation: Source of the scores.
    """

    multipliers: tuple[float, ...] = Field(min_length=2, max_length=16)
    patience: int = Field(default=3, ge=1, le=10_000)
    least_gain: float = Field(default=1e-3, ge=0)
    every: int = Field(default=1, ge=1, le=10_000)
    validation: Validation = Validation.PUBLIC


class PercentileLaplaceConfig(Section):
    """A published recipe without a guarantee, for comparison (`secfl.dp.baselines.PercentileLaplace`).

    Attributes:
        keep_fraction: Share of coordinates of largest magnitude that are kept.
        percentile: Of the kept magnitudes: the threshold.
        stated_epsilon: The recipe's own parameter. It is no ε of this program, which prints none.
    """

    keep_fraction: float = Field(default=0.1, gt=0, le=1)
    percentile: float = Field(default=90.0, ge=0, le=100)
    stated_epsilon: float = Field(default=1.0, gt=0)
