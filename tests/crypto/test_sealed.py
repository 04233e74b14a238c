"""Derivations, key agreement and sealed boxes: bound to their purpose, closed to everybody else."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from secfl.crypto.hazmat import sealed
from secfl.crypto.hazmat.sealed import (
    HYBRID_PUBLIC_BYTES,
    HYBRID_SEED_BYTES,
    KEM_CIPHERTEXT_BYTES,
    KEM_PUBLIC_BYTES,
    SEAL_OVERHEAD,
    AgreementKey,
    SealingKey,
    aead_open,
    aead_seal,
    check_hybrid_public,
    check_kem_public,
    check_x25519_public,
    derive,
    encapsulate,
    seal_to,
)

LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def seed(number):
    return bytes([number]) * HYBRID_SEED_BYTES


@given(
    secret=st.binary(min_size=1, max_size=64),
    label=st.binary(min_size=1, max_size=20),
    parts=st.lists(st.binary(max_size=20), max_size=4),
    length=st.integers(1, 200),
)
def test_derivation_is_hkdf_over_joined_fields(naive, secret, label, parts, length):
    assert derive(secret, label, *parts, length=length) == naive.hkdf(secret, label, *parts, length=length)


def test_no_two_purposes_see_the_same_bytes():
    calls = [
        (b"a",),
        (b"ab",),
        (b"a", b"b"),
        (b"a", b"", b"b"),
        (b"a", b"b", b""),
        (b"", b"a", b"b"),
        (b"a", b"bc"),
        (b"ab", b"c"),
    ]
    outputs = {derive(bytes(32), *call) for call in calls}
    assert len(outputs) == len(calls)


def test_two_clients_agree():
    one, other = AgreementKey(seed(1)), AgreementKey(seed(2))
    assert one.exchange(other.public()[KEM_PUBLIC_BYTES:]) == other.exchange(one.public()[KEM_PUBLIC_BYTES:])
    secret, ciphertext = encapsulate(other.public()[:KEM_PUBLIC_BYTES])
    assert len(ciphertext) == KEM_CIPHERTEXT_BYTES
    assert other.decapsulate(ciphertext) == secret
    assert one.decapsulate(ciphertext) != secret
    wrong = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    assert other.decapsulate(wrong) != secret


@pytest.mark.parametrize("low", LOW_ORDER)
def test_keys_of_small_order_are_refused(low):
    with pytest.raises(ValueError):
        check_x25519_public(low)
    with pytest.raises(ValueError):
        AgreementKey(seed(1)).exchange(low)
    with pytest.raises(ValueError):
        seal_to(SealingKey(seed(1)).public()[:KEM_PUBLIC_BYTES] + low, b"x", info=b"")
    with pytest.raises(ValueError):
        check_hybrid_public(AgreementKey(seed(1)).public()[:KEM_PUBLIC_BYTES] + low)


def test_a_zero_secret_is_refused_whatever_the_library_does():
    """RFC 7748, section 6.1: a library may return it. This one stands in for such a library."""

    class Lenient:
        def exchange(self, public):
            return bytes(32)

    public = AgreementKey(seed(1)).public()[KEM_PUBLIC_BYTES:]
    with pytest.raises(ValueError, match="all-zero"):
        sealed._exchange(Lenient(), public)


def test_honest_keys_pass_the_checks():
    for number in range(20):
        public = SealingKey(seed(number)).public()
        assert len(public) == HYBRID_PUBLIC_BYTES
        check_hybrid_public(public)
        check_x25519_public(X25519PrivateKey.generate().public_key().public_bytes_raw())


@pytest.mark.parametrize("public", [b"\xff" * 1184, bytes(1183), bytes(1185), b""])
def test_bytes_that_are_no_kem_key_are_refused(public):
    with pytest.raises(ValueError):
        check_kem_public(public)
    with pytest.raises(ValueError):
        encapsulate(public)


@given(plaintext=st.binary(max_size=100), info=st.binary(max_size=40))
def test_a_sealed_box_opens_for_its_recipient_and_purpose_only(plaintext, info):
    key = SealingKey(seed(3))
    box = seal_to(key.public(), plaintext, info=info)
    assert len(box) == len(plaintext) + SEAL_OVERHEAD
    assert key.open(box, info=info) == plaintext
    for wrong in (
        lambda: SealingKey(seed(4)).open(box, info=info),
        lambda: key.open(box, info=info + b"x"),
        lambda: key.open(box[:-1], info=info),
        lambda: key.open(box + b"x", info=info),
        lambda: key.open(b"", info=info),
    ):
        with pytest.raises(ValueError):
            wrong()


@given(place=st.integers(0, SEAL_OVERHEAD + 9), bit=st.integers(0, 7))
def test_every_bit_of_a_sealed_box_matters(place, bit):
    key = SealingKey(seed(3))
    box = bytearray(seal_to(key.public(), bytes(10), info=b"info"))
    box[place] ^= 1 << bit
    with pytest.raises(ValueError):
        key.open(bytes(box), info=b"info")


def test_both_halves_of_the_hybrid_are_used():
    """A box does not open when only one half of the private key is right."""
    right = SealingKey(seed(1))
    box = seal_to(right.public(), b"secret", info=b"")
    for half in (seed(1)[:64] + seed(2)[64:], seed(2)[:64] + seed(1)[64:]):
        with pytest.raises(ValueError):
            SealingKey(half).open(box, info=b"")


@given(plaintext=st.binary(max_size=50), associated=st.binary(max_size=20))
def test_an_escrow_is_bound_to_key_nonce_and_context(plaintext, associated):
    key, nonce = os.urandom(32), os.urandom(12)
    box = aead_seal(key, nonce, plaintext, associated=associated)
    assert aead_open(key, nonce, box, associated=associated) == plaintext
    for arguments in (
        (bytes(32), nonce, box, associated),
        (key, bytes(12), box, associated),
        (key, nonce, box[:-1] + bytes([box[-1] ^ 1]), associated),
        (key, nonce, box, associated + b"x"),
    ):
        with pytest.raises(ValueError, match="does not open"):
            aead_open(*arguments[:3], associated=arguments[3])


def test_private_keys_do_not_print():
    for key in (SealingKey(seed(0x41)), AgreementKey(seed(0x41))):
        assert "AAAA" not in repr(key)
        assert seed(0x41).hex() not in repr(key)
    with pytest.raises(ValueError, match="seed of 5 bytes"):
        SealingKey(bytes(5))
