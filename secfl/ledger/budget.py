"""A budget as a filter: a release that would exceed it is refused before anything is sent.

Two forms. With ``order`` (a Rényi order fixed beforehand) mechanisms may be chosen adaptively, across rounds
and runs: the sum of Rényi divergences at that order is capped (Feldman and Zrnic 2021, "Individual Privacy
Accounting via a Rényi Filter", Theorem 4.3). Without it every round runs the one mechanism that the first
round announced, and the tight accountant decides. Either way the cap is the guarantee, the reading is
informative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from secfl.dp.accounting import Relation, epsilon
from secfl.dp.events import DpEvent, Gaussian, NoOp, SelfComposed
from secfl.dp.rdp import LARGEST_ORDER, rdp_curve
from secfl.errors import BudgetExhausted, ConfigError, UnsupportedEvent
from secfl.guarantees import Behaviour

__all__ = ["ASIDE", "Budget", "Charge", "Meter", "suggested_order"]

ASIDE: Final = 0.01
"""Share of δ that a filter sets aside for what samplers and cryptography add."""

_SUGGESTED: Final = tuple(range(2, 257))


def suggested_order(epsilon: float, delta: float, *, planned: DpEvent | None = None) -> int:
    """The Rényi order at which the most releases fit into (ε, δ).

    Args:
        epsilon: Of the budget.
        delta: Of the budget.
        planned: What is expected to be released; by default Gaussians without sampling. Sampled releases
            with little noise need a smaller order.
    """
    curve = rdp_curve(Gaussian(1.0) if planned is None else planned, _SUGGESTED)

    def releases(order: int) -> float:
        return (epsilon - _conversion(order, delta)) / max(curve[order], 1e-300)

    return max(_SUGGESTED, key=releases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Most that one adversary may learn.

    Attributes:
        epsilon: Cap on ε.
        delta: δ beside it.
        order: Rényi order of the filter (2 to 1024), or ``None``: one mechanism only.
        adversary: Behaviour of the aggregator that is planned for.
        colluders: Clients that collude with it.
    """

    epsilon: float
    delta: float
    order: int | None = None
    adversary: Behaviour = Behaviour.MALICIOUS
    colluders: int = 0

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ConfigError("budget: epsilon must be a positive number")
        if not 0 < self.delta < 1:
            raise ConfigError("budget: delta must lie between 0 and 1")
        if self.order is not None and not 2 <= self.order <= LARGEST_ORDER:
            raise ConfigError(f"budget: order must be an integer from 2 to {LARGEST_ORDER}")
        if self.colluders < 0:
            raise ConfigError("budget: colluders must be 0 or more")

    def to_json(self) -> dict[str, Any]:
        """The ledger's JSON form."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "order": self.order,
            "adversary": self.adversary.value,
            "colluders": self.colluders,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Budget:
        """Read what the schema has accepted."""
        return cls(
            epsilon=float(value["epsilon"]),
            delta=float(value["delta"]),
            order=value["order"],
            adversary=Behaviour(value["adversary"]),
            colluders=value["colluders"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one release costs the planned adversary.

    Attributes:
        event: As that adversary sees it at the threshold's number of survivors.
        error: What sampler and cryptography add, as a distance; see `secfl.ledger.views`.
    """

    event: DpEvent
    error: float


class Meter:
    """Sums charges and says whether another one fits. Holds no file."""

    def __init__(self, budget: Budget, *, relation: Relation = Relation.ADD_REMOVE) -> None:
        self._budget = budget
        self._relation = relation
        self._counts: dict[Charge, int] = {}
        self._divergence = 0.0
        self._error = 0.0
        self._fits = 0  # a count of the one mechanism that is known to fit
        self._exceeds: int | None = None  # one that is known not to

    def add(self, charge: Charge, count: int = 1) -> None:
        """Record a release, whether or not it fits."""
        if isinstance(charge.event, NoOp):
            return
        self._counts[charge] = self._counts.get(charge, 0) + count
        self._error += count * charge.error
        if self._budget.order is not None:
            self._divergence += count * _divergence(charge.event, self._budget.order)

    def require(self, charge: Charge) -> None:
        """Refuse a release that does not fit.

        Raises:
            BudgetExhausted: It would exceed the budget.
            UnsupportedEvent: The budget has no Rényi order, and this is another mechanism than before.
        """
        if not self._fits_more(charge, 1):
            colluders = self._budget.colluders
            raise BudgetExhausted(
                f"budget: one more release would exceed epsilon {self._budget.epsilon:g} at delta "
                f"{self._budget.delta:g} against a {self._budget.adversary.value} aggregator with "
                f"{colluders} colluder{'' if colluders == 1 else 's'}"
            )

    def room(self, charge: Charge, most: int) -> int:
        """How many more releases like this one fit, counted up to ``most``.

        Raises:
            UnsupportedEvent: As for `require`.
        """
        if isinstance(charge.event, NoOp) or self._fits_more(charge, most):
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits_more(charge, middle) else (low, middle)
        return low

    def _fits_more(self, charge: Charge, count: int) -> bool:
        if isinstance(charge.event, NoOp):
            return True
        if self._budget.order is not None:
            return self._fits_filter(charge, self._budget.order, count)
        if any(other != charge for other, done in self._counts.items() if done):
            raise UnsupportedEvent(
                "budget: this release uses another mechanism than those before; a budget for changing "
                "mechanisms needs a Rényi order fixed at the start"
            )
        return self._fits_repeated(charge, self._counts.get(charge, 0) + count)

    def _rest(self, error: float) -> float:
        """What sampler and cryptography leave of δ; 0 when that is too little.

        Under a filter a hundredth of δ is set aside for them, whatever they need: a split that followed what
        was spent so far would be an adaptive choice that the filter's theorem does not cover.
        """
        if self._budget.epsilon > 600:
            needed = math.inf if error else 0.0
        else:
            needed = (1 + math.exp(self._budget.epsilon)) * error
        if self._budget.order is None:
            return max(0.0, self._budget.delta - needed)
        aside = self._budget.delta * ASIDE
        return self._budget.delta - aside if needed <= aside else 0.0

    def _fits_filter(self, charge: Charge, order: int, count: int) -> bool:
        rest = self._rest(self._error + count * charge.error)
        if rest <= 0:
            return False
        total = self._divergence + count * _divergence(charge.event, order)
        return total + _conversion(order, rest) <= self._budget.epsilon

    def _fits_repeated(self, charge: Charge, count: int) -> bool:
        """Whether ``count`` releases fit; probes doubling counts, so that most calls need no accountant."""
        while count > self._fits and (self._exceeds is None or count < self._exceeds):
            probe = 2 * count if self._exceeds is None else (count + self._exceeds) // 2
            for candidate in (probe, count):
                rest = self._rest(candidate * charge.error)
                event = SelfComposed(charge.event, candidate)
                if rest > 0 and epsilon(event, delta=rest, relation=self._relation) <= self._budget.epsilon:
                    self._fits = max(self._fits, candidate)
                    break
                self._exceeds = candidate if self._exceeds is None else min(self._exceeds, candidate)
        return count <= self._fits


def _conversion(order: int, delta: float) -> float:
    """What ε at δ adds to a Rényi divergence: Canonne, Kamath and Steinke 2020, Proposition 12."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _divergence(event: DpEvent, order: int) -> float:
    return rdp_curve(event, (order,))[order]
