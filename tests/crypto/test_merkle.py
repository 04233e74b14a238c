"""The Merkle tree over a dealer's parcels: every part is provable at its place and nowhere else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.crypto.hazmat.merkle import depth, path, paths, root, verify


@st.composite
def trees(draw):
    places = draw(st.integers(1, 20))
    chosen = draw(st.sets(st.integers(0, places - 1)))
    return places, {place: draw(st.binary(max_size=8)) for place in chosen}


@given(trees())
def test_every_leaf_leads_to_the_root(tree):
    places, leaves = tree
    top = root(leaves, places=places)
    for place, leaf in leaves.items():
        siblings = path(leaves, place, places=places)
        assert siblings == paths(leaves, places=places)[place]
        assert len(siblings) == depth(places)
        assert verify(top, leaf, place, siblings=siblings)
        assert not verify(top, leaf + b"x", place, siblings=siblings)
        for other in range(places + 3):
            if leaves.get(other) != leaf:
                assert not verify(top, leaf, other, siblings=siblings)


@given(trees(), trees())
def test_different_leaves_have_different_roots(one, other):
    if one != other and one[0] == other[0]:
        assert root(one[1], places=one[0]) != root(other[1], places=other[0])


def test_a_tree_of_three_by_hand():
    leaf = [hashlib.sha256(b"\x00" + text).digest() for text in (b"a", b"c")]
    empty = hashlib.sha256(b"\x02").digest()
    left = hashlib.sha256(b"\x01" + leaf[0] + empty).digest()
    right = hashlib.sha256(b"\x01" + leaf[1] + empty).digest()
    leaves = {0: b"a", 2: b"c"}
    assert root(leaves, places=3) == hashlib.sha256(b"\x01" + left + right).digest()
    assert path(leaves, 2, places=3) == (empty, left)


def test_a_node_is_not_a_leaf():
    leaves = {0: b"a", 1: b"b", 2: b"c", 3: b"d"}
    node = b"".join(hashlib.sha256(b"\x00" + leaves[place]).digest() for place in (0, 1))
    top = root(leaves, places=4)
    assert not verify(top, node, 0, siblings=path(leaves, 0, places=4)[1:])


@pytest.mark.parametrize(("leaves", "places"), [({3: b""}, 3), ({-1: b""}, 3), ({}, 0)])
def test_places_outside_the_tree_are_refused(leaves, places):
    with pytest.raises(ValueError, match="outside"):
        root(leaves, places=places)
