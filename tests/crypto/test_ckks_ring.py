import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.ckks_layout import RoundLayout
from secfl.crypto.ckks_ring import CiphertextSum, Uniform, encrypt, open_sum, small_polynomial
from secfl.crypto.hazmat.ring_noise import RingNoise
from secfl.crypto.hazmat.seal import DEGREE, MODULUS, Ring
from secfl.crypto.packing import pack, unpack
from secfl.errors import LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.types import PROTOCOL_VERSION, VectorSpec, join_fields

A = "a"
SPECS = (
    VectorSpec(name="update", length=9000, modulus_bits=20),
    VectorSpec(name="weight", length=1, modulus_bits=34),
)


def noise(*labels):
    return RingNoise(hashlib.sha256(repr(labels).encode()).digest())


def random_values(seed, specs=SPECS):
    generator = np.random.default_rng(seed)
    return {
        spec.name: generator.integers(0, 2**spec.modulus_bits, spec.length, dtype=np.uint64).astype(
            spec.dtype
        )
        for spec in specs
    }


def exact_sum(inputs, specs=SPECS):
    return {
        spec.name: sum(values[spec.name].astype(np.uint64) for values in inputs)
        % np.uint64(2**spec.modulus_bits)
        for spec in specs
    }


def assert_sums(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.fixture(scope="module")
def layout():
    return RoundLayout(SPECS, clients=6)


@pytest.mark.parametrize("clients", [1, 3, 6])
def test_the_sum_of_keys_opens_the_sum(layout, clients):
    uniform, total, keys = Uniform(b"round"), CiphertextSum(layout), []
    inputs = [random_values(i) for i in range(clients)]
    for index, values in enumerate(inputs):
        keys.append(small_polynomial(noise("key", index)))
        data = encrypt(values, layout, uniform=uniform, key=keys[-1], noise=noise("error", index))
        assert len(data) == layout.packed_bytes
        total.check(A, data)
        total.add(A, data)
    assert_sums(open_sum(total, layout, uniforms=(uniform,), key=sum(keys)), exact_sum(inputs))
    if clients > 1:  # no smaller set of keys opens anything
        with pytest.raises(RoundAborted):
            open_sum(total, layout, uniforms=(uniform,), key=sum(keys[1:]))


def test_one_key_opens_the_sum_under_the_sum_of_uniforms(layout):
    key, total, uniforms = small_polynomial(noise("key")), CiphertextSum(layout), []
    inputs = [random_values(i) for i in range(4)]
    for index, values in enumerate(inputs):
        uniforms.append(Uniform(b"round", bytes([index])))
        total.add(A, encrypt(values, layout, uniform=uniforms[-1], key=key, noise=noise("error", index)))
    assert_sums(open_sum(total, layout, uniforms=tuple(uniforms), key=key), exact_sum(inputs))
    with pytest.raises(RoundAborted):
        open_sum(total, layout, uniforms=tuple(uniforms[:-1]), key=key)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 9000), st.integers(2, 50)), min_size=1, max_size=3),
    st.integers(1, 64),
    st.integers(0, 2**32),
)
def test_any_round_is_exact(shapes, clients, seed):
    specs = tuple(
        VectorSpec(name=f"v{i}", length=length, modulus_bits=bits) for i, (length, bits) in enumerate(shapes)
    )
    layout = RoundLayout(specs, clients=clients)
    uniform, total = Uniform(b"x"), CiphertextSum(layout)
    inputs, keys = [], np.zeros(DEGREE, np.int64)
    for index in range(min(clients, 3)):
        inputs.append(random_values((seed, index), specs))
        key = small_polynomial(noise(seed, "key", index))
        keys += key
        total.add(A, encrypt(inputs[-1], layout, uniform=uniform, key=key, noise=noise(seed, index)))
    assert_sums(open_sum(total, layout, uniforms=(uniform,), key=keys), exact_sum(inputs, specs))


def test_a_ciphertext_hides_its_message(layout):
    """Residues are uniform whatever the message: the top 4 bits are level to 6 deviations (false alarm 2e-8)."""
    for values in (random_values(1), {name: np.zeros_like(v) for name, v in random_values(1).items()}):
        data = encrypt(values, layout, uniform=Uniform(b"r"), key=small_polynomial(noise(7)), noise=noise(8))
        residues = unpack(data, length=layout.polynomials * DEGREE, bits=60)
        counts = np.bincount((residues >> np.uint64(56)).astype(np.int64), minlength=16)
        expected = residues.size / 16
        assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_without_the_key_polynomial_nothing_is_hidden(layout):
    values = {name: np.zeros_like(v) for name, v in random_values(1).items()}
    one = np.zeros(DEGREE, np.int64)
    one[0] = 1
    data = encrypt(values, layout, uniform=Uniform(b"r"), key=one, noise=noise(8))
    residues = unpack(data, length=layout.polynomials * DEGREE, bits=60).reshape(-1, DEGREE)
    phase = residues + Ring.shared().coefficients(Uniform(b"r").rows(0, len(residues)))
    error = (phase + np.uint64(MODULUS) - layout.encode(values, 0, len(residues))) % np.uint64(MODULUS)
    assert np.minimum(error, np.uint64(MODULUS) - error).max() < 60


