"""Membership, peers and power: small, real, and wrong where they should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secfl.audit import peers
from secfl.audit.membership import membership_attack, segmentation_losses
from secfl.audit.peers import PeerName, look_at_peer
from secfl.audit.power import canary_rows, variance_rows
from secfl.cli.main import main
from secfl.config import load_config
from secfl.errors import ConfigError
from secfl.segmentation.segmentation_task import build_task


class TestMembership:
    def test_losses_are_those_of_the_evaluation_image_by_image(self):
        settings = {
            "threads": 1,
            "data": {"phantom_images": 8, "image_size": 32},
            "model": {"channels": [4, 8, 8]},
        }
        task = build_task(load_config(None, settings))
        state = task.initial_state()
        members, others = segmentation_losses(task, state)
        cases = [task.evaluate(site, state) for site in task.sites]
        assert others.size == sum(one.cases for one in cases)
        assert members.size == sum(task.examples(site) for site in task.sites)
        mean = sum(one.dice * one.cases for one in cases) / others.size
        assert 1 - others.mean() == pytest.approx(mean, abs=1e-6)

    def test_equal_losses_give_away_nothing(self):
        source = np.random.default_rng(1)
        found = membership_attack(source.normal(size=2000), source.normal(size=2000))
        assert found.auc == pytest.approx(0.5, abs=0.05)  # 5 standard errors
        assert found.interval[0] < found.true_positive_rate < found.interval[1]
        assert found.interval[0] < 0.02

    def test_remembered_images_stand_out(self):
        source = np.random.default_rng(2)
        found = membership_attack(source.normal(-4, 1, 500), source.normal(0, 1, 2000))
        assert found.true_positive_rate > 0.85
        assert found.auc > 0.98
        assert found.measured_false_positive_rate < 0.03

    def test_ties_are_shared(self):
        found = membership_attack(np.zeros(50), np.zeros(60))
        assert found.auc == 0.5
        assert found.true_positive_rate == 0

    @pytest.mark.parametrize(("members", "others", "rate"), [(1, 9, 0.1), (9, 1, 0.1), (9, 9, 0.0)])
    def test_too_little_is_refused(self, members, others, rate):
        with pytest.raises(ConfigError):
            membership_attack(np.zeros(members), np.zeros(others), false_positive_rate=rate)


class TestPeers:
    @pytest.mark.parametrize("peer", list(PeerName))
    def test_what_is_not_installed_is_skipped_with_a_reason(self, peer, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(peers, "find_spec", lambda _: None)
        found = look_at_peer(peer, folder=tmp_path)
        assert found.facts is None
        assert "make peers" in found.skipped
        assert main(["audit", "peer", peer.value, "--peers-dir", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["skipped"] == found.skipped

    def test_what_is_installed_beside_secfl_is_looked_at(self, tmp_path, monkeypatch):
        ran = []

        def run(command, **_):
            ran.append(command[0])
            return subprocess.CompletedProcess(command, 0, stdout='{"version": "1"}\n', stderr="")

        monkeypatch.setattr(peers, "find_spec", lambda name: name == "flwr" or None)
        monkeypatch.setattr(peers.subprocess, "run", run)
        assert look_at_peer(PeerName.FLOWER_SECAGGPLUS, folder=tmp_path).facts == {"version": "1"}
        assert ran == [Path(sys.executable)]
        assert look_at_peer(PeerName.NVFLARE_HE, folder=tmp_path).facts is None

    def test_a_script_that_fails_is_a_reason(self, tmp_path):
        python = tmp_path / "flower" / "bin" / "python"
        python.parent.mkdir(parents=True)
        for body, reason in (
            ("echo oops >&2; exit 3", "exit code 3: oops"),
            ("echo nothing", "JSON document"),
        ):
            python.write_text(f"#!/bin/sh\n{body}\n")
            python.chmod(0o755)
            assert reason in look_at_peer(PeerName.FLOWER_SECAGGPLUS, folder=tmp_path).skipped

    @pytest.mark.slow
    @pytest.mark.parametrize("peer", list(PeerName))
    def test_installed_peers_are_looked_at(self, peer):
        folder = Path(__file__).resolve().parents[2] / ".peers"
        found = look_at_peer(peer, folder=folder)
        if found.facts is None:
            pytest.skip(found.skipped)
        assert found.facts["version"]
        if peer is PeerName.FLOWER_SECAGGPLUS:
            assert found.facts["pair_mask"]["bits_that_vary"] <= 32
        else:
            assert "server_context_has_the_secret_key" in found.facts


def test_the_power_table_has_false_alarms_and_detections():
    rows = [*variance_rows(3), *canary_rows(1, 1, steps=3, canaries=60)]
    assert {row.fault for row in rows} == {
        "none",
        "none, everybody in each step",
        "noise 1.05 times too narrow",
        "noise 1.5 times too narrow",
    }
    assert all(0 <= row.found <= row.repetitions for row in rows)
    by_test = {(row.test, row.fault): row.found for row in rows}
    assert by_test["variance test, all steps", "none"] == 0
    assert len(by_test) == len(rows)
    for row in rows:
        figures = row.to_dict()
        assert (
            ("canaries" in row.test) == (figures["measured"] is not None) == (figures["expected"] is not None)
        )
