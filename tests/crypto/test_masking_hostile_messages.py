"""Messages that come twice, too late, from elsewhere or damaged, also under a valid signature."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.crypto import masking_dealing
from secfl.crypto.aggregation import Envelope, Finished
from secfl.crypto.hazmat.sealed import HYBRID_SEED_BYTES, AgreementKey, SealingKey, encapsulate
from secfl.crypto.masking_aggregator import MaskingAggregator
from secfl.crypto.masking_keys import (
    ClientSecrets,
)
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.masking_streams import agree
from secfl.crypto.messages import (
    Advertise,
    Consistency,
    Deal,
    InputHeader,
    Unmask,
    escrow_bytes,
)
from secfl.crypto.wire import FRAME_BYTES, MessageType, Phase, Signed, sign_body, verify_body
from secfl.errors import BelowThreshold, LocalProtocolError, RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, VectorSpec

PHASES = ("advertise", "share", "masked-input", "consistency", "unmask")
BODY_BYTES = {
    "advertise": Advertise.SIZE,
    "share": Deal.SIZE,
    "masked-input": InputHeader.SIZE,
    "consistency": Consistency.SIZE,
}


# Equivocation, repetition, wrong time, wrong place


@pytest.mark.parametrize("phase", PHASES)
def test_the_first_message_wins_and_a_second_one_is_evidence(rounds, phase):
    case = rounds.Round(4, 3)
    messages = case.run_until(phase)
    own = rounds.message_of(messages, "c00")
    case.deliver(own)
    assert "repeated" in rounds.refused(case.aggregator, own).reason
    assert case.aggregator.evidence == ()
    size = BODY_BYTES.get(phase, Unmask.size(4))
    content = rounds.content_of(own)
    other = bytes([content[0] ^ 1]) + content[1:size]
    second = rounds.resigned(case, own, Phase(phase), other, content[size + 64 :])
    error = rounds.refused(case.aggregator, second)
    assert (error.peer, "differs from the first" in error.reason) == ("c00", True)
    (evidence,) = case.aggregator.evidence
    assert (evidence.phase, evidence.sender) == (phase, "c00")
    assert (evidence.first.body, evidence.second.body) == (content[:size], other)
    for signed in (evidence.first, evidence.second):
        verify_body(case.directory, evidence.phase, digest=case.spec.digest(), sender="c00", signed=signed)
    again = case.scheme.restore(case.spec, directory=case.directory, snapshot=case.aggregator.snapshot())
    assert again.evidence == case.aggregator.evidence
    case.finish([envelope for envelope in messages if envelope is not own])
    assert case.check() == case.names


def test_a_client_does_not_speak_as_the_aggregator(rounds):
    """Its message has the form of a request; the aggregator says so, and not that it came at the wrong time."""
    case = rounds.Round(4, 3)
    own = rounds.message_of(case.start(), "c00")
    kinds = {MessageType(request.payload[4]) for request in rounds.Round(4, 3).requests_until("share")}
    for kind in kinds:
        payload = own.payload[:4] + bytes([kind]) + own.payload[5:]
        error = rounds.refused(case.aggregator, replace(own, payload=payload))
        assert error.peer == "c00"
        assert error.reason == f"{kind.name.lower()} messages are not for the aggregator"
    case.deliver(own)


def test_evidence_needs_the_clients_signature(rounds):
    """Nobody can be framed, and nobody can fill the aggregator's memory."""
    case = rounds.Round(4, 3)
    own = rounds.message_of(case.start(), "c00")
    case.deliver(own)
    content = rounds.content_of(own)
    forged = rounds.replaced(own, bytes([content[0] ^ 1]) + content[1:])
    assert "bad signature" in rounds.refused(case.aggregator, forged).reason
    for value in range(5):
        body = bytes([value]) * Advertise.SIZE
        rounds.refusal(
            lambda b=body: case.aggregator.receive(rounds.resigned(case, own, Phase.ADVERTISE, b, b""))
        )
    assert len(case.aggregator.evidence) == 1


