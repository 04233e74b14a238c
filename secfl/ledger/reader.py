"""From bytes to entries: form, schema, canonical form, marks, hash and chain, in this order.

Whatever is wrong is reported as the first wrong entry and the field in it.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from secfl.errors import ConfigError, LedgerCorrupted, SecflError
from secfl.ledger.canonical import JsonObject, canonical, parse_line
from secfl.ledger.entry import GENESIS, MARK_DIGITS, Entry, EntryType, encode_entry, marks_of
from secfl.ledger.merkle import leaf_hash
from secfl.ledger.schema import check_entry
from secfl.ledger.state import LedgerState

__all__ = ["Replay", "lines_of", "read_entry", "read_line", "replay", "skim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A ledger as read from bytes.

    Attributes:
        state: What its whole, correct lines say.
        good_bytes: Length of these lines.
        fragment: What follows the last newline; empty for a file that was not torn.
    """

    state: LedgerState
    good_bytes: int
    fragment: bytes


def replay(data: bytes) -> Replay:
    """Read a whole file.

    Raises:
        LedgerCorrupted: A line that ends with a newline is wrong. A torn last line is not an error here:
            the writer recovers it and `verify` refuses it.
    """
    state = LedgerState()
    good = data.rfind(b"\n") + 1
    with _without_collector():
        for line in lines_of(data[:good]):
            state.apply(read_entry(line, state))
    return Replay(state=state, good_bytes=good, fragment=data[good:])


_DECODE = json.JSONDecoder().raw_decode  # `json.loads` without its search for spaces around the value

# Reservations and commits are nearly all of a large ledger; their canonical form is a regular language.
_NUMBER = rb"[0-9]{1,15}"
_DIGEST = rb'"([0-9a-f]{64})"'
_NAME = rb'"[A-Za-z0-9][A-Za-z0-9._-]*"'
_AROUND = (
    rb'\{"body":\{%s\},"hash":(?P<hash>"[0-9a-f]{64}"),"index":(?P<index>'
    + _NUMBER
    + rb'),"marks":"[0-9a-f]*",'
    rb'"previous":"(?P<previous>[0-9a-f]{64})","time":"(?P<time>[0-9TZ:-]{20})","type":"%s"\}'
)
_RESERVE_LINE = re.compile(
    _AROUND
    % (
        rb'"attempt":(%s),"digests":\{(?:%s:"[0-9a-f]{64}",?)*\},"round":(%s),"spec_digest":%s,"terms":(%s)'
        % (_NUMBER, _NAME, _NUMBER, _DIGEST, _NUMBER),
        b"reserve",
    )
)
_COMMIT_LINE = re.compile(
    _AROUND
    % (
        rb'"reservation":(%s),"sum_digest":%s,"survivors":\[(%s(?:,%s)*)\],"total_variation":([0-9.e-]+),'
        rb'"wrap_probability":[0-9.e-]+' % (_NUMBER, _DIGEST, _NAME, _NAME),
        b"commit",
    )
)


