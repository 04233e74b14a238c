"""Attacks on CKKS with one-time keys of which only the sum is opened."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Running
from secfl.crypto.ckks import Ckks
from secfl.crypto.ckks_ring import CiphertextSum, open_sum
from secfl.crypto.ckks_sum_key import KEY_VECTOR, SumKeyRound
from secfl.crypto.codec import centre
from secfl.crypto.hazmat.ring_noise import REACH
from secfl.crypto.hazmat.seal import DEGREE, MODULUS
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking_aggregator import MaskingAggregator
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.packing import pack, unpack
from secfl.crypto.wire import MessageType
from secfl.errors import LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, VectorSpec

VECTOR = VectorSpec(name="u", length=60, modulus_bits=20)
RNG = InsecureSeededRng(0)
IDENTITIES = [Identity.generate(f"c{i}", RNG.fork(str(i))) for i in range(4)]
NAMES = tuple(identity.name for identity in IDENTITIES)
DIRECTORY = Directory.enroll(IDENTITIES)
SPEC = RoundSpec(
    run_id=bytes(16),
    round_id=RoundId(1),
    cohort=NAMES,
    threshold=3,
    vectors=(VECTOR,),
    scheme=SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),)),
    manifest_digest=DIRECTORY.digest(),
    model_digest=bytes(32),
    task_digest=bytes(32),
    plan_digest=bytes(32),
)
SHAPE = SumKeyRound(SPEC)
INPUTS = [{"u": np.random.default_rng(i).integers(0, 2**20, 60, dtype=np.uint32)} for i in range(4)]


def protected(index, shape=SHAPE, attempt=0):
    return shape.protect(INPUTS[index], RNG.fork(f"protect {index} {attempt}"))


def client(index, *, key=None, ciphertext=None, shape=SHAPE):
    """A client of the masking protocol, with any key vector and any attachment."""
    own_key, own_ciphertext = protected(index, shape)
    return MaskingClient.create(
        shape.masked,
        IDENTITIES[index],
        directory=DIRECTORY,
        vectors=own_key if key is None else key,
        rng=RNG.fork(f"mask {index}"),
        attachment=own_ciphertext if ciphertext is None else ciphertext,
    )


def carry(clients, *, refusals=None):
    """Run a round; a refused message is lost."""
    aggregator = MaskingAggregator.create(SHAPE.masked, directory=DIRECTORY, sink=SHAPE.sink())
    queue = deque(envelope for party in clients for envelope in party.start())
    parties = dict(zip(NAMES, clients, strict=True)) | {AGGREGATOR: aggregator}
    while queue or isinstance(aggregator.state, Running):
        if not queue:
            queue.extend(aggregator.phase_over())
            continue
        envelope = queue.popleft()
        try:
            queue.extend(parties[envelope.recipient].receive(envelope))
        except RemoteProtocolError as error:
            if refusals is None:
                raise
            refusals.append(error)
    return aggregator.state


def exact(indices):
    return (sum(INPUTS[i]["u"].astype(np.int64) for i in indices) % 2**20).tolist()


def test_the_honest_round():
    state = carry([client(i) for i in range(4)])
    assert state.result.sums["u"].tolist() == exact(range(4))


def test_a_copied_ciphertext_does_not_decrypt():
    """A colluder that the aggregator showed the victim's ciphertext uploads it as its own: 2·victim + others."""
    copied = protected(0)[1]
    state = carry([client(0), client(1, ciphertext=copied), client(2), client(3)])
    assert isinstance(state, Aborted)
    assert isinstance(state.reason, RoundAborted)
    # Only who knows the victim's key could make the copy count.
    with_key = client(1, ciphertext=copied, key=protected(0)[0])
    assert carry([client(0), with_key, client(2), client(3)]).result.sums["u"].tolist() == exact([0, 0, 2, 3])


def test_a_ciphertext_of_another_round_does_not_decrypt():
    other = SumKeyRound(replace(SPEC, round_id=RoundId(2)))
    key, ciphertext = other.protect(INPUTS[0], RNG.fork("old"))
    state = carry([client(0, key=key, ciphertext=ciphertext), client(1), client(2), client(3)])
    assert isinstance(state, Aborted)


