"""How much noise a run gets: from a target ε by the accountant, or as asked; refused where it protects nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from secfl.config import RunConfig
from secfl.dp.accounting import Accountant, epsilon
from secfl.dp.events import PoissonSampled, SelfComposed
from secfl.dp.integer import SMALLEST_SHARE
from secfl.dp.plan import PrivacyPlan
from secfl.dp.site_noise import SiteNoise
from secfl.errors import ConfigError
from secfl.guarantees import Behaviour
from secfl.types import ClientId

__all__ = ["settled", "settled_by_site"]

_PLANNED_FOR: Final = Behaviour.MALICIOUS
"""At the threshold's number of survivors, under every scheme: who drops out is up to the aggregator."""


def settled(plan: PrivacyPlan, config: RunConfig) -> PrivacyPlan:
    """The plan with its noise.

    Raises:
        PrivacyError: It is weak and ``--accept-weak`` is not given, or no noise reaches the target.
    """
    privacy = config.privacy
    if privacy.epsilon is not None:
        plan = plan.calibrated(privacy.epsilon, behaviour=_PLANNED_FOR, accountant=_accountant(config))
    plan.refuse_if_weak(accept_weak=privacy.accept_weak)
    return plan


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
