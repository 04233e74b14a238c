"""Privacy events: what was released, as data. ε is always derived from them, never stored as truth.

The tree mirrors `dp_accounting.DpEvent` under the same names, and adds the integer mechanisms, for which that
library has no event. It is kept here so that files can be read and checked without loading an accountant.
An event that is not known here is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from secfl.dp.noise import NoiseFamily
from secfl.errors import UnsupportedEvent
from secfl.randomness import Rng

__all__ = [
    "Composed",
    "DpEvent",
    "Gaussian",
    "IntegerNoise",
    "Leaf",
    "NoOp",
    "NonPrivate",
    "PoissonSampled",
    "SelfComposed",
    "ZeroConcentrated",
    "compose",
    "event_from_json",
    "event_to_json",
    "leaves",
    "unless_seeded",
]


_LEAST, _MOST = 1e-9, 1e9


def _positive(name: str, value: float, *, most: float = math.inf) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UnsupportedEvent(f"{name}: expected a positive number")
    if not _LEAST <= value <= most:
        raise UnsupportedEvent(f"{name}: {value:g} is beyond what can be accounted for")


@dataclass(frozen=True, slots=True)
class NoOp:
    """Nothing was released."""


@dataclass(frozen=True, slots=True)
class NonPrivate:
    """Something was released without a guarantee; ε is infinite. ``reason`` is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A sum with continuous Gaussian noise of ``noise_multiplier`` times the L2 sensitivity."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        _positive("Gaussian.noise_multiplier", self.noise_multiplier, most=_MOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerNoise:
    """A sum of integer vectors with integer noise, as the adversary sees it.

    Attributes:
        family: Discrete Gaussian or Skellam.
        sigma: Width of the noise that the adversary does not know: root of the summed share variances, in
            grid units.
        sensitivity: L2 sensitivity of the integer sum, grid units, after rounding.
        dimension: Number of coordinates d.
        shares: How many independent shares make up ``sigma``.
        smallest_share: Width of the smallest of them, grid units.
        sampler_error: Distance of the drawn from the ideal noise for one coordinate, summed over all shares.
    """

    family: NoiseFamily
    sigma: float
    sensitivity: int
    dimension: int
    shares: int
    smallest_share: float
    sampler_error: float

    def __post_init__(self) -> None:
        for label, count in (
            ("sensitivity", self.sensitivity),
            ("dimension", self.dimension),
            ("shares", self.shares),
        ):
            if not 1 <= count < 2**53:
                raise UnsupportedEvent(f"IntegerNoise.{label}: expected 1 to 2**53")
        _positive("IntegerNoise.sigma", self.sigma, most=_MOST * self.sensitivity)
        _positive("IntegerNoise.smallest_share", self.smallest_share)
        if not 0 <= self.sampler_error < 1:
            raise UnsupportedEvent("IntegerNoise.sampler_error: expected 0 to 1")
        if self.shares * self.smallest_share**2 > self.sigma**2 * (1 + 1e-9):
            raise UnsupportedEvent("IntegerNoise: the shares add up to more than sigma")

    @property
    def noise_multiplier(self) -> float:
        """``sigma / sensitivity``: that of the continuous Gaussian which it resembles."""
        return self.sigma / self.sensitivity


@dataclass(frozen=True, slots=True)
class ZeroConcentrated:
    """A mechanism known to be ``rho``-zCDP (Bun and Steinke 2016). Never under sampling."""

    rho: float

    def __post_init__(self) -> None:
        _positive("ZeroConcentrated.rho", self.rho, most=_MOST)


