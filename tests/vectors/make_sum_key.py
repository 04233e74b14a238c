"""One-time keys: each client's key and ciphertext, the opened sum of all and of those who did not drop out.

The masking around it is in ``masking_round``: the key is the vector that is masked, the ciphertext the attachment.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from secfl.crypto.ckks_ring import CiphertextSum, open_sum
from secfl.crypto.ckks_sum_key import KEY_VECTOR, SumKeyRound
from secfl.crypto.codec import centre
from secfl.crypto.packing import pack, unpack
from secfl.errors import RemoteProtocolError, RoundAborted
from secfl.randomness import InsecureSeededRng
from secfl.types import SchemeSpec, VectorSpec

VECTORS = (
    VectorSpec(name="update", length=9000, modulus_bits=19),
    VectorSpec(name="weight", length=1, modulus_bits=33),
)
CLIENTS = 4


def _tools() -> ModuleType:
    path = Path(__file__).with_name("recorded.py")
    spec = importlib.util.spec_from_file_location("secfl_vectors_recorded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recorded = _tools()


def make(previous: Any) -> Any:
    """Four clients, two polynomials; ``c02`` drops out."""
    identities, directory = recorded.parties(51, CLIENTS)
    scheme = SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),))
    spec = recorded.specification(directory, scheme, VECTORS, threshold=3)
    shape, rng = SumKeyRound(spec), InsecureSeededRng(52)
    clients, keys, ciphertexts = [], [], []
    for identity in identities:
        drawn = [rng.bytes(32), rng.bytes(32)]
        start, weight = rng.bytes(1)[0], int.from_bytes(rng.bytes(8), "little") % 2**33
        inputs = {
            "update": ((np.arange(9000) * 977 + start) % (1 << 19)).astype(np.uint32),
            "weight": np.array([weight], np.uint64),
        }
        key, ciphertext = shape.protect(inputs, recorded.FixedRng(drawn))
        keys.append(centre(key[KEY_VECTOR], bits=shape.key_bits))
        ciphertexts.append(ciphertext)
        clients.append(
            {
                "name": identity.name,
                "key_of_key": drawn[0].hex(),
                "key_of_errors": drawn[1].hex(),
                "update_starts_at": start,
                "weight": weight,
                "key_vector_first": key[KEY_VECTOR][:6].tolist(),
                "ciphertext_first": [str(value) for value in _residues(ciphertext)[:3].tolist()],
                "ciphertext_bytes": len(ciphertext),
                "ciphertext_sha256": hashlib.sha256(ciphertext).hexdigest(),
            }
        )
    opened = []
    for survivors in ([0, 1, 2, 3], [0, 1, 3]):
        sums = _open(shape, [ciphertexts[i] for i in survivors], sum(keys[i] for i in survivors))
        opened.append(
            {
                "survivors": [identities[i].name for i in survivors],
                "key_first": sum(keys[i] for i in survivors)[:6].tolist(),
                "first_sums": sums["update"][:6].tolist(),
                "sums_sha256": hashlib.sha256(sums["update"].astype("<u4").tobytes()).hexdigest(),
                "weight": int(sums["weight"][0]),
            }
        )
    return recorded.described(spec, identities) | {
        "key_bits": shape.key_bits,
        "clients": clients,
        "opened": opened,
        "bad": _bad(shape, keys, ciphertexts),
    }


def _residues(ciphertext: bytes) -> Any:
    return unpack(ciphertext, length=len(ciphertext) * 8 // 60, bits=60)


def _open(shape: SumKeyRound, ciphertexts: list[bytes], key: Any) -> Any:
    total = CiphertextSum(shape.layout)
    for ciphertext in ciphertexts:
        total.check("a client", ciphertext)
        total.add("a client", ciphertext)
    return open_sum(total, shape.layout, uniforms=(shape.uniform,), key=key)


def _bad(shape: SumKeyRound, keys: list[Any], ciphertexts: list[bytes]) -> list[Any]:
    """What is done to the sum of all, and how it ends."""
    residue = _residues(ciphertexts[1]).copy()
    residue[4097] = 2**60 - 2**14 + 1
    moved = sum(keys).copy()
    moved[5] += 1
    cases = {
        "bad_residue": ([*ciphertexts[:1], pack(residue, bits=60), *ciphertexts[2:]], sum(keys)),
        "bad_length": ([ciphertexts[0][:-1], *ciphertexts[1:]], sum(keys)),
        "bad_copied_ciphertext": ([*ciphertexts[:3], ciphertexts[0]], sum(keys)),
        "bad_key_of_others": (ciphertexts, sum(keys[:3])),
        "bad_key_by_one": (ciphertexts, moved),
        "bad_key_zero": (ciphertexts, sum(keys) * 0),
    }
    found = []
    for name, (rows, key) in cases.items():
        try:
            _open(shape, rows, key)
        except (RemoteProtocolError, RoundAborted) as error:
            found.append({"name": name, "refused_as": str(error)})
            continue
        raise AssertionError(name)
    return found
