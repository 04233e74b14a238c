"""Shamir shares over GF(2^8), with shares that must not give the secret."""

from __future__ import annotations

from typing import Any

from secfl.crypto.hazmat.shamir import coefficient_bytes, combine, split
from secfl.randomness import InsecureSeededRng


def make(previous: Any) -> Any:
    """Some thresholds, and for each one share that was changed."""
    rng = InsecureSeededRng(20)
    cases = []
    for threshold, points in ((1, [1]), (2, [1, 2, 3]), (3, [1, 2, 3, 4, 5]), (43, list(range(1, 65)))):
        secret = rng.bytes(64)
        coefficients = rng.bytes(coefficient_bytes(64, threshold))
        shares = split(secret, threshold=threshold, points=points, coefficients=coefficients)
        chosen = sorted(shares.items())[-threshold:]
        assert combine(chosen) == secret
        wrong = [(point, bytes([share[0] ^ 1]) + share[1:]) for point, share in chosen[:1]] + chosen[1:]
        cases.append(
            {
                "name": f"{threshold} of {len(points)}",
                "secret": secret.hex(),
                "threshold": threshold,
                "coefficients": coefficients.hex(),
                "shares": {str(point): share.hex() for point, share in shares.items()},
                "bad_share": {
                    "points": [point for point, _ in wrong],
                    "changed": wrong[0][0],
                    "gives": combine(wrong).hex(),
                },
            }
        )
    return cases
