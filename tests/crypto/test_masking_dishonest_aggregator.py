"""What docs/protocol.md, section 5, says of a dishonest aggregator: it is refused, and blamed.

The attacker holds every envelope, and no key.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from secfl.crypto import masking_client
from secfl.crypto.aggregation import Envelope
from secfl.crypto.hazmat import merkle, shamir
from secfl.crypto.hazmat.prg import MaskStream, add_streams
from secfl.crypto.masking import Masking
from secfl.crypto.masking_keys import (
    ClientSecrets,
)
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.masking_streams import self_stream
from secfl.crypto.messages import (
    Advertise,
    Consistency,
    Deal,
    Delivery,
    InputHeader,
    Parcel,
    Unmask,
    escrow_bytes,
)
from secfl.crypto.packing import unpack
from secfl.crypto.wire import FRAME_BYTES, Phase, Roster, Signed, sign_body
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR

LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


# Both secrets of one client, two survivor sets


def test_unmask_is_answered_once(rounds):
    """A second request, for other survivors, would give the other share of somebody."""
    case = rounds.Round(5, 3)
    requests = case.requests_until("unmask")
    request = rounds.request_for(requests, "c00")
    party = case.parties["c00"]
    party.receive(request)
    assert "repeated" in rounds.refused(party, request).reason
    assert not party.conflicts  # the same again contradicts nothing
    members = rounds.roster_of(request, Consistency.SIZE, 5)
    fewer = {index: members[index] for index in sorted(members)[:3]}
    error = rounds.refused(party, rounds.forged_request(request, fewer))
    assert error.peer == AGGREGATOR
    assert "differs from the one already answered" in error.reason
    assert list(party.conflicts) == [Phase.UNMASK]
    assert "already answered" in rounds.refused(party, request).reason


def test_a_second_survivor_set_is_not_confirmed(rounds):
    case = rounds.Round(5, 3)
    requests = case.requests_until("consistency")
    request = rounds.request_for(requests, "c00")
    party = case.parties["c00"]
    party.receive(request)
    headers = rounds.roster_of(request, InputHeader.SIZE, 5)
    fewer = {index: headers[index] for index in (0, 1, 2)}
    error = rounds.refused(party, rounds.forged_request(request, fewer))
    assert "second survivors message differs" in error.reason
    assert party.state.phase == "unmask"


def two_survivor_sets(rounds, case):
    """Clients 0 and 1 are told that everybody answered, 2 to 4 that c00 dropped out; their statements."""
    requests = case.requests_until("consistency")
    statements = {}
    for index, name in enumerate(case.names):
        request = rounds.request_for(requests, name)
        headers = rounds.roster_of(request, InputHeader.SIZE, 5)
        told = headers if index < 2 else {who: headers[who] for who in headers if who != 0}
        (answer,) = case.parties[name].receive(rounds.forged_request(request, told))
        statements[index] = rounds.signed_part(answer, Consistency.SIZE)
    return requests, statements


@pytest.mark.parametrize("victim", ["c01", "c03"])
def test_statements_about_two_survivor_sets_do_not_add_up_to_a_quorum(rounds, victim):
    """Otherwise the aggregator would collect self-mask shares from some and root shares of c00 from others."""
    case = rounds.Round(5, 3)
    requests, statements = two_survivor_sets(rounds, case)
    template = rounds.request_for(requests, victim)
    payload = template.payload[:4] + b"\x08" + template.payload[5:FRAME_BYTES]
    mixed = Envelope(AGGREGATOR, victim, payload + Roster({i: statements[i] for i in (1, 2, 3, 4)}).encode())
    error = rounds.refused(case.parties[victim], mixed)
    assert error.peer == AGGREGATOR
    own = [i for i in statements if statements[i].body == statements[case.index(victim)].body]
    alone = Envelope(AGGREGATOR, victim, payload + Roster({i: statements[i] for i in own}).encode())
    if len(own) < 3:
        assert "expected 3" in rounds.refused(case.parties[victim], alone).reason
    else:
        assert case.parties[victim].receive(alone)


def test_signers_must_be_survivors(rounds):
    """A client that dropped out may not vote on what is opened."""
    case = rounds.Round(5, 3)
    requests = case.requests_until("unmask", dropped={"masked-input": {"c04"}})
    request = rounds.request_for(requests, "c00")
    signers = rounds.roster_of(request, Consistency.SIZE, 5)
    body = next(iter(signers.values())).body
    outsider = sign_body(case.identities["c04"], Phase.CONSISTENCY, digest=case.spec.digest(), body=body)
    forged = rounds.forged_request(request, {0: signers[0], 1: signers[1], 4: outsider})
    assert "no part in the phase before" in rounds.refused(case.parties["c00"], forged).reason


def test_fewer_signers_than_the_threshold_open_nothing(rounds):
    case = rounds.Round(5, 4)
    request = rounds.request_for(case.requests_until("unmask"), "c00")
    signers = rounds.roster_of(request, Consistency.SIZE, 5)
    forged = rounds.forged_request(request, {index: signers[index] for index in (0, 1, 2)})
    assert "3 clients in consistency, expected 4" in rounds.refused(case.parties["c00"], forged).reason


def test_a_client_never_sends_both_shares_of_anyone(rounds):
    case = rounds.Round(5, 3)
    requests = case.requests_until("unmask", dropped={"masked-input": {"c04"}})
    held = dict(case.parties["c00"]._memory.held)
    (answer,) = case.parties["c00"].receive(rounds.request_for(requests, "c00"))
    body = rounds.content_of(answer)[: Unmask.size(5)]
    for index, share in held.items():
        root_part, self_part = share[:32], share[32:]
        assert (root_part in body) == (index == 4)
        assert (self_part in body) == (index != 4)


# Two sets of members (U2)


def two_member_sets(rounds, case):
    """c00 is told that the members are c00, c01, c02; everybody else that all five are. Masked inputs."""
    requests = case.requests_until("masked-input")
    answers = []
    for name in case.names:
        request = rounds.request_for(requests, name)
        if name == "c00":
            delivery = Delivery.decode(
                memoryview(rounds.content_of(request)), peer="test", recipient=0, clients=5
            )
            deals = Roster({index: delivery.deals.members[index] for index in (0, 1, 2)})
            parcels = {index: delivery.parcels[index] for index in (1, 2)}
            request = rounds.replaced(request, Delivery(deals=deals, parcels=parcels).encode())
        answers += case.parties[name].receive(request)
    return answers


def test_two_sets_of_members_are_noticed_by_every_client(rounds):
    case = rounds.Round(5, 3)
    answers = two_member_sets(rounds, case)
    headers = {case.index(e.sender): rounds.signed_part(e, InputHeader.SIZE) for e in answers}
    for name in ("c00", "c03"):
        head = answers[0].payload[:4] + b"\x06" + answers[0].payload[5 : FRAME_BYTES - 2] + bytes(2)
        request = Envelope(AGGREGATOR, name, head + Roster(headers).encode())
        error = rounds.refused(case.parties[name], request)
        assert error.peer == AGGREGATOR
        assert error.reason in (
            "told different clients of different members",
            "named clients that took no part in the phase before",
        )


def test_an_honest_aggregator_refuses_an_input_for_other_members(rounds):
    case = rounds.Round(5, 3)
    answers = two_member_sets(rounds, case)
    error = rounds.refused(case.aggregator, rounds.message_of(answers, "c00"))
    assert (error.peer, error.reason) == ("c00", "masked its input for other members")


def tell_it_that_it_is_alone(rounds, case):
    """The aggregator tells c00 that it is the only member, and everybody else that all are; then it lets the
    others open the self mask of c00, which is the only mask on its input. Returns what it finds.
    """
    requests = case.requests_until("masked-input")
    inputs = []
    for envelope in requests:
        request = envelope
        if envelope.recipient == "c00":
            content = memoryview(rounds.content_of(envelope))
            delivery = Delivery.decode(content, peer="test", recipient=0, clients=5)
            alone = Delivery(deals=Roster({0: delivery.deals.members[0]}), parcels={})
            request = rounds.replaced(envelope, alone.encode())
        inputs += case.parties[envelope.recipient].receive(request)
    head = requests[0].payload[:FRAME_BYTES]
    headers = {case.index(e.sender): rounds.signed_part(e, InputHeader.SIZE) for e in inputs}
    told = head[:4] + b"\x06" + head[5:] + Roster(headers).encode()
    others = case.names[1:]
    statements = {}
    for name in others:
        (answer,) = case.parties[name].receive(Envelope(AGGREGATOR, name, told))
        statements[case.index(name)] = rounds.signed_part(answer, Consistency.SIZE)
    told = head[:4] + b"\x08" + head[5:] + Roster(statements).encode()
    shares = []
    for name in others[:3]:
        (answer,) = case.parties[name].receive(Envelope(AGGREGATOR, name, told))
        shares.append((case.index(name) + 1, rounds.content_of(answer)[:32]))
    masked = MaskedRound(spec=case.spec, vectors=case.spec.vectors)
    (vector,) = masked.vectors
    words = unpack(rounds.content_of(inputs[0])[128:], length=masked.masked_length(vector), bits=16)
    mask = self_stream(masked, 0, shamir.combine(shares), vector)
    add_streams(words, [MaskStream(mask.key, mask.sign.opposite())])
    return (words[: vector.length] % (1 << vector.modulus_bits)).tolist()


def without_the_least_number_of_members(case):
    case.parties["c00"]._memory.minimum = 1


def without_the_members_digest(monkeypatch):
    monkeypatch.setattr(masking_client, "members_digest", lambda *_, **__: bytes(32))


def test_without_its_guards_a_client_that_is_told_it_is_alone_is_read(rounds, monkeypatch):
    """With both guards taken away, the aggregator alone reads the input of c00."""
    case = rounds.Round(5, 3)
    without_the_least_number_of_members(case)
    without_the_members_digest(monkeypatch)
    assert tell_it_that_it_is_alone(rounds, case) == case.inputs["c00"]["update"].tolist()


def test_the_members_digest_alone_stops_it(rounds):
    case = rounds.Round(5, 3)
    without_the_least_number_of_members(case)
    with pytest.raises(RemoteProtocolError, match="told different clients of different members"):
        tell_it_that_it_is_alone(rounds, case)


def test_the_least_number_of_members_alone_stops_it(rounds, monkeypatch):
    case = rounds.Round(5, 3)
    without_the_members_digest(monkeypatch)
    with pytest.raises(RemoteProtocolError, match="1 clients, expected at least 3"):
        tell_it_that_it_is_alone(rounds, case)


def test_a_client_is_not_told_that_it_is_alone(rounds):
    case = rounds.Round(5, 3)
    request = rounds.request_for(case.requests_until("masked-input"), "c00")
    delivery = Delivery.decode(memoryview(rounds.content_of(request)), peer="test", recipient=0, clients=5)
    for members in ((0,), (0, 1)):
        alone = Delivery(
            deals=Roster({index: delivery.deals.members[index] for index in members}),
            parcels={index: delivery.parcels[index] for index in members if index},
        )
        error = rounds.refused(case.parties["c00"], rounds.replaced(request, alone.encode()))
        assert "expected at least 3" in error.reason


def test_a_client_is_not_left_out_of_its_own_rosters(rounds):
    case = rounds.Round(5, 3)
    for phase, body_bytes in (("share", Advertise.SIZE), ("consistency", InputHeader.SIZE)):
        case = rounds.Round(5, 3)
        request = rounds.request_for(case.requests_until(phase), "c00")
        others = rounds.roster_of(request, body_bytes, 5)
        del others[0]
        error = rounds.refused(case.parties["c00"], rounds.forged_request(request, others))
        assert "left c00 out of its own" in error.reason


def test_survivors_outside_the_members_are_refused(rounds):
    case = rounds.Round(5, 3)
    requests = case.requests_until("consistency", dropped={"share": {"c04"}})
    request = rounds.request_for(requests, "c00")
    headers = rounds.roster_of(request, InputHeader.SIZE, 5)
    stranger = sign_body(
        case.identities["c04"], Phase.MASKED_INPUT, digest=case.spec.digest(), body=headers[0].body
    )
    error = rounds.refused(case.parties["c00"], rounds.forged_request(request, headers | {4: stranger}))
    assert "no part in the phase before" in error.reason


@pytest.mark.parametrize("phase", ["share", "masked-input", "consistency"])
def test_a_client_insists_on_its_own_minimum(rounds, phase):
    """A client may ask for more company than the round's threshold."""
    case = rounds.Round(5, 3)
    case.parties["c00"] = case.client("c00", scheme=Masking(minimum=5, threads=1))
    lost = {"share": "advertise", "masked-input": "share", "consistency": "masked-input"}[phase]
    request = rounds.request_for(case.requests_until(phase, dropped={lost: {"c04"}}), "c00")
    error = rounds.refused(case.parties["c00"], request)
    assert "expected" in error.reason
    assert error.peer == AGGREGATOR


