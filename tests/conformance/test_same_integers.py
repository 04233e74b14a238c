"""All schemes give the same integers, bit for bit, and they are the ones that plain Python computes."""

import importlib.util
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.ckks import Ckks
from secfl.crypto.ckks_shared_client import SharedKeyClient
from secfl.crypto.ckks_shared_messages import SharedInput
from secfl.crypto.ckks_sum_key import SumKeyRound
from secfl.crypto.masking import Masking
from secfl.crypto.plain import Plain
from secfl.crypto.wire import FRAME_BYTES, MessageType
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries.forging import kind_of
from secfl.testing.stage import Cast, Stage
from secfl.types import SchemeSpec, VectorSpec

SUM_KEY = SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),))
SHARED = SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))
SCHEMES = {
    "plain": (Plain, SchemeSpec(name="plain"), "plain-input"),
    "masking": (Masking, SchemeSpec(name="masking"), "masked-input"),
    "sum-key": (Ckks, SUM_KEY, "masked-input"),
    "shared": (Ckks, SHARED, "ckks-input"),
}
VECTORS = (
    VectorSpec(name="update", length=37, modulus_bits=16),
    VectorSpec(name="weight", length=1, modulus_bits=40),
    VectorSpec(name="rest", length=5, modulus_bits=3),
)