def test_late_early_and_uninvited_messages_are_refused(rounds):
    case = rounds.Round(5, 3)
    messages = case.start()
    late = rounds.message_of(messages, "c04")
    requests = case.collect([envelope for envelope in messages if envelope is not late])
    assert "after the end of that phase" in rounds.refused(case.aggregator, late).reason
    answers = case.answer(requests)
    frame = late.payload[:4] + b"\x03" + late.payload[5:FRAME_BYTES]
    uninvited = Envelope("c04", AGGREGATOR, frame + rounds.content_of(rounds.message_of(answers, "c03")))
    assert "not due, or not from this client" in rounds.refused(case.aggregator, uninvited).reason
    early = Envelope("c00", AGGREGATOR, answers[0].payload[:4] + b"\x07" + answers[0].payload[5:])
    assert "not due" in rounds.refused(case.aggregator, early).reason
    stranger = Envelope("zz", AGGREGATOR, answers[0].payload)
    assert rounds.refused(case.aggregator, stranger).peer == "zz"
    state = case.finish(answers)
    assert isinstance(state, Finished)
    assert "after the end of the round" in rounds.refused(case.aggregator, answers[0]).reason


def test_clients_listen_to_the_aggregator_only(rounds):
    case = rounds.Round(3, 3)
    request = rounds.request_for(case.requests_until("share"), "c00")
    forged = Envelope("c01", "c00", request.payload)
    assert rounds.refused(case.parties["c00"], forged).peer == "c01"


def test_the_unmask_message_is_for_the_aggregator_alone(rounds):
    """A statement is bound to its phase and recipient: consistency cannot pass as unmask."""
    case = rounds.Round(3, 3)
    own = rounds.message_of(case.run_until("consistency"), "c00")
    content = rounds.content_of(own)
    signed = rounds.signed_part(own, 64)
    for phase in set(Phase) - {Phase.CONSISTENCY}:
        with pytest.raises(RemoteProtocolError, match="bad signature"):
            verify_body(case.directory, phase, digest=case.spec.digest(), sender="c00", signed=signed)
    assert len(content) == 128


# Damage, also under a valid signature


def mutations(data, draw):
    place = draw(st.integers(0, max(0, len(data) - 1)))
    kind = draw(st.sampled_from(["flip", "cut", "extend", "zero", "swap"]))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
    if kind == "cut":
        return data[:place]
    if kind == "extend":
        return data + draw(st.binary(min_size=1, max_size=70))
    if kind == "zero":
        return data[:place] + bytes(min(40, len(data) - place)) + data[place + 40 :]
    return data[place:] + data[:place]


@pytest.fixture(scope="module")
def snapshots(rounds):
    """For every phase: the parties just before it, and the honest messages to and from the aggregator."""
    case = rounds.Round(4, 3, vectors=rounds.SEVERAL)
    found = {}
    messages = case.start()
    while case.phase is not None:
        phase = case.phase
        aggregator = case.aggregator.snapshot()
        clients = {name: party.snapshot() for name, party in case.parties.items()}
        requests = case.collect(messages)
        found[phase] = (case, aggregator, messages, clients, requests)
        messages = case.answer(requests)
    return found


@settings(max_examples=150)
@given(st.data())
def test_damaged_messages_end_in_a_refusal_that_names_the_sender(rounds, snapshots, data):
    phase = data.draw(st.sampled_from(PHASES))
    case, aggregator, messages, clients, requests = snapshots[phase]
    if requests and data.draw(st.booleans()):
        honest = data.draw(st.sampled_from(requests))
        snapshot = clients[honest.recipient]
    else:
        honest, snapshot = data.draw(st.sampled_from(messages)), aggregator
    damaged = mutations(honest.payload, data.draw)
    if damaged == honest.payload:
        return
    party = case.scheme.restore(case.spec, directory=case.directory, snapshot=snapshot)
    error = rounds.refusal(lambda: party.receive(Envelope(honest.sender, honest.recipient, damaged)))
    assert error.peer == honest.sender
    assert party.snapshot() == snapshot


