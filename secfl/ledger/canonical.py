"""Canonical JSON (RFC 8785): one value, one byte string, so that hashes mean something.

Reading is strict on purpose. Two parsers that disagree about a duplicate member or an over-long number
would verify two different files, so such lines are refused before anybody interprets them.
"""

from __future__ import annotations

import json
import math
from json.encoder import encode_basestring
from typing import Any, Final

import rfc8785

from secfl.errors import ConfigError

__all__ = ["MAX_LINE_BYTES", "JsonObject", "canonical", "parse_line"]

JsonObject = dict[str, Any]

MAX_LINE_BYTES: Final = 1 << 20
"""Longest line that is parsed; entries are a few hundred bytes to a few kilobytes."""

_MAX_INTEGER: Final = 2**53 - 1


def canonical(value: Any) -> bytes:
    """The RFC 8785 form of a JSON value.

    Raises:
        ConfigError: The value has no JSON form (NaN, infinity, an integer beyond 2**53 - 1, other types).
    """
    quick = _quickly(value)
    if quick is not None:
        return quick
    try:
        return bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError) as error:
        raise ConfigError(f"value without a canonical JSON form: {error}") from None


def _quickly(value: Any) -> bytes | None:
    """The same for the plain values that most fields hold, many times faster; ``None`` for all others."""
    kind = type(value)
    if kind is str:
        return encode_basestring(value).encode("ascii") if value.isascii() else None
    if kind is int:
        return b"%d" % value if -_MAX_INTEGER <= value <= _MAX_INTEGER else None
    if kind is list and all(type(item) is str and item.isascii() for item in value):
        return b"[" + ",".join(map(encode_basestring, value)).encode("ascii") + b"]"
    return None


def parse_line(line: bytes) -> JsonObject:
    """Parse one line into an object, strictly.

    Raises:
        ValueError: Too long, not UTF-8, not one JSON object, a duplicate member, NaN, or an integer that
            a double cannot hold.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"line of {len(line)} bytes, expected at most {MAX_LINE_BYTES}")
    try:
        value = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=_distinct_members,
            parse_constant=_refuse_constant,
            parse_int=_small_integer,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at byte {error.pos})") from None
    if not isinstance(value, dict):
        raise ValueError("expected one JSON object")  # noqa: TRY004 - the content is wrong, not the call
    return value


def _distinct_members(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _small_integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _MAX_INTEGER:
        raise ValueError("an integer beyond 2**53 - 1")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond the range of doubles")
    return value