@pytest.mark.parametrize("changed", ["model_digest", "task_digest", "plan_digest"])
def test_clients_of_different_tasks_use_different_elements(changed):
    """The same update under another task digest: its ciphertext belongs to no sum of this round."""
    other = SumKeyRound(replace(SPEC, **{changed: b"\x01" * 32}))
    total, keys = CiphertextSum(SHAPE.layout), np.zeros(DEGREE, np.int64)
    for index, shape in enumerate((SHAPE, SHAPE, other)):
        key, ciphertext = protected(index, shape)
        keys += centre(key[KEY_VECTOR], bits=SHAPE.key_bits)
        total.add(NAMES[index], ciphertext)
    with pytest.raises(RoundAborted):
        open_sum(total, SHAPE.layout, uniforms=(SHAPE.uniform,), key=keys)


def test_what_the_aggregator_opens_is_the_sum_and_nothing_less():
    """With K, every proper subset of the ciphertexts stays closed."""
    rows = [protected(i) for i in range(3)]
    keys = sum(centre(key[KEY_VECTOR], bits=SHAPE.key_bits) for key, _ in rows)
    for subset in ([0], [1, 2], [0, 2], [0, 1, 2]):
        total = CiphertextSum(SHAPE.layout)
        for index in subset:
            total.add(NAMES[index], rows[index][1])
        if len(subset) == 3:
            opened = open_sum(total, SHAPE.layout, uniforms=(SHAPE.uniform,), key=keys)
            assert opened["u"].tolist() == exact(subset)
        else:
            with pytest.raises(RoundAborted):
                open_sum(total, SHAPE.layout, uniforms=(SHAPE.uniform,), key=keys)


def test_one_key_for_two_clients_would_open_their_difference():
    """Why keys are one-time and each client's own: two ciphertexts under one key give the difference of the inputs."""
    rng = "the same secret"
    first = SHAPE.protect(INPUTS[0], RNG.fork(rng))[1]
    second = SHAPE.protect(INPUTS[1], RNG.fork(rng))[1]
    length = SHAPE.layout.polynomials * DEGREE
    a, b = (unpack(data, length=length, bits=60).astype(object) for data in (first, second))
    difference = (a - b) % MODULUS
    plain = [SHAPE.layout.encode(INPUTS[i], 0, 1).reshape(-1).astype(object) for i in (0, 1)]
    assert (difference == (plain[0] - plain[1]) % MODULUS).all()
    fresh = SHAPE.protect(INPUTS[1], RNG.fork("another"))[1]
    c = unpack(fresh, length=length, bits=60).astype(object)
    assert ((a - c) % MODULUS != (plain[0] - plain[1]) % MODULUS).sum() > length - 5


def test_keys_and_errors_are_small_fresh_and_fit_their_vector():
    clients = len(NAMES)
    assert clients * REACH < 2 ** (SHAPE.key_bits - 1)
    keys = [centre(protected(0, attempt=i)[0][KEY_VECTOR], bits=SHAPE.key_bits) for i in range(3)]
    for key in keys:
        assert np.abs(key).max() <= REACH
        assert 4.2 < key.std() < 4.8  # 4.5 ± 0.05; 6 deviations, and a ternary key (0.8) is far off
    assert not np.array_equal(keys[0], keys[1])
    assert abs(np.corrcoef(keys[0], keys[1])[0, 1]) < 6 / 64


def forge(position, value):
    residues = unpack(protected(1)[1], length=SHAPE.layout.polynomials * DEGREE, bits=60).copy()
    residues[position] = value
    return pack(residues, bits=60)


