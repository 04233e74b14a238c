"""A rehearsal: homes that a deployment takes, and a comparison that finds another model."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from secfl.config import RunConfig
from secfl.federation.deployment import CoordinatorHome
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.federation.site_home import SiteHome
from secfl.testing.rehearsal import compare, in_one_process, prepare_homes, secfl

FACTORY = "secfl.testing.tasks:linear_task"
NAMES = ("site-00", "site-01", "site-02", "site-03")


def configuration() -> RunConfig:
    return RunConfig.model_validate({"clients": 4, "threads": 1, "training": {"rounds": 2}})


def test_everybody_has_a_home_and_the_coordinator_is_known(tmp_path):
    prepare_homes(tmp_path, NAMES, settings=configuration().to_toml(), coordinator="server")
    today = dt.datetime.now(dt.UTC).date()
    head = CoordinatorHome.open(tmp_path / "homes" / "server", today=today)
    assert tuple(sorted(head.directory.keys)) == NAMES
    for name in NAMES:
        site = SiteHome.open(tmp_path / "homes" / name, name, today=today)
        assert site.coordinator == ("coordinator", head.identity.public_key())
        assert {path.name for path in (tmp_path / "homes" / name).glob("*.key")} == {f"{name}.key"}


def test_a_site_is_missing_where_it_was(tmp_path):
    dropped = [["site-02"], []]
    summary = in_one_process(configuration(), tmp_path / "run", dropped=dropped, task_factory=FACTORY)
    assert summary["dropped"] == dropped


def test_another_model_is_found(tmp_path, capfd):
    tree = {"clients": 3, "threads": 1, "data": {"source": "phantom", "phantom_images": 8, "image_size": 32}}
    tree |= {"model": {"channels": [4, 4, 8]}, "training": {"rounds": 1, "local_epochs": 1}}
    config = RunConfig.model_validate(tree)
    out = tmp_path / "run"
    summary = simulate(config, out=out, observer=SilentObserver())
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    assert compare(out, settings=config.to_toml(), beside=tmp_path / "one")
    assert capfd.readouterr().out.splitlines()[-1] == str(out)
    (out / "summary.json").write_text(
        json.dumps(summary | {"final_model_sha256": "0" * 64}), encoding="utf-8"
    )
    assert not compare(out, settings=config.to_toml(), beside=tmp_path / "other")


def test_a_command_that_fails_ends_the_rehearsal(tmp_path):
    with pytest.raises(SystemExit, match=r"no\.json: cannot be read"):
        secfl("keys", "manifest", str(tmp_path / "no.json"), quiet=True)
