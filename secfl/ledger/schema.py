"""Check entries against ``schema.json``, quickly.

The checked-in JSON Schema is the definition. It is compiled once into plain functions, because a general
validator takes longer than everything else that `verify` does; tests show that both give the same verdict.
Keywords outside the compiled subset are refused when the schema is loaded.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import Any, Final, TypeAlias

__all__ = ["Check", "check_entry", "load_schema"]

Check: TypeAlias = Callable[[Any, str], "str | None"]
"""Takes a value and its path; returns what is wrong, or ``None``."""

_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: (
        not isinstance(value, bool)
        and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_COMPARISONS: Final[dict[str, tuple[Callable[[float, float], bool], str]]] = {
    "minimum": (lambda value, bound: value >= bound, "at least"),
    "maximum": (lambda value, bound: value <= bound, "at most"),
    "exclusiveMinimum": (lambda value, bound: value > bound, "above"),
    "exclusiveMaximum": (lambda value, bound: value < bound, "below"),
}
_SIZES: Final[dict[str, tuple[type[str | list[Any] | dict[str, Any]], bool]]] = {
    "minLength": (str, True),
    "maxLength": (str, False),
    "minItems": (list, True),
    "minProperties": (dict, True),
}
_MEMBERS: Final = frozenset({"properties", "required", "additionalProperties", "propertyNames"})
_IGNORED: Final = frozenset({"$schema", "$id", "$defs", "title", "description"})


@functools.cache
def load_schema(name: str = "schema.json") -> dict[str, Any]:
    """The JSON Schema of one entry of a ledger, or of an account (``account.schema.json``)."""
    text = resources.files("secfl.ledger").joinpath(name).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def check_entry(value: dict[str, Any], *, schema: str = "schema.json") -> str | None:
    """What is wrong with a parsed entry, naming the member, or ``None`` when the schema accepts it."""
    return _compiled(schema)(value, "")


@functools.cache
def _compiled(name: str) -> Check:
    schema = load_schema(name)
    return _Compiler(schema["$defs"]).compile(schema)


class _Compiler:
    """Turns the schema's subset into closures; each definition once, so recursion ends."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._done: dict[str, Check] = {}

    def compile(self, schema: dict[str, Any]) -> Check:
        checks: list[Check] = []
        for keyword, argument in schema.items():
            if keyword not in _IGNORED and keyword not in _MEMBERS:
                checks.append(self._keyword(keyword, argument))
        if any(keyword in schema for keyword in _MEMBERS):
            checks.append(self._members(schema))
        if len(checks) == 1:
            return checks[0]
        return functools.partial(_first_problem, tuple(checks))

    def _keyword(self, keyword: str, argument: Any) -> Check:
        if keyword in _SIZES:
            return _size_check(keyword, argument)
        if keyword in _COMPARISONS:
            return _comparison_check(keyword, argument)
        makers: dict[str, Callable[[Any], Check]] = {
            "$ref": lambda name: self._reference(name.removeprefix("#/$defs/")),
            "type": _type_check,
            "const": lambda value: _member_check([value]),
            "enum": _member_check,
            "pattern": _pattern_check,
            "uniqueItems": lambda _: _unique_check,
            "items": lambda part: _items_check(self.compile(part)),
            "oneOf": self._one_of,
            "anyOf": lambda parts: _any_check([self.compile(part) for part in parts]),
        }
        if keyword not in makers:
            raise ValueError(f"schema keyword {keyword!r} is not supported")
        return makers[keyword](argument)

    def _reference(self, name: str) -> Check:
        done = self._done

        def check(value: Any, path: str) -> str | None:
            # Looked up late, because definitions refer to themselves.
            found = done.get(name)
            if found is None:
                found = done[name] = self.compile(self._definitions[name])
            return found(value, path)

        return check

    def _one_of(self, branches: list[dict[str, Any]]) -> Check:
        """Alternatives told apart by the one member that is constant in each (``type`` or ``kind``)."""
        names = [branch["$ref"].removeprefix("#/$defs/") for branch in branches]
        key = next(
            key
            for key in ("type", "kind")
            if all("const" in self._definitions[name]["properties"].get(key, {}) for name in names)
        )
        table = {self._definitions[name]["properties"][key]["const"]: self._reference(name) for name in names}

        def check(value: Any, path: str) -> str | None:
            if not isinstance(value, dict):
                return f"{path or 'entry'}: expected an object"
            chosen = value.get(key)
            branch = table.get(chosen) if isinstance(chosen, str) else None
            if branch is None:
                return f"{_join(path, key)}: expected one of {', '.join(table)}"
            return branch(value, path)

        return check

    def _members(self, schema: dict[str, Any]) -> Check:
        parts = {name: self.compile(part) for name, part in schema.get("properties", {}).items()}
        required = tuple(schema.get("required", ()))
        extra = schema.get("additionalProperties", True)
        extra_check = self.compile(extra) if isinstance(extra, dict) else None
        name_check = self.compile(schema["propertyNames"]) if "propertyNames" in schema else None

        def unknown(name: str, member: Any, path: str) -> str | None:
            if extra is False:
                return f"{_join(path, name)}: unknown member"
            return None if extra_check is None else extra_check(member, _join(path, name))

        def check(value: Any, path: str) -> str | None:
            if not isinstance(value, dict):
                return None
            for name in required:
                if name not in value:
                    return f"{_join(path, name)}: missing"
            for name, member in value.items():
                if name_check is not None and name_check(name, path) is not None:
                    return f"{_join(path, name)}: not an allowed name"
                part = parts.get(name)
                problem = unknown(name, member, path) if part is None else part(member, _join(path, name))
                if problem is not None:
                    return problem
            return None

        return check


