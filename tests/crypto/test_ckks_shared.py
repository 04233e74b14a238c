"""Attacks on CKKS with one shared key. Each guard is shown to matter: the attack succeeds where it is removed."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto.aggregation import Envelope, Finished, Running
from secfl.crypto.ckks_ring import CiphertextSum, Uniform, encrypt, open_sum, small_polynomial
from secfl.crypto.ckks_shared_aggregator import SharedKeyAggregator
from secfl.crypto.ckks_shared_client import SharedKeyClient
from secfl.crypto.ckks_shared_client_memory import ClientMemory
from secfl.crypto.ckks_shared_messages import SealedKey, SharedInput, SharedRound, SharedSums
from secfl.crypto.hazmat.ring_noise import RingNoise
from secfl.crypto.hazmat.seal import MODULUS
from secfl.crypto.identity import SIGNATURE_BYTES, Directory, Identity
from secfl.crypto.packing import pack, unpack
from secfl.crypto.wire import (
    AGGREGATOR_INDEX,
    FRAME_BYTES,
    MessageType,
    Phase,
    Reader,
    Roster,
    Signed,
    frame,
    sign_body,
)
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, RoundId, RoundSpec, SchemeSpec, VectorSpec

VECTOR = VectorSpec(name="u", length=50, modulus_bits=18)
RNG = InsecureSeededRng(0)
IDENTITIES = [Identity.generate(f"c{i}", RNG.fork(str(i))) for i in range(4)]
NAMES = [identity.name for identity in IDENTITIES]
DIRECTORY = Directory.enroll(IDENTITIES)


def round_spec(round_id=1, **changes):
    spec = RoundSpec(
        run_id=bytes(16),
        round_id=RoundId(round_id),
        cohort=tuple(NAMES),
        threshold=3,
        vectors=(VECTOR,),
        scheme=SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),)),
        manifest_digest=DIRECTORY.digest(),
        model_digest=bytes(32),
        task_digest=bytes(32),
        plan_digest=bytes(32),
    )
    return replace(spec, **changes)


SHARED = SharedRound(round_spec())
INPUTS = [{"u": np.arange(50, dtype=np.uint32) * (i + 1)} for i in range(4)]


def client(index, shared=SHARED):
    return SharedKeyClient.create(
        shared, IDENTITIES[index], directory=DIRECTORY, vectors=INPUTS[index], rng=RNG.fork(f"party{index}")
    )


class Play:
    """A round played up to the opening, with everything that passed the network."""

    def __init__(self, shared=SHARED):
        self.shared = shared
        self.clients = {NAMES[i]: client(i, shared) for i in range(4)}
        self.aggregator = SharedKeyAggregator.create(shared, directory=DIRECTORY)
        self.log = []
        queue = deque(envelope for party in self.clients.values() for envelope in party.start())
        while queue:
            envelope = queue.popleft()
            self.log.append(envelope)
            if envelope.payload[4] == MessageType.CKKS_OPEN:
                self.request = envelope
                return
            party = self.aggregator if envelope.recipient == AGGREGATOR else self.clients[envelope.recipient]
            queue.extend(party.receive(envelope))

    def content(self):
        """Headers and ciphertexts of the honest request to the opener."""
        data = memoryview(self.request.payload)[FRAME_BYTES:]
        reader = Reader(data, peer="test")
        members = Roster.read_members(data, peer="test", clients=4)
        headers = dict(Roster.take(reader, members=members, body_bytes=SharedInput.SIZE).members)
        return headers, {index: reader.take(self.shared.layout.packed_bytes) for index in members}

    def ask(self, opener, headers, ciphertexts):
        """A malicious aggregator asks for the opening of whatever it likes."""
        head = frame(MessageType.CKKS_OPEN, digest=self.shared.digest, sender=AGGREGATOR_INDEX)
        payload = head + Roster(headers).encode() + b"".join(ciphertexts[i] for i in sorted(headers))
        return self.clients[NAMES[opener]].receive(Envelope(AGGREGATOR, NAMES[opener], payload))

    def opened(self, envelopes):
        """What the aggregator reads from the opener's answer."""
        packed = memoryview(envelopes[0].payload)[-self.shared.sums_bytes :]
        return self.shared.unpack_sums(packed, peer="test")["u"].tolist()