def test_a_minimum_above_the_cohort_is_refused(rounds):
    case = rounds.Round(5, 3)
    with pytest.raises(ConfigError, match="own minimum of 6"):
        case.client("c00", scheme=Masking(minimum=6))


# Keys that are not the owner's


def test_a_replaced_public_key_is_noticed(rounds):
    """The aggregator puts its own keys in the place of c01's; it cannot sign them."""
    case = rounds.Round(4, 3)
    request = rounds.request_for(case.requests_until("share"), "c00")
    adverts = rounds.roster_of(request, Advertise.SIZE, 4)
    evil = ClientSecrets.draw(InsecureSeededRng(666), threshold=3)
    body = evil.sealing.public() * 2
    forged = adverts | {1: Signed(body, adverts[1].signature)}
    error = rounds.refused(case.parties["c00"], rounds.forged_request(request, forged))
    assert error.peer == AGGREGATOR
    assert "c01: bad signature" in error.reason


def test_a_clients_own_key_is_not_replaced_by_an_older_one(rounds):
    """A replay of what c00 advertised in an earlier attempt at the same round, with its valid signature."""
    case = rounds.Round(4, 3)
    (old,) = case.client("c00", rng=InsecureSeededRng(99)).start()
    request = rounds.request_for(case.requests_until("share"), "c00")
    adverts = rounds.roster_of(request, Advertise.SIZE, 4)
    forged = adverts | {0: rounds.signed_part(old, Advertise.SIZE)}
    error = rounds.refused(case.parties["c00"], rounds.forged_request(request, forged))
    assert error.reason == "replaced the advertise message of c00"


