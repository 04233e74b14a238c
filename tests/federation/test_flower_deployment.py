"""Flower's deployment engine, node and coordinator killed: every round ends, and the model is the right one."""

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
gathering = 180
"""


def model_in_one_process(root, settings, dropped) -> str:
    """The model of the same run with the same drop-outs in one process."""
    path = root / "config.toml"
    path.write_text(settings, encoding="utf-8")
    summary = in_one_process(
        load_config(path, {}), root / "in-one-process", dropped=dropped, task_factory=stage.FACTORY
    )
    return summary["final_model_sha256"]


def test_a_node_killed_in_every_phase_comes_back(tmp_path):
    """In round k it is killed after its k-th answer; before its input is sent it is missing, afterwards it is not."""
    settings, victim = SETTINGS.format(rounds=5), stage.SITES[1]
    with stage.deployment(tmp_path, settings) as one:
        one.submit()
        for number in range(1, 6):
            one.wait_for_rounds(number - 1)
            one.wait_for_answers(victim, number, after=one.last_round(victim))
            one.processes.kill(victim)
            one.wait_for_rounds(number)
            one.start_node_again(victim)
        summary = one.wait_for_the_end()
        dropped = summary["dropped"]
        assert all(names in ([], [victim]) for names in dropped)
        assert dropped[3:] == [[], []]  # its input was sent
        assert [victim] in dropped[:2]
        assert summary["final_model_sha256"] == model_in_one_process(tmp_path, settings, dropped)
        assert verify_file(one.out / "ledger.jsonl").status == "closed"


def test_a_coordinator_that_dies_is_resumed(tmp_path):
    """The link is killed with the server app in the second round; another link goes on with the same nodes' homes."""
    settings = SETTINGS.format(rounds=3)
    with stage.deployment(tmp_path, settings) as one:
        one.submit()
        one.wait_for_rounds(1)
        one.wait_for_answers(stage.SITES[0], 2, after=one.last_round(stage.SITES[0]))
        one.kill_everything()
        (tmp_path / "flower").rename(tmp_path / "flower-before")
        one.port = one.demo.start_link(tmp_path, one.processes)
        for site in stage.SITES:
            one.start_node(site)
        one.submit(resume=True)
        summary = one.wait_for_the_end()
        assert summary["rounds_completed"] == 3
        assert summary["final_model_sha256"] == model_in_one_process(tmp_path, settings, summary["dropped"])
        verdict = verify_file(one.out / "ledger.jsonl")
        assert verdict.status == "closed"
        assert (
            verdict.rounds["committed"] + verdict.rounds["aborted"] == 4
        )  # the one that died is accounted for