@pytest.fixture
def play():
    return Play()


def only(indices, headers, ciphertexts):
    return {i: headers[i] for i in indices}, {i: ciphertexts[i] for i in indices}


def lower_threshold(play, name, threshold):
    """Take the guard away: the client no longer insists on the round's threshold."""
    weak = SharedRound(play.shared.spec)
    weak.spec = replace(play.shared.spec, threshold=threshold)
    play.clients[name]._round = weak


def test_the_honest_request_is_answered(play):
    headers, ciphertexts = play.content()
    found = play.opened(play.ask(0, headers, ciphertexts))
    assert found == [10 * x % 2**18 for x in range(50)]


@pytest.mark.parametrize("victims", [[1], [0], [0, 1]])
def test_few_ciphertexts_offered_as_the_sum_are_refused(play, victims):
    with pytest.raises(RemoteProtocolError, match="expected 3"):
        play.ask(0, *only(victims, *play.content()))


def test_a_single_ciphertext_as_the_sum_is_read_without_the_guards(play, monkeypatch):
    monkeypatch.setattr(SharedKeyClient, "_check_own", lambda *_: None)
    lower_threshold(play, NAMES[0], 1)
    found = play.opened(play.ask(0, *only([2], *play.content())))
    assert found == INPUTS[2]["u"].tolist()  # the victim's update in clear


def test_a_sum_without_the_opener_is_refused(play, monkeypatch):
    request = only([1, 2, 3], *play.content())
    with pytest.raises(RemoteProtocolError, match="left c0 out"):
        play.ask(0, *request)
    # Without the guard an aggregator subtracts two sums of one survivor set each and reads the difference.
    monkeypatch.setattr(SharedKeyClient, "_check_own", lambda *_: None)
    less = play.opened(play.ask(0, *request))
    whole = play.opened(play.ask(1, *play.content()))
    assert [(a - b) % 2**18 for a, b in zip(whole, less, strict=True)] == INPUTS[0]["u"].tolist()


def test_a_chosen_ciphertext_is_refused(play, monkeypatch):
    """In place of a survivor's ciphertext: anything else of the right form, under the survivor's own header."""
    headers, ciphertexts = play.content()
    residues = unpack(ciphertexts[2], length=SHARED.layout.polynomials * 4096, bits=60).copy()
    # The encoding of 2^13 added to coefficient 0: the opened sum shifts by exactly what the attacker chose.
    residues[0] = (int(residues[0]) + pow(2, -38, MODULUS) * 2**13) % MODULUS
    chosen = ciphertexts | {2: pack(residues, bits=60)}
    assert SHARED.layout._segments[0].fields.plain_bits == 38
    with pytest.raises(RemoteProtocolError, match="replaced the ciphertext of c2"):
        play.ask(0, headers, chosen)
    monkeypatch.setattr(
        SharedRound,
        "ciphertext_digest",
        lambda *_: SharedInput.decode(headers[0].body, peer="x").ciphertext_digest,
    )
    forged = {
        i: sign_body(IDENTITIES[i], Phase.CKKS_INPUT, digest=SHARED.digest, body=_redirect(headers, i))
        for i in headers
    }
    play.clients[NAMES[0]]._memory.header = forged[0]
    assert play.opened(play.ask(0, forged, chosen))[0] == 2**13


def _redirect(headers, index):
    first = SharedInput.decode(headers[0].body, peer="x")
    own = SharedInput.decode(headers[index].body, peer="x")
    return replace(own, ciphertext_digest=first.ciphertext_digest).encode()


@pytest.mark.parametrize("signer", [0, 3])
def test_a_header_that_its_client_did_not_sign_is_refused(play, signer):
    headers, ciphertexts = play.content()
    body = replace(SharedInput.decode(headers[2].body, peer="x"), nonce=bytes(32)).encode()
    headers[2] = sign_body(IDENTITIES[signer], Phase.CKKS_INPUT, digest=SHARED.digest, body=body)
    with pytest.raises(RemoteProtocolError, match="false statement"):
        play.ask(0, headers, ciphertexts)


def test_one_clients_ciphertext_under_every_name_is_refused(play):
    headers, ciphertexts = play.content()
    with pytest.raises(RemoteProtocolError):
        play.ask(0, {i: headers[0 if i == 0 else 2] for i in headers}, dict.fromkeys(headers, ciphertexts[2]))