def test_a_clients_own_deal_is_not_replaced_by_another(rounds):
    """The twin of a client that was wrongly started twice dealt other secrets, validly signed."""
    case = rounds.Round(4, 3)
    request = rounds.request_for(case.requests_until("share"), "c00")
    twin = case.scheme.restore(case.spec, directory=case.directory, snapshot=case.parties["c00"].snapshot())
    (other,) = twin.receive(request)
    content = rounds.content_of(request)
    messages = [case.parties["c00"].receive(request)[0]]
    for name in case.names[1:]:
        again = Envelope(AGGREGATOR, name, request.payload[:FRAME_BYTES] + content)
        messages += case.parties[name].receive(again)
    request = rounds.request_for(case.collect(messages), "c00")
    delivery = Delivery.decode(memoryview(rounds.content_of(request)), peer="test", recipient=0, clients=4)
    deals = Roster(dict(delivery.deals.members) | {0: rounds.signed_part(other, Deal.SIZE)})
    forged = rounds.replaced(request, Delivery(deals=deals, parcels=delivery.parcels).encode())
    error = rounds.refused(case.parties["c00"], forged)
    assert (error.peer, error.reason) == (AGGREGATOR, "replaced the share message of c00")


def test_a_deal_that_its_client_did_not_sign_is_refused(rounds):
    """Else members could be invented, and somebody who is nearly alone would think itself among many."""
    case = rounds.Round(4, 3)
    request = rounds.request_for(case.requests_until("masked-input"), "c00")
    content = bytes(rounds.content_of(request))
    deals = Delivery.decode(memoryview(content), peer=AGGREGATOR, recipient=0, clients=4).deals.members
    signature = bytes(deals[2].signature)
    assert content.count(signature) == 1
    for forged in (bytes(64), bytes(deals[1].signature)):
        error = rounds.refused(
            case.parties["c00"], rounds.replaced(request, content.replace(signature, forged))
        )
        assert (error.peer, "relayed a false statement" in error.reason) == (AGGREGATOR, True)
    assert case.answer([request])


