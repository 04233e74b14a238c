"""Identities, packing, the codec, mask streams, shares and boxes. See checker.py."""

from __future__ import annotations

import math
import struct
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from naive_tools import (
    UNHEX,
    V,
    combine,
    hybrid_public,
    is_round,
    join,
    masking,
    pack,
    round_digest,
    sealed,
    sha256,
    share_at,
    statement,
    u64,
    verifies,
)


def check_identities(cases: Any) -> None:
    manifest = {name: UNHEX(key) for name, key in cases["manifest"]["keys"].items()}
    rows = [join(name.encode(), manifest[name]) for name in sorted(manifest)]
    assert sha256(join(V, b"manifest", *rows)).hex() == cases["manifest"]["digest"]
    for case in cases["rounds"]:
        assert is_round(case)
        assert round_digest(case).hex() == case["digest"]
    assert not any(is_round(case) for case in cases["bad_rounds"])
    data = join(V, b"model")
    for name, shape, values in cases["model"]["tensors"]:
        data += join(name.encode(), b"".join(map(u64, shape)))
        data += b"".join(UNHEX(value)[::-1] for value in values)
    assert sha256(data).hex() == cases["model"]["digest"]
    task = cases["task"]
    joined = join(
        V, b"task", UNHEX(task["settings_digest"]), u64(task["training_round"]), UNHEX(task["grid"])
    )
    assert sha256(joined).hex() == task["digest"]
    signed = cases["statements"]
    digest, body = UNHEX(signed["digest"]), UNHEX(signed["body"])
    key = Ed25519PrivateKey.from_private_bytes(UNHEX(signed["seed"]))
    assert key.public_key().public_bytes_raw().hex() == signed["key"]
    for phase, signature in signed["signatures"].items():
        assert key.sign(statement(phase, digest, signed["sender"], body)).hex() == signature
    text = statement("share", digest, signed["sender"], body)
    assert verifies(UNHEX(signed["key"]), UNHEX(signed["signatures"]["share"]), text)
    for signature in signed["not_signatures_for_share"].values():
        assert not verifies(UNHEX(signed["key"]), UNHEX(signature), text)


def check_packing(cases: Any) -> None:
    for case in cases:
        bits, values, size = case["bits"], case["values"], len(case["values"])
        assert pack(values, bits).hex() == case["packed"]
        assert is_packed(UNHEX(case["packed"]), size, bits)
        assert not any(is_packed(UNHEX(case[name]), size, bits) for name in case if name.startswith("bad_"))


