"""Privacy filters: budgets that stay valid when the next release is chosen after seeing the earlier ones.

Ordinary composition theorems and FFT accountants assume that privacy parameters were fixed beforehand. When
noise, sampling or the number of releases depend on earlier outputs, an FFT accountant's figure is not a
guarantee. A Rényi filter is (Feldman and Zrnic 2021, "Individual Privacy Accounting via a Rényi Filter";
Lécuyer 2021): it refuses a release before its budget would be exceeded, and then the whole
interaction satisfies the budget. The cap is the guarantee; what was spent so far is informative only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import rfc8785

from secfl.dp.accounting import with_sampler_error
from secfl.dp.events import DpEvent, IntegerNoise, leaves
from secfl.dp.rdp import LARGEST_ORDER, ORDERS, curve_of_leaves, rdp_curve, rdp_to_epsilon
from secfl.errors import BudgetExhausted, ConfigError, UnsupportedEvent

__all__ = ["FILTER_ORDERS", "RenyiFilter", "SampledReleases", "best_order", "zcdp_filter"]

FILTER_ORDERS: Final[tuple[int, ...]] = tuple(order for order in ORDERS if order <= 64)
SAMPLER_BUDGET: Final = 1e-20
"""Default for what imperfect samplers may add up to over a run: (1 + e^8) times it is 3e-17."""

_TOLERANCE: Final = 1 + 1e-12  # the planned releases must fit although sums are rounded


class SampledReleases(StrEnum):
    """Whether a filter takes releases on a Poisson sample."""

    ADMITTED = "admitted"
    REFUSED = "refused"


@dataclass(slots=True)
class RenyiFilter:
    """A budget curve B(α), and what was charged to it.

    A release is admitted only if at *every* order of the budget the total stays within B(α): then the
    interaction is (α, B(α))-RDP at all of them at once, whatever the adversary's choices. Orders are fixed when
    the filter is made; choosing the best order afterwards, order by order, is not covered by the theorem.

    Attributes:
        budget: Order -> B(α). From a plan's own curve (`from_plan`) or one order (`from_order`).
        sampler_budget: Total variation that the samplers of all releases may add up to.
        sampled_releases: Refused under a zCDP budget.
    """

    budget: Mapping[int, float]
    sampler_budget: float = SAMPLER_BUDGET
    sampled_releases: SampledReleases = SampledReleases.ADMITTED
    _spent: dict[int, float] = field(init=False, repr=False)
    _sampler_spent: float = field(init=False, default=0.0, repr=False)
    _releases: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not self.budget:
            raise ConfigError("filter: expected at least one Rényi order")
        for order, bound in self.budget.items():
            if not (2 <= order <= LARGEST_ORDER and bound >= 0 and math.isfinite(bound)):
                raise ConfigError(
                    f"filter: order {order}: expected 2 to {LARGEST_ORDER} with a finite budget"
                )
        self.budget = dict(sorted(self.budget.items()))
        self._spent = dict.fromkeys(self.budget, 0.0)

    @classmethod
    def from_plan(cls, planned: DpEvent, *, orders: Sequence[int] = FILTER_ORDERS) -> RenyiFilter:
        """A filter whose budget is what the planned releases cost; its ε is the plan's Rényi figure."""
        counts = leaves(planned)
        curve = curve_of_leaves(counts, orders)
        finite = {order: bound for order, bound in curve.items() if math.isfinite(bound)}
        return cls(finite, sampler_budget=_sampler_error(planned))

    @classmethod
    def from_order(
        cls, order: int, *, epsilon: float, delta: float, sampler_budget: float = SAMPLER_BUDGET
    ) -> RenyiFilter:
        """A filter with one pre-committed order (see `best_order`), whose guarantee is (ε, δ).

        Where noise or sampling change a lot, it admits more than a whole curve, which some order far from the
        best one exhausts early.

        Raises:
            ConfigError: At this order the conversion alone exceeds ε (take a larger one), or the samplers'
                error exceeds δ.
        """
        remaining = delta - (1 + math.exp(min(epsilon, 700.0))) * sampler_budget
        if remaining <= 0:
            raise ConfigError(f"filter: the sampler's error alone exceeds delta at epsilon {epsilon:g}")
        bound = epsilon - rdp_to_epsilon({order: epsilon}, remaining) + epsilon
        if bound <= 0:
            raise ConfigError(f"filter: order {order} cannot reach epsilon {epsilon:g} at this delta")
        return cls({order: bound * (1 - 1e-9)}, sampler_budget=sampler_budget)

    def epsilon(self, delta: float) -> float:
        """The guarantee: ε of the whole budget, spent or not."""
        return with_sampler_error(
            lambda remaining: rdp_to_epsilon(self.budget, remaining), delta, self.sampler_budget
        )

    def reading(self, delta: float) -> float:
        """ε of what was spent so far: informative, not a guarantee while choices are adaptive."""
        if self._releases == 0:
            return 0.0
        return with_sampler_error(
            lambda remaining: rdp_to_epsilon(self._spent, remaining), delta, self._sampler_spent
        )

    @property
    def releases(self) -> int:
        """How often something was charged."""
        return self._releases

    @property
    def spent_fraction(self) -> float:
        """Largest share of the budget that is used at any order, 0 to 1."""
        return max((self._spent[order] / bound if bound else 0.0) for order, bound in self.budget.items())

    def admits(self, event: DpEvent) -> bool:
        """Whether this release would stay within the budget."""
        spent, error = self._after(event)
        return error <= self.sampler_budget * _TOLERANCE and all(
            spent[order] <= bound * _TOLERANCE for order, bound in self.budget.items()
        )

    def charge(self, event: DpEvent) -> None:
        """Spend the budget on a release. Call before the release, not after.

        Raises:
            BudgetExhausted: It would exceed the budget; nothing was spent.
            UnsupportedEvent: No Rényi bound is known for the event.
        """
        if not self.admits(event):
            raise BudgetExhausted(f"release {self._releases + 1} would exceed the filter's budget")
        self._spent, self._sampler_spent = self._after(event)
        self._releases += 1

    def _after(self, event: DpEvent) -> tuple[dict[int, float], float]:
        refused = self.sampled_releases is SampledReleases.REFUSED
        if refused and any(leaf.sampling_probability < 1 for leaf in leaves(event)):
            raise UnsupportedEvent("a zCDP budget loses the amplification by sampling; use a Rényi filter")
        curve = rdp_curve(event, tuple(self.budget))
        spent = {order: self._spent[order] + curve[order] for order in self.budget}
        return spent, self._sampler_spent + _sampler_error(event)

    # --- checkpoints

    def to_json(self) -> str:
        """The state of the filter, canonical; what was spent survives a resume."""
        state = {
            "format_version": 1,
            "budget": {str(order): bound for order, bound in self.budget.items()},
            "sampler_budget": self.sampler_budget,
            "spent": {str(order): amount for order, amount in self._spent.items()},
            "sampler_spent": self._sampler_spent,
            "releases": self._releases,
            "sampled_releases": str(self.sampled_releases),
        }
        return bytes(rfc8785.dumps(state)).decode()

    @classmethod
    def from_json(cls, text: str) -> RenyiFilter:
        """The inverse of `to_json`; `ConfigError` for anything else."""
        try:
            state: Any = json.loads(text)
            if state["format_version"] != 1:
                raise ConfigError("filter: unknown format_version")
            made = cls(
                {int(order): float(bound) for order, bound in state["budget"].items()},
                sampler_budget=float(state["sampler_budget"]),
                sampled_releases=SampledReleases(state["sampled_releases"]),
            )
            spent = {int(order): float(amount) for order, amount in state["spent"].items()}
            if set(spent) != set(made.budget) or not all(
                amount >= 0 for amount in [*spent.values(), float(state["sampler_spent"])]
            ):
                raise ConfigError("filter: what was spent does not match the budget")
            made._spent = {order: spent[order] for order in made.budget}
            made._sampler_spent = float(state["sampler_spent"])
            made._releases = int(state["releases"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigError("filter: not a saved filter") from None
        return made


def zcdp_filter(rho: float, *, sampler_budget: float = SAMPLER_BUDGET) -> RenyiFilter:
    """A filter for ρ-zCDP, B(α) = ρ·α at all orders, for releases without sampling.

    Under sampling it would have to charge the unsampled ρ (ε = 355 in the example of docs/privacy.md), so
    sampled releases are refused with `UnsupportedEvent`.

    Raises:
        ConfigError: ρ is not a positive number.
    """
    if not (rho > 0 and math.isfinite(rho)):
        raise ConfigError("rho: expected a positive number")
    return RenyiFilter(
        {order: rho * order for order in ORDERS},
        sampler_budget=sampler_budget,
        sampled_releases=SampledReleases.REFUSED,
    )


def best_order(planned: DpEvent, *, delta: float) -> int:
    """The order at which the planned releases convert to the least ε: the one to commit to beforehand."""
    curve = rdp_curve(planned, FILTER_ORDERS)
    return min(curve, key=lambda order: rdp_to_epsilon({order: curve[order]}, delta))


def _sampler_error(event: DpEvent) -> float:
    """Total variation of all drawn noise in an event, over coordinates and releases."""
    return math.fsum(
        count * leaf.mechanism.dimension * leaf.mechanism.sampler_error
        for leaf, count in leaves(event).items()
        if isinstance(leaf.mechanism, IntegerNoise)
    )
