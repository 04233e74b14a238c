"""What a round releases, as data: the mechanism, who adds its noise, and how often.

The ledger stores mechanisms and never an ε. A `Noise` event says how much noise the planned clients add
together and how it is shared among them, so that the ledger can work out what remains of it for an
adversary that knows some of the shares (docs/ledger.md, "Events").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from secfl.errors import ConfigError, UnsupportedEvent

if TYPE_CHECKING:
    from secfl.dp.plan import PrivacyPlan

__all__ = [
    "Composed",
    "Event",
    "Family",
    "Noise",
    "NonPrivate",
    "Placement",
    "Sampling",
    "SiteNoise",
    "event_from_dp_accounting",
    "event_from_json",
    "event_from_plan",
    "leaves",
]


class Family(StrEnum):
    """The distribution of the noise."""

    GAUSSIAN = "gaussian"
    DISCRETE_GAUSSIAN = "discrete_gaussian"
    SKELLAM = "skellam"


class Placement(StrEnum):
    """Who adds the noise.

    ``distributed``: each of m clients adds a share of variance σ²/m and only the sum is claimed.
    ``local``: each client adds all of it to its own release, so nobody's help is needed.
    ``central``: the aggregator adds it after it has seen what it sums.
    """

    DISTRIBUTED = "distributed"
    LOCAL = "local"
    CENTRAL = "central"


class Sampling(StrEnum):
    """How the units of privacy that contribute to a release are chosen.

    Poisson: each one alone, with secret randomness. Shuffled batches have no member here on purpose: they
    are not Poisson, and declaring them so understates ε.
    """

    NONE = "none"
    POISSON = "poisson"


@dataclass(frozen=True, slots=True, kw_only=True)
class NonPrivate:
    """A release without any differential privacy, and why."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """The ledger's JSON form."""
        return {"kind": "non_private", "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """``count`` sums of bounded contributions, each with fresh additive noise.

    Attributes:
        family: Distribution of every share.
        noise_multiplier: z, the standard deviation of all m shares together over the L2 sensitivity.
        shares: m, the clients planned to add a share of variance σ²/m; 1 for local and central noise.
        placement: Who adds it.
        sensitivity: Δ2 in the units of the noise: grid units for integer noise, 1.0 for real noise.
        dimension: Coordinates of the vector; matters for integer noise and for total variation.
        sampling: How the units of privacy are chosen for a release.
        sampling_rate: Poisson rate q, 1.0 without sampling; the largest of ``site_rates`` where they differ.
        site_rates: Rates by client where the clients' rates differ, else ``None``.
        count: Releases with fresh noise in one round (local steps that are each summed).
        sampler_error: Total variation distance of one drawn coordinate of one share from the ideal noise.
    """

    family: Family
    noise_multiplier: float
    shares: int = 1
    placement: Placement = Placement.DISTRIBUTED
    sensitivity: float = 1.0
    dimension: int = 1
    sampling: Sampling = Sampling.NONE
    sampling_rate: float = 1.0
    site_rates: Mapping[str, float] | None = None
    count: int = 1
    sampler_error: float = 0.0

    def __post_init__(self) -> None:
        for label, value in (("noise_multiplier", self.noise_multiplier), ("sensitivity", self.sensitivity)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"event: {label} must be a positive number")
        for label, count in (("shares", self.shares), ("dimension", self.dimension), ("count", self.count)):
            if count < 1:
                raise ConfigError(f"event: {label} must be at least 1")
        if not 0 <= self.sampler_error < 1:
            raise ConfigError("event: sampler_error must be at least 0 and below 1")
        self._check_rates()
        if self.placement is not Placement.DISTRIBUTED and self.shares != 1:
            raise ConfigError(f"event: {self.placement} noise has one share")

    def _check_rates(self) -> None:
        for rate in (self.sampling_rate, *(self.site_rates or {}).values()):
            if not 0 < rate <= 1:
                raise ConfigError("event: sampling_rate must be above 0 and at most 1")
        if self.sampling is Sampling.NONE and (self.sampling_rate != 1 or self.site_rates is not None):
            raise ConfigError("event: without sampling the rate is 1")
        if self.site_rates is not None and max(self.site_rates.values()) != self.sampling_rate:
            raise ConfigError("event: sampling_rate must be the largest of site_rates")

    def rate(self, site: str | None) -> float:
        """The sampling rate that counts for one site's patients (``None``: the largest of all)."""
        return self.sampling_rate if site is None else (self.site_rates or {}).get(site, self.sampling_rate)

    def to_json(self) -> dict[str, Any]:
        """The ledger's JSON form."""
        return {
            "kind": "noise",
            "family": self.family.value,
            "noise_multiplier": self.noise_multiplier,
            "shares": self.shares,
            "placement": self.placement.value,
            "sensitivity": self.sensitivity,
            "dimension": self.dimension,
            "sampling": self.sampling.value,
            "sampling_rate": self.sampling_rate,
            "site_rates": None if self.site_rates is None else dict(self.site_rates),
            "count": self.count,
            "sampler_error": self.sampler_error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNoise(Noise):
    """Sums under one clip in which sites count with different public weights, each with noise of its own width.

    A unit of site i moves the sum by at most ``Δ_i = floor(Δ·w_i/max w)``, and the site adds a share of width
    ``σ_i = z·Δ·w_i/sqrt(Σ w²)`` (`secfl.dp.site_noise.SiteNoise`): z is the multiplier of all shares for a unit of the
    site with the largest weight. What is left for an adversary differs by site, and is stated by site.

    Attributes:
        weights: Client -> w_i, one for each client of the cohort.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is another class than the one whose body this is.
        Noise.__post_init__(self)
        if self.placement is not Placement.DISTRIBUTED or self.shares != len(self.weights):
            raise ConfigError("event: noise by site is distributed, with one share for each weight")
        if self.family is Family.GAUSSIAN or self.site_rates is not None:
            raise ConfigError("event: noise by site is integer noise, with one sampling rate")
        if not all(weight > 0 and math.isfinite(weight) for weight in self.weights.values()):
            raise ConfigError("event: weights must be positive numbers")
        if not self.sensitivity.is_integer() or min(map(self.unit_sensitivity, self.weights)) < 1:
            raise ConfigError("event: a weight is too small for the grid")

    def unit_sensitivity(self, site: str) -> int:
        """Δ_i, grid units."""
        return math.floor(int(self.sensitivity) * self.weights[site] / max(self.weights.values()))

    def share_sigma(self, site: str) -> float:
        """σ_i, grid units."""
        norm = math.sqrt(math.fsum(weight * weight for weight in self.weights.values()))
        return self.noise_multiplier * self.sensitivity * self.weights[site] / norm

    def unknown_sigma(self, site: str, unknown_shares: int) -> float:
        """Width of what stays unknown to an adversary who lacks so many shares, the site's own among them.

        The others of them are taken to be the smallest, whoever colludes or drops out.
        """
        others = sorted(self.share_sigma(name) for name in self.weights if name != site)
        kept = [self.share_sigma(site), *others[: unknown_shares - 1]]
        return math.sqrt(math.fsum(sigma * sigma for sigma in kept))

    def least_protected(self, unknown_shares: int) -> str:
        """The site whose units face the smallest multiplier."""
        return min(
            sorted(self.weights),
            key=lambda site: self.unknown_sigma(site, unknown_shares) / self.unit_sensitivity(site),
        )

    def to_json(self) -> dict[str, Any]:
        """The ledger's JSON form."""
        return Noise.to_json(self) | {"kind": "site_noise", "weights": dict(self.weights)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """Several releases in one round."""

    events: tuple[Event, ...]

    def to_json(self) -> dict[str, Any]:
        """The ledger's JSON form."""
        return {"kind": "composed", "events": [event.to_json() for event in self.events]}


Event: TypeAlias = NonPrivate | Noise | Composed


_DEEPEST: Final = 16


def event_from_json(value: Mapping[str, Any], *, depth: int = _DEEPEST) -> Event:
    """Read an event back.

    Args:
        value: What ``to_json`` made.
        depth: How deep compositions may still be nested.

    Raises:
        UnsupportedEvent: An unknown kind, family or placement: unknown mechanisms are refused, never guessed.
    """
    if depth == 0:
        raise UnsupportedEvent(f"body.event: compositions nested deeper than {_DEEPEST}")
    try:
        match value["kind"]:
            case "non_private":
                return NonPrivate(reason=value["reason"])
            case "composed":
                return Composed(
                    events=tuple(event_from_json(part, depth=depth - 1) for part in value["events"])
                )
            case "noise":
                return Noise(**_noise_fields(value))
            case "site_noise":
                weights = {name: float(weight) for name, weight in value["weights"].items()}
                return SiteNoise(**_noise_fields(value), weights=weights)
            case kind:
                raise UnsupportedEvent(f"event of kind {kind!r}: no accounting is known for it")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedEvent(f"event: {error}") from None


def _noise_fields(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": Family(value["family"]),
        "noise_multiplier": float(value["noise_multiplier"]),
        "shares": value["shares"],
        "placement": Placement(value["placement"]),
        "sensitivity": float(value["sensitivity"]),
        "dimension": value["dimension"],
        "sampling": Sampling(value["sampling"]),
        "sampling_rate": float(value["sampling_rate"]),
        "site_rates": value["site_rates"],
        "count": value["count"],
        "sampler_error": float(value["sampler_error"]),
    }


def leaves(event: Event) -> list[NonPrivate | Noise]:
    """The releases of an event in order, with compositions flattened."""
    if isinstance(event, Composed):
        return [leaf for part in event.events for leaf in leaves(part)]
    return [event]


def event_from_dp_accounting(event: Any, *, placement: Placement, shares: int = 1) -> Event:
    """Translate a ``dp_accounting`` event of (subsampled) Gaussians into the ledger's form.

    Args:
        event: A ``DpEvent`` built from Gaussian, PoissonSampled, SelfComposed, Composed and NonPrivate.
        placement: Who adds the noise: for a training loop at one site, ``Placement.CENTRAL``.
        shares: m, for distributed noise.

    Raises:
        UnsupportedEvent: Any other event.
    """
    name = type(event).__name__
    if name == "NonPrivateDpEvent":
        return NonPrivate(reason="declared so by the caller")
    if name == "ComposedDpEvent":
        parts = tuple(
            event_from_dp_accounting(part, placement=placement, shares=shares) for part in event.events
        )
        return parts[0] if len(parts) == 1 else Composed(events=parts)
    count = 1
    while name == "SelfComposedDpEvent":
        count *= int(event.count)
        event = event.event
        name = type(event).__name__
    rate, sampling = 1.0, Sampling.NONE
    if name == "PoissonSampledDpEvent":
        rate, sampling = float(event.sampling_probability), Sampling.POISSON
        event = event.event
        name = type(event).__name__
    if name != "GaussianDpEvent":
        raise UnsupportedEvent(f"dp-accounting event {name}: only (Poisson-sampled) Gaussians are translated")
    return Noise(
        family=Family.GAUSSIAN,
        noise_multiplier=float(event.noise_multiplier),
        shares=shares,
        placement=placement,
        sampling=sampling,
        sampling_rate=rate,
        count=count,
    )


def event_from_plan(plan: PrivacyPlan, *, release: int = 0, count: int = 1) -> Noise:
    """What one round of a plan releases.

    Args:
        plan: The run's privacy plan.
        release: Number of the round's first release, for plans whose noise decays.
        count: Releases (aggregated steps) in the round; 1 where the noise decays.

    Raises:
        ConfigError: Several releases in one round of a plan whose noise decays.
    """
    if count > 1 and plan.noise_decay != 1:
        raise ConfigError("event: noise that decays needs one event for each release")
    local = plan.schedule.value == "round"
    return Noise(
        family=Family(plan.family.value),
        noise_multiplier=plan.noise_multiplier * plan.noise_decay**release,
        shares=plan.shares,
        placement=Placement.LOCAL if local else Placement.DISTRIBUTED,
        sensitivity=float(plan.sensitivity),
        dimension=plan.dimension,
        sampling=Sampling.POISSON if plan.sampling_rate < 1 else Sampling.NONE,
        sampling_rate=plan.sampling_rate,
        count=count,
        sampler_error=plan.noise_share(release).total_variation,
    )
