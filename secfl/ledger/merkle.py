"""The Merkle tree of RFC 9162 (Certificate Transparency 2.0), section 2.1, over SHA-256.

Leaves are entry hashes. A checkpoint signs a root; an inclusion proof shows that one entry is under it, and
a consistency proof shows that a later tree only appended to it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from secfl.errors import ConfigError

__all__ = [
    "EMPTY_ROOT",
    "MerkleTree",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """``SHA-256(0x00 || data)``."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """``SHA-256(0x01 || left || right)``."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """An append-only tree: appending costs O(1) hashes on average, the root O(log n).

    Only complete subtrees are stored (``_levels[h][i]`` covers leaves ``i * 2**h`` to ``(i + 1) * 2**h``), so
    roots and proofs of every earlier size come from the same arrays.
    """

    def __init__(self, leaves: Sequence[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash (32 bytes)."""
        levels = self._levels
        level, height = levels[0], 0
        level.append(leaf)
        while not len(level) & 1:
            node = node_hash(level[-2], level[-1])
            height += 1
            if height == len(levels):
                levels.append([])
            level = levels[height]
            level.append(node)

    def root(self, size: int | None = None) -> bytes:
        """Root of the first ``size`` leaves (all by default); RFC 9162, section 2.1.1.

        Raises:
            ConfigError: The log has fewer entries.
        """
        size = len(self) if size is None else size
        if not 0 <= size <= len(self):
            raise ConfigError(f"Merkle root of {size} entries: the log has {len(self)}")
        return EMPTY_ROOT if size == 0 else self._range(0, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """Sibling hashes from leaf ``index`` up to the root of the first ``size`` leaves; section 2.1.3.1.

        Raises:
            ConfigError: Not 0 <= index < size <= entries of the log.
        """
        size = len(self) if size is None else size
        if not 0 <= index < size <= len(self):
            raise ConfigError(f"inclusion proof of entry {index} in {size}: the log has {len(self)}")
        return self._path(index, 0, size)

    def consistency_proof(self, old: int, size: int | None = None) -> list[bytes]:
        """Shows that the first ``old`` leaves are a prefix of the first ``size``; section 2.1.4.1.

        Raises:
            ConfigError: Not 0 < old <= size <= entries of the log.
        """
        size = len(self) if size is None else size
        if not 0 < old <= size <= len(self):
            raise ConfigError(f"consistency proof from {old} to {size}: the log has {len(self)}")
        return self._subproof(old, 0, size, whole=True)

    def _range(self, start: int, end: int) -> bytes:
        length = end - start
        if length & (length - 1) == 0:
            height = length.bit_length() - 1
            return self._levels[height][start >> height]
        split = start + _largest_power_below(length)
        return node_hash(self._range(start, split), self._range(split, end))

    def _path(self, index: int, start: int, end: int) -> list[bytes]:
        if end - start == 1:
            return []
        split = start + _largest_power_below(end - start)
        if index < split:
            return [*self._path(index, start, split), self._range(split, end)]
        return [*self._path(index, split, end), self._range(start, split)]

    def _subproof(self, old: int, start: int, end: int, *, whole: bool) -> list[bytes]:
        if old == end:
            return [] if whole else [self._range(start, end)]
        split = start + _largest_power_below(end - start)
        if old <= split:
            return [*self._subproof(old, start, split, whole=whole), self._range(split, end)]
        return [*self._subproof(old, split, end, whole=False), self._range(start, split)]


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``leaf`` is entry ``index`` of the tree with this size and root; section 2.1.3.2."""
    if not 0 <= index < size:
        return False
    position, last, value = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            value = node_hash(sibling, value)
            while position & 1 == 0 and position != 0:
                position >>= 1
                last >>= 1
        else:
            value = node_hash(value, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and hmac.compare_digest(value, root)


def verify_consistency(
    *, old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether the tree (``size``, ``root``) only appended to (``old_size``, ``old_root``); 2.1.4.2."""
    if not 0 < old_size <= size:
        return False
    if old_size == size:
        return not proof and hmac.compare_digest(old_root, root)
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    position, last = old_size - 1, size - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old_value = value = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_value = node_hash(sibling, old_value)
            value = node_hash(sibling, value)
            while position & 1 == 0 and position != 0:
                position >>= 1
                last >>= 1
        else:
            value = node_hash(value, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and hmac.compare_digest(old_value, old_root) and hmac.compare_digest(value, root)


def _largest_power_below(count: int) -> int:
    """The largest power of two strictly below ``count``, for ``count`` >= 2."""
    return 1 << ((count - 1).bit_length() - 1)