def skim(data: bytes) -> Replay:
    """Read a whole file for display: hashes, chain and rules between entries, several times faster.

    Marks, and most of canonical form, are left to `replay`, which is also asked as soon as anything is odd, so
    that its message names the field.

    Raises:
        LedgerCorrupted: As `replay`.
    """
    state = LedgerState()
    good = data.rfind(b"\n") + 1
    try:
        with _without_collector():
            for line in lines_of(data[:good]):
                state.apply(_skim_entry(line, state))
    except (SecflError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return replay(data)
    return Replay(state=state, good_bytes=good, fragment=data[good:])


def _skim_entry(line: bytes, state: LedgerState) -> Entry:
    """`ValueError` and the like for anything unusual."""
    found = _RESERVE_LINE.fullmatch(line)
    if found is not None:
        attempt, round_id, spec_digest, terms = found.group(1, 2, 3, 4)
        body: JsonObject = {
            "attempt": int(attempt),
            "round": int(round_id),
            "spec_digest": spec_digest.decode(),
            "terms": int(terms),
        }
        return _skimmed(line, state, found, EntryType.RESERVE, body)
    found = _COMMIT_LINE.fullmatch(line)
    if found is not None:
        reservation, sum_digest, survivors, variation = found.group(1, 2, 3, 4)
        body = {
            "reservation": int(reservation),
            "sum_digest": sum_digest.decode(),
            "survivors": survivors.decode()[1:-1].split('","'),
            "total_variation": float(variation),
            "wrap_probability": 0.0,  # costs no privacy
        }
        if not 0 <= body["total_variation"] <= 1:
            raise ValueError("total_variation")
        return _skimmed(line, state, found, EntryType.COMMIT, body)
    return _skim_other(line, state)


def _skimmed(
    line: bytes, state: LedgerState, found: re.Match[bytes], kind: EntryType, body: JsonObject
) -> Entry:
    start, end = found.span("hash")
    digest = leaf_hash(line[: start - len(b',"hash":')] + line[end:])
    size, previous = state.size, found["previous"].decode()
    if (
        int(found["index"]) != size
        or found["hash"][1:-1].decode() != digest.hex()
        or previous != state.last_hash.hex()
    ):
        raise ValueError("index, hash or previous")
    return Entry(
        index=size, type=kind, body=body, time=found["time"].decode(), previous=previous, hash=digest
    )


def _skim_other(line: bytes, state: LedgerState) -> Entry:
    text = line.decode()
    value, end = _DECODE(text)
    if end != len(text):
        raise ValueError("more than one value")
    # In canonical form nothing after the body can contain this text, and the hash follows the body.
    cut = line.rindex(b',"hash":"')
    after = cut + len(b',"hash":"') + 64 + len(b'"')
    digest = leaf_hash(line[:cut] + line[after:])
    size, previous = state.size, value["previous"]
    expected = state.last_hash.hex() if size else GENESIS
    if value["index"] != size or value["hash"] != digest.hex() or previous != expected:
        raise ValueError("index, hash or previous")
    if check_entry(value) is not None:
        raise ValueError("schema")
    return Entry(
        index=size,
        type=EntryType(value["type"]),
        body=value["body"],
        time=value["time"],
        previous=previous,
        hash=digest,
    )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Everything that reading makes stays alive; looking for garbage in between costs a tenth of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if gc.get_freeze_count() == 0:
                # Straight to the oldest generation, which is looked through last.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def lines_of(data: bytes) -> Iterator[bytes]:
    """The lines of data that ends with a newline, without their newlines."""
    start = 0
    while start < len(data):
        end = data.index(b"\n", start)
        yield data[start:end]
        start = end + 1


def read_entry(line: bytes, state: LedgerState) -> Entry:
    """Read the line that follows the entries of ``state``, and check it alone and against the chain.

    Raises:
        LedgerCorrupted: Names the field that is wrong.
    """
    value, digest = read_line(line, position=state.size, last_hash=state.last_hash)
    return Entry(
        index=state.size,
        type=EntryType(value["type"]),
        body=value["body"],
        time=value["time"],
        previous=value["previous"],
        hash=digest,
    )


def read_line(
    line: bytes, *, position: int, last_hash: bytes, schema: str = "schema.json"
) -> tuple[JsonObject, bytes]:
    """Check one line's form, schema, canonical form, marks, hash and chain.

    Args:
        line: Without the newline.
        position: The index that it must have.
        last_hash: Hash of the entry before; not used at position 0.
        schema: Which schema it must fit.

    Returns:
        The parsed entry and its hash.

    Raises:
        LedgerCorrupted: Names the field that is wrong.
    """
    try:
        value = parse_line(line)
    except ValueError as error:
        raise LedgerCorrupted(position, str(error)) from None
    if position == 0 and (problem := _version_problem(value)):
        raise LedgerCorrupted(0, problem)
    index = value.get("index")
    if isinstance(index, int) and not isinstance(index, bool) and index != position:
        raise LedgerCorrupted(
            position,
            f"index: {index}, expected {position} (an entry was removed, repeated, moved or altered)",
        )
    expected_previous = last_hash.hex() if position else GENESIS
    try:
        problem = check_entry(value, schema=schema)
        if problem is not None:
            raise LedgerCorrupted(position, problem)
        again, digest = encode_entry(
            index=value["index"],
            kind=value["type"],
            body=value["body"],
            time=value["time"],
            previous=value["previous"],
        )
        if again != line:
            raise LedgerCorrupted(position, _what_differs(value, digest, expected_previous, line))
    except RecursionError:
        raise LedgerCorrupted(position, "nested too deeply") from None
    except ConfigError as error:  # for example half of a surrogate pair
        raise LedgerCorrupted(position, str(error)) from None
    if value["previous"] != expected_previous:
        raise LedgerCorrupted(
            position, f"previous: not the hash of entry {position - 1} (one of the two was replaced)"
        )
    return value, digest


def _version_problem(value: JsonObject) -> str | None:
    body = value.get("body")
    version = body.get("format_version") if isinstance(body, dict) else None
    if isinstance(version, int) and not isinstance(version, bool) and version > 1:
        return f"body.format_version: {version} is newer than this program understands (1)"
    return None


def _what_differs(value: JsonObject, digest: bytes, expected_previous: str, line: bytes) -> str:
    """Name the field that does not fit the entry's hash."""
    if canonical(value) != line:
        return "line: not in canonical form (RFC 8785)"
    fields = {name: canonical(member) for name, member in value["body"].items()}
    marks, stored = marks_of(fields), value["marks"]
    if digest.hex() == value["hash"] and marks != stored:
        # The hash was made over other marks than the stored ones: the marks were altered.
        return "marks: do not match the body"
    wrong = [
        name
        for place, name in enumerate(sorted(fields))
        if marks[place * MARK_DIGITS : (place + 1) * MARK_DIGITS]
        != stored[place * MARK_DIGITS : (place + 1) * MARK_DIGITS]
    ]
    if len(marks) == len(stored) and wrong:
        return f"body.{wrong[0]}: does not match its mark and the entry's hash"
    if value["previous"] != expected_previous:
        return "previous: does not match the entry before, nor this entry's hash"
    return "hash: does not match the entry (hash, time or type was altered)"
