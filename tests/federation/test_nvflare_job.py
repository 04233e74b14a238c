"""What a job of secfl carries over NVFlare, what a site answers, and a FedAvg script that stays as it is."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from secfl.crypto.identity import Directory
from secfl.errors import ConfigError
from secfl.federation.homes import make_homes
from secfl.federation.keyfiles import read_identity
from secfl.federation.manifest import read_manifest
from secfl.federation.request_codec import decode_reply, encode
from secfl.federation.requests import (
    Failed,
    Opened,
    OpenRun,
    Refused,
)
from secfl.randomness import SystemRng

NEEDED = "needs the extra nvflare: make test-nvflare"
HELLO = Path(__file__).parents[2] / "examples" / "nvflare-app" / "hello"
SITES = ("site-1", "site-2", "site-3", "site-4")
TODAY = dt.date(2026, 7, 1)
SETTINGS = 'clients = 4\n[training]\nrounds = 1\n[secure_agg]\nscheme = "masking"\n'


@pytest.fixture
def homes(tmp_path):
    template = tmp_path / "template"
    template.mkdir()
    (template / "config.toml").write_text(SETTINGS)
    (template / "task").write_text("secfl.testing.tasks:linear_task\n")
    (template / "code").mkdir()
    (template / "code" / "mine.py").write_text("value = 1\n")
    make_homes(template, tmp_path / "secfl", sites=SITES, coordinator="server", today=TODAY, rng=SystemRng())
    return tmp_path / "secfl"


def test_everybody_has_a_home_and_only_sites_have_a_key_their_own(homes):
    directory = read_manifest(homes / "server" / "manifest.json").check(TODAY)
    assert isinstance(directory, Directory)
    assert not list((homes / "server").glob("*.key"))
    for site in SITES:
        assert [path.name for path in (homes / site).glob("*.key")] == [f"{site}.key"]
        assert (homes / site / f"{site}.key").stat().st_mode & 0o077 == 0
        assert (homes / site).stat().st_mode & 0o077 == 0
        identity = read_identity(homes / site / f"{site}.key", site, passphrase=None)
        assert directory.keys[identity.name] == identity.public_key()
        assert (homes / site / "code" / "mine.py").exists()


def test_a_template_without_a_configuration_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.toml"):
        make_homes(
            tmp_path, tmp_path / "out", sites=SITES, coordinator="server", today=TODAY, rng=SystemRng()
        )
    assert not (tmp_path / "out").exists()


def test_a_job_ships_no_code_and_a_host_admits_it_by_the_names_of_its_classes(tmp_path):
    nvflare = pytest.importorskip("secfl.federation.nvflare", reason=NEEDED)
    nvflare.SecflRecipe("job", min_clients=4).export(str(tmp_path / "jobs"))
    files = [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
    assert files
    assert {path.suffix for path in files} == {".json"}
    named = set()
    for path in files:
        text = path.read_text()
        named |= {part for part in text.split('"') if part.startswith(("secfl.", "nvflare.collab."))}
    (tmp_path / "resources.json.default").write_text('{"format_version": 2, "class_allow_list": ["*"]}')
    nvflare.admit(tmp_path, nvflare.Coordinator, nvflare.Site)
    resources = json.loads((tmp_path / "resources.json").read_text())
    assert set(resources["class_allow_list"]) == named
    assert resources["allow_log_streaming"] is False


class Workspace:
    """Where NVFlare tells a site that its own settings are."""

    def __init__(self, local: Path) -> None:
        self.local = local

    def get_site_config_dir(self) -> str:
        return str(self.local)


@pytest.fixture
def called_by(homes):
    """Lets a function be called as NVFlare calls it, by somebody of the job."""
    pytest.importorskip("nvflare", reason=NEEDED)
    from nvflare.collab.api.app import ClientApp
    from nvflare.collab.api.context import Context, set_call_context

    from secfl.federation.nvflare import Site

    app = ClientApp(Site())
    app.name = "site-1"
    app._workspace = Workspace(homes.parent)

    def call(caller, request):
        set_call_context(Context(app, caller, "site-1", None))
        return decode_reply(app.obj.answer(request), peer="site-1", most_bytes=10_000)

    yield call
    set_call_context(None)
    app.obj.close()


def opening(homes):
    from secfl.config import load_config

    digest = load_config(homes / "site-1" / "config.toml", {}).digest()
    return encode(OpenRun(run_id=bytes(16), config_digest=digest))


def test_a_site_answers_the_server(called_by, homes, monkeypatch):
    import secfl.federation.nvflare as module

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 7, 1, tzinfo=tz)

    monkeypatch.setattr(module.dt, "datetime", Clock)
    assert called_by("server", opening(homes)) == Opened(run_id=bytes(16))


@pytest.mark.parametrize("caller", ["site-2", "admin", "server.other"])
def test_a_site_answers_nobody_else(called_by, homes, caller):
    assert isinstance(called_by(caller, opening(homes)), Refused)
    assert not (homes / "site-1" / "state").exists()


def test_a_site_without_a_home_says_so_and_does_not_fail(called_by, homes):
    shutil.rmtree(homes / "site-1")
    assert isinstance(called_by("server", b"?"), Failed)


@pytest.mark.parametrize("request_", [b"", b"garbage", "text", None, 7], ids=str)
def test_hostile_bytes_end_in_a_refusal(called_by, homes, request_):
    assert isinstance(called_by("server", request_), Refused | Failed)


SCRIPT = """
import numpy as np
import nvflare.client as flare
flare.init()
while flare.is_running():
    received = flare.receive()
    {body}
