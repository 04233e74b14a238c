import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.ckks_layout import RoundLayout, choose_fields, largest_error, reduce_once
from secfl.crypto.hazmat.seal import DEGREE, MODULUS
from secfl.errors import CapacityError, RoundAborted
from secfl.types import VectorSpec


def vector(name, length, bits):
    return VectorSpec(name=name, length=length, modulus_bits=bits)


@st.composite
def rounds(draw):
    clients = draw(st.integers(1, 64))  # widths up to 50 fit for all of them
    specs = tuple(
        vector(f"v{i}", draw(st.integers(1, 40)), draw(st.integers(2, 50)))
        for i in range(draw(st.integers(1, 4)))
    )
    return clients, specs


def random_values(specs, generator, *, largest=False):
    values = {}
    for spec in specs:
        top = 2**spec.modulus_bits - 1
        drawn = generator.integers(0, top, spec.length, dtype=np.uint64, endpoint=True)
        values[spec.name] = (np.full(spec.length, top, np.uint64) if largest else drawn).astype(spec.dtype)
    return values


def add_up(layout, inputs, errors):
    """Σ (plaintext + error) modulo q, in Python integers."""
    total = [0] * (layout.polynomials * DEGREE)
    for values, error in zip(inputs, errors, strict=True):
        plain = layout.encode(values, 0, layout.polynomials).reshape(-1)
        assert int(plain.max()) < MODULUS
        total = [t + int(p) + int(e) for t, p, e in zip(total, plain, error, strict=True)]
    return np.array([t % MODULUS for t in total], np.uint64).reshape(-1, DEGREE)


@settings(deadline=None, max_examples=30)
@given(rounds(), st.integers(0, 2**32), st.booleans(), st.sampled_from([-1, 0, 1]))
def test_sums_come_back_exactly_at_the_error_bound(case, seed, largest, sign):
    clients, specs = case
    generator = np.random.default_rng(seed)
    layout = RoundLayout(specs, clients=clients)
    inputs = [random_values(specs, generator, largest=largest) for _ in range(min(clients, 4))]
    inputs += [inputs[0]] * (clients - len(inputs))
    # All of the allowed error but the room for rounding goes to the first addend.
    worst = sign * (layout.error_bound - clients // 2 - 2)
    errors = [np.full(layout.polynomials * DEGREE, worst if i == 0 else 0) for i in range(clients)]
    rows = add_up(layout, inputs, errors)
    sums = layout.empty_sums()
    layout.decode(rows, 0, sums, addends=clients)
    for spec in specs:
        exact = sum(values[spec.name].astype(object) for values in inputs) % 2**spec.modulus_bits
        assert sums[spec.name].dtype == spec.dtype
        assert sums[spec.name].tolist() == exact.tolist()


def test_polynomials_can_be_taken_in_any_portions():
    specs = (vector("a", 3 * DEGREE + 5, 26), vector("b", 1, 30), vector("c", 2 * DEGREE, 20))
    layout = RoundLayout(specs, clients=10)
    values = random_values(specs, np.random.default_rng(0))
    whole = layout.encode(values, 0, layout.polynomials)
    sums = layout.empty_sums()
    for first in reversed(range(layout.polynomials)):
        row = layout.encode(values, first, 1)
        np.testing.assert_array_equal(row[0], whole[first])
        layout.decode(row, first, sums, addends=1)
    for spec in specs:
        np.testing.assert_array_equal(sums[spec.name], values[spec.name])


@pytest.mark.parametrize(
    ("bits", "clients", "values"),
    [
        (15, 3, 3),
        (18, 3, 2),
        (19, 5, 2),
        (20, 10, 2),
        (23, 10, 2),
        (24, 10, 1),
        (22, 64, 2),
        (23, 64, 1),
        (31, 10, 1),
        (50, 64, 1),
    ],
)
def test_values_in_a_coefficient(bits, clients, values):
    assert choose_fields(bits, clients=clients).fields == values


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 49), st.integers(1, 200))
def test_the_noise_has_the_room_that_the_docstring_claims(bits, clients):
    fields = choose_fields(bits, clients=clients)
    assert largest_error(clients) <= 2 ** (59 - fields.plain_bits)
    assert fields.plain_bits >= bits
    assert 2**fields.carry_bits >= clients
    tail = largest_error(clients) - clients / 2 - 1
    # 2 exp(-x²/(2nσ²)) <= 2^-80
    assert math.log2(2) - tail**2 / (2 * clients * 4.5**2) / math.log(2) <= -80


def test_a_sum_that_cannot_fit_is_refused_beforehand():
    with pytest.raises(CapacityError, match="at most 50 bits do"):
        choose_fields(51, clients=3)
    with pytest.raises(CapacityError, match="at most 49 bits do"):
        choose_fields(50, clients=200)
    with pytest.raises(CapacityError, match="at most 0 bits do"):
        choose_fields(2, clients=2**70)
    with pytest.raises(CapacityError):
        RoundLayout((vector("a", 5, 20),), clients=2**100)


@pytest.mark.parametrize("clients", [3, 10, 40])
def test_an_error_above_the_bound_is_noticed(clients):
    layout = RoundLayout((vector("a", 10, 16),), clients=clients)
    values = random_values((vector("a", 10, 16),), np.random.default_rng(0))
    for position in (0, 4, 2000):  # a value, a value, the padding
        rows = layout.encode(values, 0, 1)
        rows[0, position] += np.uint64(layout.error_bound + 2)
        with pytest.raises(RoundAborted):
            layout.decode(rows, 0, layout.empty_sums(), addends=1)


def test_values_in_the_padding_are_noticed():
    layout = RoundLayout((vector("a", 10, 16),), clients=3)
    rows = np.zeros((1, DEGREE), np.uint64)
    rows[0, 100] = MODULUS // 2
    with pytest.raises(RoundAborted):
        layout.decode(rows, 0, layout.empty_sums(), addends=1)


def test_a_random_polynomial_does_not_pass_for_a_sum():
    # One coefficient passes with probability at most 0.82, so 4096 of them pass with less than 2^-1000.
    layout = RoundLayout((vector("a", 10, 22),), clients=64)
    rows = np.random.default_rng(0).integers(0, MODULUS, (1, DEGREE), dtype=np.uint64)
    with pytest.raises(RoundAborted):
        layout.decode(rows, 0, layout.empty_sums(), addends=1)


def test_reduction():
    values = np.array([0, MODULUS - 1, MODULUS, 2 * MODULUS - 1], np.uint64)
    reduce_once(values)
    assert values.tolist() == [0, MODULUS - 1, 0, MODULUS - 1]


def test_upload_sizes():
    assert RoundLayout((vector("u", 2 * DEGREE, 20),), clients=10).packed_bytes == 3.75 * 2 * DEGREE
    # Small vectors share a polynomial.
    assert (
        RoundLayout((vector("u", 100, 20), vector("weight", 1, 30)), clients=10).packed_bytes == DEGREE * 7.5
    )
