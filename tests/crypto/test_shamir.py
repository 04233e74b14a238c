"""Shamir's sharing: t shares give the secret, fewer give nothing, wrong ones give something else."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.crypto.hazmat.shamir import coefficient_bytes, combine, split


def multiply(a, b):
    """Polynomials over GF(2) modulo x^8 + x^4 + x^3 + x + 1, by long division."""
    product_ = 0
    for bit in range(8):
        if b >> bit & 1:
            product_ ^= a << bit
    for bit in range(14, 7, -1):
        if product_ >> bit & 1:
            product_ ^= 0x11B << (bit - 8)
    return product_


def evaluate(secret, coefficients, point):
    """Each byte of the secret is the constant term of its own polynomial."""
    width, out = len(secret), []
    for place, constant in enumerate(secret):
        value, power = constant, 1
        for row in range(len(coefficients) // width):
            power = multiply(power, point)
            value ^= multiply(coefficients[row * width + place], power)
        out.append(value)
    return bytes(out)


@st.composite
def sharings(draw):
    threshold = draw(st.integers(1, 6))
    points = draw(st.lists(st.integers(1, 255), unique=True, min_size=threshold, max_size=threshold + 4))
    secret = draw(st.binary(min_size=1, max_size=40))
    size = coefficient_bytes(len(secret), threshold)
    return secret, threshold, points, draw(st.binary(min_size=size, max_size=size))


@given(sharings(), st.randoms())
def test_any_t_shares_give_the_secret(sharing, random):
    secret, threshold, points, coefficients = sharing
    shares = split(secret, threshold=threshold, points=points, coefficients=coefficients)
    chosen = random.sample(sorted(shares.items()), threshold)
    assert combine(chosen) == secret
    assert combine(sorted(shares.items())) == secret


@given(sharings())
def test_shares_are_values_of_the_polynomial(sharing):
    secret, threshold, points, coefficients = sharing
    shares = split(secret, threshold=threshold, points=points, coefficients=coefficients)
    for point in points:
        assert shares[point] == evaluate(secret, coefficients, point)


def test_every_product_of_the_field():
    """With t = 2 a share is s + c·x: all 256 x 255 products pass through `split`."""
    rows = bytes(range(256))
    shares = split(bytes(256), threshold=2, points=range(1, 256), coefficients=rows)
    for point, share in shares.items():
        assert share == bytes(multiply(value, point) for value in rows)


@pytest.mark.parametrize("secret", [0, 1, 83, 255])
def test_one_share_fewer_tells_nothing(secret):
    """Over all coefficients, t - 1 shares take every value equally often, whatever the secret."""
    one = Counter(
        split(bytes([secret]), threshold=2, points=[7, 9], coefficients=bytes([value]))[7]
        for value in range(256)
    )
    assert len(one) == 256
    two = Counter()
    for pair in product(range(4), range(256)):
        shares = split(bytes([secret]), threshold=3, points=[1, 2, 3], coefficients=bytes(pair))
        two[shares[1], shares[2]] += 1
    assert len(two) == 4 * 256


@given(sharings(), st.integers(0, 7))
def test_a_wrong_share_gives_a_wrong_secret(sharing, bit):
    secret, threshold, points, coefficients = sharing
    shares = sorted(split(secret, threshold=threshold, points=points, coefficients=coefficients).items())
    point, share = shares[0]
    wrong = bytes([share[0] ^ 1 << bit]) + share[1:]
    assert combine([(point, wrong), *shares[1:threshold]]) != secret


def test_concatenated_shares_give_concatenated_secrets():
    first = split(b"first", threshold=2, points=[1, 2, 3], coefficients=b"abcde")
    second = split(b"second", threshold=2, points=[1, 2, 3], coefficients=b"uvwxyz")
    for pair in combinations((1, 2, 3), 2):
        assert combine([(p, first[p] + second[p]) for p in pair]) == b"firstsecond"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"threshold": 0, "coefficients": b""}, "threshold 0 for 3 shares"),
        ({"threshold": 4, "coefficients": b"123"}, "threshold 4 for 3 shares"),
        ({"points": [1, 1, 2]}, "points"),
        ({"points": [0, 1, 2]}, "points"),
        ({"points": [1, 2, 256]}, "points"),
        ({"points": []}, "points"),
        ({"coefficients": b"123"}, "do not fit"),
        ({"coefficients": b""}, "do not fit"),
        ({"secret": b"", "coefficients": b""}, "do not fit"),
    ],
)
def test_impossible_sharings_are_refused(change, match):
    """With a threshold above the shares nobody could open the secret again; below 1 everybody could."""
    arguments = {"secret": b"s", "threshold": 2, "points": [1, 2, 3], "coefficients": b"x"} | change
    with pytest.raises(ValueError, match=match):
        split(arguments.pop("secret"), **arguments)


@pytest.mark.parametrize(
    ("shares", "match"),
    [
        ([], "points"),
        ([(1, b"a"), (1, b"b")], "points"),
        ([(0, b"a")], "points"),
        ([(1, b"a"), (2, b"bc")], "different lengths"),
        ([(1, bytes(8)), (2, b"a")], "different lengths"),
    ],
)
def test_impossible_combinations_are_refused(shares, match):
    """A short share could otherwise be taken for a long one that repeats itself."""
    with pytest.raises(ValueError, match=match):
        combine(shares)
