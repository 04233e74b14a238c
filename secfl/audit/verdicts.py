"""What an audit may say, and nothing stronger."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["REFUTED_LEVEL", "SUSPECT_LEVEL", "Verdict", "worst"]

REFUTED_LEVEL = 1e-6
"""A claim that is true is called REFUTED with at most this probability, unless another level is asked for."""

SUSPECT_LEVEL = 1e-3
"""The same for the weaker word SUSPECT where it comes from a rigorous bound."""


class Verdict(StrEnum):
    """The outcome of an audit. There is no word for "proved": an audit can only fail to find a fault.

    REFUTED: a bound that holds whatever the mechanism is exceeds the claim.
    SUSPECT: an estimate exceeds the claim, or a bound at a weaker level does; look closer, with more draws.
    NOT_REFUTED: neither; how much could have been found stands beside it.
    """

    REFUTED = "REFUTED"
    SUSPECT = "SUSPECT"
    NOT_REFUTED = "NOT REFUTED"


def worst(verdicts: list[Verdict]) -> Verdict:
    """The strongest word among several; `Verdict.NOT_REFUTED` of none."""
    return min(verdicts, key=list(Verdict).index, default=Verdict.NOT_REFUTED)
