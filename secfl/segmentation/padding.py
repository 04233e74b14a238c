"""How large an image must be for a model to look at it."""

from __future__ import annotations

__all__ = ["padded_side"]


def padded_side(side: int, multiple: int) -> int:
    """``side`` rounded up to the model's multiple, and to two of them.

    With one, the narrowest level of a network would be a single pixel, which has no deviation to normalise by.
    """
    return max(2, -(-side // multiple)) * multiple