def test_statements_of_another_round_are_refused(play):
    earlier = Play(SharedRound(round_spec(2)))
    with pytest.raises(RemoteProtocolError):
        play.ask(0, *earlier.content())
    headers, ciphertexts = earlier.content()
    mine, own = play.content()
    with pytest.raises(RemoteProtocolError, match="false statement"):
        play.ask(0, mine | {2: headers[2]}, own | {2: ciphertexts[2]})


def test_a_client_opens_once(play):
    headers, ciphertexts = play.content()
    play.ask(0, headers, ciphertexts)
    assert isinstance(play.clients[NAMES[0]].state, Finished)
    assert play.clients[NAMES[0]]._memory.key_seed == b""
    for request in ((headers, ciphertexts), only([0, 1, 2], headers, ciphertexts)):
        with pytest.raises(RemoteProtocolError, match="unexpected"):
            play.ask(0, *request)


def test_a_refused_request_leaves_the_client_as_it_was(play):
    before = play.clients[NAMES[0]].snapshot()
    with pytest.raises(RemoteProtocolError):
        play.ask(0, *only([0, 1], *play.content()))
    assert play.clients[NAMES[0]].snapshot() == before
    play.ask(0, *play.content())


def test_the_aggregator_and_one_client_read_everybody(play):
    """What the ledger says about a shared key: with one client's help every update is open."""
    colluder = play.clients[NAMES[3]]
    headers, ciphertexts = play.content()
    key = small_polynomial(colluder._key_noise(colluder._memory.key_seed))
    for victim in (0, 1, 2):
        total = CiphertextSum(SHARED.layout)
        total.add(NAMES[victim], ciphertexts[victim])
        nonce = SharedInput.decode(headers[victim].body, peer="x").nonce
        uniform = Uniform(b"shared", SHARED.digest, NAMES[victim].encode(), nonce)
        opened = open_sum(total, SHARED.layout, uniforms=(uniform,), key=key)
        np.testing.assert_array_equal(opened["u"], INPUTS[victim]["u"])


# Against the aggregator: what a client may send


def at_input(index=1):
    """An aggregator that waits for inputs, and the input of one client that was not delivered yet."""
    clients = {NAMES[i]: client(i) for i in range(4)}
    aggregator = SharedKeyAggregator.create(SHARED, directory=DIRECTORY)
    queue = deque(envelope for party in clients.values() for envelope in party.start())
    inputs = {}
    while queue:
        envelope = queue.popleft()
        if envelope.payload[4] == MessageType.CKKS_INPUT:
            inputs[envelope.sender] = envelope
        elif envelope.recipient == AGGREGATOR:
            queue.extend(aggregator.receive(envelope))
        else:
            queue.extend(clients[envelope.recipient].receive(envelope))
    return aggregator, inputs[NAMES[index]], clients[NAMES[index]]


def resign(envelope, index, **changes):
    """The same input with another ciphertext or header, validly signed by its sender."""
    body_end = FRAME_BYTES + SharedInput.SIZE
    ciphertext = changes.pop("ciphertext", envelope.payload[body_end + SIGNATURE_BYTES :])
    header = SharedInput.decode(envelope.payload[FRAME_BYTES:body_end], peer="x")
    header = replace(header, ciphertext_digest=SHARED.ciphertext_digest(ciphertext))
    signed = sign_body(
        IDENTITIES[index], Phase.CKKS_INPUT, digest=SHARED.digest, body=replace(header, **changes).encode()
    )
    return Envelope(NAMES[index], AGGREGATOR, envelope.payload[:FRAME_BYTES] + signed.encode() + ciphertext)


def forged_inputs(envelope):
    body_end = FRAME_BYTES + SharedInput.SIZE + SIGNATURE_BYTES
    ciphertext = envelope.payload[body_end:]
    residues = unpack(ciphertext, length=SHARED.layout.polynomials * 4096, bits=60).copy()
    residues[7] = MODULUS
    yield "not below the modulus", resign(envelope, 1, ciphertext=pack(residues, bits=60))
    yield "expected", resign(envelope, 1, ciphertext=ciphertext[:-1])
    yield "expected", resign(envelope, 1, ciphertext=ciphertext + bytes(30720))
    yield "another key", resign(envelope, 1, identifier=bytes(32))
    yield "not the one that it signed", resign(envelope, 1, ciphertext_digest=bytes(32))
    flipped = bytearray(envelope.payload)
    flipped[FRAME_BYTES + 3] ^= 1
    yield "bad signature", Envelope(NAMES[1], AGGREGATOR, bytes(flipped))
    yield "names another sender", Envelope(NAMES[2], AGGREGATOR, envelope.payload)
    yield "not in the cohort", Envelope("stranger", AGGREGATOR, envelope.payload)


