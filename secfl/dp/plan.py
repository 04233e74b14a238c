"""The privacy plan: everything that ε depends on, fixed before a run and bound into every round.

A plan gives the event that each adversary sees, the noise that each client adds, and by bisection the noise
multiplier that a wanted ε needs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final

import rfc8785

from secfl.dp.accounting import Accountant, Relation, epsilon_reference
from secfl.dp.accounting import epsilon as _epsilon_of
from secfl.dp.calibration import LARGEST_MULTIPLIER, SMALLEST_MULTIPLIER, least_noise
from secfl.dp.effective import z_effective
from secfl.dp.events import DpEvent, IntegerNoise, PoissonSampled, SelfComposed, compose
from secfl.dp.integer import SMALLEST_SHARE
from secfl.dp.noise import NoiseFamily, NoiseShare
from secfl.errors import ConfigError, PrivacyError
from secfl.guarantees import Behaviour, UnitOfPrivacy
from secfl.types import MAX_VECTOR_LENGTH, join_fields

__all__ = ["WEAK_EPSILON", "PrivacyPlan", "Rounding", "Schedule"]

WEAK_EPSILON: Final = 20.0
"""Above this ε in the aggregator's view a plan needs explicit consent."""

_MOST_LEVELS: Final = 16
_LARGEST_CHANGE: Final = 300.0
"""Largest |log| of the last release's noise over the first one's."""
_SAMPLER_BOUND: Final = 2.0**-110
"""No sampler of any width is further from ideal noise (docs/privacy.md, "The samplers"); see `_sampler_error`."""


class Rounding(StrEnum):
    """When real numbers go on the grid: each unit's before the sum (sensitivity G), or the sum once."""

    EACH_UNIT = "each_unit"
    ONCE = "once"


