from __future__ import annotations

import json
import math

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from secfl.errors import ConfigError
from secfl.ledger.canonical import MAX_LINE_BYTES, canonical, parse_line

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def test_rfc_8785_example():
    value = {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001]}
    assert canonical(value) == b'{"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}'


def test_members_are_sorted_and_spaces_left_out():
    assert canonical({"b": 1, "a": [True, None]}) == b'{"a":[true,null],"b":1}'


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), JSON, max_size=4))
def test_what_is_written_is_read_back_and_written_the_same(value):
    line = canonical(value)
    assert canonical(parse_line(line)) == line


PLAIN = st.one_of(
    st.text(),
    st.text('\\"/\b\f\n\r\t\x00\x1f\x7fa'),
    st.integers(),
    st.booleans(),
    st.lists(st.text(max_size=3), max_size=3),
)


@given(PLAIN)
def test_the_quick_way_gives_the_same_bytes(value):
    try:
        slow = rfc8785.dumps(value)
    except rfc8785.CanonicalizationError:
        with pytest.raises(ConfigError):
            canonical(value)
    else:
        assert canonical(value) == slow


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, object(), {1: 2}])
def test_values_without_canonical_form_are_refused(value):
    with pytest.raises(ConfigError):
        canonical({"value": value})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":{"b":1,"b":1}}', "twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1e999}', "range"),
        (b'{"a":9007199254740992}', "2**53"),
        (b'{"a":' + b"9" * 5000 + b"}", "2**53"),
        (b"[1]", "object"),
        (b"{}{}", "not JSON"),
        (b"", "not JSON"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeply"),
        (b'{"a":"' + b"x" * MAX_LINE_BYTES + b'"}', "at most"),
    ],
)
def test_lines_that_two_parsers_could_read_differently_are_refused(line, reason):
    with pytest.raises(ValueError, match=reason.replace("*", r"\*")):
        parse_line(line)


def test_the_standard_parser_would_have_taken_a_duplicate():
    # Why the guard above is there.
    assert json.loads(b'{"a":1,"a":2}') == {"a": 2}