@pytest.mark.parametrize("case", range(8))
def test_forged_inputs_are_refused_and_the_honest_one_is_still_taken(case):
    aggregator, envelope, _ = at_input()
    match, forged = list(forged_inputs(envelope))[case]
    before = aggregator.snapshot()
    with pytest.raises(RemoteProtocolError, match=match) as error:
        aggregator.receive(forged)
    assert error.value.peer == forged.sender
    assert aggregator.snapshot() == before
    aggregator.receive(envelope)
    with pytest.raises(RemoteProtocolError, match="not due"):
        aggregator.receive(envelope)


def test_a_ciphertext_under_another_key_spoils_the_sum_and_is_noticed(play):
    """A lying client can spoil the round, and nothing false is opened."""
    ciphertext = encrypt(
        INPUTS[1],
        SHARED.layout,
        uniform=Uniform(b"x"),
        key=small_polynomial(RingNoise(bytes(32))),
        noise=RingNoise(bytes(32)),
    )
    headers, ciphertexts = play.content()
    header = SharedInput.decode(headers[1].body, peer="x")
    body = replace(header, ciphertext_digest=SHARED.ciphertext_digest(ciphertext)).encode()
    headers[1] = sign_body(IDENTITIES[1], Phase.CKKS_INPUT, digest=SHARED.digest, body=body)
    with pytest.raises(RemoteProtocolError, match="does not decrypt"):
        play.ask(0, headers, ciphertexts | {1: ciphertext})


def test_a_header_for_another_key_is_refused_by_the_opener(play):
    """Its client had a key from somebody else; the sum would open to nothing."""
    headers, ciphertexts = play.content()
    body = replace(SharedInput.decode(headers[1].body, peer="x"), identifier=bytes(32)).encode()
    headers[1] = sign_body(IDENTITIES[1], Phase.CKKS_INPUT, digest=SHARED.digest, body=body)
    with pytest.raises(RemoteProtocolError, match="encrypted under another key") as caught:
        play.ask(0, headers, ciphertexts)
    assert caught.value.peer == NAMES[1]


def test_sums_with_bits_beyond_their_end_are_refused(play):
    """Signed by the opener: the same sums would have several signed forms."""
    (answer,) = play.ask(0, *play.content())
    start = FRAME_BYTES + SharedSums.SIZE + SIGNATURE_BYTES
    packed = bytearray(answer.payload[start:])
    packed[-1] |= 0x80
    honest = SharedSums.decode(answer.payload[FRAME_BYTES : FRAME_BYTES + SharedSums.SIZE], peer="x")
    body = replace(honest, sums_digest=SHARED.sums_digest(packed)).encode()
    signed = sign_body(IDENTITIES[0], Phase.CKKS_OPEN, digest=SHARED.digest, body=body)
    forged = answer.payload[:FRAME_BYTES] + signed.encode() + packed
    with pytest.raises(RemoteProtocolError, match="sum of u: ") as caught:
        play.aggregator.receive(Envelope(NAMES[0], AGGREGATOR, bytes(forged)))
    assert caught.value.peer == NAMES[0]
    play.aggregator.receive(answer)


def resigned_sums(answer, packed=None, **changes):
    """The opener's answer with other sums or another statement, validly signed by the opener."""
    end = FRAME_BYTES + SharedSums.SIZE
    packed = answer.payload[end + SIGNATURE_BYTES :] if packed is None else packed
    honest = SharedSums.decode(answer.payload[FRAME_BYTES:end], peer="x")
    body = replace(honest, **({"sums_digest": SHARED.sums_digest(packed)} | changes)).encode()
    signed = sign_body(IDENTITIES[0], Phase.CKKS_OPEN, digest=SHARED.digest, body=body)
    return Envelope(NAMES[0], AGGREGATOR, answer.payload[:FRAME_BYTES] + signed.encode() + packed)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"survivors_digest": bytes(32)}, "opened the sum of other survivors"),
        ({"sums_digest": bytes(32)}, "its sums are not the ones that it signed"),
    ],
)
def test_an_opener_states_whose_sum_it_opened_and_which(play, changes, match):
    """What it signs could otherwise not be held against it."""
    (answer,) = play.ask(0, *play.content())
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        play.aggregator.receive(resigned_sums(answer, **changes))
    assert caught.value.peer == NAMES[0]
    assert isinstance(play.aggregator.state, Running)
    play.aggregator.receive(answer)


