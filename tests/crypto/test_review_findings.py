"""Attacks that once worked. Each is played against the guard, and where it can be, against a copy without it."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from secfl.crypto.aggregation import Running
from secfl.crypto.ckks import Ckks, KeyMode
from secfl.crypto.ckks_layout import RoundLayout
from secfl.crypto.ckks_ring import CiphertextSum, Uniform, encrypt, open_sum, small_polynomial
from secfl.crypto.ckks_shared_client import SharedKeyClient
from secfl.crypto.ckks_shared_messages import SharedInput
from secfl.crypto.hazmat.ring_noise import RingNoise
from secfl.crypto.hazmat.seal import DEGREE, MODULUS, Ring
from secfl.crypto.snapshots import decode_record
from secfl.crypto.wire import FRAME_BYTES, MessageType, Reader, Roster
from secfl.errors import ConfigError, LocalProtocolError
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.types import AGGREGATOR, SchemeSpec, VectorSpec, join_fields

A = "a"


# What the aggregator of one-time keys sees beside the sum


def residues(values, bits):
    """Signed integers as a vector of a round."""
    return (np.asarray(values, np.int64) % (1 << bits)).astype(np.uint32 if bits <= 32 else np.uint64)


def cohorts(bits, length):
    """Two cohorts of three clients with equal sums, far from any overflow: opposite values, and scattered ones."""
    generator = np.random.default_rng(bits)
    top = 1 << (bits - 4)
    drawn = generator.integers(-top, top, (3, length))
    zeros = np.zeros(length, np.int64)
    return [drawn, [drawn.sum(axis=0), zeros, zeros]]


def opened_polynomials(layout, inputs):
    """Σ c + a·Σ k: what the aggregator holds when a round is over, before it rounds anything."""
    uniform, total, keys = Uniform(b"round"), CiphertextSum(layout), np.zeros(DEGREE, np.int64)
    for index, values in enumerate(inputs):
        key = small_polynomial(RingNoise(bytes([index]) * 32))
        noise = RingNoise(bytes([100 + index]) * 32)
        keys += key
        total.add(A, encrypt(values, layout, uniform=uniform, key=key, noise=noise))
    ring = Ring.shared()
    opened = ring.multiply(uniform.rows(0, layout.polynomials), ring.key(keys)).astype(object)
    opened += total.rows(0, layout.polynomials).astype(object)
    return (opened % MODULUS).reshape(-1)


def naive_plaintext(values, bits, *, fields, stride):
    """Residues side by side, scaled by q / 2^T and rounded by each client on its own."""
    packed = np.zeros(DEGREE, object)
    count = -(-len(values) // fields)
    for place, value in enumerate(values.tolist()):
        packed[place % count] += value << (place // count * stride)
    bits_of_plaintext = fields * stride - (stride - bits)
    half = 1 << (bits_of_plaintext - 1)
    return (packed * MODULUS + half) >> bits_of_plaintext


def guess(opened, hypotheses):
    """The attacker's guess: under which hypothesis is the noise smaller? With it, by how much."""
    squares = []
    for plain in hypotheses:
        rest = (opened - plain) % MODULUS
        rest = np.where(rest > MODULUS // 2, rest - MODULUS, rest)
        squares.append(int((rest * rest).sum()))
    return int(np.argmin(squares)), abs(squares[0] - squares[1])


@pytest.mark.parametrize(("bits", "fields", "stride"), [(16, 3, 18), (22, 2, 24), (40, 1, 42)])
@pytest.mark.parametrize("truth", [0, 1])
def test_the_opened_sum_shows_the_sum_and_nothing_else(bits, fields, stride, truth):
    """Which of two cohorts with equal sums took part? The aggregator holds the key of the sum.

    Residues side by side tell it: between them lies the sum as an integer, which counts the negative addends, and
    each client's own rounding depends on its own value. With the layout of a round both hypotheses predict the same
    plaintext, so whatever the noise, the attacker compares a number with itself.
    """
    layout = RoundLayout((VectorSpec(name="u", length=2000, modulus_bits=bits),), clients=3)
    worlds = [[{"u": residues(row, bits)} for row in rows] for rows in cohorts(bits, 2000)]
    opened = opened_polynomials(layout, worlds[truth])
    predicted = [
        sum(layout.encode(values, 0, layout.polynomials).reshape(-1).astype(object) for values in world)
        for world in worlds
    ]
    assert guess(opened, predicted)[1] == 0
    # The same attack on plaintexts without these guards.
    noise = sum(RingNoise(bytes([index]) * 32).draw(DEGREE).astype(object) for index in range(3))
    naive = [sum(naive_plaintext(v["u"], bits, fields=fields, stride=stride) for v in w) for w in worlds]
    found, margin = guess((naive[truth] + noise) % MODULUS, naive)
    assert found == truth
    assert margin > 0


@pytest.mark.parametrize("bits", [2, 9, 16, 19, 22, 23, 24, 33, 50])
@pytest.mark.parametrize("clients", [3, 10, 64])
def test_the_sum_of_plaintexts_is_a_function_of_the_sum(bits, clients):
    """Exactly, for every width and cohort: as long as the signed sum fits its modulus, as the codec sees to."""
    layout = RoundLayout((VectorSpec(name="u", length=300, modulus_bits=bits),), clients=clients)
    generator = np.random.default_rng(bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    total = generator.integers(low, high, 300, endpoint=True)
    one = generator.integers(low, high, 300, endpoint=True)
    other = total - one
    fits = (low <= other) & (other <= high)
    one, other = np.where(fits, one, total), np.where(fits, other, 0)
    zero = np.zeros_like(total)
    sums = []
    for world in ([one, other, zero], [zero, total, zero]):
        rows = [layout.encode({"u": residues(values, bits)}, 0, 1).astype(object) for values in world]
        sums.append(sum(rows) % MODULUS)
    assert (sums[0] == sums[1]).all()


# What one client sees under a shared key


def shared(rounds, **changes):
    case = rounds.Round(4, 3, scheme=Ckks(threads=1, **changes))
    case.spec = replace(case.spec, scheme=SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),)))
    return case


