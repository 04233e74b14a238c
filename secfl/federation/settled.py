"""How much noise a run gets: from a target ε by the accountant, or as asked; refused where it protects nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from secfl.config import RunConfig
from secfl.dp.accounting import Accountant, epsilon
from secfl.dp.events import DpEvent, PoissonSampled, SelfComposed, compose
from secfl.dp.filters import RenyiFilter
from secfl.dp.integer import SMALLEST_SHARE
from secfl.dp.plan import WEAK_EPSILON, PrivacyPlan
from secfl.dp.rdp import rdp_to_epsilon
from secfl.dp.site_noise import SiteNoise
from secfl.errors import ConfigError, PrivacyError
from secfl.guarantees import Behaviour
from secfl.ledger.budget import suggested_order
from secfl.types import ClientId

__all__ = ["filter_of", "one_of_each", "planned_event", "settled", "settled_by_site"]

_PLANNED_FOR: Final = Behaviour.MALICIOUS
"""At the threshold's number of survivors, under every scheme: who drops out is up to the aggregator."""


def settled(plan: PrivacyPlan, config: RunConfig) -> PrivacyPlan:
    """The plan with its noise.

    Raises:
        PrivacyError: It is weak and ``--accept-weak`` is not given, or no noise reaches the target.
    """
    privacy = config.privacy
    if plan.levels:
        filter_of(plan, config)  # refused here rather than when the run is under way
        return plan
    if privacy.epsilon is not None:
        plan = plan.calibrated(privacy.epsilon, behaviour=_PLANNED_FOR, accountant=_accountant(config))
    plan.refuse_if_weak(accept_weak=privacy.accept_weak)
    return plan


def filter_of(plan: PrivacyPlan, config: RunConfig) -> RenyiFilter:
    """The filter of a run that chooses its noise as it goes; the ledger has one of its own.

    Raises:
        ConfigError: One of the levels does not fit the cap even once.
        PrivacyError: The cap is weak and ``--accept-weak`` is not given.
    """
    cap, delta = config.privacy.epsilon, config.privacy.delta
    assert cap is not None
    if cap > WEAK_EPSILON and not config.privacy.accept_weak:
        raise PrivacyError(
            f"--epsilon {cap:g} as the cap of an adaptive run exceeds {WEAK_EPSILON:g}; expected less, or --accept-weak"
        )
    order = suggested_order(cap, delta, planned=one_of_each(plan))
    for level in (plan.noise_multiplier, *plan.levels):
        # At this order the conversion to δ alone may exceed the cap; then nothing fits.
        fits = rdp_to_epsilon({order: 0.0}, delta) < cap
        spending = RenyiFilter.from_order(order, epsilon=cap, delta=delta) if fits else None
        if spending is None or not spending.admits(planned_event(plan, level)):
            raise ConfigError(
                f"privacy.plateau: not one release with multiplier {level:g} fits --epsilon {cap:g}"
            )
    return RenyiFilter.from_order(order, epsilon=cap, delta=delta)


def one_of_each(plan: PrivacyPlan) -> DpEvent:
    """One release at each level: the filter's order is that at which such rounds fit most often."""
    return compose(planned_event(plan, level) for level in (plan.noise_multiplier, *plan.levels))


def planned_event(plan: PrivacyPlan, noise_multiplier: float) -> DpEvent:
    """What one release with one of the plan's multipliers costs, at the threshold's number of survivors."""
    level = plan.at_level(noise_multiplier)
    return level.event_of_release(level.z_aggregator(_PLANNED_FOR))


def settled_by_site(
    plan: PrivacyPlan, config: RunConfig, *, sites: Sequence[ClientId], weights: Mapping[str, float]
) -> tuple[PrivacyPlan, SiteNoise]:
    """The plan and the noise of each site, such that the target holds for the patients of every site.

    Args:
        plan: Of one common clip; its multiplier is for the site with the largest weight.
        config: The run.
        sites: In the order of the shares.
        weights: By site.

    Raises:
        ConfigError: The weights are not those of the sites, or a site would have next to no noise.
        PrivacyError: As `settled`.
    """
    privacy = config.privacy
    if set(weights) != set(sites):
        raise ConfigError(
            f"privacy.site_weights: expected one number for each of {', '.join(sites)}, got "
            f"{', '.join(weights) or 'none'}"
        )
    # Wide enough for the smallest share, too.
    spread = max(weights.values()) / min(weights.values())
    plan = replace(plan, grid_norm=int(plan.grid_norm * spread) + 1)

    def noise_of(one: PrivacyPlan) -> SiteNoise:
        return SiteNoise(
            weights=tuple(weights[site] for site in sites),
            grid_norm=one.grid_norm,
            noise_multiplier=one.noise_multiplier,
            dimension=one.dimension,
            family=one.family,
        )

    def reached(behaviour: Behaviour) -> Callable[[PrivacyPlan], float]:
        return lambda one: _largest_epsilon(one, noise_of(one), behaviour)

    if privacy.epsilon is not None:
        plan = plan.calibrated_to(privacy.epsilon, reached(_PLANNED_FOR))
    plan.refuse_if_weak(accept_weak=privacy.accept_weak)
    noise = noise_of(plan)
    narrowest = min(noise.share(index).sigma for index in range(len(sites)))
    if narrowest < SMALLEST_SHARE:
        raise ConfigError(
            f"privacy.site_weights: the smallest share is {narrowest:.3g} grid units wide, at least "
            f"{SMALLEST_SHARE:g} are needed; expected weights closer to each other"
        )
    return plan, noise


def _largest_epsilon(plan: PrivacyPlan, noise: SiteNoise, behaviour: Behaviour) -> float:
    """ε of the least protected site in the aggregator's view."""

    def of(site: int) -> float:
        one = noise.event(site, colluders=0, threshold=plan.threshold, behaviour=behaviour)
        event = PoissonSampled(plan.sampling_rate, one) if plan.sampling_rate < 1 else one
        return epsilon(SelfComposed(event, plan.releases), delta=plan.delta, relation=plan.relation)

    first_of_weight = {weight: index for index, weight in reversed(list(enumerate(noise.weights)))}
    return max(of(site) for site in first_of_weight.values())


def _accountant(config: RunConfig) -> Accountant:
    """Rényi where a Rényi filter will decide: an account across runs, or noise that changes from round to round."""
    privacy = config.privacy
    filtered = privacy.ledger_dir is not None or privacy.noise_decay != 1
    return Accountant.RDP if filtered else Accountant.AUTO