def test_an_opener_cannot_replace_the_sums_after_the_end(play):
    """In a message of a kind that no phase of the aggregator takes, when it waits for no phase either."""
    (answer,) = play.ask(0, *play.content())
    play.aggregator.receive(answer)
    before = play.aggregator.state.result.sums["u"].tolist()
    other = resigned_sums(answer, packed=bytes(SHARED.sums_bytes))
    head = frame(MessageType.CKKS_DIRECTORY, digest=SHARED.digest, sender=0)
    with pytest.raises(RemoteProtocolError, match="ckks_directory messages are not for the aggregator"):
        play.aggregator.receive(replace(other, payload=head + other.payload[FRAME_BYTES:]))
    assert play.aggregator.state.result.sums["u"].tolist() == before


def test_a_public_key_that_is_none_is_its_clients_fault():
    """Passed on, it would make every lead refuse, and nobody would know on whose account."""
    aggregator = SharedKeyAggregator.create(SHARED, directory=DIRECTORY)
    (honest,) = client(1).start()
    body = bytes([255]) * (len(honest.payload) - FRAME_BYTES - SIGNATURE_BYTES)
    signed = sign_body(IDENTITIES[1], Phase.ADVERTISE, digest=SHARED.digest, body=body)
    with pytest.raises(RemoteProtocolError, match="advertised a public key that cannot be used") as caught:
        aggregator.receive(replace(honest, payload=honest.payload[:FRAME_BYTES] + signed.encode()))
    assert caught.value.peer == NAMES[1]
    aggregator.receive(honest)


def test_an_opener_adds_nothing_that_is_no_ciphertext(play):
    """A client and the aggregator together: signed, relayed as it is, and not below the modulus."""
    headers, ciphertexts = play.content()
    residues = unpack(ciphertexts[1], length=SHARED.layout.polynomials * 4096, bits=60).copy()
    residues[7] = MODULUS
    bad = pack(residues, bits=60)
    header = SharedInput.decode(headers[1].body, peer="x")
    body = replace(header, ciphertext_digest=SHARED.ciphertext_digest(bad)).encode()
    headers[1] = sign_body(IDENTITIES[1], Phase.CKKS_INPUT, digest=SHARED.digest, body=body)
    with pytest.raises(RemoteProtocolError, match="not below the modulus") as caught:
        play.ask(0, headers, ciphertexts | {1: bad})
    assert caught.value.peer == NAMES[1]


def keys_message(index, bodies, signer=None):
    signer = IDENTITIES[index if signer is None else signer]
    signed = [sign_body(signer, Phase.CKKS_KEY, digest=SHARED.digest, body=body).encode() for body in bodies]
    head = frame(MessageType.CKKS_KEYS, digest=SHARED.digest, sender=index)
    return Envelope(NAMES[index], AGGREGATOR, head + b"".join(signed))


def at_keys():
    clients = {NAMES[i]: client(i) for i in range(4)}
    aggregator = SharedKeyAggregator.create(SHARED, directory=DIRECTORY)
    sent = [
        e for party in clients.values() for envelope in party.start() for e in aggregator.receive(envelope)
    ]
    return aggregator, clients, sent[0]