@settings(max_examples=200)
@given(st.data())
def test_messages_damaged_before_signing_end_in_a_refusal_or_are_harmless(rounds, snapshots, data):
    """Signed with the sender's valid key, damage reaches the parsers. Nothing but a refusal may come of it."""
    phase = data.draw(st.sampled_from(PHASES))
    case, aggregator, messages, _, _ = snapshots[phase]
    honest = data.draw(st.sampled_from(messages))
    content = rounds.content_of(honest)
    size = BODY_BYTES.get(phase, Unmask.size(4))
    body, rest = content[:size], content[size + 64 :]
    if rest and data.draw(st.booleans()):
        rest = mutations(rest, data.draw)
    else:
        body = mutations(body, data.draw)
    forged = rounds.resigned(case, honest, Phase(phase), body, rest)
    party = case.scheme.restore(case.spec, directory=case.directory, snapshot=aggregator)
    error = rounds.outcome(lambda: party.receive(forged))
    if error is not None:
        assert error.peer == honest.sender
        assert party.snapshot() == aggregator
    else:
        # Random-looking fields may differ: keys that parse, commitments that are checked at the end.
        assert phase in ("advertise", "share") or forged.payload == honest.payload


@settings(max_examples=150)
@given(st.data())
def test_statements_damaged_before_signing_and_relayed_end_in_a_refusal_or_are_harmless(
    rounds, snapshots, data
):
    """The same towards clients: a dishonest aggregator relays what a dishonest client signed."""
    phase = data.draw(st.sampled_from(PHASES[:4]))
    case, _, _, clients, requests = snapshots[phase]
    request = data.draw(st.sampled_from(requests))
    size = BODY_BYTES[phase]
    content = rounds.content_of(request)
    members = rounds.roster_of(request, size, 4)
    author = data.draw(st.sampled_from(sorted(members)))
    body = mutations(members[author].body, data.draw)
    identity = case.identities[case.names[author]]
    signed = sign_body(identity, Phase(phase), digest=case.spec.digest(), body=body)
    start = 8 + sorted(members).index(author) * (size + 64)
    forged = content[:start] + signed.encode() + content[start + size + 64 :]
    party = case.scheme.restore(case.spec, directory=case.directory, snapshot=clients[request.recipient])
    error = rounds.outcome(lambda: party.receive(rounds.replaced(request, forged)))
    if error is not None:
        assert error.peer in (AGGREGATOR, case.names[author])
        assert party.snapshot() == clients[request.recipient]
    else:
        assert phase != "consistency" or forged == content


@pytest.mark.slow
def test_a_million_bytes_of_noise_are_refused(rounds, snapshots):
    source = np.random.default_rng(0)
    for phase in PHASES:
        case, aggregator, messages, clients, requests = snapshots[phase]
        for honest, snapshot in [
            (messages[0], aggregator),
            *((r, clients[r.recipient]) for r in requests[:1]),
        ]:
            party = case.scheme.restore(case.spec, directory=case.directory, snapshot=snapshot)
            for size in (0, 1, 38, 39, 40, len(honest.payload), 100_000):
                noise = source.bytes(size)
                for payload in (noise, honest.payload[:FRAME_BYTES] + noise):
                    error = rounds.refusal(
                        lambda p=payload, q=party, h=honest: q.receive(Envelope(h.sender, h.recipient, p))
                    )
                    assert error.peer == honest.sender
            assert party.snapshot() == snapshot


# Guards that are checked where the aggregator is honest and a client is not


def test_confirming_other_survivors_is_refused(rounds):
    case = rounds.Round(4, 3)
    own = rounds.message_of(case.run_until("consistency"), "c00")
    body = rounds.content_of(own)[:32] + bytes(32)
    error = rounds.refused(case.aggregator, rounds.resigned(case, own, Phase.CONSISTENCY, body, b""))
    assert (error.peer, error.reason) == ("c00", "confirmed other survivors")


def test_blame_for_a_false_relayed_statement_falls_on_the_aggregator(rounds):
    case = rounds.Round(4, 3)
    for phase, size in (("share", Advertise.SIZE), ("consistency", 64), ("unmask", 64)):
        case = rounds.Round(4, 3)
        request = rounds.request_for(case.requests_until(phase), "c00")
        members = rounds.roster_of(request, size, 4)
        members[2] = Signed(members[2].body, bytes(64))
        error = rounds.refused(case.parties["c00"], rounds.forged_request(request, members))
        assert error.peer == AGGREGATOR
        assert "relayed a false statement: c02: bad signature" in error.reason


