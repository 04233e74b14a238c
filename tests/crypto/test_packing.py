import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto import packing
from secfl.crypto.packing import pack, packed_size, unpack
from secfl.errors import LocalProtocolError


def naive_pack(values, bits):
    """The format in Python integers: one little-endian bit stream."""
    stream = 0
    for index, value in enumerate(values):
        stream |= int(value) << (index * bits)
    return stream.to_bytes((len(values) * bits + 7) // 8, "little")


@st.composite
def vectors(draw):
    bits = draw(st.integers(2, 62))
    length = draw(st.integers(0, 70))
    values = draw(st.lists(st.integers(0, 2**bits - 1), min_size=length, max_size=length))
    return np.array(values, np.uint32 if bits <= 32 else np.uint64), bits


@settings(deadline=None, max_examples=200)
@given(vectors())
def test_the_format_is_one_little_endian_bit_stream(case):
    values, bits = case
    data = pack(values, bits=bits)
    assert data == naive_pack(values, bits)
    assert len(data) == packed_size(values.size, bits=bits)
    back = unpack(data, length=values.size, bits=bits)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("bits", range(2, 63))
@pytest.mark.parametrize("length", [1, 7, 8, 9, 1000])
def test_extreme_values_survive_every_width(bits, length):
    dtype = np.uint32 if bits <= 32 else np.uint64
    values = np.full(length, 2**bits - 1, dtype)
    values[::3] = 0
    data = pack(values, bits=bits)
    assert data == naive_pack(values, bits)
    np.testing.assert_array_equal(unpack(data, length=length, bits=bits), values)


@pytest.mark.parametrize("bits", [2, 5, 8, 13, 16, 22, 24, 31, 32, 33, 47, 60, 62])
@pytest.mark.parametrize("extra", [-9, -1, 0, 1, 8, 33])
def test_blocks_join_without_a_seam(bits, extra, monkeypatch):
    monkeypatch.setattr(packing, "_BLOCK", 64)
    generator = np.random.default_rng(bits)
    values = generator.integers(0, 2**bits, 64 * 3 + extra, dtype=np.uint64)
    values = values.astype(np.uint32) if bits <= 32 else values
    data = pack(values, bits=bits)
    assert data == naive_pack(values, bits)
    np.testing.assert_array_equal(unpack(data, length=values.size, bits=bits), values)


def test_a_long_vector_of_the_benchmark_width():
    values = np.random.default_rng(0).integers(0, 2**22, 3 * packing._BLOCK + 5, dtype=np.uint32)
    np.testing.assert_array_equal(unpack(pack(values, bits=22), length=values.size, bits=22), values)


def test_narrow_values_in_wide_words_pack_alike():
    values = np.arange(100, dtype=np.uint32)
    assert pack(values.astype(np.uint64), bits=22) == pack(values, bits=22)
    assert pack(values, bits=40) == pack(values.astype(np.uint64), bits=40)


def test_a_view_with_a_stride_packs_like_its_copy():
    values = np.arange(100, dtype=np.uint32)
    assert pack(values[::2], bits=9) == pack(values[::2].copy(), bits=9)


@pytest.mark.parametrize("bits", [3, 8, 16, 22, 40])
def test_an_element_that_does_not_fit_is_refused(bits):
    values = np.zeros(20, np.uint64)
    values[13] = 2**bits
    with pytest.raises(LocalProtocolError):
        pack(values, bits=bits)


@pytest.mark.parametrize("bits", [3, 8, 16, 22, 40, 60])
@pytest.mark.parametrize("change", [-1, 1])
def test_bytes_of_another_size_are_refused(bits, change):
    data = pack(np.zeros(11, np.uint32), bits=bits)
    data = data[:-1] if change < 0 else data + b"\0"
    with pytest.raises(LocalProtocolError):
        unpack(data, length=11, bits=bits)


@pytest.mark.parametrize("bits", [3, 9, 22, 60, 61])
def test_a_set_unused_bit_is_refused(bits):
    length = 5
    data = bytearray(pack(np.zeros(length, np.uint32), bits=bits))
    assert length * bits % 8
    data[-1] |= 0x80
    with pytest.raises(LocalProtocolError):
        unpack(bytes(data), length=length, bits=bits)


@pytest.mark.parametrize("bits", [-1, 0, 1, 63, 64])
def test_other_widths_are_refused(bits):
    with pytest.raises(LocalProtocolError):
        packed_size(3, bits=bits)
    with pytest.raises(LocalProtocolError):
        pack(np.zeros(3, np.uint32), bits=bits)
    with pytest.raises(LocalProtocolError):
        unpack(bytes(3), length=3, bits=bits)


@pytest.mark.parametrize(
    "values", [np.zeros(3, np.int64), np.zeros(3, np.float64), np.zeros((3, 1), np.uint32)], ids=str
)
def test_other_arrays_are_refused(values):
    with pytest.raises(LocalProtocolError):
        pack(values, bits=8)


def test_a_negative_length_is_refused():
    with pytest.raises(LocalProtocolError):
        packed_size(-1, bits=8)
