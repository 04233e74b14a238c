"""Requests and replies have one encoding, and bytes that are no message end in blame."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfl.errors import RemoteProtocolError
from secfl.federation.request_codec import decode_reply, decode_request, encode
from secfl.federation.requests import (
    AskWitness,
    CoSign,
    Deliver,
    Failed,
    OfferRound,
    Opened,
    OpenRun,
    Refused,
    Sent,
    Signature,
    WitnessAt,
)
from secfl.ledger.checkpoints import Checkpoint
from secfl.types import ClientId, RoundId, SchemeSpec, join_fields

MOST = 1 << 20
OFFER = OfferRound(
    run_id=bytes(range(16)),
    round_id=RoundId(7),
    round_index=3,
    cohort=(ClientId("a"), ClientId("b")),
    threshold=2,
    scheme=SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),)),
    model=np.arange(5, dtype=np.float32),
)
REQUESTS = [
    OFFER,
    Deliver(round_id=RoundId(7), payloads=(b"one", b"", b"three")),
    AskWitness(run_id=bytes(16)),
    OpenRun(run_id=bytes(16), config_digest=bytes(32)),
    CoSign(
        checkpoint=Checkpoint(
            kind="checkpoint", run_id=bytes(16), size=4, root=bytes(32), time="now", signers=(ClientId("a"),)
        ),
        proof=(bytes(32), bytes(32)),
    ),
]
REPLIES = [
    Sent(round_id=RoundId(7), phase="end", payloads=(b"x",), seconds=0.5, report={"train_seconds": 1.0}),
    Refused(round_id=RoundId(7), reason="no"),
    Failed(round_id=RoundId(7), reason="cannot"),
    WitnessAt(size=12),
    Opened(run_id=bytes(16)),
    Signature(value=bytes(64)),
]


@pytest.mark.parametrize("message", REQUESTS[1:], ids=lambda one: type(one).__name__)
def test_requests_come_back(message):
    assert decode_request(encode(message), peer="p", most_bytes=MOST) == message


def test_an_offer_comes_back():
    got = decode_request(encode(OFFER), peer="p", most_bytes=MOST)
    np.testing.assert_array_equal(got.model, OFFER.model)
    names = ("run_id", "round_id", "round_index", "cohort", "threshold", "scheme")
    assert [getattr(got, name) for name in names] == [getattr(OFFER, name) for name in names]


@pytest.mark.parametrize("message", REPLIES, ids=lambda one: type(one).__name__)
def test_replies_come_back(message):
    assert decode_reply(encode(message), peer="p", most_bytes=MOST) == message


@pytest.mark.parametrize("message", REPLIES, ids=lambda one: type(one).__name__)
def test_a_reply_is_no_request(message):
    with pytest.raises(RemoteProtocolError, match="unknown kind"):
        decode_request(encode(message), peer="p", most_bytes=MOST)


def test_size_is_checked_before_anything_is_read():
    with pytest.raises(RemoteProtocolError, match="expected at most 100"):
        decode_reply(b"SFR1" + bytes(97), peer="p", most_bytes=100)


def test_many_fields_are_refused():
    message = Deliver(round_id=RoundId(1), payloads=(b"",) * 300)
    with pytest.raises(RemoteProtocolError, match="fields"):
        decode_request(encode(message), peer="p", most_bytes=MOST)


def test_text_of_a_peer_has_no_control_characters():
    reply = decode_reply(
        encode(Refused(round_id=RoundId(1), reason="red\x1b[31m\n")), peer="p", most_bytes=MOST
    )
    assert reply.reason == "red?[31m?"


@pytest.mark.parametrize(
    "change", [{"phase": "x" * 4000}, {"phase": "P0 P1 P2"}, {"report": {"x" * 300: 1.0}}], ids=str
)
def test_a_reply_has_no_room_beside_its_envelopes(change):
    sent = Sent(**({"round_id": RoundId(7), "phase": "end", "payloads": ()} | change))
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_reply(encode(sent), peer="p", most_bytes=MOST)


def _raw(kind: int, *parts: bytes) -> bytes:
    return b"SFR1" + bytes([kind]) + join_fields(*parts)


def _offer_that_announces(clip_norm: bytes) -> bytes:
    numbers = struct.pack("<QQI", 7, 3, 2)
    announced = join_fields(clip_norm, b"")
    return _raw(1, bytes(16), numbers, join_fields(b"a"), join_fields(b"masking"), b"", announced)


def _co_sign(**changes: object) -> bytes:
    return _raw(4, json.dumps(REQUESTS[-1].checkpoint.to_json() | changes).encode())


@pytest.mark.parametrize(
    "data",
    [
        _raw(4, b"[" * 4000),
        _raw(4, b'{"a":' * 4000),
        _co_sign(size=-1),
        _co_sign(size=1 << 64),
        _co_sign(size=float("inf")),
        _co_sign(time="\ud800"),
        _co_sign(signers=["\udfff"]),
        _co_sign(signers=[1]),
        _co_sign(signers="abc"),
        _offer_that_announces(b"0x1p99999"),
    ],
    ids=[
        "deep list",
        "deep object",
        "negative",
        "too large",
        "infinite",
        "surrogate",
        "name",
        "no name",
        "word",
        "overflow",
    ],
)
def test_a_hostile_request_ends_in_blame(data):
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_request(data, peer="p", most_bytes=MOST)


@pytest.mark.parametrize(
    "report", [b'{"a":null}', b'{"a":[]}', b'{"a":{}}', b"[" * 255, b'{"a":1e308}', b'{"a":-1}']
)
def test_a_hostile_reply_ends_in_blame(report):
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_reply(_raw(65, bytes(8), b"end", bytes(8), report), peer="p", most_bytes=MOST)


def test_times_that_would_add_up_to_infinity_are_not_believed():
    """Two of them would leave a summary that is no JSON."""
    reply = decode_reply(
        _raw(65, bytes(8), b"end", struct.pack("<d", 1e308), b"{}"), peer="p", most_bytes=MOST
    )
    assert reply.seconds == 0


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*REQUESTS, *REPLIES]), st.data())
def test_changed_bytes_end_in_blame_or_in_a_message(message, data):
    good = bytearray(encode(message))
    at = data.draw(st.integers(0, len(good) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "add"])):
        case "flip":
            good[at] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del good[at:]
        case "add":
            good[at:at] = data.draw(st.binary(max_size=9))
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(RemoteProtocolError):
            decode(bytes(good), peer="p", most_bytes=MOST)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_blame(data):
    for decode in (decode_request, decode_reply):
        with pytest.raises(RemoteProtocolError):
            decode(b"SFR1" + data[:1] + b"\xff" * 9 + data, peer="p", most_bytes=MOST)