@dataclass(frozen=True, slots=True)
class PoissonSampled:
    """Each unit takes part independently with ``sampling_probability``; then one mechanism runs."""

    sampling_probability: float
    event: DpEvent

    def __post_init__(self) -> None:
        if not 0 < self.sampling_probability <= 1:
            raise UnsupportedEvent("PoissonSampled.sampling_probability: expected above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class SelfComposed:
    """The same mechanism ``count`` times with fresh noise, adaptively chosen inputs."""

    event: DpEvent
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UnsupportedEvent("SelfComposed.count: expected 0 or more")


@dataclass(frozen=True, slots=True)
class Composed:
    """Several mechanisms one after the other."""

    events: tuple[DpEvent, ...]


DpEvent: TypeAlias = (
    NoOp | NonPrivate | Gaussian | IntegerNoise | ZeroConcentrated | PoissonSampled | SelfComposed | Composed
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One mechanism with the sampling around it."""

    mechanism: NonPrivate | Gaussian | IntegerNoise | ZeroConcentrated
    sampling_probability: float = 1.0


def leaves(event: DpEvent) -> dict[Leaf, int]:
    """The multiset of mechanisms in a tree: order does not matter to composition.

    Raises:
        UnsupportedEvent: Sampling around a composition, around sampling or around zCDP.
    """
    counts: dict[Leaf, int] = {}
    for leaf, count in _walk(event, 1):
        if count:
            counts[leaf] = counts.get(leaf, 0) + count
    return counts


def _walk(event: DpEvent, count: int) -> Iterator[tuple[Leaf, int]]:
    match event:
        case NoOp():
            pass
        case SelfComposed(event=inner, count=times):
            yield from _walk(inner, count * times)
        case Composed(events=events):
            for inner in events:
                yield from _walk(inner, count)
        case PoissonSampled(sampling_probability=rate, event=inner):
            if not isinstance(inner, Gaussian | IntegerNoise | NonPrivate):
                raise UnsupportedEvent(
                    f"PoissonSampled around {type(inner).__name__}: only a single Gaussian or integer "
                    "mechanism can be sampled"
                )
            yield Leaf(inner, rate), count
        case NonPrivate() | Gaussian() | IntegerNoise() | ZeroConcentrated():
            yield Leaf(event), count
        case _:
            raise UnsupportedEvent(f"unknown event {type(event).__name__}")


_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        NoOp,
        NonPrivate,
        Gaussian,
        IntegerNoise,
        ZeroConcentrated,
        PoissonSampled,
        SelfComposed,
        Composed,
    )
}
_DEEPEST = 16


def event_to_json(event: DpEvent) -> dict[str, Any]:
    """Plain values for a canonical JSON file: ``{"event": name, ...fields}``."""
    data: dict[str, Any] = {"event": type(event).__name__}
    for item in fields(event):
        value = getattr(event, item.name)
        if item.name == "events":
            data[item.name] = [event_to_json(inner) for inner in value]
        elif item.name == "event":
            data["inner"] = event_to_json(value)
        else:
            data[item.name] = str(value) if isinstance(value, NoiseFamily) else value
    return data


def event_from_json(data: object) -> DpEvent:
    """The inverse of `event_to_json`, for files from elsewhere.

    Raises:
        UnsupportedEvent: Anything that is not a known event with exactly its fields and sound values.
    """
    return _parse(data, _DEEPEST)


def _parse(data: object, depth: int) -> DpEvent:
    if depth == 0:
        raise UnsupportedEvent("event: nested too deeply")
    if not isinstance(data, Mapping) or not isinstance(data.get("event"), str):
        raise UnsupportedEvent("event: expected an object with the name of an event")
    cls = _CLASSES.get(data["event"])
    if cls is None:
        raise UnsupportedEvent("event: unknown name")
    wanted = {item.name: str(item.type) for item in fields(cls)}
    names = {"inner" if name == "event" else name for name in wanted}
    if set(data) != names | {"event"}:
        raise UnsupportedEvent(f"{cls.__name__}: expected exactly the fields {', '.join(sorted(names))}")
    values: dict[str, Any] = {}
    for name, kind in wanted.items():
        raw = data["inner" if name == "event" else name]
        values[name] = _value(f"{cls.__name__}.{name}", kind, raw, depth)
    result: DpEvent = cls(**values)
    return result


def _value(name: str, kind: str, raw: object, depth: int) -> Any:
    match kind:
        case "DpEvent":
            return _parse(raw, depth - 1)
        case "tuple[DpEvent, ...]" if isinstance(raw, list):
            return tuple(_parse(inner, depth - 1) for inner in raw)
        case "str" if isinstance(raw, str):
            return raw
        case "NoiseFamily" if isinstance(raw, str) and raw in set(NoiseFamily):
            return NoiseFamily(raw)
        case "int" if isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < 2**53:
            return raw
        case "float" if isinstance(raw, float | int) and not isinstance(raw, bool) and abs(raw) < 2**1000:
            return float(raw)
    raise UnsupportedEvent(f"{name}: expected {kind}")


def unless_seeded(event: DpEvent, *sources: Rng) -> DpEvent:
    """The event, or `NonPrivate` when any of the sources of noise or sampling can be reproduced from a seed."""
    if all(source.is_secret for source in sources):
        return event
    return NonPrivate("noise or sampling from a seed")


def compose(events: Iterable[DpEvent]) -> DpEvent:
    """One event for all of them, equal neighbours merged into `SelfComposed`."""
    merged: list[tuple[DpEvent, int]] = []
    for event in events:
        inner, count = (event.event, event.count) if isinstance(event, SelfComposed) else (event, 1)
        if merged and merged[-1][0] == inner:
            merged[-1] = (inner, merged[-1][1] + count)
        else:
            merged.append((inner, count))
    parts = tuple(inner if count == 1 else SelfComposed(inner, count) for inner, count in merged)
    if not parts:
        return NoOp()
    return parts[0] if len(parts) == 1 else Composed(parts)
