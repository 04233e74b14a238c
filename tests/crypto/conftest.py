"""Fixtures of the tests of secure aggregation: helper modules that live beside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """Import a helper from this folder; test modules cannot import each other in importlib mode."""
    full = f"secfl_test_helpers.{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def rounds() -> ModuleType:
    """Rounds of masking and plain that are carried by hand: see rounds.py."""
    return _load("rounds")


@pytest.fixture(scope="session")
def naive() -> ModuleType:
    """A masking round computed again with Python integers: see naive_masking.py."""
    return _load("naive_masking")
