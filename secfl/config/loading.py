"""Read a configuration from a file and from flags."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from secfl.config.run import RunConfig
from secfl.errors import ConfigError

__all__ = ["load_config"]


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read a TOML file and lay flags over it.

    Args:
        path: The file, or ``None`` for defaults only.
        overrides: Nested mapping of flags; values that are ``None`` are not given.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is impossible; one line that names
            the key.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: expected a TOML file in UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
    try:
        return RunConfig.model_validate(_merge(tree, overrides))
    except ValidationError as error:
        raise ConfigError(_one_line(error, path)) from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            below = merged.get(key, {})
            merged[key] = _merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _one_line(error: ValidationError, path: Path | None) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key; allowed here: {', '.join(_allowed(first['loc'][:-1]))}"
    prefix = f"{path}: " if path else ""
    given = f" (got {first['input']!r})" if key and first["type"] != "extra_forbidden" else ""
    return f"{prefix}{key}: {message}{given}" if key else f"{prefix}{message}"


def _allowed(location: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in location:
        if str(part) not in section.model_fields:  # the name of one of several tables
            continue
        annotation = section.model_fields[str(part)].annotation
        for candidate in (annotation, *get_args(annotation)):  # a table may be optional
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                section = candidate
    return sorted(section.model_fields)
