"""Public keys from seeds, KEM ciphertexts, sealed boxes and escrows, with boxes that must not open.

Ciphertexts were drawn once; they are kept as long as they decrypt to what is written here.
"""

from __future__ import annotations

from typing import Any

from secfl.crypto.hazmat.sealed import (
    KEM_PUBLIC_BYTES,
    AgreementKey,
    SealingKey,
    aead_open,
    aead_seal,
    encapsulate,
    seal_to,
)
from secfl.randomness import InsecureSeededRng

INFO, PLAINTEXT = b"purpose", b"two shares of thirty-two bytes"


def make(previous: Any) -> Any:
    """Two key pairs, one ciphertext and one box for each, one escrow."""
    rng = InsecureSeededRng(21)
    seeds = [rng.bytes(96), rng.bytes(96)]
    kept = previous["keys"] if previous else [None, None]
    keys = [_case(seed, old) for seed, old in zip(seeds, kept, strict=True)]
    one, other = (AgreementKey(seed) for seed in seeds)
    exchanged = one.exchange(other.public()[KEM_PUBLIC_BYTES:])
    assert exchanged == other.exchange(one.public()[KEM_PUBLIC_BYTES:])
    key, nonce = rng.bytes(32), rng.bytes(12)
    escrow = aead_seal(key, nonce, PLAINTEXT, associated=INFO)
    assert aead_open(key, nonce, escrow, associated=INFO) == PLAINTEXT
    return {
        "keys": keys,
        "x25519_of_both": exchanged.hex(),
        "escrow": {
            "key": key.hex(),
            "nonce": nonce.hex(),
            "associated": INFO.hex(),
            "plaintext": PLAINTEXT.hex(),
            "ciphertext": escrow.hex(),
        },
        "bad_x25519_public_keys": [
            bytes(32).hex(),
            (1).to_bytes(32, "little").hex(),
            (2**255 - 20).to_bytes(32, "little").hex(),
            (2**255 - 19).to_bytes(32, "little").hex(),
            (2**255 - 18).to_bytes(32, "little").hex(),
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        ],
    }


def _case(seed: bytes, old: Any) -> Any:
    agreement, sealing = AgreementKey(seed), SealingKey(seed)
    if old is None or not _holds(seed, old):
        secret, ciphertext = encapsulate(agreement.public()[:KEM_PUBLIC_BYTES])
        box = seal_to(sealing.public(), PLAINTEXT, info=INFO)
    else:
        secret, ciphertext = bytes.fromhex(old["kem_secret"]), bytes.fromhex(old["kem_ciphertext"])
        box = bytes.fromhex(old["box"])
    return {
        "seed": seed.hex(),
        "public": agreement.public().hex(),
        "kem_ciphertext": ciphertext.hex(),
        "kem_secret": secret.hex(),
        "info": INFO.hex(),
        "plaintext": PLAINTEXT.hex(),
        "box": box.hex(),
        "bad_boxes": [
            {"name": "bad_info", "box": box.hex(), "info": b"other purpose".hex()},
            {"name": "bad_tag", "box": (box[:-1] + bytes([box[-1] ^ 1])).hex(), "info": INFO.hex()},
            {"name": "bad_encapsulation", "box": (bytes([box[0] ^ 1]) + box[1:]).hex(), "info": INFO.hex()},
            {"name": "bad_length", "box": box[:-1].hex(), "info": INFO.hex()},
        ],
    }


def _holds(seed: bytes, old: Any) -> bool:
    try:
        opened = SealingKey(seed).open(bytes.fromhex(old["box"]), info=INFO)
        secret = AgreementKey(seed).decapsulate(bytes.fromhex(old["kem_ciphertext"]))
    except (KeyError, ValueError):
        return False
    return opened == PLAINTEXT and secret == bytes.fromhex(old["kem_secret"])