def _join(path: str, name: str) -> str:
    if len(name) > 64:
        name = name[:61] + "..."
    return f"{path}.{name}" if path else name


def _first_problem(checks: tuple[Check, ...], value: Any, path: str) -> str | None:
    for check in checks:
        problem = check(value, path)
        if problem is not None:
            return problem
    return None


def _type_check(names: str | list[str]) -> Check:
    if isinstance(names, str):
        only = _TYPES[names]
        return lambda value, path: None if only(value) else f"{path}: expected {names}"
    allowed = names
    tests = tuple(_TYPES[name] for name in allowed)
    words = " or ".join(allowed)

    def check(value: Any, path: str) -> str | None:
        return None if any(test(value) for test in tests) else f"{path}: expected {words}"

    return check


def _member_check(allowed: list[Any]) -> Check:
    # `True == 1` in Python but not in JSON, so the types are compared as well.
    pairs = [(isinstance(value, bool), value) for value in allowed]
    words = ", ".join(json.dumps(value) for value in allowed)

    def check(value: Any, path: str) -> str | None:
        if (isinstance(value, bool), value) in pairs:
            return None
        return f"{path}: expected {words}" if len(pairs) == 1 else f"{path}: expected one of {words}"

    return check


def _pattern_check(pattern: str) -> Check:
    # ECMA's `$` is the very end; Python's also allows a newline before it.
    compiled = re.compile(pattern.removesuffix("$") + r"\Z")

    def check(value: Any, path: str) -> str | None:
        if not isinstance(value, str) or compiled.search(value):
            return None
        return f"{path}: does not match {pattern}"

    return check


def _size_check(keyword: str, bound: int) -> Check:
    kind, least = _SIZES[keyword]

    def check(value: Any, path: str) -> str | None:
        if not isinstance(value, kind) or (len(value) >= bound if least else len(value) <= bound):
            return None
        return f"{path}: size {len(value)}, expected {'at least' if least else 'at most'} {bound}"

    return check


def _comparison_check(keyword: str, bound: float) -> Check:
    compare, words = _COMPARISONS[keyword]

    def check(value: Any, path: str) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or compare(value, bound):
            return None
        return f"{path}: expected {words} {bound}"

    return check


def _unique_check(value: Any, path: str) -> str | None:
    if not isinstance(value, list):
        return None
    texts = [json.dumps(item, sort_keys=True) for item in value]
    return None if len(set(texts)) == len(texts) else f"{path}: an item occurs twice"


def _items_check(item_check: Check) -> Check:
    def check(value: Any, path: str) -> str | None:
        if isinstance(value, list):
            for position, item in enumerate(value):
                if problem := item_check(item, f"{path}[{position}]"):
                    return problem
        return None

    return check


def _any_check(checks: list[Check]) -> Check:
    def check(value: Any, path: str) -> str | None:
        problems = [problem for option in checks if (problem := option(value, path))]
        return problems[0] if len(problems) == len(checks) else None

    return check