@pytest.mark.parametrize("value", [MODULUS, 2**60 - 1])
@pytest.mark.parametrize("position", [0, -1])
def test_a_residue_not_below_the_modulus_is_refused_though_signed(position, value):
    refusals = []
    state = carry(
        [client(0), client(1, ciphertext=forge(position, value)), client(2), client(3)], refusals=refusals
    )
    assert [error.peer for error in refusals] == ["c1"]
    assert "not below the modulus" in str(refusals[0])
    assert state.result.survivors == ("c0", "c2", "c3")
    assert state.result.sums["u"].tolist() == exact([0, 2, 3])


def test_a_ciphertext_of_another_length_cannot_be_attached():
    for ciphertext in (b"", protected(1)[1][:-1], protected(1)[1] + bytes(30720)):
        with pytest.raises(LocalProtocolError):
            client(1, ciphertext=ciphertext)
        with pytest.raises(RemoteProtocolError):
            SHAPE.sink().check("c1", memoryview(ciphertext))


def test_a_key_vector_that_does_not_belong_to_the_ciphertext_aborts():
    key = protected(1)[0]
    lie = {KEY_VECTOR: (key[KEY_VECTOR] + 1) % 2**SHAPE.key_bits}
    state = carry([client(0), client(1, key=lie), client(2), client(3)])
    assert isinstance(state, Aborted)


def test_the_client_of_the_scheme_does_the_same():
    scheme = Ckks(threads=1)
    update = PrivatizedUpdate.without_noise(INPUTS[0])
    first = scheme.client(SPEC, IDENTITIES[0], directory=DIRECTORY, update=update, rng=RNG.fork("scheme"))
    state = carry([first, client(1), client(2), client(3)])
    assert state.result.sums["u"].tolist() == exact(range(4))
    assert isinstance(first.state, Finished)


def test_no_seal_object_crosses_the_wire():
    """An upload is frame, header, masked key vector and packed residues: sizes follow from the round alone."""
    parties = [client(i) for i in range(4)]
    aggregator = MaskingAggregator.create(SHAPE.masked, directory=DIRECTORY, sink=SHAPE.sink())
    queue = deque(envelope for party in parties for envelope in party.start())
    while queue:
        envelope = queue.popleft()
        if envelope.payload[4] == MessageType.MASKED_INPUT:
            assert len(envelope.payload) == 39 + 64 + 64 + SHAPE.masked.input_bytes
            assert bytes.fromhex("5ea110") not in envelope.payload  # SEAL's magic and header size
        to = aggregator if envelope.recipient == AGGREGATOR else parties[NAMES.index(envelope.recipient)]
        queue.extend(to.receive(envelope))
    assert SHAPE.masked.input_bytes < 30720 + 7000


def test_the_sink_continues_from_its_snapshot():
    sink = SHAPE.sink()
    for index in range(2):
        sink.add(NAMES[index], memoryview(protected(index)[1]))
    resumed = SHAPE.sink()
    resumed.restore(sink.snapshot())
    assert resumed.snapshot() == sink.snapshot()
    with pytest.raises(LocalProtocolError):
        resumed.restore(sink.snapshot() + b"x")


@settings(max_examples=40)
@given(st.data())
def test_mutated_uploads_end_in_an_error_that_blames_their_sender(data):
    parties = [client(i) for i in range(4)]
    aggregator = MaskingAggregator.create(SHAPE.masked, directory=DIRECTORY, sink=SHAPE.sink())
    queue = deque(envelope for party in parties for envelope in party.start())
    while queue[0].payload[4] != MessageType.MASKED_INPUT:
        envelope = queue.popleft()
        to = aggregator if envelope.recipient == AGGREGATOR else parties[NAMES.index(envelope.recipient)]
        queue.extend(to.receive(envelope))
    honest = queue[0]
    payload = bytearray(honest.payload)
    start = data.draw(st.integers(0, len(payload) - 1))
    if data.draw(st.booleans()):
        payload[start] ^= data.draw(st.integers(1, 255))
    else:
        del payload[start:]
    with pytest.raises(RemoteProtocolError) as error:
        aggregator.receive(Envelope(honest.sender, AGGREGATOR, bytes(payload)))
    assert error.value.peer == honest.sender
    aggregator.receive(honest)