def test_what_a_lead_may_deal():
    aggregator, clients, directory = at_keys()
    (dealt,) = clients[NAMES[0]].receive(directory)
    with pytest.raises(RemoteProtocolError, match="asked twice"):
        clients[NAMES[0]].receive(directory)
    data = dealt.payload[FRAME_BYTES:]
    size = SealedKey.SIZE + SIGNATURE_BYTES
    bodies = [data[i * size : i * size + SealedKey.SIZE] for i in range(4)]
    other = replace(SealedKey.decode(bodies[1], peer="x"), identifier=bytes(32)).encode()
    for match, envelope in [
        ("expected", keys_message(0, bodies[:3])),
        ("other clients", keys_message(0, [bodies[0], *bodies[:3]])),
        ("different keys", keys_message(0, [bodies[0], other, *bodies[2:]])),
        ("bad signature", keys_message(0, bodies, signer=1)),
        ("not due", keys_message(1, bodies)),
    ]:
        with pytest.raises(RemoteProtocolError, match=match):
            aggregator.receive(envelope)
    deliveries = aggregator.receive(dealt)
    assert [envelope.recipient for envelope in deliveries] == NAMES


def test_a_lead_deals_only_where_its_own_key_is_listed():
    """Left out, it would give away the round's key; under an earlier key of its own, that key's holder reads it."""
    _, clients, directory = at_keys()
    lead = clients[NAMES[0]]
    data = memoryview(directory.payload)[FRAME_BYTES:]
    members = Roster.read_members(data, peer="test", clients=4)
    body_bytes = (len(data) - 8) // 4 - SIGNATURE_BYTES
    adverts = dict(Roster.take(Reader(data, peer="test"), members=members, body_bytes=body_bytes).members)
    again = SharedKeyClient.create(
        SHARED, IDENTITIES[0], directory=DIRECTORY, vectors=INPUTS[0], rng=RNG.fork("before a crash")
    )
    (earlier,) = again.start()
    signed = Signed.decode(earlier.payload[FRAME_BYTES:])
    before = lead.snapshot()
    for match, roster in [
        ("left c0 out", {i: adverts[i] for i in (1, 2, 3)}),
        ("replaced the message of c0", adverts | {0: signed}),
    ]:
        payload = directory.payload[:FRAME_BYTES] + Roster(roster).encode()
        with pytest.raises(RemoteProtocolError, match=match):
            lead.receive(replace(directory, payload=payload))
        assert lead.snapshot() == before
    assert lead.receive(directory)


def delivery(index, lead, signed):
    head = frame(MessageType.CKKS_DELIVERY, digest=SHARED.digest, sender=AGGREGATOR_INDEX)
    return Envelope(AGGREGATOR, NAMES[index], head + lead.to_bytes(2, "little") + signed.encode())


def test_what_a_client_takes_for_its_key():
    aggregator, clients, directory = at_keys()
    (dealt,) = clients[NAMES[0]].receive(directory)
    deliveries = aggregator.receive(dealt)
    mine = deliveries[1].payload[FRAME_BYTES + 2 :]
    signed = Signed.decode(mine)
    sealed = SealedKey.decode(signed.body, peer="x")

    def by_lead(lead=0, **changes):
        body = replace(sealed, **changes).encode()
        return sign_body(IDENTITIES[lead], Phase.CKKS_KEY, digest=SHARED.digest, body=body)

    before = clients[NAMES[1]].snapshot()
    for match, envelope in [
        ("outside the cohort", delivery(1, 4, signed)),
        ("false statement", delivery(1, 2, signed)),
        ("another client's key", delivery(1, 0, Signed.decode(deliveries[2].payload[FRAME_BYTES + 2 :]))),
        ("does not open", delivery(1, 2, by_lead(2))),
        ("does not open", delivery(1, 0, by_lead(box=bytes(len(sealed.box))))),
        ("committed to", delivery(1, 0, by_lead(identifier=bytes(32)))),
        ("unexpected", play_close(1)),
    ]:
        with pytest.raises(RemoteProtocolError, match=match):
            clients[NAMES[1]].receive(envelope)
        assert clients[NAMES[1]].snapshot() == before
    clients[NAMES[1]].receive(deliveries[1])
    with pytest.raises(RemoteProtocolError, match="unexpected"):
        clients[NAMES[1]].receive(deliveries[1])


def play_close(index):
    head = frame(MessageType.CKKS_CLOSE, digest=SHARED.digest, sender=AGGREGATOR_INDEX)
    return Envelope(AGGREGATOR, NAMES[index], head)


