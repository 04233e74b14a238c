"""A membership attack on the final model: is a patient's loss lower when the patient was in the training set?

Loss threshold (Yeom et al. 2018), read at a low false-positive rate, where it matters (Carlini et al. 2022). A weak
attack: what it does not find may still be there. It looks at the view ``final_model``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.bounds import clopper_pearson
from secfl.errors import ConfigError

__all__ = ["MembershipAttack", "membership_attack", "segmentation_losses"]

_LEVEL = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipAttack:
    """What the attack reached.

    Attributes:
        false_positive_rate: The rate at which the threshold was set, on the first half of the others.
        true_positive_rate: Share of members below the threshold.
        interval: 95 % Clopper-Pearson interval of it.
        measured_false_positive_rate: On the second half of the others, which did not set the threshold.
        auc: Probability that a member's loss is below another's; 0.5 for a guess.
        members: Their number.
        others: Their number.
    """

    false_positive_rate: float
    true_positive_rate: float
    interval: tuple[float, float]
    measured_false_positive_rate: float
    auc: float
    members: int
    others: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "false_positive_rate": self.false_positive_rate,
            "true_positive_rate": self.true_positive_rate,
            "interval": list(self.interval),
            "measured_false_positive_rate": self.measured_false_positive_rate,
            "auc": self.auc,
            "members": self.members,
            "others": self.others,
        }


def membership_attack(
    members: NDArray[np.float64], others: NDArray[np.float64], *, false_positive_rate: float = 1e-2
) -> MembershipAttack:
    """Set a threshold on half of the others' losses and count members below it.

    Args:
        members: Losses of training patients under the model.
        others: Losses of patients that the model never saw; at least ``2/false_positive_rate`` of them make the
            threshold meaningful, fewer set it at their lowest loss.
        false_positive_rate: Wanted share of others below the threshold.

    Raises:
        ConfigError: Fewer than two losses on a side, or a rate out of range.
    """
    if min(members.size, others.size) < 2 or not 0 < false_positive_rate < 1:
        raise ConfigError("membership attack: expected two losses on each side and a rate between 0 and 1")
    first, second = others[::2], others[1::2]
    allowed = int(np.floor(false_positive_rate * first.size))
    threshold = float(np.sort(first)[allowed])
    hits = int((members < threshold).sum())
    low, _ = clopper_pearson(hits, members.size, level=_LEVEL)
    _, high = clopper_pearson(hits, members.size, level=_LEVEL)
    ranks = np.searchsorted(np.sort(others), members, side="left")
    ties = np.searchsorted(np.sort(others), members, side="right") - ranks
    return MembershipAttack(
        false_positive_rate=false_positive_rate,
        true_positive_rate=hits / members.size,
        interval=(float(low), float(high)),
        measured_false_positive_rate=float((second < threshold).mean()),
        auc=float((others.size - ranks - ties / 2).mean() / others.size),
        members=members.size,
        others=others.size,
    )


def segmentation_losses(task: Any, state: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``1 - Dice`` of the model's masks on every training and every test image of all sites.

    Args:
        task: A `SegmentationTask`.
        state: The model.

    Returns:
        Members' and others' losses, image by image.
    """
    from secfl.segmentation.metrics import measure

    data = task._dataset  # noqa: SLF001 - an audit looks at the data that the task holds
    found: list[list[float]] = [[], []]
    for site in task.sites:
        names, whole = data.names_at(site), task._personal.whole(state, site)  # noqa: SLF001 - as evaluated
        for place, cases in enumerate((data.sites[site].train, data.sites[site].test)):
            predictions = task._predict(cases, whole, site)  # noqa: SLF001 - the same prediction as in evaluation
            found[place] += [
                1 - measure([case], [prediction], class_names=names).dice
                for case, prediction in zip(cases, predictions, strict=True)
            ]
    return np.array(found[0]), np.array(found[1])