"""
TURN = """
from pathlib import Path
import numpy as np
from secfl.errors import ConfigError
from secfl.federation.nvflare_script import ScriptTask
model = {"weight": np.zeros((2, 3), np.float32), "count": np.zeros((), np.int64)}
task = ScriptTask(
    sites=["a", "b", "c"], script=Path("script.py"), model=model, score=lambda state: 0.5, exchange="numpy"
)
state = {"weight": np.ones((2, 3), np.float32), "count": np.full((), 2.6, np.float32)}
try:
    for turn in range(2):
        result = task.train("a", state, round_index=turn)
        print(turn, result.examples, result.state["weight"].tolist(), result.state["count"].tolist())
    task.train("b", state, round_index=2)
except ConfigError as error:
    print("ConfigError:", error)
"""


def turns(folder, body):
    """What comes of two turns of a script, in a process of its own: a script is one for each process."""
    folder.joinpath("script.py").write_text(SCRIPT.format(body=textwrap.indent(body, "    ").strip()))
    done = subprocess.run(
        [sys.executable, "-c", TURN],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_script_gets_the_model_and_what_it_sends_is_the_result(tmp_path):
    pytest.importorskip("nvflare", reason=NEEDED)
    body = (
        "assert received.params['count'].dtype == np.int64 and received.params['count'] == 3\n"
        "params = {'weight': received.params['weight'] + 1 + received.current_round, 'count': np.int64(4)}\n"
        "flare.send(flare.FLModel(params=params, meta={'NUM_STEPS_CURRENT_ROUND': 7}, metrics={'loss': 1.0}))"
    )
    first, second, refused = turns(tmp_path, body)
    assert first == f"0 7 {[[2.0] * 3] * 2} 4.0"
    assert second == f"1 7 {[[3.0] * 3] * 2} 4.0"
    assert "runs for a in this process and cannot train for b" in refused


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise OSError('secret')", "script.py: failed"),
        ("break", "script.py: ended before it sent a model"),
        ("flare.send(flare.FLModel(params={'weight': received.params['weight']}))", "sent no count"),
        (
            "flare.send(flare.FLModel(params={'weight': np.zeros(5), 'count': np.zeros(())}))",
            "sent weight of 5 elements, expected 6",
        ),
    ],
    ids=["fails", "ends", "too few", "wrong shape"],
)
def test_a_script_that_does_not_send_the_model_is_one_line(tmp_path, body, said):
    pytest.importorskip("nvflare", reason=NEEDED)
    (line,) = [line for line in turns(tmp_path, body) if line.startswith("ConfigError")]
    assert said in line
    assert "secret" not in line


def test_the_sites_agree_on_every_file_of_the_script(tmp_path):
    script = pytest.importorskip("secfl.federation.nvflare_script", reason=NEEDED)
    import numpy as np

    def digest(**changes):
        given = {
            "sites": ["a"],
            "script": tmp_path / "client.py",
            "model": {"w": np.zeros(3, np.float32)},
            "score": lambda _state: 1.0,
        }
        return script.ScriptTask(**given | changes).digest()

    (tmp_path / "client.py").write_text("pass")
    first = digest()
    assert digest() == first
    assert digest(arguments="--fast") != first
    assert digest(model={"w": np.zeros(4, np.float32)}) != first
    (tmp_path / "helper.py").write_text("pass")
    assert digest() != first


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fedavg_script_trains_under_secure_aggregation(tmp_path):
    pytest.importorskip("nvflare", reason=NEEDED)
    shutil.copytree(HELLO, tmp_path / "hello")
    before = (HELLO / "fedavg.py").read_text().splitlines()
    after = (HELLO / "secure.py").read_text().splitlines()
    changed = [line for line in after if line.strip() and line not in before]
    assert len(changed) < 6
    subprocess.run(
        [sys.executable, "secure.py"], cwd=tmp_path / "hello", check=True, timeout=550, capture_output=True
    )
    (path,) = (tmp_path / "hello" / "workspace").glob("hello/server/simulate_job/secfl/summary.json")
    summary = json.loads(path.read_text())
    assert summary["rounds_completed"] == 3
    assert summary["engine"] == "nvflare"
    assert summary["dropouts"]["total"] == 0
    assert summary["evaluation_only"]["accuracy"]["mean"] > 0.8
