"""From events to ε. Every figure is an upper bound for the mechanism that ran.

Three ways: without sampling the Gaussian mechanism is solved exactly; with it, a privacy loss distribution
(`secfl.dp.loss`); for mechanisms that only have Rényi bounds, `secfl.dp.rdp`. dp-accounting gives the second
opinion (`cross_check`). The integer mechanisms add two remainders: a pure one (the discrete Gaussian is not
quite a post-processed Gaussian), and the sampler's distance from ideal noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from secfl.dp.analytic import analytic_gaussian_epsilon
from secfl.dp.events import DpEvent, Gaussian, IntegerNoise, Leaf, NonPrivate, leaves
from secfl.dp.integer import gaussian_equivalent
from secfl.dp.loss import ComposedLoss, compose_gaussians
from secfl.dp.noise import NoiseFamily
from secfl.dp.rdp import curve_of_leaves, linear_slope, linear_to_epsilon, rdp_to_epsilon
from secfl.errors import ConfigError, PrivacyError, UnsupportedEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "SMALLEST_FFT_DELTA",
    "Accountant",
    "Relation",
    "cross_check",
    "delta_with_cryptography",
    "epsilon",
    "epsilon_reference",
]

SMALLEST_FFT_DELTA: Final = 1e-12
"""Below it, the rounding errors of the FFT are no longer small beside δ."""

_LIBRARY_INTERVAL: Final = 2e-4  # dp-accounting rounds privacy losses to the pessimistic side of this grid
_HUGE: Final = 2000.0
_ROUGH_ORDERS: Final = (2, 3, 4, 8, 16)
_DISTINCT: Final = 128  # more distinct mechanisms than this are merged, each to a worse one


class Relation(StrEnum):
    """Which data sets are neighbours."""

    ADD_REMOVE = "add_remove"
    ZERO_OUT = "zero_out"
    REPLACE_ONE = "replace_one"


class Accountant(StrEnum):
    """How ε is computed. AUTO: exact without sampling, else PLD where it applies, else RDP.

    PLD and RDP are computed here; the LIBRARY ones by dp-accounting, from the same Gaussian equivalents.
    """

    AUTO = "auto"
    EXACT = "exact"
    PLD = "pld"
    RDP = "rdp"
    LIBRARY_PLD = "library_pld"
    LIBRARY_RDP = "library_rdp"


@dataclass(frozen=True, slots=True)
class _Flat:
    """Events as Gaussians: (multiplier, sampling probability) -> count, and what must be added."""

    gaussians: tuple[tuple[float, float, int], ...]
    remainder: float  # R over all releases
    sampler_error: float  # total variation over all releases and coordinates
    other: bool  # there are mechanisms without Gaussian equivalent
    infinite: bool


def _flatten(counts: Mapping[Leaf, int]) -> _Flat:
    gaussians: dict[tuple[float, float], int] = {}
    remainder = sampler_error = 0.0
    other = infinite = False
    for leaf, count in counts.items():
        mechanism = leaf.mechanism
        if isinstance(mechanism, NonPrivate):
            infinite = True
            continue
        if isinstance(mechanism, IntegerNoise):
            sampler_error += count * mechanism.dimension * mechanism.sampler_error
            if mechanism.family is not NoiseFamily.DISCRETE_GAUSSIAN:
                other = True
                continue
            equivalent = gaussian_equivalent(mechanism)
            multiplier = equivalent.noise_multiplier
            remainder += count * equivalent.remainder
        elif isinstance(mechanism, Gaussian):
            multiplier = mechanism.noise_multiplier
        else:
            other = True
            continue
        key = (multiplier, leaf.sampling_probability)
        gaussians[key] = gaussians.get(key, 0) + count
    return _Flat(
        gaussians=tuple(sorted((z, q, count) for (z, q), count in gaussians.items())),
        remainder=remainder,
        sampler_error=sampler_error,
        other=other,
        infinite=infinite,
    )


def epsilon(
    event: DpEvent,
    *,
    delta: float,
    accountant: Accountant = Accountant.AUTO,
    relation: Relation = Relation.ADD_REMOVE,
) -> float:
    """ε at δ, proved for the mechanisms in ``event``; infinite if one of them has no guarantee.

    Args:
        event: Everything that was released to the adversary.
        delta: Above 0 and below 1; the PLD accountant needs at least 1e-12.
        accountant: See `Accountant`.
        relation: Neighbours. Replace-one needs sensitivities of a replacement in the events.

    Raises:
        UnsupportedEvent: No sound accounting is known: replace-one under Poisson sampling, zCDP under
            sampling, an accountant that does not cover an event.
        ConfigError: δ out of range.
    """
    counts = leaves(event)
    if relation is Relation.REPLACE_ONE and any(leaf.sampling_probability < 1 for leaf in counts):
        raise UnsupportedEvent("replace-one neighbours under Poisson sampling")
    return _epsilon_of_leaves(counts, delta, accountant)


def _epsilon_of_leaves(counts: Mapping[Leaf, int], delta: float, accountant: Accountant) -> float:
    _check_delta(delta)
    flat = _flatten(counts)
    if flat.infinite:
        return math.inf
    if not counts:
        return 0.0
    chosen = _choose(accountant, flat, delta)
    if accountant is Accountant.AUTO and chosen is Accountant.PLD:
        # Both are bounds. A huge Rényi figure is not worth a large FFT.
        by_order = _proved(counts, flat, delta, Accountant.RDP)
        curve = curve_of_leaves(counts)
        if rdp_to_epsilon({order: curve[order] for order in _ROUGH_ORDERS}, delta) > _HUGE:
            return by_order
        return min(by_order, _proved(counts, flat, delta, chosen))
    return _proved(counts, flat, delta, chosen)


def _proved(counts: Mapping[Leaf, int], flat: _Flat, delta: float, chosen: Accountant) -> float:
    """ε by one accountant, with all remainders."""
    slope = linear_slope(counts) if chosen is Accountant.RDP else None
    curve = curve_of_leaves(counts) if chosen is Accountant.RDP and slope is None else {}

    def ideal(remaining: float) -> float:
        if slope is not None:
            return linear_to_epsilon(slope, remaining)
        if curve:
            return rdp_to_epsilon(curve, remaining)
        remaining *= math.exp(-flat.remainder)
        return _gaussian_epsilon(flat.gaussians, remaining, chosen) + 2 * flat.remainder

    return with_sampler_error(ideal, delta, flat.sampler_error)


def with_sampler_error(ideal: Callable[[float], float], delta: float, error: float) -> float:
    """Smallest found ε with δ_ideal(ε) + (1 + e^ε)·error <= δ; infinite when the error eats all of δ.

    Args:
        ideal: ε of the ideal mechanism at a given δ.
        delta: The whole δ.
        error: Total variation distance between the mechanism that runs and the ideal one.
    """
    found = ideal(delta)
    if error == 0:
        return found
    for _ in range(100):
        # If ε(δ - (1 + e^u)·error) <= u, the charge at that ε is at most the one at u.
        upper = found * (1 + 1e-6) + 1e-9
        if upper > 700:
            return math.inf
        remaining = delta - (1 + math.exp(upper)) * error
        if remaining <= 0:
            return math.inf
        found = ideal(remaining)
        if found <= upper:
            return found
    return math.inf


def _choose(accountant: Accountant, flat: _Flat, delta: float) -> Accountant:
    sampled = any(rate < 1 for _, rate, _ in flat.gaussians)
    if accountant is Accountant.AUTO:
        if flat.other:
            return Accountant.RDP
        if not sampled:
            return Accountant.EXACT
        return Accountant.PLD if delta >= 100 * SMALLEST_FFT_DELTA else Accountant.RDP
    if accountant is not Accountant.RDP and flat.other:
        raise UnsupportedEvent(f"the {accountant} accountant covers Gaussian mechanisms only")
    if accountant is Accountant.EXACT and sampled:
        raise UnsupportedEvent("no exact accounting under sampling")
    if accountant in {Accountant.PLD, Accountant.LIBRARY_PLD} and delta < SMALLEST_FFT_DELTA:
        raise ConfigError(f"delta below {SMALLEST_FFT_DELTA:g}: out of reach for the PLD accountants")
    return accountant


def epsilon_reference(event: DpEvent, *, delta: float) -> float:
    """ε of the same releases with continuous Gaussian noise (exact or PLD): for comparison, not a claim.

    Integer noise counts as a Gaussian of the same width; zCDP has no such figure and is refused.

    Raises:
        UnsupportedEvent: A mechanism without a Gaussian counterpart.
    """
    counts: dict[Leaf, int] = {}
    for leaf, count in leaves(event).items():
        mechanism = leaf.mechanism
        seen = leaf
        if isinstance(mechanism, IntegerNoise):
            seen = Leaf(Gaussian(mechanism.noise_multiplier), leaf.sampling_probability)
        elif not isinstance(mechanism, Gaussian | NonPrivate):
            raise UnsupportedEvent(f"{type(mechanism).__name__}: has no Gaussian reference")
        counts[seen] = counts.get(seen, 0) + count
    return _epsilon_of_leaves(counts, delta, Accountant.AUTO)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError("delta: expected above 0 and below 1")


@lru_cache(maxsize=1024)
def _gaussian_epsilon(
    gaussians: tuple[tuple[float, float, int], ...], delta: float, accountant: Accountant
) -> float:
    """ε of Gaussians with (multiplier, rate, count); pure, so results are kept."""
    if not gaussians:
        return 0.0
    match accountant:
        case Accountant.EXACT:
            return analytic_gaussian_epsilon(delta, math.fsum(c / (z * z) for z, _, c in gaussians) ** -0.5)
        case Accountant.LIBRARY_PLD | Accountant.LIBRARY_RDP:
            return _library_epsilon(gaussians, delta, accountant)
        case _:
            return _loss_distribution(gaussians).epsilon(delta)


@lru_cache(maxsize=64)
def _loss_distribution(gaussians: tuple[tuple[float, float, int], ...]) -> ComposedLoss:
    return compose_gaussians(_merge(gaussians))


def _library_epsilon(
    gaussians: tuple[tuple[float, float, int], ...], delta: float, accountant: Accountant
) -> float:
    """The same by dp-accounting, which takes a second to load."""
    import dp_accounting

    library: Any
    if accountant is Accountant.LIBRARY_PLD:
        library = dp_accounting.pld.PLDAccountant(value_discretization_interval=_LIBRARY_INTERVAL)
    else:
        library = dp_accounting.rdp.RdpAccountant()
    for multiplier, rate, count in gaussians:
        event: Any = dp_accounting.GaussianDpEvent(multiplier)
        if rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(rate, event)
        library.compose(event, count)
    return float(library.get_epsilon(delta))


def _merge(gaussians: tuple[tuple[float, float, int], ...]) -> tuple[tuple[float, float, int], ...]:
    """At most `_DISTINCT` mechanisms, each replaced by one with no more noise and no less sampling.

    Sound because ε falls with the multiplier and rises with the sampling probability.
    """
    width = 1e-3
    merged = gaussians
    while len(merged) > _DISTINCT:
        groups: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
        for z, q, count in gaussians:
            cell = (math.floor(math.log(z) / width), math.ceil(math.log(q) / width))
            groups.setdefault(cell, []).append((z, q, count))
        merged = tuple(
            sorted(
                (min(z for z, _, _ in group), max(q for _, q, _ in group), sum(c for _, _, c in group))
                for group in groups.values()
            )
        )
        width *= 1.5
    return merged


def cross_check(event: DpEvent, *, delta: float) -> dict[Accountant, float]:
    """ε of one event by every accountant that covers it.

    Raises:
        PrivacyError: The accountants contradict each other: a Rényi figure below the PLD one, or two PLD
            figures more than one per cent (or 0.005) apart.
    """
    results: dict[Accountant, float] = {}
    for accountant in Accountant:
        try:
            results[accountant] = epsilon(event, delta=delta, accountant=accountant)
        except (ConfigError, UnsupportedEvent):
            continue
    reference = results.get(Accountant.PLD, results[Accountant.AUTO])
    slack = max(0.005, 0.01 * reference)
    for accountant, figure in results.items():
        tight = accountant not in {Accountant.RDP, Accountant.LIBRARY_RDP}
        if figure < reference - slack or (tight and figure > reference + slack):
            raise PrivacyError(f"accountants disagree: {accountant} says {figure:g}, expected {reference:g}")
    return results


def delta_with_cryptography(delta: float, epsilon: float, *, advantage_log2: float) -> float:
    """δ of a row that rests on cryptography: ``δ + (1 + e^ε)·a``.

    Replacing the protocol by its ideal sum changes the adversary's output distribution by at most its
    distinguishing advantage a, once for each of the two neighbours.

    Args:
        delta: Of the differentially private sum alone.
        epsilon: The ε beside it.
        advantage_log2: log2 of the advantages summed over hybrids and rounds; ``-inf`` without cryptography.
    """
    if math.isinf(advantage_log2) and advantage_log2 < 0:
        return delta
    if advantage_log2 >= 0 or epsilon > 700:
        return 1.0
    advantage: float = math.exp2(advantage_log2)
    return min(1.0, delta + (1 + math.exp(epsilon)) * advantage)