def is_packed(data: bytes, length: int, bits: int) -> bool:
    return len(data) == -(-length * bits // 8) and not int.from_bytes(data, "little") >> (length * bits)


def check_codec(cases: Any) -> None:
    def f64(text: str) -> float:
        return float(struct.unpack(">d", UNHEX(text))[0])

    for case in cases["grids"]:
        d, g, c, bound = (
            case["length"],
            case["grid_norm"],
            f64(case["clip_norm"]),
            f64(case["coordinate_bound"]),
        )
        encoded = join(b"grid", struct.pack("<QdQd", d, c, g, bound))
        assert encoded.hex() == case["encoded"]
        share = f64(case["share"])
        x = [struct.unpack(">f", UNHEX(value))[0] * share for value in case["values"]]
        x = [max(-bound, min(bound, value)) for value in x]
        norm, limit = math.sqrt(math.fsum(v * v for v in x)), (g - math.sqrt(d) / 2) * c / g * (1 - 2**-32)
        scale = g / c * (limit / norm if norm > limit else 1)
        assert [round(value * scale) for value in x] == case["rounded"]
        assert sum(value * value for value in case["rounded"]) <= g * g
        assert all(abs(value) <= case["largest_value"] <= g for value in case["rounded"])
        assert [value % 2 ** case["bits"] for value in case["rounded"]] == case["residues"]
        for value, third in zip(case["rounded"], case["divided_by_three"], strict=True):
            assert math.isclose(value * c / g / 3, f64(third), rel_tol=1e-15)
    assert {bad["name"] for bad in cases["bad_grids"]} == {
        name
        for name, wrong in (
            ("bad_grid_norm_too_small", lambda bad: 4 * bad["grid_norm"] ** 2 <= bad["length"]),
            ("bad_grid_norm_too_large", lambda bad: bad["grid_norm"] >= 2**52),
            ("bad_length", lambda bad: bad["length"] < 1),
        )
        if any(wrong(bad) for bad in cases["bad_grids"] if bad["name"] == name)
    }
    for bad in cases["bad_updates"]:
        floats = [struct.unpack(">f", UNHEX(value))[0] for value in bad["values"]]
        assert not all(map(math.isfinite, floats))
        assert "second" in bad["refused_as"]  # the tensor that holds it
    for case in cases["widths"]:
        needed = case["clients"] * case["weight_factor"] * case["largest_value"] + case["noise_bound"]
        bits = max(2, needed.bit_length() + 1)
        assert 2 ** (bits - 1) - 1 >= needed
        assert case.get("bits", 63) == min(bits, 63)
        assert (bits > 62) == case["name"].startswith("bad_")
    for case in cases["weights"]:
        n, top = len(case["weights"]), case["largest"]
        assert case["clipped"] == [max(1, min(weight, top)) for weight in case["weights"]]
        assert case["bits"] == max(2, (n * top).bit_length() + 1)
        assert case["total"] == sum(case["clipped"])
        assert n <= case["total"] <= n * top
        assert all(not n <= bad["total"] <= n * top for bad in case["bad_totals"])


def check_prg(cases: Any) -> None:
    for case in cases:
        words = masking.mask(UNHEX(case["key"]), case["length"], case["bits"])
        assert (words[:6], words[-1]) == (case["first"], case["last"])
        assert sha256(b"".join(map(u64, words))).hex() == case["sha256_of_64_bit_words"]


def check_shamir(cases: Any) -> None:
    for case in cases:
        secret, coefficients = UNHEX(case["secret"]), UNHEX(case["coefficients"])
        assert len(coefficients) == len(secret) * (case["threshold"] - 1)
        shares = {int(point): UNHEX(share) for point, share in case["shares"].items()}
        for point in sorted(shares)[:2] + sorted(shares)[-2:]:
            assert shares[point] == share_at(secret, coefficients, point)
        assert combine(sorted(shares.items())[: case["threshold"]]) == secret
        bad = case["bad_share"]
        changed = {p: shares[p] for p in bad["points"]}
        changed[bad["changed"]] = bytes([changed[bad["changed"]][0] ^ 1]) + changed[bad["changed"]][1:]
        assert combine(sorted(changed.items())).hex() == bad["gives"] != case["secret"]


def check_sealed(cases: Any) -> None:
    for case in cases["keys"]:
        private = UNHEX(case["seed"])
        assert hybrid_public(private).hex() == case["public"]
        kem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
        assert kem.decapsulate(UNHEX(case["kem_ciphertext"])).hex() == case["kem_secret"]
        opened = sealed(private, UNHEX(case["box"]), UNHEX(case["info"]))
        assert opened is not None
        assert opened.hex() == case["plaintext"]
        for bad in case["bad_boxes"]:
            assert sealed(private, UNHEX(bad["box"]), UNHEX(bad["info"])) is None
    one, other = (X25519PrivateKey.from_private_bytes(UNHEX(c["seed"])[64:]) for c in cases["keys"])
    assert one.exchange(other.public_key()).hex() == cases["x25519_of_both"]
    for low in cases["bad_x25519_public_keys"]:
        try:
            secret = one.exchange(X25519PublicKey.from_public_bytes(UNHEX(low)))
        except ValueError:
            continue
        assert secret == bytes(32)
    escrow = {name: UNHEX(value) for name, value in cases["escrow"].items()}
    found = AESGCM(escrow["key"]).encrypt(escrow["nonce"], escrow["plaintext"], escrow["associated"])
    assert found == escrow["ciphertext"]