def test_escrow_keys_are_not_reused_for_other_secrets(rounds):
    """A client wrongly started twice from one snapshot encapsulates anew: another key, not the same nonce twice."""
    case = rounds.Round(4, 3)
    request = rounds.request_for(case.requests_until("share"), "c00")
    snapshot = case.parties["c00"].snapshot()
    escrows = []
    for _ in range(2):
        party = case.scheme.restore(case.spec, directory=case.directory, snapshot=snapshot)
        (answer,) = party.receive(request)
        content = rounds.content_of(answer)
        start = Deal.SIZE + 64
        escrows.append((content[start : start + 12], content[start + 12 : start + escrow_bytes(3)], party))
    assert escrows[0][0] == escrows[1][0]
    secrets = [b"".join(s for s, _ in party._memory.encapsulated.values()) for _, _, party in escrows]
    plain = bytes(a ^ b for a, b in zip(*secrets, strict=True))
    cipher = bytes(a ^ b for a, b in zip(escrows[0][1], escrows[1][1], strict=False))[: len(plain)]
    assert plain != cipher


def test_nothing_is_opened_below_the_threshold_of_answers(rounds):
    case = rounds.Round(5, 4)
    messages = case.run_until("unmask")
    for envelope in messages[:3]:
        case.aggregator.receive(envelope)
    case.aggregator.phase_over()
    assert isinstance(case.aggregator.state.reason, BelowThreshold)
    assert case.aggregator._memory.result is None


def test_a_sealing_key_is_not_derived_from_the_root(rounds):
    """The aggregator learns the root of a client that dropped out; shares sealed to it must stay closed."""
    secrets = ClientSecrets.draw(InsecureSeededRng(1), threshold=3)
    same_root = replace(ClientSecrets.draw(InsecureSeededRng(2), threshold=3), root=secrets.root)
    assert secrets.sealing.public() != same_root.sealing.public()
    assert isinstance(secrets.sealing, SealingKey)


def test_the_canaries_total_at_least_64_bits():
    for bits in range(2, 63):
        vector = VectorSpec(name="v", length=1, modulus_bits=bits)
        assert 64 <= MaskedRound.canaries(vector) * bits < 64 + bits


def test_no_dealing_without_checked_keys(monkeypatch, rounds):
    """`deal_out` alone refuses unusable keys: it does not rely on the aggregator's check."""
    calls = []
    original = masking_dealing.encapsulate
    monkeypatch.setattr(masking_dealing, "encapsulate", lambda public: calls.append(1) or original(public))
    case = rounds.Round(4, 3)
    case.answer(case.requests_until("share"))
    assert len(calls) == 6


def test_a_pair_has_no_secret_from_a_key_of_small_order(rounds):
    """`agree` alone refuses it and names its owner: it does not rely on the check of advertisements."""
    case = rounds.Round(3, 3)
    messages = case.start()
    adverts = {
        index: Advertise.decode(rounds.content_of(message)[: Advertise.SIZE], peer="test")
        for index, message in enumerate(messages)
    }
    keys = AgreementKey(bytes(HYBRID_SEED_BYTES))
    secrets = encapsulate(adverts[1].kem)
    pair = {"keys": keys, "encapsulated": secrets}
    masked = case.parties["c00"]._masked
    assert len(agree(masked, 0, 1, adverts=adverts, **pair)) == 32
    adverts[1] = replace(adverts[1], x25519=bytes(32))
    with pytest.raises(RemoteProtocolError, match="mask key that cannot be used") as caught:
        agree(masked, 0, 1, adverts=adverts, **pair)
    assert caught.value.peer == "c01"


def test_an_aggregator_has_no_slot_for_a_key(rounds):
    case = rounds.Round(3, 3)
    with pytest.raises(TypeError):
        MaskingAggregator.create(case.parties["c00"]._masked, directory=case.directory, identity=1)
    with pytest.raises(LocalProtocolError):
        case.scheme.restore(case.spec, directory=case.directory, snapshot=b"")
