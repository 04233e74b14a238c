"""Mask streams: AES-256-CTR word by word, added and taken away, the same in every block size and thread count."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.hazmat.prg import (
    BLOCK_BYTES,
    Expander,
    MaskStream,
    Sign,
    add_streams,
    for_ranges,
    usable_threads,
)

KEY = bytes(range(32))


@given(
    key=st.binary(min_size=32, max_size=32),
    length=st.integers(1, 200),
    wide=st.booleans(),
    sign=st.sampled_from(Sign),
)
def test_a_stream_is_aes_of_the_block_numbers(naive, key, length, wide, sign):
    dtype, width = (np.uint64, 8) if wide else (np.uint32, 4)
    words = np.zeros(length, dtype)
    add_streams(words, [MaskStream(key, sign)])
    stream = naive.key_stream(key, length * width)
    expected = [int.from_bytes(stream[i * width : (i + 1) * width], "little") for i in range(length)]
    assert words.tolist() == [(value * sign.value) % (1 << 8 * width) for value in expected]


@pytest.mark.parametrize("bits", [2, 16, 31, 32, 33, 62])
def test_the_low_bits_of_the_words_are_the_mask(naive, bits):
    words = np.zeros(50, np.uint32 if bits <= 32 else np.uint64)
    add_streams(words, [MaskStream(KEY, Sign.ADD)])
    assert [value % (1 << bits) for value in words.tolist()] == naive.mask(KEY, 50, bits)


@settings(max_examples=25)
@given(
    blocks=st.integers(0, 4),
    extra=st.integers(0, 5),
    threads=st.integers(1, 4),
    wide=st.booleans(),
    count=st.integers(1, 3),
)
def test_threads_and_blocks_change_nothing(blocks, extra, threads, wide, count):
    dtype = np.dtype(np.uint64 if wide else np.uint32)
    length = blocks * BLOCK_BYTES // dtype.itemsize + extra
    streams = [MaskStream(bytes([i]) * 32, Sign.ADD if i % 2 else Sign.SUBTRACT) for i in range(count)]
    many = np.arange(length, dtype=dtype)
    add_streams(many, streams, threads=threads)
    one = np.arange(length, dtype=dtype)
    for stream in streams:
        add_streams(one, [stream])
    assert np.array_equal(many, one)


@given(length=st.integers(1, 100_000))
@settings(max_examples=20)
def test_the_opposite_sign_takes_a_stream_back(length):
    words = np.arange(length, dtype=np.uint32)
    for sign in Sign:
        add_streams(words, [MaskStream(KEY, sign), MaskStream(KEY, sign.opposite())])
    assert np.array_equal(words, np.arange(length, dtype=np.uint32))


def test_a_stream_can_be_entered_at_any_block_of_the_cipher():
    whole = np.zeros(1000, np.uint32)
    add_streams(whole, [MaskStream(KEY, Sign.ADD)])
    for first in (0, 4, 400, 996):
        part = np.zeros(1000 - first, np.uint32)
        Expander([MaskStream(KEY, Sign.ADD)], dtype=np.dtype(np.uint32), first=first).apply(part)
        assert np.array_equal(part, whole[first:])
    with pytest.raises(ValueError, match="element 3 does not start"):
        Expander([], dtype=np.dtype(np.uint32), first=3)


def test_all_32_bytes_of_the_key_matter():
    base = np.zeros(64, np.uint32)
    add_streams(base, [MaskStream(KEY, Sign.ADD)])
    for place in range(32):
        for bit in (1, 128):
            changed = bytearray(KEY)
            changed[place] ^= bit
            other = np.zeros(64, np.uint32)
            add_streams(other, [MaskStream(bytes(changed), Sign.ADD)])
            assert not np.any(base == other)


def test_keys_have_one_length_and_do_not_print():
    for size in (0, 16, 31, 33):
        with pytest.raises(ValueError, match=f"mask key of {size} bytes"):
            MaskStream(bytes(size), Sign.ADD)
    assert "key" not in repr(MaskStream(KEY, Sign.ADD))


def test_without_streams_nothing_happens():
    words = np.arange(5, dtype=np.uint32)
    add_streams(words, [])
    assert words.tolist() == [0, 1, 2, 3, 4]


@given(length=st.integers(0, 1000), multiple=st.integers(1, 64), threads=st.integers(1, 9))
def test_ranges_cover_everything_once(length, multiple, threads):
    seen, lock = [], threading.Lock()

    def work(first, last):
        with lock:
            seen.append((first, last))

    for_ranges(work, length, multiple=multiple, threads=threads)
    seen.sort()
    assert [first for first, _ in seen] == [0, *(last for _, last in seen)][: len(seen)]
    assert sum(last - first for first, last in seen) == length
    assert all(first % multiple == 0 for first, _ in seen)
    assert len(seen) <= threads


@pytest.mark.parametrize("bad", [0, 5, 9])
def test_an_error_in_a_thread_is_not_lost(bad):
    def work(first, _last):
        if first == bad:
            raise KeyError(first)

    with pytest.raises(KeyError):
        for_ranges(work, 10, multiple=1, threads=10)


def test_the_number_of_threads_is_sensible():
    assert 1 <= usable_threads() <= 4
    assert usable_threads(1) == 1