def test_a_request_out_of_turn_is_no_evidence_of_two_requests(rounds):
    """Who only comes too early has not contradicted itself, and is not accused of it."""
    case = rounds.Round(4, 3)
    early = rounds.request_for(case.requests_until("consistency"), "c00")
    again = case.client("c00")
    again.start()
    error = rounds.refused(again, early)
    assert (error.peer, error.reason.startswith("unexpected ")) == (AGGREGATOR, True)
    assert not again.conflicts
    case.deliver(early)
    assert not case.parties["c00"].conflicts


def test_two_directories_are_noticed(rounds):
    case = rounds.Round(5, 3)
    requests = case.requests_until("share")
    answers = []
    for envelope in requests:
        members = rounds.roster_of(envelope, Advertise.SIZE, 5)
        if envelope.recipient == "c00":
            del members[4]
        answers += case.parties[envelope.recipient].receive(rounds.forged_request(envelope, members))
    # The honest aggregator refuses; a dishonest one relays, and the others refuse.
    assert rounds.refusal(lambda: case.aggregator.receive(rounds.message_of(answers, "c00"))).peer == "c00"
    for answer in answers:
        if answer.sender != "c00":
            sent = case.deliver(answer)
    request = rounds.request_for(sent or case.aggregator.phase_over(), "c01")
    delivery = Delivery.decode(memoryview(rounds.content_of(request)), peer="test", recipient=1, clients=5)
    content = rounds.content_of(rounds.message_of(answers, "c00"))
    start = Deal.SIZE + 64 + escrow_bytes(3)
    sizes = [Parcel.size(sender=0, recipient=to) for to in (1, 2, 3)]
    parcels = {
        to: content[start + sum(sizes[:i]) : start + sum(sizes[: i + 1])] for i, to in enumerate((1, 2, 3))
    }
    forged = Delivery(
        deals=Roster(
            dict(delivery.deals.members)
            | {0: rounds.signed_part(rounds.message_of(answers, "c00"), Deal.SIZE)}
        ),
        parcels=dict(delivery.parcels) | {0: (parcels[1], merkle.path(parcels, 1, places=5))},
    )
    error = rounds.refused(case.parties["c01"], rounds.replaced(request, forged.encode()))
    assert (error.peer, error.reason) == (AGGREGATOR, "showed different directories to different clients")


