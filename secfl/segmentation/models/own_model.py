"""A model from outside the package: ``package.module:factory``.

The factory is called with ``spatial_dims``, ``in_channels``, ``classes`` and ``model.arguments`` of the
configuration, all by name, and returns a ``torch.nn.Module`` that maps ``(batch, in_channels, *spatial)`` to logits
``(batch, classes, *spatial)``. The module must be importable (installed, or on ``PYTHONPATH``), and importing it
runs its code: use only what you trust.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["build", "code_digest", "multiple"]

_MULTIPLE = 16


def build(spec: ModelSpec) -> nn.Module:
    """Import the factory and call it.

    Raises:
        ConfigError: It cannot be imported or called, or does not return a module of torch.
    """
    from torch import nn

    factory = _factory(spec.family)
    try:
        model = factory(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.in_channels,
            classes=spec.classes,
            **spec.arguments,
        )
    except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything
        line = str(error).split("\n", 1)[0][:200]
        raise ConfigError(f"--model {spec.family}: {type(error).__name__} in the factory: {line}") from None
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"--model {spec.family}: returned {type(model).__name__}; expected a torch.nn.Module"
        )
    return model


def multiple(spec: ModelSpec) -> int:  # noqa: ARG001 - every family answers the same question
    """Enough for four halvings; ``model.multiple`` of the configuration overrides it."""
    return _MULTIPLE


def code_digest(family: str) -> bytes:
    """SHA-256 of the factory's file, so that sites which run other code do not meet in one round."""
    path = getattr(import_module(_split(family)[0]), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes() if path else b"").digest()


def _split(family: str) -> tuple[str, str]:
    module, _, name = family.partition(":")
    if not module or not name.isidentifier():
        raise ConfigError(f"--model {family}: expected package.module:factory")
    return module, name


def _factory(family: str) -> Callable[..., object]:
    module, name = _split(family)
    try:
        found = getattr(import_module(module), name, None)
    except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything
        line = str(error).split("\n", 1)[0][:200]
        raise ConfigError(
            f"--model {family}: {module} cannot be imported ({type(error).__name__}: {line}); expected an "
            "installed module, or one on PYTHONPATH"
        ) from None
    if not callable(found):
        raise ConfigError(f"--model {family}: {module} has no function {name}")
    return found
