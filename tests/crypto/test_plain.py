"""The scheme plain: the same integers, the same care with bytes, and no secrecy, as its guarantee says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Party, Running
from secfl.crypto.identity import Directory
from secfl.crypto.plain import Plain
from secfl.crypto.wire import MessageType, Phase
from secfl.errors import BelowThreshold, ConfigError, LocalProtocolError
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.types import AGGREGATOR, VectorSpec


@pytest.fixture(scope="module")
def plain(rounds):
    def make(clients=4, threshold=3, **arguments):
        return rounds.Round(clients, threshold, scheme=Plain(threads=1), **arguments)

    return make


@given(clients=st.integers(1, 6), bits=st.integers(2, 62), length=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_sums_are_those_of_python_integers(plain, clients, bits, length, seed):
    vectors = (VectorSpec(name="v", length=length, modulus_bits=bits),)
    case = plain(clients, 1, vectors=vectors, seed=seed)
    case.finish()
    assert case.check() == case.names


def test_drop_outs(plain, rounds):
    case = plain(vectors=rounds.SEVERAL)
    case.finish(dropped={"plain-input": {"c02"}})
    assert case.check() == ("c00", "c01", "c03")
    case = plain()
    state = case.finish(dropped={"plain-input": {"c02", "c01"}})
    assert isinstance(state, Aborted)
    assert isinstance(state.reason, BelowThreshold)


def test_states_and_interface(plain):
    case = plain()
    for party in (case.aggregator, *case.parties.values()):
        assert isinstance(party, Party)
        assert party.state == Running("plain-input")
        assert str(party.state) not in repr(case.inputs)
    assert case.aggregator.start() == []
    messages = case.start()
    assert all(isinstance(party.state, Finished) for party in case.parties.values())
    assert case.parties["c00"].phase_over() == []
    with pytest.raises(LocalProtocolError, match="already started"):
        case.parties["c00"].start()
    case.finish(messages)
    assert case.aggregator.phase_over() == []
    case.check()


def test_every_update_is_visible(plain, rounds, naive):
    case = plain(vectors=rounds.SEVERAL)
    for envelope in case.start():
        data, start = rounds.content_of(envelope)[96:], 0
        for vector in rounds.SEVERAL:
            end = start + -(-vector.length * vector.modulus_bits // 8)
            seen = naive.unpack(data[start:end], vector.length, vector.modulus_bits)
            assert seen == case.inputs[envelope.sender][vector.name].tolist()
            start = end
    guarantee = case.scheme.guarantee(case.spec, survivors=3)
    assert guarantee.curious_colluders == guarantee.malicious_colluders == -1
    for behaviour in Behaviour:
        adversary = Adversary(view=View.AGGREGATOR, behaviour=behaviour)
        assert guarantee.visibility(adversary) is Visibility.EVERY_UPDATE
    assert guarantee.network_sees is guarantee.client_with_network is Visibility.EVERY_UPDATE
    assert guarantee.advantage_log2 == -math.inf
    with pytest.raises(LocalProtocolError):
        case.scheme.guarantee(case.spec, survivors=5)


def test_an_enrolled_key_is_required_of_the_whole_cohort(plain, rounds):
    case = plain(3, 3)
    fewer = Directory.enroll(list(case.identities.values())[:2])
    spec = rounds.make_spec(
        case.identities.values(), fewer, threshold=3, vectors=case.vectors, scheme="plain"
    )
    with pytest.raises(LocalProtocolError, match="not enrolled in the manifest: c02"):
        case.scheme.aggregator(spec, directory=fewer)


def test_snapshots(plain, rounds):
    case = plain(vectors=rounds.SEVERAL)

    def restore(party):
        again = case.scheme.restore(case.spec, directory=case.directory, snapshot=party.snapshot())
        assert type(again.state) is type(party.state)
        assert again.snapshot() == party.snapshot()
        return again

    case.parties = {name: restore(party) for name, party in case.parties.items()}
    messages = case.start()
    for envelope in messages[:3]:
        case.aggregator = restore(case.aggregator)
        case.aggregator.receive(envelope)
    case.aggregator.phase_over()
    case.aggregator = restore(case.aggregator)
    assert case.check() == ("c00", "c01", "c02")
    with pytest.raises(LocalProtocolError, match="already started"):
        restore(case.parties["c00"]).start()
    other = plain(round_id=2)
    for party in (other.aggregator, other.parties["c00"]):
        with pytest.raises(LocalProtocolError, match="another round"):
            case.scheme.restore(case.spec, directory=case.directory, snapshot=party.snapshot())
    masked = rounds.Round(3, 3)
    with pytest.raises(LocalProtocolError, match="not one of a party of plain"):
        case.scheme.restore(case.spec, directory=case.directory, snapshot=masked.aggregator.snapshot())


def test_hostile_inputs_are_refused(plain, rounds):
    case = plain()
    messages = case.start()
    own, other = messages[0], messages[1]
    content = rounds.content_of(own)
    identity = case.identities["c01"]
    wrong = [
        (Envelope("c01", AGGREGATOR, own.payload), "names another sender"),
        (rounds.replaced(other, content), "bad signature"),
        (rounds.replaced(own, content[:-1] + b"\xff"), "not the one that it signed"),
        (rounds.replaced(own, content[:-1]), "expected"),
        (rounds.replaced(own, content + b"\0"), "expected"),
        (Envelope("c00", AGGREGATOR, b""), "too short"),
        (Envelope("zz", AGGREGATOR, own.payload), "not in the cohort"),
        (Envelope("c00", AGGREGATOR, own.payload[:4] + b"\x01" + own.payload[5:]), "unexpected advertise"),
        (
            rounds.resigned(case, own, Phase.PLAIN_INPUT, bytes(32), content[96:]),
            "not the one that it signed",
        ),
    ]
    before = case.aggregator.snapshot()
    for envelope, reason in wrong:
        error = rounds.refusal(lambda e=envelope: case.aggregator.receive(e))
        assert error.peer == envelope.sender
        assert reason in error.reason
    assert case.aggregator.snapshot() == before
    assert identity.name == "c01"
    case.finish(messages)
    assert case.check() == case.names


def test_the_first_input_wins_and_a_second_is_evidence(plain, rounds):
    case = plain()
    messages = case.start()
    case.aggregator.receive(messages[0])
    assert "repeated" in rounds.refusal(lambda: case.aggregator.receive(messages[0])).reason
    second = rounds.resigned(
        case, messages[0], Phase.PLAIN_INPUT, bytes(32), rounds.content_of(messages[0])[96:]
    )
    assert "differs from the first" in rounds.refusal(lambda: case.aggregator.receive(second)).reason
    (evidence,) = case.aggregator.evidence
    assert (evidence.sender, evidence.second.body) == ("c00", bytes(32))
    again = case.scheme.restore(case.spec, directory=case.directory, snapshot=case.aggregator.snapshot())
    assert again.evidence == case.aggregator.evidence
    case.finish(messages[1:])
    assert case.check() == case.names
    assert "end of the round" in rounds.refusal(lambda: case.aggregator.receive(messages[1])).reason


def test_clients_take_no_messages_and_misuse_is_local(plain, rounds):
    case = plain()
    head = b"SFL1" + bytes([MessageType.DIRECTORY]) + case.spec.digest() + bytes(2)
    error = rounds.refusal(lambda: case.parties["c00"].receive(Envelope(AGGREGATOR, "c00", head)))
    assert error.peer == AGGREGATOR
    with pytest.raises(LocalProtocolError, match="delivered here"):
        case.parties["c00"].receive(Envelope(AGGREGATOR, "c01", head))
    with pytest.raises(LocalProtocolError, match="delivered here"):
        case.aggregator.receive(Envelope("c00", "c01", head))
    case.inputs["c00"] = {"update": case.inputs["c00"]["update"][:-1]}
    with pytest.raises(LocalProtocolError, match="expected 7 elements"):
        case.client("c00")
    spec = rounds.make_spec(case.identities.values(), case.directory, threshold=3, vectors=case.vectors)
    with pytest.raises(ConfigError, match="'masking', expected 'plain'"):
        case.scheme.aggregator(spec, directory=case.directory)
