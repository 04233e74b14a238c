"""The published vectors hold, computed again without secfl's code (see naive_masking.py)."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secfl.crypto.hazmat.sealed import AgreementKey, SealingKey
from secfl.crypto.hazmat.shamir import combine

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
PHASES = {1: "advertise", 3: "share", 5: "masked-input", 7: "consistency", 9: "unmask"}


def cases(name):
    return json.loads((VECTORS / f"{name}.json").read_text())["cases"]


@pytest.mark.parametrize("case", cases("prg"), ids=lambda case: f"{case['bits']}-{case['key'][-2:]}")
def test_streams(naive, case):
    key, bits = bytes.fromhex(case["key"]), case["bits"]
    words = naive.mask(key, case["length"], bits)
    assert words[:6] == case["first"]
    assert words[-1] == case["last"]
    packed = b"".join(struct.pack("<Q", word) for word in words)
    assert hashlib.sha256(packed).hexdigest() == case["sha256_of_64_bit_words"]


def gf_multiply(a, b):
    total = 0
    for bit in range(8):
        if b >> bit & 1:
            total ^= a << bit
    for bit in range(14, 7, -1):
        if total >> bit & 1:
            total ^= 0x11B << (bit - 8)
    return total


def share_at(secret, coefficients, point):
    out = []
    for place, value in enumerate(secret):
        power = 1
        for start in range(place, len(coefficients), len(secret)):
            power = gf_multiply(power, point)
            value ^= gf_multiply(coefficients[start], power)  # noqa: PLW2901 - Horner's rule, the other way round
        out.append(value)
    return bytes(out)


@pytest.mark.parametrize("case", cases("shamir"), ids=lambda case: case["name"])
def test_shares(case):
    secret, coefficients = bytes.fromhex(case["secret"]), bytes.fromhex(case["coefficients"])
    shares = {int(point): bytes.fromhex(share) for point, share in case["shares"].items()}
    for point in sorted(shares)[:3] + sorted(shares)[-1:]:
        assert shares[point] == share_at(secret, coefficients, point)
    assert combine(sorted(shares.items())[: case["threshold"]]) == secret
    bad = case["bad_share"]
    assert bytes.fromhex(bad["gives"]) != secret
    changed = [
        (p, shares[p] if p != bad["changed"] else bytes([shares[p][0] ^ 1]) + shares[p][1:])
        for p in bad["points"]
    ]
    assert combine(changed) == bytes.fromhex(bad["gives"])


def test_boxes():
    content = cases("sealed")
    pairs = []
    for case in content["keys"]:
        seed = bytes.fromhex(case["seed"])
        kem = MLKEM768PrivateKey.from_seed_bytes(seed[:64])
        x25519 = X25519PrivateKey.from_private_bytes(seed[64:])
        public = kem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        assert public.hex() == case["public"]
        assert kem.decapsulate(bytes.fromhex(case["kem_ciphertext"])).hex() == case["kem_secret"]
        key = SealingKey(seed)
        opened = key.open(bytes.fromhex(case["box"]), info=bytes.fromhex(case["info"]))
        assert opened.hex() == case["plaintext"]
        assert len(case["bad_boxes"]) == 4
        for bad in case["bad_boxes"]:
            with pytest.raises(ValueError, match="does not open"):
                key.open(bytes.fromhex(bad["box"]), info=bytes.fromhex(bad["info"]))
        pairs.append((x25519, AgreementKey(seed)))
    (one, first), (other, _) = pairs
    assert one.exchange(other.public_key()).hex() == content["x25519_of_both"]
    for low in content["bad_x25519_public_keys"]:
        with pytest.raises(ValueError):
            first.exchange(bytes.fromhex(low))
    escrow = {name: bytes.fromhex(value) for name, value in content["escrow"].items()}
    sealed = AESGCM(escrow["key"]).encrypt(escrow["nonce"], escrow["plaintext"], escrow["associated"])
    assert sealed == escrow["ciphertext"]


def test_derivations(naive):
    case = cases("masking_keys")
    digest, secret = bytes.fromhex(case["digest"]), bytes.fromhex(case["secret"])
    roots = [bytes.fromhex(root) for root in case["roots"]]
    names = [name.encode() for name in case["cohort"]]
    low, high = names[:2]
    clients = [naive.Client(case["cohort"][i], roots[i], secret, digest) for i in (0, 1)]
    for client, expected, seed in zip(
        clients, case["mask_key_public_sha256"], case["mask_key_seeds"], strict=True
    ):
        assert hashlib.sha256(client.kem_public() + client.x25519_public()).hexdigest() == expected
        private = client.kem.private_bytes_raw() + client.x25519.private_bytes_raw()
        assert private.hex() == seed

    def hkdf(label, *parts, of=secret):
        return naive.hkdf(of, label, *parts).hex()

    assert case["root_commitment"] == hkdf(b"commitment/root", digest, low)
    assert case["self_commitment"] == hkdf(b"commitment/self", digest, low)
    for kind, commitment in case["share_commitments"].items():
        assert commitment == hkdf(b"commitment/share", kind.encode(), digest, low, high)
    assert case["share_context"] == naive.fields(b"secfl/v1", b"share", digest, low, high).hex()
    contents = hashlib.sha256(b"ciphertexts").digest()
    assert case["escrow_key"] == hkdf(b"escrow", digest, low, b"\x05" * 32, contents)
    assert case["escrow_context"] == naive.fields(b"secfl/v1", b"escrow", digest, low, b"\x05" * 32).hex()
    pair = {name: bytes.fromhex(value) for name, value in case["pair"].items()}
    shared = clients[0].x25519.exchange(X25519PublicKey.from_public_bytes(clients[1].x25519_public()))
    assert shared == pair["x25519_secret"]
    seed = naive.hkdf(
        shared + pair["kem_secret"],
        b"pair",
        digest,
        low,
        high,
        clients[0].x25519_public(),
        clients[1].x25519_public(),
        clients[1].kem_public(),
        pair["kem_ciphertext"],
    )
    assert seed == pair["seed"]
    vector = (b"update", bytes([22]))
    assert pair["key"].hex() == hkdf(b"mask", b"pair", digest, low, high, *vector, of=seed)
    assert case["self_key"] == hkdf(b"mask", b"self", digest, low, *vector)
    rows = {names[0]: (b"first",), names[2]: (b"third",)}
    assert case["transcripts"]["directory"] == naive.transcript(b"directory", digest, rows).hex()
    assert case["transcripts"]["survivors"] == naive.transcript(b"survivors", digest, rows).hex()
    rows = {names[0]: (b"first", b"one"), names[2]: (b"third", b"three")}
    assert case["transcripts"]["members"] == naive.transcript(b"members", digest, rows).hex()
    hashes = [hashlib.sha256(piece).digest() for piece in (b"abcd", b"ef")]
    joined = naive.fields(b"secfl/v1", b"input", digest, struct.pack("<Q", 6), *hashes)
    assert case["input"] == hashlib.sha256(joined).hexdigest()
    signatures = case["signatures"]
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(signatures["seed"]))
    assert key.public_key().public_bytes_raw().hex() == signatures["public"]
    for phase, signature in signatures["by_phase"].items():
        recipient = "aggregator" if phase in ("unmask", "plain-input") else "all"
        statement = naive.signed_statement(phase, digest, case["cohort"][0], recipient, b"body")
        assert key.sign(statement).hex() == signature


class Recorded:
    """A recorded round, taken apart by the sizes in docs/protocol.md."""

    def __init__(self, case):
        self.case = case
        self.names = sorted(case["keys"])
        self.digest = bytes.fromhex(case["digest"])
        self.bodies = {phase: {} for phase in PHASES.values()}
        self.rests = {phase: {} for phase in PHASES.values()}
        for event in case["events"]:
            if "deliver" in event:
                payload = bytes.fromhex(event["deliver"])
                phase, index = PHASES[payload[4]], self.names.index(event["sender"])
                assert payload[:4] == b"SFL1"
                assert payload[5:37] == self.digest
                assert struct.unpack("<H", payload[37:39])[0] == index + 1
                members = len(self.bodies["share"])
                size = {1: 2432, 3: 224, 5: 64, 7: 64, 9: 32 * members}[payload[4]]
                self.bodies[phase][index] = payload[39 : 39 + size]
                self.rests[phase][index] = payload[39 + size + 64 :]
                self.signature(phase, index, payload[39 + size : 39 + size + 64])
        self.directory = sorted(self.bodies["advertise"])
        self.members = sorted(self.bodies["share"])
        self.survivors = sorted(self.bodies["masked-input"])

    def signature(self, phase, index, signature):
        self.case.setdefault("signatures", []).append((phase, index, signature))

    def secret(self, index, name):
        return bytes.fromhex(self.case["secrets"][self.names[index]][name])

    def by_name(self, *phases, among):
        return {self.names[i].encode(): tuple(self.bodies[p][i] for p in phases) for i in among}

    def parcels(self, dealer):
        rest, later = self.rests["share"][dealer], sum(to > dealer for to in self.directory)
        escrow, place, found = rest[: 28 + 32 * later], 28 + 32 * later, {}
        for to in self.directory:
            if to != dealer:
                size = (1088 if to > dealer else 0) + 1200 + 64
                found[to] = rest[place : place + size]
                place += size
        assert place == len(rest)
        return escrow, found


@pytest.fixture(params=cases("masking_round"), ids=lambda case: case["name"])
def recorded(request):
    return Recorded(json.loads(json.dumps(request.param)))


def test_recorded_signatures_and_digests(naive, recorded):
    digest, sha256 = recorded.digest, hashlib.sha256
    for phase, index, signature in recorded.case["signatures"]:
        name = recorded.names[index]
        recipient = "aggregator" if phase == "unmask" else "all"
        statement = naive.signed_statement(phase, digest, name, recipient, recorded.bodies[phase][index])
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(recorded.case["keys"][name]))
        key.verify(signature, statement)
    directory = naive.transcript(
        b"directory", digest, recorded.by_name("advertise", among=recorded.directory)
    )
    members = naive.transcript(
        b"members", digest, recorded.by_name("advertise", "share", among=recorded.members)
    )
    survivors = naive.transcript(
        b"survivors", digest, recorded.by_name("masked-input", among=recorded.survivors)
    )
    for index, body in recorded.bodies["share"].items():
        assert body[:32] == directory
        escrow, _ = recorded.parcels(index)
        assert body[160:192] == sha256(escrow).digest()
    for index, body in recorded.bodies["masked-input"].items():
        rest, pieces, start = recorded.rests["masked-input"][index], [], 0
        for _, length, bits in recorded.case["vectors"]:
            end = start - (-(length + -(-64 // bits)) * bits // 8)
            pieces.append(sha256(rest[start:end]).digest())
            start = end
        joined = naive.fields(b"secfl/v1", b"input", digest, struct.pack("<Q", len(rest)), *pieces)
        assert body == members + sha256(joined).digest()
    assert set(recorded.bodies["consistency"].values()) == {members + survivors}


def test_recorded_shares_and_commitments(naive, recorded):
    digest, names = recorded.digest, [name.encode() for name in recorded.names]
    shares = {}
    for dealer in recorded.members:
        secret = recorded.secret(dealer, "root") + recorded.secret(dealer, "self_mask")
        coefficients = recorded.secret(dealer, "coefficients")
        body = recorded.bodies["share"][dealer]
        assert body[32:64] == naive.hkdf(secret[:32], b"commitment/root", digest, names[dealer])
        assert body[64:96] == naive.hkdf(secret[32:], b"commitment/self", digest, names[dealer])
        _, parcels = recorded.parcels(dealer)
        for holder in recorded.directory:
            share = shares[dealer, holder] = share_at(secret, coefficients, holder + 1)
            committed = b"".join(
                naive.hkdf(part, b"commitment/share", kind, digest, names[dealer], names[holder])
                for kind, part in ((b"root", share[:32]), (b"self", share[32:]))
            )
            assert committed == (body[96:160] if holder == dealer else parcels[holder][-64:])
            if holder != dealer:
                sealed = parcels[holder][-1264:-64]
                info = naive.fields(b"secfl/v1", b"share", digest, names[dealer], names[holder])
                assert SealingKey(recorded.secret(holder, "sealing_seed")).open(sealed, info=info) == share
    for holder, body in recorded.bodies["unmask"].items():
        expected = [
            shares[dealer, holder][32:] if dealer in recorded.survivors else shares[dealer, holder][:32]
            for dealer in recorded.members
        ]
        assert body == b"".join(expected)


def test_recorded_inputs_and_sums(naive, recorded):
    clients = {
        i: (name, recorded.secret(i, "root"), recorded.secret(i, "self_mask"))
        for i, name in enumerate(recorded.names)
    }
    ciphertexts = {
        (dealer, to): recorded.parcels(dealer)[1][to][:1088]
        for dealer in recorded.members
        for to in recorded.directory
        if to > dealer
    }
    checker = naive.Checker(recorded.digest, clients, ciphertexts=ciphertexts, members=recorded.members)
    for index, body in recorded.bodies["advertise"].items():
        client = checker.clients[index]
        assert body[:1216] == client.kem_public() + client.x25519_public()
    start = 0
    for name, length, bits in recorded.case["vectors"]:
        end = start - (-(length + -(-64 // bits)) * bits // 8)
        packed = {i: rest[start:end] for i, rest in recorded.rests["masked-input"].items()}
        start = end
        for index in recorded.survivors:
            values = recorded.case["inputs"][recorded.names[index]][name]
            assert packed[index] == checker.masked(index, name, values, bits)
        opened = checker.opened(packed, recorded.survivors, name, length, bits)
        assert opened[:length] == recorded.case["sums"][name]
        assert set(opened[length:]) == {len(recorded.survivors)}
        plain = [
            sum(recorded.case["inputs"][recorded.names[i]][name][place] for i in recorded.survivors)
            % (1 << bits)
            for place in range(length)
        ]
        assert plain == recorded.case["sums"][name]
    assert recorded.case["survivors"] == [recorded.names[i] for i in recorded.survivors]


def test_recorded_bad_messages_cover_every_phase(recorded):
    names = {bad["name"] for bad in recorded.case["bad"]}
    for phase in PHASES.values():
        for kind in (
            "empty",
            "magic",
            "type",
            "round",
            "sender",
            "truncated",
            "extended",
            "body",
            "signature",
        ):
            assert f"bad_{kind}_{phase}" in names
    assert all(bad["refused_as"].startswith("c0") for bad in recorded.case["bad"])
