"""A configuration as TOML that explains itself, from the docstrings of its sections."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from secfl.config.run import RunConfig

__all__ = ["commented_toml"]

_WIDTH = 100
_ATTRIBUTE = re.compile(r"^    (?P<name>[a-z_0-9]+): (?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)


def commented_toml(config: RunConfig, *, chosen: frozenset[str], heading: str) -> str:
    """Every key with its meaning, its choices and its value.

    Args:
        config: The values.
        chosen: Keys (``section.key``) that stand as they are; all others are commented out, so that a later
            secfl's better defaults count.
        heading: First comment.

    Returns:
        TOML that reads back as ``config`` where only ``chosen`` keys differ from the defaults.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    first = [name for name, field in type(config).model_fields.items() if not _section(field)]
    lines += _keys(config, first, prefix="", chosen=chosen)
    for name, field in type(config).model_fields.items():
        if _section(field):
            section = getattr(config, name)
            lines += ["", f"[{name}]  # {_first_sentence(type(section))}"]
            lines += _keys(section, list(type(section).model_fields), prefix=f"{name}.", chosen=chosen)
    return "\n".join(lines) + "\n"


def _section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _keys(section: BaseModel, names: list[str], *, prefix: str, chosen: frozenset[str]) -> list[str]:
    meanings = _meanings(type(section))
    lines: list[str] = []
    for name in names:
        field, value = type(section).model_fields[name], getattr(section, name)
        choices = _choices(field.annotation)
        text = " ".join([meanings[name], *([f"One of {', '.join(choices)}."] if choices else [])])
        lines += ["", *textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
        if value is None or isinstance(value, BaseModel | Mapping):
            lines.append(f"# {name} = …" if not isinstance(value, Mapping) else f"# [{prefix}{name}]")
        else:
            mark = "" if prefix + name in chosen else "# "
            lines.append(f"{mark}{name} = {_toml(value)}")
    return lines


def _meanings(section: type[BaseModel]) -> dict[str, str]:
    """Key -> what its class's docstring says of it."""
    document = inspect.getdoc(section) or ""
    part = document.partition("Attributes:\n")[2]
    return {
        found["name"]: " ".join(found["text"].replace("``", "").split())
        for found in _ATTRIBUTE.finditer(part)
    }


def _first_sentence(section: type[BaseModel]) -> str:
    return (inspect.getdoc(section) or "").split("\n", 1)[0].replace("``", "")


def _choices(annotation: Any) -> list[str]:
    found: list[str] = []
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Enum):
            found += [str(member.value) for member in kind]
        elif get_origin(kind) is Literal:
            found += [str(value) for value in get_args(kind)]
    return list(dict.fromkeys(found))


def _toml(value: Any) -> str:
    import tomli_w

    plain = value.value if isinstance(value, Enum) else list(value) if isinstance(value, tuple) else value
    text: str = tomli_w.dumps({"x": plain}).strip().removeprefix("x = ")
    return " ".join(text.split()).replace("[ ", "[").replace(", ]", "]")
