"""Damage: every kind changes a message, and only by what its name says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.testing.faults import Fault, damage

KEEP_THE_SIZE = {
    Fault.FLIP,
    Fault.HEADER,
    Fault.NUMBER,
    Fault.FIELD,
    Fault.NOISE,
    Fault.ZEROS,
    Fault.ONES,
    Fault.SWAP,
}


def source(seed):
    return np.random.Generator(np.random.Philox(seed))


@given(payload=st.binary(min_size=1, max_size=200), fault=st.sampled_from(Fault), seed=st.integers(0, 2**32))
def test_damage_always_changes_the_message(payload, fault, seed):
    assert damage(payload, fault, source=source(seed), other=bytes(300)) != payload


@given(
    payload=st.binary(min_size=1, max_size=200),
    fault=st.sampled_from(sorted(KEEP_THE_SIZE)),
    seed=st.integers(0, 2**32),
)
def test_some_faults_keep_the_size(payload, fault, seed):
    assert len(damage(payload, Fault(fault), source=source(seed))) == len(payload)


@given(payload=st.binary(min_size=2, max_size=200), seed=st.integers(0, 2**32))
def test_the_others_do_what_they_say(payload, seed):
    assert damage(payload, Fault.EMPTY, source=source(seed)) == b""
    assert payload.startswith(damage(payload, Fault.TRUNCATE, source=source(seed)))
    assert damage(payload, Fault.EXTEND, source=source(seed)).startswith(payload)
    assert len(damage(payload, Fault.DELETE, source=source(seed))) < len(payload)
    assert len(damage(payload, Fault.INSERT, source=source(seed))) > len(payload)
    assert len(damage(payload, Fault.DUPLICATE, source=source(seed))) > len(payload)
    flipped = damage(payload, Fault.FLIP, source=source(seed))
    assert sum((a ^ b).bit_count() for a, b in zip(payload, flipped, strict=True)) == 1


def test_a_splice_joins_two_messages():
    for seed in range(20):
        spliced = damage(b"a" * 50, Fault.SPLICE, source=source(seed), other=b"b" * 70)
        assert spliced.strip(b"a").strip(b"b") == b""
        assert spliced.endswith(b"b")


def test_damage_follows_from_the_source():
    for fault in Fault:
        first = damage(bytes(range(100)), fault, source=source(3), other=bytes(9))
        assert damage(bytes(range(100)), fault, source=source(3), other=bytes(9)) == first


@pytest.mark.parametrize("fault", [Fault.ZEROS, Fault.ONES])
def test_zeros_over_zeros_still_change_something(fault):
    filled = bytes(8) if fault is Fault.ZEROS else b"\xff" * 8
    assert damage(filled, fault, source=source(0)) != filled
