"""CKKS without a protocol: small and public polynomials, products, the layout of vectors, plaintexts and their sums."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from secfl.crypto.ckks_layout import RoundLayout, choose_fields, largest_error
from secfl.crypto.ckks_ring import Uniform, small_polynomial
from secfl.crypto.hazmat.ring_noise import RingNoise, _table
from secfl.crypto.hazmat.seal import MODULUS, Ring
from secfl.errors import CapacityError
from secfl.randomness import InsecureSeededRng
from secfl.types import VectorSpec

_SHAPES: tuple[tuple[int, int], ...] = (
    (2, 3),
    (15, 3),
    (18, 5),
    (20, 10),
    (23, 10),
    (24, 10),
    (22, 64),
    (33, 7),
    (50, 64),
    (51, 3),
)


def make(previous: Any) -> Any:
    """Nothing here is random."""
    rng = InsecureSeededRng(50)
    keys = [rng.bytes(32) for _ in range(2)]
    labels = [[b"sum-key", bytes(32)], [b"shared", bytes(32), b"anna", b"\x07" * 32]]
    rows = [Uniform(*label).rows(0, 2) for label in labels]
    small = small_polynomial(RingNoise(keys[0]))
    product = Ring.shared().multiply(rows[0][:1], Ring.shared().key(small))[0]
    return {
        "thresholds": [str(value) for value in _table()[0]],
        "small": [_small(key) for key in keys],
        "public": [
            {
                "labels": [label.hex() for label in names],
                "first_of_polynomial_1": [str(value) for value in row[1][:4].tolist()],
                "sha256_of_64_bit_words": hashlib.sha256(row.astype("<u8").tobytes()).hexdigest(),
            }
            for names, row in zip(labels, rows, strict=True)
        ],
        "product": {
            "labels": [label.hex() for label in labels[0]],
            "small_key": keys[0].hex(),
            "first": [str(value) for value in product[:4].tolist()],
            "sha256_of_64_bit_words": hashlib.sha256(product.astype("<u8").tobytes()).hexdigest(),
        },
        "layouts": [_layout(bits, clients) for bits, clients in _SHAPES],
        "plaintexts": [_plaintext(bits, clients, rng) for bits, clients in _SHAPES[:-1]],
    }


def _small(key: bytes) -> Any:
    draws = RingNoise(key).draw(70_000)
    return {
        "key": key.hex(),
        "first": draws[:12].tolist(),
        "sha256_of_70000": hashlib.sha256(draws.tobytes()).hexdigest(),
    }


def _layout(bits: int, clients: int) -> Any:
    case = {"bits": bits, "clients": clients, "largest_error": largest_error(clients)}
    try:
        fields = choose_fields(bits, clients=clients)
    except CapacityError:
        return case | {"name": "bad_too_wide"}
    return case | {"name": "fits", "fields": fields.fields, "plain_bits": fields.plain_bits}


def _plaintext(bits: int, clients: int, rng: InsecureSeededRng) -> Any:
    vectors = (
        VectorSpec(name="first", length=7, modulus_bits=bits),
        VectorSpec(name="second", length=2, modulus_bits=9),
    )
    layout = RoundLayout(vectors, clients=clients)
    inputs, total = [], np.zeros((1, 4096), object)
    for _ in range(3):
        values = {
            vector.name: np.array(
                [
                    int.from_bytes(rng.bytes(8), "little") % (1 << vector.modulus_bits)
                    for _ in range(vector.length)
                ],
                vector.dtype,
            )
            for vector in vectors
        }
        inputs.append(values)
        total = (total + layout.encode(values, 0, 1).astype(object)) % MODULUS
    worst = layout.error_bound - clients // 2 - 2
    moved = (total + worst) % MODULUS
    sums = layout.empty_sums()
    layout.decode(moved.astype(np.uint64), 0, sums, addends=3)
    return {
        "clients": clients,
        "vectors": [[vector.name, vector.length, vector.modulus_bits] for vector in vectors],
        "inputs": [{name: values.tolist() for name, values in one.items()} for one in inputs],
        "coefficients": layout.coefficients,
        "plaintext_of_first": [
            str(v) for v in layout.encode(inputs[0], 0, 1)[0][: layout.coefficients].tolist()
        ],
        "sum_of_plaintexts": [str(value) for value in total[0][: layout.coefficients].tolist()],
        "error": worst,
        "sums": {name: values.tolist() for name, values in sums.items()},
    }
