"""NVFlare carries the run of one process, bit for bit; a client that dies has dropped out."""

from __future__ import annotations

import sys

import pytest

import secfl.federation
from secfl.config import RunConfig
from secfl.errors import ConfigError
from secfl.federation.observer import Observer, SilentObserver
from secfl.federation.simulation import simulate
from secfl.ledger.verify import verify_file

FACTORY = "secfl.testing.tasks:linear_task"
NEEDED = "needs the extra nvflare: make test-nvflare"
SAID_ALIKE = (
    "final_model_sha256",
    "rounds_completed",
    "dropouts",
    "secure_agg",
    "privacy",
    "bytes_per_parameter",
)


def run(out, engine, *, observer: Observer | None = None, **changes):
    tree = {
        "clients": 5,
        "engine": engine,
        "threads": 1,
        "training": {"rounds": 2},
        "seed": 1,
    }
    return simulate(
        RunConfig.model_validate(tree | changes),
        out=out,
        observer=observer or SilentObserver(),
        task_factory=FACTORY,
    )


def statements(summary):
    return {name: summary[name] for name in SAID_ALIKE}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "changes",
    [
        {"secure_agg": {"scheme": "ckks", "threshold": 4}, "dropout": 0.2},
        {
            "secure_agg": {"scheme": "masking", "threshold": 4},
            "privacy": {"mode": "client", "noise_multiplier": 3.0, "insecure_test_noise": 1},
        },
    ],
    ids=["sum-key and drop-outs", "seeded noise"],
)
def test_the_model_and_the_promises_are_those_of_one_process(tmp_path, changes):
    pytest.importorskip("nvflare", reason=NEEDED)
    there = run(tmp_path / "there", "nvflare", **changes)
    here = run(tmp_path / "here", "inprocess", **changes)
    assert statements(there) == statements(here)
    assert verify_file(tmp_path / "there" / "ledger.jsonl").status == "closed"


class Killer(SilentObserver):
    """Kills the process of one site after the first round."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.killed = 0
        self.listening: set[str] = set()

    def round_finished(self, report) -> None:
        import psutil

        if self.killed:
            return
        for process in psutil.Process().children(recursive=True):
            ports = process.net_connections(kind="inet")
            self.listening |= {one.laddr.ip for one in ports if one.status == psutil.CONN_LISTEN}
            if f"--client {self.site} " in " ".join(process.cmdline()):
                process.kill()
                self.killed += 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_client_that_dies_has_dropped_out_and_nothing_listens_beyond_this_host(tmp_path):
    pytest.importorskip("nvflare", reason=NEEDED)
    killer = Killer("site-02")
    summary = run(
        tmp_path / "run",
        "nvflare",
        observer=killer,
        secure_agg={"scheme": "ckks", "threshold": 4},
        deadlines={"training": 20, "phase": 20},
    )
    assert killer.killed == 1
    assert killer.listening == {"127.0.0.1"}
    assert summary["dropouts"]["by_round"] == {"1": ["site-02"]}
    assert summary["rounds_completed"] == 2


def test_a_name_that_nvflare_cannot_carry_is_refused_before_anything_starts():
    nvflare = pytest.importorskip("secfl.federation.nvflare", reason=NEEDED)
    for name in ("north.hospital", "server"):
        with pytest.raises(ConfigError, match="NVFlare expects"):
            nvflare.check_names([name])


def test_without_nvflare_one_line_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvflare", None)
    monkeypatch.setitem(sys.modules, "nvflare.collab", None)
    monkeypatch.delitem(sys.modules, "secfl.federation.nvflare", raising=False)
    monkeypatch.delattr(secfl.federation, "nvflare", raising=False)
    with pytest.raises(ConfigError, match=r"--engine nvflare: .*pip install 'secfl\[nvflare\]'"):
        run(tmp_path / "run", "nvflare")
