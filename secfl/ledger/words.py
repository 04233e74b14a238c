"""The sentences of the ledger: what an adversary sees, and what must hold for its row."""

from __future__ import annotations

from collections.abc import Sequence

from secfl.guarantees import Adversary, Assumption, Behaviour, View, Visibility

__all__ = ["SIMULATED", "condition", "in_short", "plural", "sight", "who"]

SIMULATED = "simulated: one process held all keys"


def plural(count: int, noun: str) -> str:
    """``1 client``, ``2 clients``, ``2 entries``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"


def in_short(view: View, colluders: int) -> str:
    """A view as the head of a row: ``aggregator``, ``aggregator + 2``, ``final model``."""
    if view is View.AGGREGATOR_COLLUDERS:
        return f"{View.AGGREGATOR.value} + {colluders}"
    return view.value.replace("_", " ")


def who(adversary: Adversary) -> str:
    """The adversary in words."""
    match adversary.view:
        case View.NETWORK:
            return "somebody who records all network traffic"
        case View.AGGREGATOR:
            return f"{_kind(adversary)} aggregator alone"
        case View.AGGREGATOR_COLLUDERS:
            return f"{_kind(adversary)} aggregator together with {plural(adversary.colluders, 'client')}"
        case View.CLIENT:
            curious = adversary.behaviour is Behaviour.CURIOUS
            return "one client" if curious else "one client that also taps the network"
        case View.FINAL_MODEL:
            return "whoever receives the models"
        case View.CRYPTO_BROKEN:
            return "somebody who breaks the cryptography"


def _kind(adversary: Adversary) -> str:
    return "an honest-but-curious" if adversary.behaviour is Behaviour.CURIOUS else "a malicious"


def sight(adversary: Adversary, visibility: Visibility, *, site: str | None) -> str:
    """What the adversary sees."""
    about = "" if site is None else f", as far as patients of {site} are concerned"
    match visibility:
        case Visibility.NOTHING:
            return f"public facts only{about}"
        case Visibility.EVERY_UPDATE:
            return f"every single client's update{about}"
        case Visibility.SUM if adversary.view is View.FINAL_MODEL:
            return f"the model of every round{about}"
        case Visibility.SUM if adversary.view is View.CLIENT:
            return f"the model of every round, and its own update and noise{about}"
        case Visibility.SUM if adversary.colluders:
            return f"the sum of every round, and the colluders' updates and noise{about}"
        case Visibility.SUM:
            return f"the sum of every round{about}"


def condition(
    adversary: Adversary,
    visibility: Visibility,
    *,
    assumptions: Sequence[Assumption],
    tolerated: int | None,
    threshold: int,
    cohort_size: int,
    reason: str,
    simulated: bool,
) -> str:
    """What must hold for the row, in one sentence."""
    suffix = f" ({SIMULATED})" if simulated else ""
    if reason:
        return f"no guarantee: {reason}{suffix}"
    honest = "every client adds its share of the noise"
    names = ", ".join(assumption.name for assumption in assumptions)
    carried = f"these hold: {names}" if names else "no cryptography is needed"
    match adversary.view:
        case View.NETWORK if visibility is Visibility.NOTHING:
            text = f"links are encrypted and {carried}"
        case View.FINAL_MODEL:
            text = honest
        case View.CLIENT if visibility is Visibility.SUM:
            text = f"the other clients add their shares of the noise; {carried}"
        case _ if visibility is Visibility.EVERY_UPDATE:
            text = "each client adds its own share of the noise; nothing else is needed"
        case View.AGGREGATOR | View.AGGREGATOR_COLLUDERS:
            others = cohort_size - adversary.colluders
            text = (
                f"{plural(others, 'client')} outside the collusion follow the protocol "
                f"(at most {tolerated} may collude, threshold {threshold} of {cohort_size}); {carried}"
            )
        case _:
            text = f"{honest}; {carried}"
    return text + suffix