def test_the_client_that_opens_under_a_shared_key_reads_everybody_and_its_guarantee_says_so(rounds):
    """It follows the protocol and taps no link: the guard sends it every survivor's signed ciphertext."""
    case = shared(rounds)
    parties = {name: case.client(name) for name in case.names}
    parties[AGGREGATOR] = case.scheme.aggregator(case.spec, directory=case.directory)
    queue = deque(envelope for party in parties.values() for envelope in party.start())
    while queue and queue[0].payload[4] != MessageType.CKKS_OPEN:
        envelope = queue.popleft()
        queue.extend(parties[envelope.recipient].receive(envelope))
    request = queue[0]
    opener = parties[request.recipient]
    assert isinstance(opener, SharedKeyClient)
    assert isinstance(opener.state, Running)
    content = memoryview(request.payload)[FRAME_BYTES:]
    reader = Reader(content, peer="test")
    members = Roster.read_members(content, peer="test", clients=4)
    roster = Roster.take(reader, members=members, body_bytes=SharedInput.SIZE)
    key = small_polynomial(opener._key_noise(opener._memory.key_seed))
    for index in members:
        layout = opener._round.layout
        total = CiphertextSum(layout)
        total.add(A, reader.view(layout.packed_bytes))
        nonce = SharedInput.decode(roster.members[index].body, peer="test").nonce
        opened = open_sum(total, layout, uniforms=(opener._uniform(index, nonce),), key=key)
        assert opened["update"].tolist() == case.inputs[case.names[index]]["update"].tolist()
    curious = Adversary(view=View.CLIENT, behaviour=Behaviour.CURIOUS)
    guarantee = case.scheme.guarantee(case.spec, survivors=4)
    assert guarantee.visibility(curious) is Visibility.EVERY_UPDATE
    one_time = replace(case.spec, scheme=SchemeSpec(name="ckks"))
    assert case.scheme.guarantee(one_time, survivors=4).visibility(curious) is Visibility.SUM


def test_an_aggregator_cannot_talk_a_client_into_a_shared_key(rounds):
    """The round's specification is proposed by the aggregator: a consistent downgrade would reach every client."""
    insisting = shared(rounds, key_mode=KeyMode.SUM_KEY)
    with pytest.raises(ConfigError, match="expected 'sum-key'"):
        insisting.client("c00")
    shared(rounds).client("c00")  # one that accepts either mode takes part


def test_an_own_minimum_is_not_dropped_silently(rounds):
    for spec_minimum, refused in ((4, True), (3, False)):
        case = shared(rounds, minimum=spec_minimum)
        if refused:
            with pytest.raises(ConfigError, match="minimum"):
                case.client("c00")
        else:
            case.client("c00")


# Bytes and names that a parser did not expect


@pytest.mark.parametrize("fields", [(), (b"kind", b"one"), (b"kind", b"\xff", b"one")])
def test_a_record_with_a_valid_hash_and_strange_fields_is_a_damaged_snapshot(fields):
    body = b"SFLR\x01" + join_fields(*fields)
    with pytest.raises(LocalProtocolError, match="damaged"):
        decode_record(body + hashlib.sha256(body).digest(), "kind")
