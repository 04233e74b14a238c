"""Shared by the checks: encodings, hashes, boxes, trees and sharing, written out. See checker.py."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FOLDER = Path(__file__).resolve().parent


def beside(path: str) -> ModuleType:
    """A helper module of the tests, by its place."""
    file = FOLDER.parent / path
    spec = importlib.util.spec_from_file_location(f"vectors_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


masking, ring = beside("crypto/naive_masking.py"), beside("conformance/naive_ckks.py")
join, hkdf, pack, unpack = masking.fields, masking.hkdf, masking.pack, masking.unpack
V = b"secfl/v1"
Q, N = 2**60 - 2**14 + 1, 4096
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
UNHEX = bytes.fromhex


def sha256(*parts: bytes) -> bytes:
    """SHA-256 of a concatenation."""
    return hashlib.sha256(b"".join(parts)).digest()


def u8(value: int) -> bytes:
    return struct.pack("<B", value)


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def sealed(private: bytes, box: bytes, context: bytes) -> bytes | None:
    """Open a box: HPKE in base mode (RFC 9180) with KEM 0x647a, KDF 1, AEAD 2. ``None`` if it does not open."""
    kem, x25519 = MLKEM768PrivateKey.from_seed_bytes(private[:64]), private[64:]
    if len(box) < 1120 + 16:
        return None
    own = X25519PrivateKey.from_private_bytes(x25519)
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(box[1088:1120]))
    except ValueError:
        return None
    ends = shared + box[1088:1120] + own.public_key().public_bytes_raw() + b"\\.//^\\"
    secret = hashlib.sha3_256(kem.decapsulate(box[:1088]) + ends).digest()
    suite = b"HPKE\x64\x7a\x00\x01\x00\x02"

    def extract(salt: bytes, label: bytes, value: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + label + value, "sha256")

    def expand(key: bytes, label: bytes, info: bytes, size: int) -> bytes:
        text = struct.pack(">H", size) + b"HPKE-v1" + suite + label + info
        return hmac.digest(key, text + b"\x01", "sha256")[:size]

    hashes = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", context)
    scheduled = extract(secret, b"secret", b"")
    key, nonce = expand(scheduled, b"key", hashes, 32), expand(scheduled, b"base_nonce", hashes, 12)
    try:
        return AESGCM(key).decrypt(nonce, box[1120:], b"")
    except InvalidTag:
        return None


def hybrid_public(private: bytes) -> bytes:
    """ML-KEM key and X25519 key of 96 bytes."""
    kem = MLKEM768PrivateKey.from_seed_bytes(private[:64]).public_key().public_bytes_raw()
    return kem + X25519PrivateKey.from_private_bytes(private[64:]).public_key().public_bytes_raw()


def tree(leaves: dict[int, bytes], places: int) -> list[list[bytes]]:
    """All levels of the tree, from the leaves to the root."""
    size = 1 << (places - 1).bit_length()
    level = [sha256(b"\x00", leaves[i]) if i in leaves else sha256(b"\x02") for i in range(size)]
    levels = [level]
    while len(level) > 1:
        level = [sha256(b"\x01", level[i], level[i + 1]) for i in range(0, len(level), 2)]
        levels.append(level)
    return levels


def statement(phase: str, digest: bytes, sender: str, body: bytes) -> bytes:
    """The bytes under a signature."""
    to = "aggregator" if phase in {"unmask", "plain-input", "ckks-open"} else "all"
    signed: bytes = masking.signed_statement(phase, digest, sender, to, body)
    return signed


def verifies(key: bytes, signature: bytes, text: bytes) -> bool:
    """Ed25519."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except InvalidSignature:
        return False
    return True


def frame(kind: int, digest: bytes, sender: int) -> bytes:
    """The first 39 bytes; the sender is a position, or -1 for the aggregator."""
    return b"SFL1" + u8(kind) + digest + u16(sender + 1)


def roster(rows: dict[int, bytes]) -> bytes:
    """The bit set, then each member's body and signature."""
    return u64(sum(1 << index for index in rows)) + b"".join(rows[index] for index in sorted(rows))


def share_at(secret: bytes, coefficients: bytes, point: int) -> bytes:
    """Shamir's polynomial at a point, byte by byte."""
    out = bytearray(secret)
    power = 1
    for start in range(0, len(coefficients), len(secret)):
        power = multiply(power, point)
        for place in range(len(secret)):
            out[place] ^= multiply(coefficients[start + place], power)
    return bytes(out)


def multiply(a: int, b: int) -> int:
    """In GF(2^8) modulo x^8 + x^4 + x^3 + x + 1."""
    total = 0
    while b:
        total ^= a * (b & 1)
        a, b = (a << 1) ^ (0x11B * (a >> 7)), b >> 1
    return total


def combine(shares: list[tuple[int, bytes]]) -> bytes:
    """Interpolation at zero."""
    total = bytearray(len(shares[0][1]))
    for x, share in shares:
        weight = 1
        for other, _ in shares:
            if other != x:
                inverse = next(i for i in range(256) if multiply(i, other ^ x) == 1)
                weight = multiply(weight, multiply(other, inverse))
        for place, value in enumerate(share):
            total[place] ^= multiply(value, weight)
    return bytes(total)


def is_round(case: Any) -> bool:
    """The rules of section 2."""
    cohort, vectors = case["cohort"], case["vectors"]
    digests = ("manifest_digest", "model_digest", "task_digest", "plan_digest")
    return (
        len(UNHEX(case["run_id"])) == 16
        and 0 <= case["round"] < 2**63
        and cohort == sorted(set(cohort))
        and all(NAME.fullmatch(name) and name != "aggregator" for name in cohort)
        and 1 <= case["threshold"] <= len(cohort)
        and len({name for name, _, _ in vectors}) == len(vectors) > 0
        and all(NAME.fullmatch(name) and 1 <= d < 2**32 and 2 <= b <= 62 for name, d, b in vectors)
        and all(len(UNHEX(case[name])) == 32 for name in digests)
    )


def round_digest(case: Any) -> bytes:
    """Of a specification."""
    name, parameters = case["scheme"]
    flat = [part.encode() for key in sorted(parameters) for part in (key, parameters[key])]
    return sha256(
        join(
            V,
            b"round-spec",
            UNHEX(case["run_id"]),
            u64(case["round"]),
            join(*(client.encode() for client in case["cohort"])),
            struct.pack("<I", case["threshold"]),
            join(*(join(vector.encode(), u64(d) + u8(b)) for vector, d, b in case["vectors"])),
            join(name.encode(), *flat),
            *(UNHEX(case[f"{part}_digest"]) for part in ("manifest", "model", "task", "plan")),
        )
    )


def recorded_round(case: Any, scheme: list[Any]) -> bytes:
    """The digest of a round that `recorded.specification` makes, after comparing it."""
    rows = [join(name.encode(), UNHEX(case["keys"][name])) for name in sorted(case["keys"])]
    digest = round_digest(
        {
            "run_id": b"vectors of a run".hex(),
            "round": 1,
            "cohort": sorted(case["keys"]),
            "threshold": case["threshold"],
            "vectors": case["vectors"],
            "scheme": scheme,
            "manifest_digest": sha256(join(V, b"manifest", *rows)).hex(),
            **{f"{name}_digest": bytes(32).hex() for name in ("model", "task", "plan")},
        }
    )
    assert digest.hex() == case["digest"]
    for name, seed in case.get("signing_seeds", {}).items():
        key = Ed25519PrivateKey.from_private_bytes(UNHEX(seed))
        assert key.public_key().public_bytes_raw().hex() == case["keys"][name]
    return digest