def test_a_sum_of_keys_that_vanishes_aborts(layout):
    total = CiphertextSum(layout)
    total.add(A, one(layout))
    with pytest.raises(RoundAborted):
        open_sum(total, layout, uniforms=(Uniform(b"r"),), key=np.zeros(DEGREE, np.int64))


def naive_word(labels, position, *, modulus):
    """One coefficient of a_0, a_1, ..., from the description alone."""
    key = hashlib.sha256(join_fields(PROTOCOL_VERSION, b"ckks-uniform", *labels)).digest()
    stream = 0
    while True:
        counter = (stream * 2**96 + position // 2).to_bytes(16, "big")
        block = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(16))
        word = int.from_bytes(block[8 * (position % 2) :][:8], "little") % 2**60
        if word < modulus:
            return word
        stream += 1


@pytest.mark.parametrize("modulus", [MODULUS, 3 * 2**58, 2**59 + 1])
def test_uniform_polynomials_by_rejection(modulus):
    labels = (b"digest", b"client")
    rows = Uniform(*labels).rows(1, 2, modulus=modulus)
    assert rows.shape == (2, DEGREE)
    assert int(rows.max()) < modulus
    for position in [0, 1, 2, 3, 1001, 2 * DEGREE - 1]:
        assert int(rows.reshape(-1)[position]) == naive_word(labels, DEGREE + position, modulus=modulus)


def test_uniform_polynomials_are_level_after_rejection():
    rows = Uniform(b"x").rows(0, 4, modulus=3 * 2**58)
    counts = np.bincount((rows.reshape(-1) >> np.uint64(58)).astype(np.int64), minlength=4)
    assert counts[3] == 0
    assert np.abs(counts[:3] - 4 * DEGREE / 3).max() < 6 * np.sqrt(4 * DEGREE / 3)  # 6 deviations


def test_labels_separate_rows():
    rows = [Uniform(*labels).rows(0, 1) for labels in ((b"ab",), (b"a", b"b"), (b"ab", b""))]
    assert len({row.tobytes() for row in rows}) == 3
    np.testing.assert_array_equal(Uniform(b"ab").rows(0, 2)[1], Uniform(b"ab").rows(1, 1)[0])


def one(layout, index=0):
    return encrypt(
        random_values(index),
        layout,
        uniform=Uniform(b"r"),
        key=small_polynomial(noise(index)),
        noise=noise(index, 1),
    )


@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_residue_not_below_the_modulus_is_refused(layout, position):
    residues = unpack(one(layout), length=layout.polynomials * DEGREE, bits=60).copy()
    residues[position] = MODULUS
    total = CiphertextSum(layout)
    with pytest.raises(RemoteProtocolError) as error:
        total.check(A, pack(residues, bits=60))
    assert error.value.peer == A
    residues[position] = MODULUS - 1
    total.check(A, pack(residues, bits=60))


@pytest.mark.parametrize("change", [-1, 1, -30720, 30720])
def test_a_ciphertext_of_another_length_is_refused(layout, change):
    data = one(layout)
    data = data[:change] if change < 0 else data + bytes(change)
    total = CiphertextSum(layout)
    for call in (total.check, total.add):
        with pytest.raises(RemoteProtocolError):
            call(A, data)
    assert total.count == 0


def test_a_copied_ciphertext_does_not_decrypt(layout):
    """A client that submits another's ciphertext as its own cannot supply the key that it was made with."""
    uniform, total = Uniform(b"r"), CiphertextSum(layout)
    keys = [small_polynomial(noise("key", i)) for i in range(3)]
    data = [
        encrypt(random_values(i), layout, uniform=uniform, key=keys[i], noise=noise("error", i))
        for i in range(2)
    ]
    for ciphertext in (data[0], data[1], data[0]):
        total.add(A, ciphertext)
    with pytest.raises(RoundAborted):
        open_sum(total, layout, uniforms=(uniform,), key=sum(keys))


def test_more_ciphertexts_than_planned_are_a_misuse():
    small = RoundLayout(SPECS[1:], clients=1)
    total = CiphertextSum(small)
    data = encrypt(
        random_values(0, SPECS[1:]),
        small,
        uniform=Uniform(b"r"),
        key=small_polynomial(noise(0)),
        noise=noise(1),
    )
    total.add(A, data)
    with pytest.raises(LocalProtocolError):
        total.add(A, data)


def test_a_sum_continues_from_its_snapshot(layout):
    whole, part = CiphertextSum(layout), CiphertextSum(layout)
    for index in range(3):
        whole.add(A, one(layout, index))
    part.add(A, one(layout, 0))
    resumed = CiphertextSum(layout)
    resumed.restore(part.snapshot())
    for index in (1, 2):
        resumed.add(A, one(layout, index))
    assert resumed.snapshot() == whole.snapshot()
    for damaged in (b"", whole.snapshot()[:-1], b"\xff" * len(whole.snapshot())):
        with pytest.raises(LocalProtocolError):
            resumed.restore(damaged)
    assert resumed.snapshot() == whole.snapshot()
