"""Settings that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two test workers share two cores; threads that spin while they wait would starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile(
    "secfl", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("secfl")


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real images that SECFL_TEST_DATA names; the test is skipped without it."""
    named = os.environ.get("SECFL_TEST_DATA")
    if not named:
        pytest.skip("SECFL_TEST_DATA names no folder with real images")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"SECFL_TEST_DATA={named}: expected a folder")
    return folder