@pytest.mark.parametrize("low", LOW_ORDER)
@pytest.mark.parametrize("which", ["mask", "sealing"])
def test_x25519_keys_of_small_order_are_refused(rounds, low, which):
    """They would make a pair secret, or a sealed share, depend on ML-KEM alone."""
    case = rounds.Round(4, 3)
    messages = case.start()
    own = rounds.message_of(messages, "c01")
    advert = Advertise.decode(rounds.content_of(own)[: Advertise.SIZE], peer="test")
    sealing = advert.sealing[:-32] + low
    bad = replace(advert, x25519=low) if which == "mask" else replace(advert, sealing=sealing)
    forged = rounds.resigned(case, own, Phase.ADVERTISE, bad.encode(), b"")
    error = rounds.refused(case.aggregator, forged)
    assert (error.peer, error.reason) == ("c01", "advertised a public key that cannot be used")
    # A dishonest aggregator relays it: the client refuses as well, and blames the owner.
    request = rounds.request_for(case.collect(messages), "c00")
    adverts = rounds.roster_of(request, Advertise.SIZE, 4)
    adverts[1] = rounds.signed_part(forged, Advertise.SIZE)
    error = rounds.refused(case.parties["c00"], rounds.forged_request(request, adverts))
    assert error.peer == "c01"
    assert "cannot be used" in error.reason


@pytest.mark.parametrize("which", ["kem", "sealing"])
def test_bytes_that_are_no_ml_kem_key_are_refused(rounds, which):
    case = rounds.Round(4, 3)
    messages = case.start()
    own = rounds.message_of(messages, "c03")
    advert = Advertise.decode(rounds.content_of(own)[: Advertise.SIZE], peer="test")
    if which == "kem":
        bad = replace(advert, kem=b"\xff" * 1184)
    else:
        bad = replace(advert, sealing=b"\xff" * 1184 + advert.sealing[-32:])
    forged = rounds.resigned(case, own, Phase.ADVERTISE, bad.encode(), b"")
    assert rounds.refused(case.aggregator, forged).peer == "c03"
    request = rounds.request_for(case.collect(messages), "c00")
    adverts = rounds.roster_of(request, Advertise.SIZE, 4)
    adverts[3] = rounds.signed_part(forged, Advertise.SIZE)
    assert rounds.refused(case.parties["c00"], rounds.forged_request(request, adverts)).peer == "c03"