class Schedule(StrEnum):
    """What is aggregated: every step (noise of all clients counts), or whole rounds (own noise only)."""

    STEP = "step"
    ROUND = "round"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What is released, how often, and with how much noise.

    Attributes:
        unit: Whose presence is hidden.
        relation: Add/remove or zero-out (the same figures here), or replace-one (full participation only;
            sensitivity 2G).
        clip_norm: C, L2 bound of one unit's contribution, in units of the update.
        grid_norm: G, the same bound on the integer grid; one grid step is C/G.
        dimension: d, coordinates of the vector with noise.
        noise_multiplier: z, standard deviation of the noise of all planned shares over the sensitivity.
        releases: T, sums with noise over the whole run (rounds, or steps).
        cohort_size: n, invited clients.
        threshold: t, fewest survivors.
        delta: Of the whole run.
        sampling_rate: q, each patient's chance per release; 1 when everybody takes part.
        planned_clients: m, shares that make up the noise; 0 means n.
        family: Discrete Gaussian or Skellam.
        rounding: See `Rounding`.
        schedule: See `Schedule`. Under ``round`` every client adds the whole noise (m = 1).
        noise_decay: κ; release number i uses the multiplier z·κ^i. Announced, 1 for constant noise.
        levels: Smaller multipliers, decreasing, to which an adaptive run may move on. What it then spends is
            capped by a Rényi filter; the figures of this class are those of a run that never moves on.
    """

    unit: UnitOfPrivacy
    clip_norm: float
    grid_norm: int
    dimension: int
    noise_multiplier: float
    releases: int
    cohort_size: int
    threshold: int
    delta: float
    relation: Relation = Relation.ADD_REMOVE
    sampling_rate: float = 1.0
    planned_clients: int = 0
    family: NoiseFamily = NoiseFamily.DISCRETE_GAUSSIAN
    rounding: Rounding = Rounding.EACH_UNIT
    schedule: Schedule = Schedule.STEP
    noise_decay: float = 1.0
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _between("clip_norm", self.clip_norm, 1e-12, 1e12)
        _between("grid_norm", self.grid_norm, 1, 2**40)
        _between("dimension", self.dimension, 1, MAX_VECTOR_LENGTH)
        _between("noise_multiplier", self.noise_multiplier, SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER)
        _between("releases", self.releases, 1, 10**7)
        _between("cohort_size", self.cohort_size, 1, 10**4)
        _between("threshold", self.threshold, 1, self.cohort_size)
        _between("planned_clients", self.planned_clients, 0, self.cohort_size)
        _between("noise_decay", self.noise_decay, 0.5, 2.0)
        if abs(math.log(self.noise_decay)) * self.releases > _LARGEST_CHANGE:
            raise ConfigError(
                "noise_decay: the last release's noise would be out of range; take one nearer to 1"
            )
        if not 0 < self.delta < 1:
            raise ConfigError("delta: expected above 0 and below 1")
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError("sampling_rate: expected above 0 and at most 1")
        if self.unit is UnitOfPrivacy.CLIENT:
            if self.sampling_rate < 1:
                raise ConfigError("sampling_rate: the cohort is public, clients are not sampled in secret")
            if self.relation is Relation.ADD_REMOVE:
                raise ConfigError(
                    "relation: the cohort is public, so client level means zero_out or replace_one"
                )
        if self.relation is Relation.REPLACE_ONE and self.sampling_rate < 1:
            raise ConfigError("relation: replace_one cannot be combined with Poisson sampling")
        if self.schedule is Schedule.ROUND and self.planned_clients > 1:
            raise ConfigError(
                "planned_clients: under the schedule 'round' each client's own noise is the whole"
            )
        self._check_levels()
        self._check_shares()

    def _check_shares(self) -> None:
        if self.family is NoiseFamily.DISCRETE_GAUSSIAN:
            least = min(1.0, self.noise_decay ** (self.releases - 1))
            if self.levels:
                least = self.levels[-1] / self.noise_multiplier
            if self.share_sigma() * least < SMALLEST_SHARE:
                raise ConfigError(
                    f"grid_norm: a noise share of {self.share_sigma() * least:.3g} grid units, "
                    f"at least {SMALLEST_SHARE:g} are needed; raise grid_norm"
                )

    def _check_levels(self) -> None:
        above = (self.noise_multiplier, *self.levels)
        falling = all(low < high for high, low in zip(above, self.levels, strict=False))
        if not (falling and above[-1] >= SMALLEST_MULTIPLIER and len(self.levels) < _MOST_LEVELS):
            raise ConfigError(
                f"levels: expected fewer than {_MOST_LEVELS} multipliers, each below the one before and at "
                f"least {SMALLEST_MULTIPLIER:g}"
            )
        if self.levels and self.noise_decay != 1:
            raise ConfigError("levels: expected a noise_decay of 1, because noise follows one rule")

    # --- sizes

    @property
    def shares(self) -> int:
        """m: how many clients' shares make up the noise multiplier."""
        if self.schedule is Schedule.ROUND:
            return 1
        return self.planned_clients or self.cohort_size

    @property
    def sensitivity(self) -> int:
        """L2 sensitivity of the integer sum after rounding, grid units."""
        bound = self.grid_norm
        if self.rounding is Rounding.ONCE:
            bound += math.isqrt(self.dimension - 1) + 1  # at most half a step a coordinate, twice
        return 2 * bound if self.relation is Relation.REPLACE_ONE else bound

    def total_sigma(self) -> float:
        """Width of all planned shares together, grid units."""
        return self.noise_multiplier * self.sensitivity

    def share_sigma(self) -> float:
        """Width of one client's share, grid units."""
        return self.total_sigma() / math.sqrt(self.shares)

    def noise_share(self, release: int = 0) -> NoiseShare:
        """What one client adds in release number ``release`` (from 0)."""
        return NoiseShare(family=self.family, sigma=self.share_sigma() * self.noise_decay**release)

    def largest_share_sigma(self) -> float:
        """Width of one client's widest share in the whole run, grid units."""
        return self.share_sigma() * max(1.0, self.noise_decay ** (self.releases - 1))

    def at_level(self, noise_multiplier: float) -> PrivacyPlan:
        """The plan with one of its multipliers, for a release that uses it.

        Raises:
            ConfigError: The multiplier is not one of the plan's.
        """
        if noise_multiplier not in (self.noise_multiplier, *self.levels):
            raise ConfigError("noise_multiplier: not one of the plan's")
        return replace(self, noise_multiplier=noise_multiplier, levels=())

    # --- events

    def event_of_release(self, z: float | None = None, *, release: int = 0) -> DpEvent:
        """What one release costs against an adversary who faces the multiplier ``z`` (default: all shares).

        Args:
            z: From `secfl.dp.effective`, before decay; at least that of one share.
            release: Number of the release, for announced decay.
        """
        base = self.noise_multiplier if z is None else z
        unknown = max(1, round((base / self.noise_multiplier) ** 2 * self.shares))
        share = self.noise_share(release)
        mechanism = IntegerNoise(
            family=self.family,
            sigma=base * self.sensitivity * self.noise_decay**release,
            sensitivity=self.sensitivity,
            dimension=self.dimension,
            shares=unknown,
            smallest_share=share.sigma,
            sampler_error=self._sampler_error(share) * max(unknown, self.shares),
        )
        if self.sampling_rate < 1:
            return PoissonSampled(self.sampling_rate, mechanism)
        return mechanism

    def _sampler_error(self, share: NoiseShare) -> float:
        """Of one drawn coordinate. With a width for each release, a bound saves computing as many tables."""
        return share.total_variation if self.noise_decay == 1 else _SAMPLER_BOUND

    def event(self, z: float | None = None, *, releases: int | None = None) -> DpEvent:
        """The event tree of the first ``releases`` releases (default: all)."""
        count = self.releases if releases is None else releases
        if self.noise_decay == 1.0:
            return SelfComposed(self.event_of_release(z), count)
        return compose(self.event_of_release(z, release=index) for index in range(count))

    def z_aggregator(self, behaviour: Behaviour = Behaviour.MALICIOUS, *, colluders: int = 0) -> float:
        """Multiplier against the aggregator with ``colluders`` clients, planned at t survivors."""
        if self.schedule is Schedule.ROUND:
            return self.noise_multiplier
        return z_effective(
            self.noise_multiplier,
            self.shares,
            survivors=self.threshold if behaviour is Behaviour.MALICIOUS else self.cohort_size,
            colluders=colluders,
            threshold=self.threshold,
            cohort_size=self.cohort_size,
            behaviour=behaviour,
        )

    def epsilon(self, z: float | None = None, *, accountant: Accountant = Accountant.AUTO) -> float:
        """ε of the whole run against the multiplier ``z``, proved for the integer mechanism."""
        return _epsilon_of(self.event(z), delta=self.delta, accountant=accountant, relation=self.relation)

    def epsilon_reference(self, z: float | None = None) -> float:
        """ε of the same run with continuous Gaussian noise: for comparison, not a claim."""
        return epsilon_reference(self.event(z), delta=self.delta)

    def refuse_if_weak(self, z: float | None = None, *, accept_weak: bool) -> None:
        """Refuse a plan that promises next to nothing.

        Args:
            z: Multiplier in the aggregator's view (default: curious, nobody dropped out).
            accept_weak: The user's explicit consent.

        Raises:
            PrivacyError: ε exceeds 20 without consent; the message says the number.
        """
        faced = self.z_aggregator(Behaviour.CURIOUS) if z is None else z
        reached = self.epsilon(faced)
        if reached > WEAK_EPSILON and not accept_weak:
            # So little noise that the sampler's error leaves nothing to prove: say the continuous figure.
            figure = reached if math.isfinite(reached) else self.epsilon_reference(faced)
            raise PrivacyError(
                f"epsilon {figure:.2f} in the aggregator's view exceeds {WEAK_EPSILON:g}; more noise, "
                "fewer releases, or --accept-weak"
            )

    def releases_within(self, epsilon: float, z: float | None = None) -> int:
        """How many of the planned releases fit into ``epsilon``; training stops before the next one.

        A stopping rule that only cuts the announced sequence short keeps the figure of the whole sequence.
        """

        def reached(count: int) -> float:
            return _epsilon_of(self.event(z, releases=count), delta=self.delta, relation=self.relation)

        low, high = 0, self.releases
        if reached(high) <= epsilon:
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if reached(middle) <= epsilon else (low, middle)
        return low

    def calibrated(
        self,
        epsilon: float,
        *,
        behaviour: Behaviour = Behaviour.MALICIOUS,
        colluders: int = 0,
        accountant: Accountant = Accountant.AUTO,
    ) -> PrivacyPlan:
        """The plan with the least noise multiplier whose ε against this adversary is at most ``epsilon``.

        Bisection on the accountant to a relative 1e-4; the side that satisfies the target is returned.

        Args:
            epsilon: Target of the whole run.
            behaviour: The aggregator planned for; malicious means at t survivors.
            colluders: Clients that collude with it.
            accountant: See `secfl.dp.accounting.Accountant`.

        Raises:
            PrivacyError: No multiplier up to 1e5 reaches the target.
        """

        def reached(plan: PrivacyPlan) -> float:
            return plan.epsilon(plan.z_aggregator(behaviour, colluders=colluders), accountant=accountant)

        return self.calibrated_to(epsilon, reached)

    def calibrated_to(self, epsilon: float, reached: Callable[[PrivacyPlan], float]) -> PrivacyPlan:
        """The plan with the least noise multiplier whose ``reached(plan)`` is at most ``epsilon``.

        Arguments and errors as in `secfl.dp.calibration.least_noise`.
        """
        return least_noise(self, epsilon, reached)

    # --- files

    def to_json(self) -> str:
        """Canonical JSON (RFC 8785)."""
        return bytes(rfc8785.dumps(self.to_dict())).decode()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, enums as their strings; ``levels`` only where there are any."""
        values = {name: str(v) if isinstance(v, StrEnum) else v for name, v in asdict(self).items()}
        values["levels"] = list(self.levels)
        return values if self.levels else {name: v for name, v in values.items() if name != "levels"}

    @classmethod
    def from_json(cls, text: str) -> PrivacyPlan:
        """The inverse of `to_json`; `ConfigError` for anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError("privacy plan: not JSON") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: object) -> PrivacyPlan:
        """The inverse of `to_dict`; `ConfigError` for unknown, missing or wrong fields."""
        names = {item.name: item.type for item in fields(cls)}
        if not isinstance(data, dict) or set(data) | {"levels"} != set(names):
            raise ConfigError(f"privacy plan: expected exactly the fields {', '.join(sorted(names))}")
        values: dict[str, Any] = {"levels": _levels(data["levels"])} if "levels" in data else {}
        for name, kind in names.items():
            if name == "levels":
                continue
            raw = data[name]
            if kind in _ENUMS:
                if not isinstance(raw, str) or raw not in set(_ENUMS[kind]):
                    raise ConfigError(f"privacy plan: {name}: expected one of {', '.join(_ENUMS[kind])}")
                values[name] = _ENUMS[kind](raw)
            elif kind == "int" and isinstance(raw, float) and raw.is_integer() and abs(raw) < 2**53:
                values[name] = int(raw)
            elif isinstance(raw, bool) or not isinstance(raw, int | float if kind == "float" else int):
                raise ConfigError(f"privacy plan: {name}: expected a number")
            else:
                values[name] = float(raw) if kind == "float" else raw
        return cls(**values)

    def digest(self) -> bytes:
        """SHA-256 that goes into every `RoundSpec`."""
        return hashlib.sha256(join_fields(b"secfl/v1/privacy-plan", self.to_json().encode())).digest()


_ENUMS: Final[dict[Any, type[StrEnum]]] = {
    "UnitOfPrivacy": UnitOfPrivacy,
    "Relation": Relation,
    "NoiseFamily": NoiseFamily,
    "Rounding": Rounding,
    "Schedule": Schedule,
}


def _levels(raw: object) -> tuple[float, ...]:
    if (
        not isinstance(raw, list)
        or not raw
        or not all(isinstance(level, int | float) and not isinstance(level, bool) for level in raw)
    ):
        raise ConfigError("privacy plan: levels: expected a list of numbers")
    return tuple(float(level) for level in raw)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: {value:g}, expected {low:g} to {high:g}")
