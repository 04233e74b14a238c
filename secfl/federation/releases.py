"""What each round of a run releases: how one unit is clipped, who adds which noise, and the ledger's event.

These are public functions of the round's number and of what the aggregator announced for the round. Every party
computes them from the terms it agreed to; nobody copies them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from secfl.crypto.codec import Grid
from secfl.dp.adaptive import QuantileClip
from secfl.dp.clipping import GridClip
from secfl.dp.noise import NoiseShare
from secfl.dp.plan import PrivacyPlan, Schedule
from secfl.dp.site_noise import SiteNoise
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.ledger.events import Composed, Event, NonPrivate, event_from_plan
from secfl.ledger.events import SiteNoise as SiteNoiseEvent
from secfl.types import AGGREGATOR, ClientId, join_fields

__all__ = ["NOTHING_ANNOUNCED", "SEEDED", "Announcement", "Releases"]

SEEDED = "the noise comes from a seed (--insecure-test-noise)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What the aggregator chose for one round after seeing earlier sums; bound into the round's specification.

    A client does not trust it (`Releases.check`): a clip norm is no privacy parameter, because grid norm, noise
    and sampling stay as planned, and a noise multiplier must be one of the plan's.

    Attributes:
        clip_norm: C of this round where the clip follows a private quantile, else ``None``.
        noise_multiplier: z of this round where spending follows a score, else ``None``.
    """

    clip_norm: float | None = None
    noise_multiplier: float | None = None

    def encode(self) -> bytes:
        """One encoding for each announcement; empty when nothing is announced."""
        if self == NOTHING_ANNOUNCED:
            return b""
        values = (self.clip_norm, self.noise_multiplier)
        return join_fields(*(b"" if value is None else value.hex().encode() for value in values))


