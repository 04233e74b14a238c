"""What an attack is: it is played with its guard taken away, where it must succeed, and with it, where it must not.

`secfl.testing.adversaries.every_attack` lists them all; ``python -m secfl.testing.adversaries`` plays them and
prints what each learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Attack", "Guard", "Outcome", "learned", "refused"]


class Guard(StrEnum):
    """Whether the guard that an attack is about stands."""

    REMOVED = "removed"
    IN_PLACE = "in place"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attack.

    Attributes:
        success: What the attacker reached, in words; empty when it reached nothing.
        refusal: What stopped it, in the words of who did; empty when nothing did.
    """

    success: str = ""
    refusal: str = ""


def learned(what: str) -> Outcome:
    """The attack succeeded."""
    return Outcome(success=what)


def refused(reason: object) -> Outcome:
    """The attack was stopped."""
    return Outcome(refusal=str(reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack of docs/protocol.md, section 5.

    Attributes:
        name: What the attacker does.
        line: What the protocol says is refused.
        guard: What stands in its way.
        play: Plays it from beginning to end, with or without the guard.
    """

    name: str
    line: str
    guard: str
    play: Callable[[Guard], Outcome]
