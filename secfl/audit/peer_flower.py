"""Looks at the mask seeds of Flower's SecAgg+ with its own functions; runs in Flower's environment alone.

Usage: ``python -I peer_flower.py``; prints one JSON document. Nothing is searched or attacked: secrets are made as
the library makes them, and the seed that its generator is given is looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np
from flwr.common.secure_aggregation import secaggplus_utils
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.supercore.primitives.asymmetric import generate_key_pairs

_SAMPLES = 400


def generator_seed(secret: bytes) -> int:
    """What ``pseudo_rand_gen`` seeds NumPy's generator with."""
    seen: list[int] = []
    original = np.random.RandomState

    def look(seed: int) -> Any:
        seen.append(int(seed))
        return original(seed)

    with mock.patch.object(secaggplus_utils.np.random, "RandomState", look):
        secaggplus_utils.pseudo_rand_gen(secret, 1 << 20, [(1,)])
    return seen[0]


def varying(make: Callable[[], bytes]) -> dict[str, Any]:
    """Which bits of the generator's seed differ between secrets."""
    secrets = [make() for _ in range(_SAMPLES)]
    seeds = [generator_seed(secret) for secret in secrets]
    ones = zeros = 0
    for seed in seeds:
        ones |= seed
        zeros |= ~seed & 0xFFFFFFFF
    return {
        "secret_bytes": sorted({len(secret) for secret in secrets}),
        "samples": _SAMPLES,
        "bits_that_vary": (ones & zeros).bit_count(),
        "constant_bits": f"{0xFFFFFFFF & ~(ones & zeros):#010x}",
    }


def pair_secret() -> bytes:
    """A pair secret as two clients agree on it."""
    (own, _), (_, other) = generate_key_pairs(), generate_key_pairs()
    secret: bytes = generate_shared_key(own, other)
    return secret


def same_stream() -> bool:
    """Two different 32-byte secrets with the same words in another order: is the mask the same?"""
    one = os.urandom(32)
    other = one[4:] + one[:4]
    masks = [secaggplus_utils.pseudo_rand_gen(secret, 1 << 20, [(64,)])[0] for secret in (one, other)]
    return one != other and bool(np.array_equal(*masks))


def main() -> None:
    """Print the facts."""
    facts = {
        "library": "flwr",
        "version": version("flwr"),
        "generator": "numpy.random.RandomState (Mersenne Twister), seeded with one 32-bit integer",
        "self_mask": varying(lambda: os.urandom(32)),
        "pair_mask": varying(pair_secret),
        "different_secrets_with_equal_fold_give_equal_masks": same_stream(),
    }
    print(json.dumps(facts))  # noqa: T201 - the document that the parent process reads


if __name__ == "__main__":
    main()