NOTHING_ANNOUNCED = Announcement()


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """The releases of a run with a privacy plan.

    Attributes:
        plan: What was planned.
        clip: How one unit is clipped as long as nothing else is announced.
        local_steps: Releases of each client in one round: its private steps under the schedule ``round``.
        quantile: How the clip may follow a private quantile, or ``None`` for a fixed clip.
        site_noise: Noise by site weight with the sites in its order, or ``None`` where all sites count the same.
        seeded: Why nothing here is private, or an empty string. Recorded instead of the mechanism.
    """

    plan: PrivacyPlan
    clip: GridClip
    local_steps: int = 1
    quantile: QuantileClip | None = None
    site_noise: tuple[tuple[ClientId, ...], SiteNoise] | None = None
    seeded: str = ""

    def __post_init__(self) -> None:
        if self.clip.sensitivity > self.plan.grid_norm or self.clip.length != self.plan.dimension:
            raise LocalProtocolError("releases: the clip does not fit the plan")

    def check(self, announced: Announcement) -> None:
        """Refuse what the plan does not provide for.

        Raises:
            RemoteProtocolError: The aggregator announced something else than it may.
        """
        quantile, levels = self.quantile, self.plan.levels
        if (announced.clip_norm is None) != (quantile is None):
            raise RemoteProtocolError(
                AGGREGATOR, "announces a clip norm exactly if the plan has adaptive clipping"
            )
        if quantile is not None and announced.clip_norm is not None:
            sound = math.isfinite(announced.clip_norm)
            if not (sound and quantile.smallest <= announced.clip_norm <= quantile.largest):
                raise RemoteProtocolError(AGGREGATOR, "announces a clip norm outside its public limits")
        if (announced.noise_multiplier is None) != (not levels):
            raise RemoteProtocolError(
                AGGREGATOR, "announces a noise multiplier exactly if the plan has levels"
            )
        if levels and announced.noise_multiplier not in (self.plan.noise_multiplier, *levels):
            raise RemoteProtocolError(
                AGGREGATOR, "announces a noise multiplier that is not one of the plan's"
            )

    def unit_clip(
        self, announced: Announcement = NOTHING_ANNOUNCED, *, site: ClientId | None = None
    ) -> GridClip:
        """How one unit's vector is clipped and put on the grid in this round.

        Args:
            announced: For the round.
            site: The unit's; without one, that of a site with the largest weight.
        """
        if self.site_noise is not None and site is not None:
            sites, noise = self.site_noise
            return GridClip.single(
                dimension=self.plan.dimension,
                clip_norm=self.plan.clip_norm,
                grid_norm=noise.sensitivity(sites.index(site)),
            )
        if self.quantile is None or announced.clip_norm is None:
            return self.clip
        return replace(self.quantile, clip_norm=announced.clip_norm).unit_clip()

    def noise(
        self,
        round_index: int,
        announced: Announcement = NOTHING_ANNOUNCED,
        *,
        site: ClientId | None = None,
    ) -> tuple[NoiseShare, ...]:
        """What one client adds, a share for each of its releases in the round."""
        if self.site_noise is not None and site is not None:
            sites, noise = self.site_noise
            return (noise.share(sites.index(site)),)
        plan = self._plan_of(announced)
        return tuple(plan.noise_share(release) for release in self._numbers(round_index))

    def event(self, round_index: int, announced: Announcement = NOTHING_ANNOUNCED) -> Event:
        """What the round releases, for the ledger."""
        if self.seeded:
            return NonPrivate(reason=self.seeded)
        plan, numbers = self._plan_of(announced), self._numbers(round_index)
        if self.site_noise is not None:
            return self._site_event(*self.site_noise)
        if plan.noise_decay == 1 or len(numbers) == 1:
            return event_from_plan(plan, release=numbers.start, count=len(numbers))
        return Composed(events=tuple(event_from_plan(plan, release=number) for number in numbers))

    def sampler_error(
        self, round_index: int, announced: Announcement = NOTHING_ANNOUNCED, *, clients: int
    ) -> float:
        """Total variation distance of all noise of the round from the ideal noise.

        Args:
            round_index: The round.
            announced: For it.
            clients: How many clients' shares one unit's protection rests on; 1 where noise is local.
        """
        if self.site_noise is not None:
            _, noise = self.site_noise
            shares = (noise.share(index).total_variation for index in range(len(noise.weights)))
            return max(shares) * self.plan.dimension * clients
        count = 1 if self.plan.schedule is Schedule.ROUND else clients
        each = math.fsum(share.total_variation for share in self.noise(round_index, announced))
        return each * self.plan.dimension * count

    def grid(self, announced: Announcement = NOTHING_ANNOUNCED) -> Grid:
        """The grid that the round's specification names; it tells every client the clip."""
        clip = self.unit_clip(announced)
        norm = math.sqrt(math.fsum(group.clip_norm**2 for group in clip.groups))
        return Grid.for_clip(self.plan.dimension, clip_norm=norm, grid_norm=self.plan.grid_norm)

    def encode(self, announced: Announcement = NOTHING_ANNOUNCED) -> bytes:
        """What a round's specification must name beyond grid and plan; empty for one fixed clip."""
        clip = self.unit_clip(announced)
        if self.site_noise is not None:
            sites, noise = self.site_noise
            pairs = zip(sites, noise.weights, strict=True)
            return join_fields(b"site-weights", *(f"{name} {w.hex()}".encode() for name, w in pairs))
        if announced == NOTHING_ANNOUNCED and len(clip.groups) == 1 and not clip.bit_slot:
            return b""
        groups = [f"{one.size} {one.clip_norm.hex()} {one.grid_norm}".encode() for one in clip.groups]
        return join_fields(announced.encode(), str(clip.bit_slot).encode(), *groups)

    def _site_event(self, sites: tuple[ClientId, ...], noise: SiteNoise) -> Event:
        one = event_from_plan(self.plan)
        return SiteNoiseEvent(
            family=one.family,
            noise_multiplier=one.noise_multiplier,
            shares=len(sites),
            sensitivity=one.sensitivity,
            dimension=one.dimension,
            sampling=one.sampling,
            sampling_rate=one.sampling_rate,
            sampler_error=max(noise.share(index).total_variation for index in range(len(sites))),
            weights=dict(zip(sites, noise.weights, strict=True)),
        )

    def _plan_of(self, announced: Announcement) -> PrivacyPlan:
        z = announced.noise_multiplier
        return self.plan if z is None else self.plan.at_level(z)

    def check_round(self, round_index: int) -> None:
        """Refuse a round that is not one of the plan's: ε counts so many, and noise may shrink from one to the next.

        Raises:
            RemoteProtocolError: The aggregator asks for a release that was never planned.
        """
        planned = self.plan.releases // self.local_steps
        if not 0 <= round_index < planned:
            raise RemoteProtocolError(
                AGGREGATOR, f"asks for round {round_index + 1} of training, where {planned} were planned"
            )

    def _numbers(self, round_index: int) -> range:
        self.check_round(round_index)
        first = round_index * self.local_steps
        return range(first, first + self.local_steps)