def test_a_lead_seals_only_to_keys_that_clients_signed():
    _, clients, directory = at_keys()
    swapped = bytearray(directory.payload)
    start = FRAME_BYTES + 8 + 2 * (1216 + SIGNATURE_BYTES)
    swapped[start : start + 1216] = swapped[start - 1280 : start - 64]
    with pytest.raises(RemoteProtocolError, match="false statement"):
        clients[NAMES[0]].receive(Envelope(AGGREGATOR, NAMES[0], bytes(swapped)))


def test_keys_and_inputs_are_forgotten_when_they_are_no_longer_needed():
    _, _, party = at_input()
    memory = party._memory
    assert (memory.sealing_seed, memory.lead_seed, memory.error_key, memory.inputs) == (b"", b"", b"", None)
    assert len(memory.key_seed) == 32
    longer = play_close(1)
    with pytest.raises(RemoteProtocolError, match="expected"):
        party.receive(replace(longer, payload=longer.payload + b"?"))
    assert len(memory.key_seed) == 32
    party.receive(play_close(1))
    assert memory.key_seed == b""
    assert isinstance(party.state, Finished)


def test_misuse_is_a_local_error():
    party = client(0)
    party.start()
    with pytest.raises(LocalProtocolError):
        party.start()
    for receiver, recipient in (
        (party, NAMES[1]),
        (SharedKeyAggregator.create(SHARED, directory=DIRECTORY), "c0"),
    ):
        with pytest.raises(LocalProtocolError):
            receiver.receive(Envelope(AGGREGATOR, recipient, b""))
    with pytest.raises(RemoteProtocolError, match="aggregator only"):
        party.receive(Envelope(NAMES[1], NAMES[0], b""))
    assert party.phase_over() == []


@pytest.mark.parametrize("words", [np.full(50, 1 << 18, np.uint32), np.zeros(49, np.uint32)])
def test_a_snapshot_holds_inputs_of_the_round(words):
    """A whole snapshot, with a digest that fits: an input out of range would leave its place in the sum."""
    memory, identity = ClientMemory.decode(client(0).snapshot(), SHARED)
    memory.inputs = {"u": words}
    with pytest.raises(LocalProtocolError, match="vector u: "):
        ClientMemory.decode(memory.encode(SHARED, identity), SHARED)


def test_the_manifest_is_the_one_that_the_round_is_bound_to():
    """An aggregator that hands out a manifest with keys of its own names another digest, or is not believed."""
    other = Directory({**DIRECTORY.keys, NAMES[2]: Identity.generate(NAMES[2], RNG).public_key()})
    snapshot = client(0).snapshot()
    for make in (
        lambda: SharedKeyAggregator.create(SHARED, directory=other),
        lambda: SharedKeyClient.restore(SHARED, directory=other, snapshot=snapshot),
        lambda: SharedKeyClient.create(
            SHARED, IDENTITIES[0], directory=other, vectors=INPUTS[0], rng=RNG.fork("again")
        ),
    ):
        with pytest.raises(LocalProtocolError, match="not the one that the round is bound to"):
            make()


LOG = Play().log


@settings(max_examples=150)
@given(st.data())
def test_mutated_messages_end_in_a_blamed_error(data):
    """Truncated, extended, flipped and replayed messages, at a party in any phase."""
    upto = data.draw(st.integers(0, len(LOG) - 1))
    target = LOG[upto]
    if target.recipient == AGGREGATOR:
        party = SharedKeyAggregator.create(SHARED, directory=DIRECTORY)
    else:
        party = client(NAMES.index(target.recipient))
        party.start()
    for envelope in LOG[:upto]:
        if envelope.recipient == target.recipient:
            party.receive(envelope)
    payload = bytearray(target.payload)
    match data.draw(st.sampled_from(["truncate", "extend", "flip", "type", "empty"])):
        case "truncate":
            del payload[data.draw(st.integers(0, len(payload) - 1)) :]
        case "extend":
            payload += data.draw(st.binary(min_size=1, max_size=9))
        case "flip":
            payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
        case "type":
            kind = data.draw(st.integers(0, 255).filter(lambda value: value != payload[4]))
            payload[4] = kind
        case _:
            payload.clear()
    state = party.state
    with pytest.raises(RemoteProtocolError) as error:
        party.receive(Envelope(target.sender, target.recipient, bytes(payload)))
    assert error.value.peer in (*NAMES, AGGREGATOR)
    assert party.state == state
    party.receive(target)
    assert isinstance(party.state, Running | Finished)
