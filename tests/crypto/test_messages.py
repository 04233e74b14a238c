"""Messages: one encoding each, sizes known beforehand, and nothing but a refusal for any other bytes."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.crypto.identity import SIGNATURE_BYTES, Directory, Identity
from secfl.crypto.messages import (
    Advertise,
    Consistency,
    Deal,
    Delivery,
    InputHeader,
    Parcel,
    PlainHeader,
    Unmask,
    escrow_bytes,
)
from secfl.crypto.wire import (
    AGGREGATOR_INDEX,
    FRAME_BYTES,
    MessageType,
    Phase,
    Reader,
    Roster,
    Signed,
    check_size,
    frame,
    open_frame,
    sign_body,
    take_signed,
    verify_body,
)
from secfl.errors import RemoteProtocolError
from secfl.randomness import InsecureSeededRng

BODIES = (Advertise, Deal, InputHeader, Consistency, PlainHeader)
DIGEST = bytes(range(32))


def filled(kind):
    """A value whose fields are all different."""
    source = InsecureSeededRng(1)
    size = kind.SIZE
    return kind.decode(source.bytes(size), peer="test")


@pytest.mark.parametrize("kind", BODIES)
def test_bodies_have_one_size_and_one_encoding(kind):
    value = filled(kind)
    data = value.encode()
    assert len(data) == kind.SIZE
    assert kind.decode(data, peer="x") == value
    parts = [getattr(value, field.name) for field in dataclasses.fields(kind)]
    assert b"".join(parts) == data, "fields are encoded in the order of the class"
    for damaged in (b"", data[:-1], data + b"\0"):
        with pytest.raises(RemoteProtocolError) as caught:
            kind.decode(damaged, peer="x")
        assert caught.value.peer == "x"


def test_the_sizes_are_the_published_ones():
    assert (Advertise.SIZE, Deal.SIZE, InputHeader.SIZE, Consistency.SIZE) == (2432, 224, 64, 64)
    assert Parcel.size(sender=1, recipient=2) == 1088 + 1200 + 64
    assert Parcel.size(sender=2, recipient=1) == 1200 + 64
    assert escrow_bytes(3) == 12 + 96 + 16
    assert Unmask.size(5) == 160


@given(count=st.integers(0, 64), data=st.data())
def test_unmask_holds_one_share_a_member(count, data):
    body = data.draw(st.binary(min_size=32 * count, max_size=32 * count))
    value = Unmask.decode(body, peer="x", members=count)
    assert len(value.shares) == count
    assert value.encode() == body
    for other in {count + 1, max(0, count - 1)} - {count}:
        with pytest.raises(RemoteProtocolError):
            Unmask.decode(body, peer="x", members=other)


@pytest.mark.parametrize(("sender", "recipient"), [(0, 1), (1, 0)])
def test_parcels(sender, recipient):
    size = Parcel.size(sender=sender, recipient=recipient)
    data = InsecureSeededRng(2).bytes(size)
    parcel = Parcel.decode(data, peer="x", sender=sender, recipient=recipient)
    assert parcel.encode() == data
    assert bool(parcel.kem_ciphertext) == (recipient > sender)
    assert Parcel.from_fields(parcel.fields()) == parcel
    assert parcel.delivered().sealed == b""
    assert parcel.delivered().root_commitment == parcel.root_commitment
    with pytest.raises(RemoteProtocolError):
        Parcel.decode(data, peer="x", sender=recipient, recipient=sender)


@st.composite
def rosters(draw):
    clients = draw(st.integers(1, 64))
    members = draw(st.sets(st.integers(0, clients - 1)))
    body_bytes = draw(st.integers(0, 9))
    source = InsecureSeededRng(draw(st.integers(0, 99)))
    return (
        clients,
        body_bytes,
        Roster({m: Signed(source.bytes(body_bytes), source.bytes(64)) for m in members}),
    )


@given(rosters())
def test_rosters(case):
    clients, body_bytes, roster = case
    data = memoryview(roster.encode())
    assert len(data) == Roster.size(len(roster.members), body_bytes=body_bytes)
    members = Roster.read_members(data, peer="x", clients=clients)
    assert members == tuple(sorted(roster.members))
    reader = Reader(data, peer="x")
    assert Roster.take(reader, members=members, body_bytes=body_bytes) == roster
    reader.end()


@pytest.mark.parametrize(("bits", "clients"), [(1 << 3, 3), (1 << 63, 63), (2**64 - 1, 4)])
def test_rosters_name_members_of_the_cohort_only(bits, clients):
    with pytest.raises(RemoteProtocolError, match="outside the cohort"):
        Roster.read_members(memoryview(struct.pack("<Q", bits)), peer="x", clients=clients)


@pytest.mark.parametrize("size", [0, 7])
def test_rosters_too_short_for_their_members(size):
    with pytest.raises(RemoteProtocolError, match="too short"):
        Roster.read_members(memoryview(bytes(size)), peer="x", clients=3)


@given(
    clients=st.integers(1, 9),
    recipient=st.integers(0, 8),
    members=st.sets(st.integers(0, 8)),
    damage=st.integers(-40, 40),
)
def test_deliveries(clients, recipient, members, damage):
    members = {member for member in members if member < clients} | {min(recipient, clients - 1)}
    recipient = min(recipient, clients - 1)
    source = InsecureSeededRng(3)
    siblings = (clients - 1).bit_length()
    delivery = Delivery(
        deals=Roster({m: Signed(source.bytes(Deal.SIZE), source.bytes(64)) for m in members}),
        parcels={
            m: (
                source.bytes(Parcel.size(sender=m, recipient=recipient)),
                tuple(source.bytes(32) for _ in range(siblings)),
            )
            for m in members - {recipient}
        },
    )
    data = delivery.encode()
    assert Delivery.decode(memoryview(data), peer="x", recipient=recipient, clients=clients) == delivery
    damaged = data[:damage] if damage < 0 else data + bytes(damage)
    if damaged != data:
        with pytest.raises(RemoteProtocolError, match=r"expected|too short"):
            Delivery.decode(memoryview(damaged), peer="x", recipient=recipient, clients=clients)


# Frames and signatures


@pytest.mark.parametrize("sender", [AGGREGATOR_INDEX, 0, 63])
@pytest.mark.parametrize("kind", list(MessageType))
def test_frames(kind, sender):
    payload = frame(kind, digest=DIGEST, sender=sender) + b"content"
    assert len(payload) == FRAME_BYTES + 7
    found, content = open_frame(payload, peer="x", digest=DIGEST, sender=sender)
    assert (found, bytes(content)) == (kind, b"content")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p[: FRAME_BYTES - 1], "38 bytes is too short"),
        (lambda p: b"", "0 bytes is too short"),
        (lambda p: b"SFL2" + p[4:], "protocol version"),
        (lambda p: p[:4] + b"\0" + p[5:], "unknown message type 0"),
        (lambda p: p[:4] + b"\xff" + p[5:], "unknown message type 255"),
        (lambda p: p[:5] + bytes(32) + p[37:], "advertise message of another round"),
        (lambda p: p[:37] + b"\x02\0", "names another sender"),
        (lambda p: p[:37] + b"\0\0", "names another sender"),
    ],
)
def test_frames_that_are_refused(change, reason):
    payload = change(frame(MessageType.ADVERTISE, digest=DIGEST, sender=0))
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        open_frame(payload, peer="x", digest=DIGEST, sender=0)
    assert caught.value.peer == "x"


def test_message_types_keep_their_numbers():
    """They are on the wire and in the vectors."""
    names = [
        "ADVERTISE",
        "DIRECTORY",
        "SHARES",
        "DELIVERY",
        "MASKED_INPUT",
        "SURVIVORS",
        "CONSISTENCY",
        "SIGNERS",
        "UNMASK",
    ]
    assert [MessageType[name] for name in names] == list(range(1, 10))
    assert MessageType.PLAIN_INPUT == 17


@pytest.fixture(scope="module")
def signer():
    identity = Identity.generate("a", InsecureSeededRng(1))
    other = Identity.generate("b", InsecureSeededRng(2))
    return identity, Directory.enroll([identity, other])


def test_a_statement_is_bound_to_everything_around_it(signer):
    identity, directory = signer
    signed = sign_body(identity, Phase.SHARE, digest=DIGEST, body=b"body")
    verify_body(directory, Phase.SHARE, digest=DIGEST, sender="a", signed=signed)
    for change in (
        {"phase": Phase.UNMASK},
        {"digest": bytes(32)},
        {"sender": "b"},
        {"signed": Signed(b"bodz", signed.signature)},
        {"signed": Signed(b"body", bytes([signed.signature[0] ^ 1]) + signed.signature[1:])},
        {"signed": Signed(b"body", b"")},
        {"sender": "stranger"},
    ):
        arguments = {"phase": Phase.SHARE, "digest": DIGEST, "sender": "a", "signed": signed} | change
        with pytest.raises(RemoteProtocolError) as caught:
            verify_body(directory, arguments.pop("phase"), **arguments)
        assert caught.value.peer == arguments["sender"]


def test_statements_say_who_they_are_for():
    for phase in Phase:
        alone = phase in (Phase.UNMASK, Phase.PLAIN_INPUT, Phase.CKKS_OPEN)
        assert phase.recipient == ("aggregator" if alone else "all")


@given(body=st.binary(max_size=30), signature=st.binary(min_size=64, max_size=64), tail=st.binary(max_size=5))
def test_signed_parts(body, signature, tail):
    signed = Signed(body, signature)
    reader = Reader(signed.encode() + tail, peer="x")
    assert take_signed(reader, body_bytes=len(body)) == signed
    assert bytes(reader.view(len(tail))) == tail
    reader.end()
    assert Signed.decode(signed.encode()) == signed


def test_readers_are_strict():
    reader = Reader(b"abc", peer="x")
    assert reader.take(2) == b"ab"
    with pytest.raises(RemoteProtocolError, match="1 bytes follow"):
        reader.end()
    with pytest.raises(RemoteProtocolError, match="too short"):
        reader.take(2)
    with pytest.raises(RemoteProtocolError, match="3 bytes, expected 4"):
        check_size(memoryview(b"abc"), 4, peer="x")


def test_contents_do_not_print():
    texts = [repr(Signed(b"AAAA", b"BBBB")), repr(Unmask([b"AAAA"]))]
    assert all("AAAA" not in text and "BBBB" not in text for text in texts)
    assert SIGNATURE_BYTES == 64
