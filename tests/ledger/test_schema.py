from __future__ import annotations

import copy
import json

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secfl.ledger.canonical import parse_line
from secfl.ledger.schema import _Compiler, check_entry, load_schema

ODD = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 0.5, 1.5, 2**53 - 1, "", "a", "masking", "0" * 64, "A" * 64, "x" * 3000,
        [], [1, 2], ["a", "a"], {}, {"a": 1}, {"kind": "noise"},
    ]
).map(copy.deepcopy)  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


@pytest.fixture
def entries(every_entry_type):
    return [parse_line(line) for line in every_entry_type.read_bytes().splitlines()]


def test_the_example_has_every_type(entries):
    assert {entry["type"] for entry in entries} == {
        branch["$ref"].split("/")[-1] for branch in load_schema()["oneOf"]
    }


@pytest.mark.parametrize("name", ["schema.json", "account.schema.json"])
def test_the_schema_itself_is_valid(name):
    jsonschema.Draft202012Validator.check_schema(load_schema(name))


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_the_compiled_check_agrees_with_the_jsonschema_library(entries, data):
    judge = jsonschema.Draft202012Validator(load_schema())
    entry = copy.deepcopy(data.draw(st.sampled_from(entries)))
    for _ in range(data.draw(st.integers(0, 2))):
        path = data.draw(st.sampled_from([path for path in places(entry) if path]))
        parent, key = at(entry, path[:-1]), path[-1]
        match data.draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[key] = data.draw(ODD)
            case "remove":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[data.draw(st.sampled_from(["extra", "", "kind", "a b"]))] = data.draw(ODD)
    problem = check_entry(entry)
    assert (problem is None) == judge.is_valid(entry), (problem, json.dumps(entry)[:500])


def test_a_pattern_ends_at_the_end_and_not_before_a_newline(entries):
    # JSON Schema means ECMA's `$`; Python's would let a newline through.
    entry = entries[0] | {"time": entries[0]["time"] + "\n"}
    assert "time" in check_entry(entry)


def test_every_required_member_is_missed_by_name(entries):
    for entry in entries:
        for name in entry["body"]:
            damaged = copy.deepcopy(entry)
            del damaged["body"][name]
            assert check_entry(damaged) == f"body.{name}: missing"


def test_an_unknown_keyword_is_refused_when_the_schema_is_loaded():
    with pytest.raises(ValueError, match="contains"):
        _Compiler({}).compile({"contains": {"type": "string"}})
