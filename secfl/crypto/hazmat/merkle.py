"""A Merkle tree of fixed depth: one signed root for many parts, each checked on its own.

Hazard: a root binds the parts and their positions, not their meaning; sign it together with what the tree is
for. Leaves and nodes are hashed with different first bytes (as in RFC 9162, section 2.1.1), so that a node
cannot be passed off as a leaf. Missing leaves are the hash of the empty string under a third first byte.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

__all__ = ["HASH_BYTES", "depth", "path", "paths", "root", "verify"]

HASH_BYTES: Final = 32
_LEAF, _NODE, _EMPTY = b"\x00", b"\x01", b"\x02"


def depth(places: int) -> int:
    """Hashes in every path of a tree with this many places."""
    return (places - 1).bit_length()


def root(leaves: Mapping[int, bytes], *, places: int) -> bytes:
    """The root over the leaves at their places; the other places are empty."""
    return _levels(leaves, places)[-1][0]


def path(leaves: Mapping[int, bytes], place: int, *, places: int) -> tuple[bytes, ...]:
    """The ``depth(places)`` sibling hashes that lead from one leaf to the root."""
    levels = _levels(leaves, places)
    return tuple(level[(place >> height) ^ 1] for height, level in enumerate(levels[:-1]))


def paths(leaves: Mapping[int, bytes], *, places: int) -> dict[int, tuple[bytes, ...]]:
    """`path` for every leaf, with the tree hashed once."""
    levels = _levels(leaves, places)[:-1]
    return {
        place: tuple(level[(place >> height) ^ 1] for height, level in enumerate(levels)) for place in leaves
    }


def verify(expected: bytes, leaf: bytes, place: int, *, siblings: tuple[bytes, ...]) -> bool:
    """Whether ``leaf`` at ``place`` leads to the expected root."""
    current = hashlib.sha256(_LEAF + leaf).digest()
    for sibling in siblings:
        pair = sibling + current if place & 1 else current + sibling
        current = hashlib.sha256(_NODE + pair).digest()
        place >>= 1
    return place == 0 and hmac.compare_digest(current, expected)


def _levels(leaves: Mapping[int, bytes], places: int) -> list[list[bytes]]:
    if places < 1 or not all(0 <= place < places for place in leaves):
        raise ValueError(f"leaves outside the {places} places")
    empty = hashlib.sha256(_EMPTY).digest()
    level = [
        hashlib.sha256(_LEAF + leaves[place]).digest() if place in leaves else empty
        for place in range(1 << depth(places))
    ]
    levels = [level]
    while len(level) > 1:
        level = [
            hashlib.sha256(_NODE + level[index] + level[index + 1]).digest()
            for index in range(0, len(level), 2)
        ]
        levels.append(level)
    return levels
