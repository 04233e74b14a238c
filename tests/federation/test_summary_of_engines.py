"""Every engine's summary says how the run was carried and who was not in each sum."""

import os

import pytest

from secfl.config import RunConfig
from secfl.federation.observer import SilentObserver
from secfl.federation.rundir import read_summary
from secfl.federation.simulation import simulate

EXPECTED = {"inprocess": 1, "multiprocess": 5, "flower": 1 + min(4, os.cpu_count() or 1)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "engine", ["inprocess", "multiprocess", pytest.param("flower", marks=pytest.mark.slow)]
)
def test_it_names_engine_processes_and_drop_outs(tmp_path, monkeypatch, engine):
    if engine == "flower":
        pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")
        monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    tree = {
        "clients": 4,
        "engine": engine,
        "threads": 1,
        "training": {"rounds": 3},
        "dropout": 0.15,
        "seed": 1,
        "secure_agg": {"scheme": "masking"},
    }
    simulate(
        RunConfig.model_validate(tree),
        out=tmp_path / "run",
        observer=SilentObserver(),
        task_factory="secfl.testing.tasks:linear_task",
    )
    summary = read_summary(tmp_path / "run")
    assert (summary["engine"], summary["tls"], summary["node_auth"]) == (engine, False, False)
    assert summary["processes"] == EXPECTED[engine]
    assert len(summary["dropped"]) == 3
    by_round = {str(index): names for index, names in enumerate(summary["dropped"]) if names}
    assert by_round == summary["dropouts"]["by_round"] != {}