def load_naive():
    path = Path(__file__).with_name("naive_ckks.py")
    spec = importlib.util.spec_from_file_location("naive_ckks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = load_naive()


def sums_of(name, inputs, *, vectors, clients, dropped):
    make, spec, phase = SCHEMES[name]
    cast = Cast.make(make(threads=1), spec, clients=clients, threshold=3, vectors=vectors)
    cast = cast.with_inputs(dict(zip(cast.cohort, inputs, strict=True)))
    leaves = {cast.cohort[index]: phase for index in dropped}
    result = Stage(cast, rng=InsecureSeededRng(1), leaves=leaves).play()
    assert result.survivors == tuple(who for who in cast.cohort if who not in leaves)
    return {vector: words.tobytes() for vector, words in result.sums.items()}


@settings(max_examples=8)
@given(data=st.data())
def test_every_scheme_gives_the_same_bytes(data):
    clients = data.draw(st.integers(3, 5))
    dropped = data.draw(st.sets(st.integers(0, clients - 1), max_size=clients - 3))
    vectors = tuple(
        VectorSpec(
            name=name,
            length=data.draw(st.integers(1, 30)),
            modulus_bits=data.draw(st.integers(2, 50)),
        )
        for name in ("a", "b")
    )
    inputs = [
        {
            vector.name: np.array(
                data.draw(
                    st.lists(
                        st.integers(0, 2**vector.modulus_bits - 1),
                        min_size=vector.length,
                        max_size=vector.length,
                    )
                ),
                vector.dtype,
            )
            for vector in vectors
        }
        for _ in range(clients)
    ]
    found = {
        name: sums_of(name, inputs, vectors=vectors, clients=clients, dropped=dropped) for name in SCHEMES
    }
    expected = {
        vector.name: np.array(
            [
                sum(int(row[vector.name][place]) for index, row in enumerate(inputs) if index not in dropped)
                % 2**vector.modulus_bits
                for place in range(vector.length)
            ],
            vector.dtype,
        ).tobytes()
        for vector in vectors
    }
    assert found == dict.fromkeys(SCHEMES, expected)


def ckks_round(spec, *, dropped):
    cast = Cast.make(Ckks(threads=1), spec, clients=4, threshold=3, vectors=VECTORS)
    phase = "masked-input" if spec is SUM_KEY else "ckks-input"
    stage = Stage(cast, rng=InsecureSeededRng(3), leaves={cast.cohort[index]: phase for index in dropped})
    stage.start()
    return cast, stage


def opened(cast, ciphertexts, public, key):
    vectors = [(vector.name, vector.length, vector.modulus_bits) for vector in VECTORS]
    return naive.open_sum(ciphertexts, public, key, vectors, clients=len(cast.cohort))


@pytest.mark.parametrize("dropped", [(), (2,)])
def test_a_sum_under_one_time_keys_is_opened_by_plain_python(dropped):
    keys = []

    def watched(self, vectors, rng):
        key, ciphertext = protect(self, vectors, rng)
        keys.append(key["ckks-key"].astype(np.int64))
        return key, ciphertext

    protect = SumKeyRound.protect
    with patch.object(SumKeyRound, "protect", watched):
        cast, stage = ckks_round(SUM_KEY, dropped=dropped)
    stage.carry()
    shape = SumKeyRound(cast.spec)
    modulus = 1 << shape.key_bits
    survivors = [index for index in range(4) if index not in dropped]
    total = sum(keys[index] for index in survivors) % modulus
    key = [int(value) - modulus * (2 * int(value) > modulus) for value in total]
    assert max(map(abs, key)) < 60 * len(survivors)
    ciphertexts = [
        envelope.payload[-shape.layout.packed_bytes :]
        for envelope in stage.sent
        if kind_of(envelope.payload) is MessageType.MASKED_INPUT
    ]
    assert len(ciphertexts) == len(survivors)
    labels = (b"sum-key", cast.spec.digest())
    public = [naive.uniform(labels, number) for number in range(shape.layout.polynomials)]
    found = opened(cast, ciphertexts, public, key)
    assert found == cast.expected(cast.cohort[index] for index in survivors)
    assert found == {name: words.tolist() for name, words in stage.result.sums.items()}


def test_a_sum_under_the_shared_key_is_opened_by_plain_python():
    keys = []

    def watched(self, seed):
        noise = key_noise(self, seed)
        keys.append(key_noise(self, seed).draw(naive.N))
        return noise

    key_noise = SharedKeyClient._key_noise
    cast, stage = ckks_round(SHARED, dropped=())
    with patch.object(SharedKeyClient, "_key_noise", watched):
        stage.carry()
    assert all((key == keys[0]).all() for key in keys), "one key for all"
    ciphertexts, public = [], []
    for envelope in stage.sent:
        if kind_of(envelope.payload) is not MessageType.CKKS_INPUT:
            continue
        body = SharedInput.decode(envelope.payload[FRAME_BYTES : FRAME_BYTES + SharedInput.SIZE], peer="x")
        ciphertexts.append(envelope.payload[FRAME_BYTES + SharedInput.SIZE + 64 :])
        labels = (b"shared", cast.spec.digest(), envelope.sender.encode(), body.nonce)
        public.append(naive.uniform(labels, 0))
    summed = [[sum(column) % naive.Q for column in zip(*public, strict=True)]]
    found = opened(cast, ciphertexts, summed, [int(value) for value in keys[0]])
    assert found == cast.expected(cast.cohort)
    assert found == {name: words.tolist() for name, words in stage.result.sums.items()}


def test_the_naive_computation_refuses_a_wrong_key():
    """It can tell: with one coefficient of the key off by one, the sums are others."""
    keys = []
    protect = SumKeyRound.protect

    def watched(self, vectors, rng):
        key, ciphertext = protect(self, vectors, rng)
        keys.append(key["ckks-key"].astype(np.int64))
        return key, ciphertext

    with patch.object(SumKeyRound, "protect", watched):
        cast, stage = ckks_round(SUM_KEY, dropped=())
    stage.carry()
    shape = SumKeyRound(cast.spec)
    modulus = 1 << shape.key_bits
    key = [int(value) - modulus * (2 * int(value) > modulus) for value in sum(keys) % modulus]
    key[17] += 1
    ciphertexts = [
        envelope.payload[-shape.layout.packed_bytes :]
        for envelope in stage.sent
        if kind_of(envelope.payload) is MessageType.MASKED_INPUT
    ]
    public = [naive.uniform((b"sum-key", cast.spec.digest()), 0)]
    assert opened(cast, ciphertexts, public, key) != cast.expected(cast.cohort)
