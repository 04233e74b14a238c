"""Inputs: masked, packed, hashed and added block by block give what whole Python integers give."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto import inputs
from secfl.crypto.hazmat.prg import MaskStream, Sign
from secfl.crypto.inputs import Accumulator, encode_attachment, encode_vector, hash_pieces, input_digest
from secfl.crypto.snapshots import split_fields
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.types import VectorSpec


def values_for(vector, seed=0):
    source = np.random.default_rng(seed)
    return source.integers(0, 1 << vector.modulus_bits, vector.length, dtype=np.uint64).astype(vector.dtype)


@given(
    bits=st.integers(2, 62),
    length=st.integers(1, 60),
    canaries=st.integers(0, 5),
    keys=st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.sampled_from(Sign)), max_size=3),
)
def test_a_vector_is_encoded_as_python_integers_would_be(naive, bits, length, canaries, keys):
    vector = VectorSpec(name="v", length=length, modulus_bits=bits)
    values = values_for(vector)
    total = values.tolist() + [1] * canaries
    for key, sign in keys:
        stream = naive.mask(key, len(total), bits)
        total = [(a + sign.value * b) % (1 << bits) for a, b in zip(total, stream, strict=True)]
    part = encode_vector(vector, values, canaries=canaries, streams=[MaskStream(*key) for key in keys])
    assert b"".join(part.pieces) == naive.pack(total, bits)
    assert part.size == len(naive.pack(total, bits))
    assert values.tolist() == values_for(vector).tolist(), "the input is left unchanged"


@pytest.mark.parametrize("bits", [19, 40])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_pieces_and_threads_change_nothing(bits, extra):
    vector = VectorSpec(name="v", length=3 * inputs.PIECE_ELEMENTS + extra, modulus_bits=bits)
    values, streams = values_for(vector), [MaskStream(b"k" * 32, Sign.SUBTRACT)]
    parts = [
        encode_vector(vector, values, canaries=2, streams=streams, threads=threads) for threads in (1, 2, 7)
    ]
    assert parts[0] == parts[1] == parts[2]
    assert parts[0].hashes == tuple(hashlib.sha256(piece).digest() for piece in parts[0].pieces)
    data = memoryview(b"".join(parts[0].pieces))
    sums = Accumulator([vector], canaries={"v": 2})
    assert sums.hashes(data) == parts[0].hashes


def test_attachments_are_hashed_in_pieces():
    data = bytes(range(256)) * 5000
    part = encode_attachment(data)
    assert b"".join(part.pieces) == data
    pieces = [data[: 1 << 20], data[1 << 20 :]]
    assert part.hashes == tuple(hashlib.sha256(piece).digest() for piece in pieces)
    assert encode_attachment(data, threads=3) == part
    assert encode_attachment(b"") == inputs.EncodedPart((), ())


def test_the_digest_of_an_input_by_hand(naive):
    hashes = hash_pieces(memoryview(b"abcdef"), piece_bytes=4)
    assert hashes == (hashlib.sha256(b"abcd").digest(), hashlib.sha256(b"ef").digest())
    joined = naive.fields(b"secfl/v1", b"input", bytes(32), struct.pack("<Q", 6), *hashes)
    assert input_digest(bytes(32), 6, hashes) == hashlib.sha256(joined).digest()


@st.composite
def cohorts(draw):
    vectors = tuple(
        VectorSpec(name=f"v{i}", length=draw(st.integers(1, 20)), modulus_bits=draw(st.integers(2, 62)))
        for i in range(draw(st.integers(1, 3)))
    )
    return vectors, draw(st.integers(1, 6)), draw(st.integers(0, 3)), draw(st.integers(0, 99))


@given(cohorts())
def test_sums_are_those_of_python_integers(case):
    vectors, clients, canaries, seed = case
    counts = {vector.name: canaries for vector in vectors}
    sums = Accumulator(vectors, canaries=counts)
    rows = []
    for client in range(clients):
        row = {vector.name: values_for(vector, 100 * seed + client) for vector in vectors}
        rows.append(row)
        data = b"".join(
            piece
            for vector in vectors
            for piece in encode_vector(vector, row[vector.name], canaries=canaries, streams=()).pieces
        )
        sums.check("x", memoryview(data))
        sums.add(memoryview(data))
        again = Accumulator(vectors, canaries=counts)
        again.restore(split_fields(sums.snapshot()))
        sums = again
    sums.reduce()
    assert sums.count == clients
    assert sums.canaries_hold(clients)
    assert canaries == 0 or not sums.canaries_hold(clients + 1)
    for vector in vectors:
        expected = [
            sum(int(row[vector.name][place]) for row in rows) % (1 << vector.modulus_bits)
            for place in range(vector.length)
        ]
        assert sums.result()[vector.name].tolist() == expected
        assert sums.result()[vector.name].dtype == vector.dtype


@pytest.mark.parametrize("threads", [1, 3])
def test_long_sums(threads):
    vector = VectorSpec(name="v", length=(1 << 19) + 77, modulus_bits=23)
    sums = Accumulator([vector], canaries={"v": 3}, threads=threads)
    rows = [values_for(vector, seed) for seed in range(3)]
    for row in rows:
        sums.add(memoryview(b"".join(encode_vector(vector, row, canaries=3, streams=()).pieces)))
    stream = [MaskStream(b"m" * 32, Sign.ADD)]
    sums.apply(vector, stream)
    sums.apply(vector, [MaskStream(b"m" * 32, Sign.SUBTRACT)])
    sums.reduce()
    expected = sum(row.astype(np.uint64) for row in rows) % (1 << 23)
    assert np.array_equal(sums.result()["v"], expected)
    assert sums.canaries_hold(3)


@settings(max_examples=30)
@given(bits=st.integers(2, 62), length=st.integers(1, 30), change=st.sampled_from([-1, 1]))
def test_inputs_of_another_size_or_with_stray_bits_are_refused(bits, length, change):
    vector = VectorSpec(name="v", length=length, modulus_bits=bits)
    sums = Accumulator([vector], canaries={"v": 0})
    data = b"".join(encode_vector(vector, values_for(vector), canaries=0, streams=()).pieces)
    wrong = data[:-1] if change < 0 else data + b"\0"
    with pytest.raises(RemoteProtocolError, match=f"expected {len(data)}"):
        sums.check("x", memoryview(wrong))
    unused = -length * bits % 8
    if unused:
        stray = data[:-1] + bytes([data[-1] | 0x80])
        with pytest.raises(RemoteProtocolError, match="unused bit"):
            sums.check("x", memoryview(stray))
    assert sums.count == 0


def test_sums_of_another_round_are_not_restored():
    vector = VectorSpec(name="v", length=3, modulus_bits=9)
    sums = Accumulator([vector], canaries={"v": 0})
    for parts in ([], [b"1234"], [b"1234", bytes(8)], [b"123", bytes(12)], [b"1234", bytes(12), b""]):
        with pytest.raises(LocalProtocolError, match="do not fit"):
            sums.restore(parts)


def test_adding_needs_no_memory_per_client():
    """The aggregator's memory is one sum: adding ten inputs peaks no higher than adding one."""
    vector = VectorSpec(name="v", length=1 << 21, modulus_bits=22)
    data = memoryview(b"".join(encode_vector(vector, values_for(vector), canaries=0, streams=()).pieces))
    sums = Accumulator([vector], canaries={"v": 0})
    peaks = []
    for rounds_ in (1, 10):
        tracemalloc.start()
        for _ in range(rounds_):
            sums.check("x", data)
            sums.hashes(data)
            sums.add(data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    vector_bytes = 4 * vector.length
    assert peaks[0] < vector_bytes
    assert peaks[1] < peaks[0] + vector_bytes / 8
