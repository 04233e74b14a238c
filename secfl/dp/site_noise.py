"""Noise per site when sites carry different public weights under one common clip."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from secfl.dp.effective import unknown_shares
from secfl.dp.events import IntegerNoise
from secfl.dp.noise import NoiseFamily, NoiseShare
from secfl.errors import ConfigError
from secfl.guarantees import Behaviour

__all__ = ["SiteNoise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNoise:
    """Public weights w_i, one clip: a unit of site i moves the sum by at most ``floor(G·w_i/max w)``.

    Each site's noise is proportional to its own sensitivity, so that every site's own noise protects its units
    equally; together the shares make the multiplier z for the site with the largest weight.

    Attributes:
        weights: One public constant per site, positive.
        grid_norm: G, the bound of a unit at the site with the largest weight.
        noise_multiplier: z of all shares against the largest sensitivity.
        dimension: d.
        family: Discrete Gaussian or Skellam.
    """

    weights: tuple[float, ...]
    grid_norm: int
    noise_multiplier: float
    dimension: int
    family: NoiseFamily = NoiseFamily.DISCRETE_GAUSSIAN

    def __post_init__(self) -> None:
        if not self.weights or not all(weight > 0 and math.isfinite(weight) for weight in self.weights):
            raise ConfigError("site weights: expected positive numbers")
        if self.sensitivity(self.weights.index(min(self.weights))) < 1:
            raise ConfigError("site weights: the smallest weight vanishes on this grid; raise grid_norm")

    def sensitivity(self, site: int) -> int:
        """G_i: L2 bound of one unit of this site, grid units; the site clips to it."""
        return math.floor(self.grid_norm * self.weights[site] / max(self.weights))

    def share(self, site: int) -> NoiseShare:
        """σ_i = z·G·w_i/sqrt(Σ w²)."""
        total = self.noise_multiplier * self.grid_norm
        norm = math.sqrt(math.fsum(weight * weight for weight in self.weights))
        return NoiseShare(family=self.family, sigma=total * self.weights[site] / norm)

    def event(self, site: int, *, colluders: int, threshold: int, behaviour: Behaviour) -> IntegerNoise:
        """What one release costs a unit of ``site`` in the view of the aggregator.

        The largest k shares among the other sites are known to the adversary; the site's own share is not.

        Args:
            site: Index of the site whose units are protected.
            colluders: k.
            threshold: t.
            behaviour: Curious or malicious aggregator.
        """
        own = self.share(site).sigma
        others = [self.share(index).sigma for index in range(len(self.weights)) if index != site]
        kept = unknown_shares(
            [0.0, *(sigma * sigma for sigma in others)],  # 0 stands for the site's own share
            colluders=colluders,
            threshold=threshold,
            cohort_size=len(self.weights),
            behaviour=behaviour,
        )
        return IntegerNoise(
            family=self.family,
            sigma=math.sqrt(math.fsum([own * own, *kept])),
            sensitivity=self.sensitivity(site),
            dimension=self.dimension,
            shares=len(kept),
            smallest_share=min([own, *others]),
            sampler_error=math.fsum(self.share(index).total_variation for index in range(len(self.weights))),
        )

    def scaled(self, noise_multiplier: float) -> SiteNoise:
        """The same sites with another multiplier."""
        return replace(self, noise_multiplier=noise_multiplier)
