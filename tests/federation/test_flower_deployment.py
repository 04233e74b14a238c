"""Flower's deployment engine, node and coordinator killed: every round ends, and the model is the right one.

Those to be killed stand still first, so that a kill comes in the phase that is meant however slow the host is.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from secfl.config import load_config
from secfl.ledger.verify import verify_file
from secfl.testing.rehearsal import in_one_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")

_SPEC = importlib.util.spec_from_file_location("flower_stage", Path(__file__).with_name("flower_stage.py"))
stage = sys.modules["flower_stage"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stage)

SETTINGS = """\
clients = 4
threads = 1
[training]
rounds = {rounds}
[secure_agg]
scheme = "masking"
[deadlines]
training = 90
phase = 45
gathering = 300
"""


def model_in_one_process(root, settings, dropped) -> str:
    """The model of the same run with the same drop-outs in one process."""
    path = root / "config.toml"
    path.write_text(settings, encoding="utf-8")
    summary = in_one_process(
        load_config(path, {}), root / "in-one-process", dropped=dropped, task_factory=stage.FACTORY
    )
    return summary["final_model_sha256"]


KILLS = {
    "after answer 1": True,
    "after answer 2": True,
    "after answer 3": True,  # its masked input lies in its journal and has not left
    "before answer 4": False,  # somebody asks for the fourth once the input has come
    "after answer 4": False,
    "after answer 5": False,
}
"""Where a node is killed, one place a round, and whether the round is then without it."""


def test_a_node_killed_in_every_phase_comes_back(tmp_path):
    """Every round ends with the sum of those whose inputs came, and the node is there again in the next."""
    settings, victim = SETTINGS.format(rounds=len(KILLS) + 1), stage.SITES[1]
    with stage.deployment(tmp_path, settings) as one:
        for index, moment in enumerate(KILLS):
            one.hold(victim, index=index, moment=moment)
            if index:
                one.start_node_again(victim)
            else:
                one.submit()
            one.wait_until_held([victim])
            one.processes.kill(victim)
            side, _, number = moment.split()
            answers = one.answers(victim)
            assert answers.get(max(answers), 0) == int(number) - (side == "before")
            one.release(victim)
            one.wait_for_rounds(index + 1)
        one.start_node_again(victim)
        summary = one.wait_for_the_end()
        dropped = [[victim] if missing else [] for missing in KILLS.values()]
        assert summary["dropped"] == [*dropped, []]
        assert summary["final_model_sha256"] == model_in_one_process(tmp_path, settings, summary["dropped"])
        assert len((tmp_path / "sums").read_text(encoding="utf-8").split()) == len(KILLS) + 1
        verdict = verify_file(one.out / "ledger.jsonl")
        assert verdict.status == "closed"
        assert verdict.rounds == {"committed": len(KILLS) + 1, "aborted": 0, "unsettled": 0, "torn": 0}


def test_a_coordinator_that_dies_is_resumed(tmp_path):
    """The link is killed with the server app in the second round; another link goes on with the same nodes' homes."""
    settings = SETTINGS.format(rounds=3)
    with stage.deployment(tmp_path, settings) as one:
        for site in stage.SITES:
            one.hold(site, index=1, moment="after answer 2")
        one.submit()
        one.wait_until_held(stage.SITES)
        one.kill_everything()
        assert len((tmp_path / "sums").read_text(encoding="utf-8").split()) == 1
        (tmp_path / "flower").rename(tmp_path / "flower-before")
        one.port = one.demo.start_link(tmp_path, one.processes)
        for site in stage.SITES:
            one.release(site)
            one.start_node(site)
        one.submit(resume=True)
        summary = one.wait_for_the_end()
        assert summary["rounds_completed"] == 3
        assert summary["dropped"] == [[], [], []]
        assert summary["final_model_sha256"] == model_in_one_process(tmp_path, settings, summary["dropped"])
        verdict = verify_file(one.out / "ledger.jsonl")
        assert verdict.status == "closed"
        # The attempt that died was paid for and never settled: nothing was opened in it.
        assert verdict.rounds == {"committed": 3, "aborted": 0, "unsettled": 1, "torn": 0}
