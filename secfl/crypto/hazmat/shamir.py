"""Shamir's secret sharing of byte strings over GF(2^8) (Shamir, CACM 22(11), 1979).

Hazard: any ``threshold`` shares give the secret, and fewer give nothing only if the coefficients are fresh
uniform bytes that are used for this secret alone. Shares carry no check: `combine` of wrong shares gives a
wrong secret without a word, so callers compare the result, and each share, with a commitment.

The field is the one of AES, modulo x^8 + x^4 + x^3 + x + 1. Every byte of the secret is shared on its own and
all are computed at once. Multiplication is done by shifts and masks, without tables, so that its time does
not depend on secret bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["coefficient_bytes", "combine", "split"]

_REDUCTION: Final = np.uint8(0x1B)
_MAX_POINTS: Final = 255


def coefficient_bytes(secret_bytes: int, threshold: int) -> int:
    """How many random bytes `split` needs."""
    return secret_bytes * (threshold - 1)


def split(secret: bytes, *, threshold: int, points: Sequence[int], coefficients: bytes) -> dict[int, bytes]:
    """Share a secret.

    Args:
        secret: Any length above 0.
        threshold: How many shares give the secret; at least 1, at most ``len(points)``.
        points: Distinct field elements from 1 to 255, one for each share.
        coefficients: ``coefficient_bytes(len(secret), threshold)`` fresh random bytes.

    Returns:
        Point -> share, each as long as the secret.

    Raises:
        ValueError: A threshold that the number of points does not allow, or coefficients of another size.
    """
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} for {len(points)} shares")
    if not secret or len(coefficients) != coefficient_bytes(len(secret), threshold):
        raise ValueError("the coefficients do not fit the secret and the threshold")
    rows = np.frombuffer(coefficients, np.uint8).reshape(threshold - 1, len(secret))
    x = np.array(points, np.uint8)[:, None]
    value = np.zeros((len(points), len(secret)), np.uint8)
    for row in rows[::-1]:
        value = _multiply(value ^ row, x)
    value = value ^ np.frombuffer(secret, np.uint8)
    return {point: value[index].tobytes() for index, point in enumerate(points)}


def combine(shares: Sequence[tuple[int, bytes]]) -> bytes:
    """The secret of exactly ``threshold`` shares ``(point, share)`` of one length.

    More shares than the threshold are allowed and must lie on the same polynomial to give the secret.
    Concatenated shares of several secrets, held at the same points, give the concatenated secrets.

    Raises:
        ValueError: The shares differ in length.
    """
    points = [point for point, _ in shares]
    _check_points(points)
    sizes = {len(share) for _, share in shares}
    if len(sizes) != 1:
        raise ValueError("shares of different lengths")
    total = np.zeros(sizes.pop(), np.uint8)
    for point, share in shares:
        weight = 1
        for other in points:
            if other != point:
                # Lagrange's basis polynomial at zero; the points are public.
                weight = _multiply_public(weight, _multiply_public(other, _inverse_public(other ^ point)))
        total ^= _multiply(np.frombuffer(share, np.uint8), np.uint8(weight))
    return total.tobytes()


def _multiply(a: NDArray[np.uint8], b: NDArray[np.uint8] | np.uint8) -> NDArray[np.uint8]:
    """Product in the field, elementwise with broadcasting, in time that depends on the shape only."""
    a, b = np.broadcast_arrays(a, np.asarray(b, np.uint8))
    total = np.zeros(a.shape, np.uint8)
    factor = a.copy()
    for bit in range(8):
        total ^= factor & (np.uint8(0) - ((b >> np.uint8(bit)) & np.uint8(1)))
        factor = (factor << np.uint8(1)) ^ (_REDUCTION & (np.uint8(0) - (factor >> np.uint8(7))))
    return total


def _multiply_public(a: int, b: int) -> int:
    total = 0
    while b:
        if b & 1:
            total ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0x11B
        b >>= 1
    return total


def _inverse_public(a: int) -> int:
    power, square = 1, a
    for _ in range(7):  # a^254 = a^(2 + 4 + ... + 128)
        square = _multiply_public(square, square)
        power = _multiply_public(power, square)
    return power


def _check_points(points: Sequence[int]) -> None:
    if (
        not points
        or len(set(points)) != len(points)
        or not all(1 <= point <= _MAX_POINTS for point in points)
    ):
        raise ValueError("points must be distinct numbers from 1 to 255, at least one")
