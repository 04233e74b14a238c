"""Snapshots: canonical records, and seals that open for one key and one context."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.crypto.snapshots import (
    decode_record,
    encode_record,
    join_indexed,
    open_snapshot,
    record_kind,
    restoring,
    seal_snapshot,
    split_fields,
    split_indexed,
)
from secfl.errors import LocalProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import join_fields

KEY = bytes(range(32))
names = st.text("abcdefgh", min_size=1, max_size=6)


@given(st.dictionaries(names, st.binary(max_size=30), max_size=5))
def test_records(fields):
    data = encode_record("kind", fields)
    assert decode_record(data, "kind") == fields
    assert encode_record("kind", dict(reversed(fields.items()))) == data
    assert record_kind(data) == "kind"
    with pytest.raises(LocalProtocolError, match="not one of other"):
        decode_record(data, "other")


@given(st.dictionaries(names, st.binary(max_size=30), max_size=4), st.data())
def test_damaged_records_are_refused(fields, data):
    record = encode_record("kind", fields)
    place = data.draw(st.integers(0, len(record) - 1))
    flipped = record[:place] + bytes([record[place] ^ data.draw(st.integers(1, 255))]) + record[place + 1 :]
    for damaged in (flipped, record[:place], record + b"x"):
        with pytest.raises(LocalProtocolError):
            decode_record(damaged, "kind")


@pytest.mark.parametrize("data", [b"", b"x", bytes(100), b"SFLR\x01" + bytes(40)])
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(LocalProtocolError):
        decode_record(data, "kind")


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_fields(parts):
    assert split_fields(join_fields(*parts)) == parts
    assert split_fields(join_fields(*parts), limit=2) == parts[:2]


@pytest.mark.parametrize("data", [b"", b"x", b"SFLR\x01", b"SFLR\x01" + b"\xff" * 60])
def test_what_has_no_kind_is_refused(data):
    with pytest.raises(LocalProtocolError):
        record_kind(data)


@pytest.mark.parametrize("data", [b"1234567", b"\xff" * 8, join_fields(b"abc")[:-1]])
def test_damaged_fields_are_refused(data):
    with pytest.raises(LocalProtocolError):
        split_fields(data)


@given(st.dictionaries(st.integers(0, 2**32 - 1), st.lists(st.binary(max_size=9), max_size=3), max_size=4))
def test_indexed_fields(values):
    assert split_indexed(join_indexed(values)) == values


@pytest.mark.parametrize("error", [KeyError, IndexError, ValueError, TypeError])
def test_whatever_a_damaged_record_causes_is_a_local_error(error):
    with pytest.raises(LocalProtocolError, match="a damaged client"), restoring("client"):
        raise error
    with pytest.raises(LocalProtocolError, match="as it is"), restoring("client"):
        raise LocalProtocolError("as it is")


@given(snapshot=st.binary(max_size=100), context=st.binary(max_size=20))
def test_a_sealed_snapshot_opens_with_its_key_and_context_only(snapshot, context):
    sealed = seal_snapshot(snapshot, KEY, context=context)
    assert open_snapshot(sealed, KEY, context=context) == snapshot
    for wrong in (
        lambda: open_snapshot(sealed, bytes(32), context=context),
        lambda: open_snapshot(sealed, KEY, context=context + b"x"),
        lambda: open_snapshot(sealed[:-1], KEY, context=context),
        lambda: open_snapshot(sealed + b"x", KEY, context=context),
        lambda: open_snapshot(b"", KEY, context=context),
    ):
        with pytest.raises(LocalProtocolError):
            wrong()


@given(st.data())
def test_every_bit_of_a_sealed_snapshot_matters(data):
    sealed = seal_snapshot(b"secret snapshot", KEY, context=b"c")
    place = data.draw(st.integers(0, len(sealed) - 1))
    flipped = (
        sealed[:place] + bytes([sealed[place] ^ 1 << data.draw(st.integers(0, 7))]) + sealed[place + 1 :]
    )
    with pytest.raises(LocalProtocolError):
        open_snapshot(flipped, KEY, context=b"c")


def test_every_seal_is_another_and_none_shows_its_content():
    seals = {seal_snapshot(b"secret snapshot", KEY, context=b"") for _ in range(20)}
    assert len(seals) == 20
    assert all(b"secret" not in seal for seal in seals)
    given_rng = [seal_snapshot(b"s", KEY, context=b"", rng=InsecureSeededRng(1)) for _ in range(2)]
    assert given_rng[0] == given_rng[1]


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_keys_have_32_bytes(size):
    with pytest.raises(LocalProtocolError, match=f"{size} bytes, expected 32"):
        seal_snapshot(b"", bytes(size), context=b"")
    with pytest.raises(LocalProtocolError, match=f"{size} bytes, expected 32"):
        open_snapshot(bytes(100), bytes(size), context=b"")


def test_a_client_goes_on_from_a_sealed_snapshot(rounds):
    case = rounds.Round(3, 3)
    messages = case.run_until("share")
    context = case.spec.digest() + b"c00"
    sealed = seal_snapshot(case.parties["c00"].snapshot(), KEY, context=context)
    assert case.parties["c00"]._memory.secrets.root not in sealed
    case.parties["c00"] = case.scheme.restore(
        case.spec, directory=case.directory, snapshot=open_snapshot(sealed, KEY, context=context)
    )
    case.finish(messages)
    assert case.check() == case.names
