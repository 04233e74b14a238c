"""secfl under somebody's Flower app: few lines change, and the model is the one that it was."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import time

import pytest

RUN = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from flwr.simulation import run_simulation
from digits.client_app import app as client_app
from digits.server_app import app as server_app
run_simulation(server_app, client_app, num_supernodes=4, backend_config={
    "client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2, "log_to_driver": False}})
"""


def changed_lines(plain, secure) -> list[str]:
    """Lines that a user writes: added or replaced, over all files of the app; empty lines do not count."""
    found = []
    for before in sorted(plain.rglob("*.*")):
        if "__pycache__" in before.parts:
            continue
        after = secure / before.relative_to(plain)
        texts = [path.read_text(encoding="utf-8").splitlines() for path in (before, after)]
        delta = difflib.unified_diff(*texts, n=0, lineterm="")
        found += [line for line in list(delta)[2:] if line.startswith("+") and line.strip("+ ")]
    return found


def test_fewer_than_fifteen_lines_change_and_none_of_the_training(project):
    app = project / "examples/flower-dropin"
    lines = changed_lines(app / "plain", app / "secure")
    assert 0 < len(lines) < 15, lines
    assert (app / "plain/digits/task.py").read_bytes() == (app / "secure/digits/task.py").read_bytes()
    page = (project / "docs/flower-dropin.md").read_text(encoding="utf-8")
    for line in lines:
        assert line in page  # the page shows the whole difference


def accuracies(project, tmp_path, which):
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    paths = [str(project / "examples/flower-dropin" / which), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    folder = tmp_path / which
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, paths[0]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = re.findall(r"^accuracy (.*)$", done.stdout, flags=re.MULTILINE)
    return folder, [float(one) for one in re.findall(r"'accuracy': ([0-9.]+)", line)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_app_learns_what_it_learned_before(project, tmp_path):
    pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")
    _, before = accuracies(project, tmp_path, "plain")
    folder, after = accuracies(project, tmp_path, "secure")
    assert len(before) == len(after) == 4
    assert before[-1] > before[0] + 0.3
    # The grid of the codec moves a weight by 1e-4 at most: one test image of sixty may change its class.
    assert after == pytest.approx(before, abs=1.01 / 60)
    (run,) = (folder / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["engine"], summary["rounds_completed"], summary["secure_agg"]["scheme"]) == (
        "flower",
        3,
        "masking",
    )


class TestWhatTheWrappedAppRefuses:
    """Whoever asks a wrapped app as if it were the old one gets nothing."""

    @pytest.fixture(autouse=True)
    def flower(self):
        pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")

    def wrapped(self):
        from flwr.app import ArrayRecord, Message, RecordDict
        from flwr.clientapp import ClientApp

        from secfl.federation.flower_dropin import protect

        inner = ClientApp()
        called = []

        @inner.train()
        def train(msg, _context):
            called.append(msg)
            return Message(RecordDict({"arrays": ArrayRecord({})}), reply_to=msg)

        return inner, protect(inner, initial=lambda _: ArrayRecord({})), called

    def message(self, content, kind):
        from flwr.app import Message, Metadata

        metadata = Metadata(
            run_id=1,
            message_id="1",
            src_node_id=1,
            dst_node_id=2,
            reply_to_message_id="",
            group_id="",
            created_at=time.time(),
            ttl=60,
            message_type=kind,
        )
        return Message(content, metadata=metadata)

    def test_a_plain_request_to_train_is_not_answered(self):
        from flwr.app import Context, RecordDict

        inner, app, called = self.wrapped()
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        message = self.message(RecordDict({}), "train")
        inner(message, context)
        assert len(called) == 1  # the app itself would
        with pytest.raises(Exception, match="train"):
            app(message, context)
        assert len(called) == 1

    def asked(self, node_config):
        """What a node tells the server of a request that it cannot answer; Flower would send an exception's text."""
        from flwr.app import ConfigRecord, Context, RecordDict

        from secfl.federation.request_codec import decode_reply

        _, app, _ = self.wrapped()
        context = Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})
        content = RecordDict({"secfl": ConfigRecord({"request": b"x"})})
        answer = app(self.message(content, "query.secfl"), context)
        return decode_reply(answer.content["secfl"]["reply"], peer="site", most_bytes=4096).reason

    def test_a_node_without_a_home_says_what_it_needs_in_its_own_log(self, caplog):
        assert self.asked({}) == "its configuration cannot be used; its own log says why"
        assert "expected site=" in caplog.text

    def test_the_server_does_not_hear_where_a_home_is(self, tmp_path, caplog):
        home = tmp_path / "mueller"
        reason = self.asked({"site": "north", "home": str(home)})
        assert reason == "its configuration cannot be used; its own log says why"
        assert str(home) in caplog.text
