from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.errors import ConfigError
from secfl.ledger.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# The inputs and roots that Certificate Transparency implementations test against (RFC 6962 and 9162).
INPUTS = [
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


def leaves_of(count: int) -> list[bytes]:
    return [leaf_hash(bytes([index])) for index in range(count)]


def test_published_roots():
    tree = MerkleTree()
    for text, root in zip(INPUTS, ROOTS, strict=True):
        tree.append(leaf_hash(bytes.fromhex(text)))
        assert tree.root().hex() == root
    assert [tree.root(size).hex() for size in range(1, 9)] == ROOTS
    assert tree.root(0) == EMPTY_ROOT


def test_leaves_and_nodes_cannot_be_mistaken_for_each_other():
    left, right = leaves_of(2)
    assert leaf_hash(left + right) != node_hash(left, right)


@pytest.mark.parametrize("count", range(40))
def test_roots_of_every_size_follow_the_definition(count):
    leaves = leaves_of(count)
    tree = MerkleTree(leaves)
    assert [tree.root(size) for size in range(count + 1)] == [
        naive_root(leaves[:size]) for size in range(count + 1)
    ]


def test_every_inclusion_proof_holds_and_no_other_leaf_fits_it():
    tree = MerkleTree(leaves_of(21))
    leaves = leaves_of(21)
    for size in range(1, 22):
        for index in range(size):
            proof = tree.inclusion_proof(index, size)
            for other in range(21):
                holds = verify_inclusion(
                    leaves[other], index=index, size=size, proof=proof, root=tree.root(size)
                )
                assert holds == (other == index)


def test_every_consistency_proof_holds():
    tree = MerkleTree(leaves_of(33))
    for size in range(1, 34):
        for old in range(1, size + 1):
            assert verify_consistency(
                old_size=old,
                old_root=tree.root(old),
                size=size,
                root=tree.root(size),
                proof=tree.consistency_proof(old, size),
            )


@given(st.integers(1, 40), st.data())
def test_a_changed_history_has_no_consistency_proof(size, data):
    old = data.draw(st.integers(1, size))
    victim = data.draw(st.integers(0, old - 1))
    leaves = leaves_of(size)
    honest = MerkleTree(leaves)
    forged = MerkleTree([*leaves[:victim], leaf_hash(b"forged"), *leaves[victim + 1 :]])
    for proof in (honest.consistency_proof(old, size), forged.consistency_proof(old, size)):
        assert not verify_consistency(
            old_size=old, old_root=honest.root(old), size=size, root=forged.root(size), proof=proof
        )


@given(st.integers(2, 40), st.data())
def test_damaged_proofs_do_not_hold(size, data):
    tree = MerkleTree(leaves_of(size))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size - 1))
    inclusion, consistency = tree.inclusion_proof(index), tree.consistency_proof(old)

    def damage(proof: list[bytes]) -> list[bytes]:
        place = data.draw(st.integers(0, len(proof) - 1))
        return data.draw(
            st.sampled_from(
                [
                    [*proof[:place], leaf_hash(proof[place]), *proof[place + 1 :]],
                    proof[:-1],
                    [*proof, proof[0]],
                ]
            )
        )

    assert not verify_inclusion(
        leaves_of(size)[index], index=index, size=size, proof=damage(inclusion), root=tree.root()
    )
    assert not verify_consistency(
        old_size=old, old_root=tree.root(old), size=size, root=tree.root(), proof=damage(consistency)
    )


def test_impossible_positions_are_refused():
    tree = MerkleTree(leaves_of(3))
    for call in (
        lambda: tree.root(4),
        lambda: tree.inclusion_proof(3),
        lambda: tree.inclusion_proof(2, 2),
        lambda: tree.consistency_proof(0),
        lambda: tree.consistency_proof(4),
    ):
        with pytest.raises(ConfigError):
            call()
    leaf, root = leaves_of(1)[0], tree.root()
    assert not verify_inclusion(leaf, index=3, size=3, proof=[], root=root)
    assert not verify_consistency(old_size=0, old_root=EMPTY_ROOT, size=3, root=root, proof=[])
    assert not verify_consistency(old_size=4, old_root=root, size=3, root=root, proof=[])
