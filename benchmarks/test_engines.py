"""Carriage: milliseconds for each phase over every engine, and Flower's own SecAgg+ beside it; see ``engines.py``.

Run: ``pytest benchmarks/test_engines.py --benchmark-only -s``. The table is printed; ``extra_info`` holds the rows.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def load(name):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engine_tables = load("engine_tables")
engines = load("engines")


@pytest.mark.benchmark(group="engines")
@pytest.mark.timeout(1800)
def test_carriage(benchmark, monkeypatch):
    for name, value in engines.QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(engines.PARAMETERS, "0")
    found = importlib.util.find_spec("flwr") is not None and importlib.util.find_spec("ray") is not None
    names = ["inprocess", "multiprocess", *(["flower"] if found else [])]
    rows = benchmark.pedantic(
        lambda: engines.measure(
            parameters=1_000_000, clients=4, rounds=3, schemes=["masking", "ckks"], engines=names
        ),
        rounds=1,
    )
    benchmark.extra_info["rows"] = rows
    sys.stdout.write(f"\n{engine_tables.table(rows)}\n")
    assert all(row["milliseconds"]["round"] > 0 for row in rows)
    if not found:
        pytest.skip("Flower's rows need the extra flower: make test-flower")
