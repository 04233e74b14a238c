"""The common layer of the published studies, on a tiny study of real runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from secfl.cli.study_published import register
from secfl.config import Scheme
from secfl.errors import ConfigError, DataError
from secfl.ledger.verify import Status, verify_file
from secfl.studies.published import runner
from secfl.studies.published.interface import Definition, Preset, Request, Row
from secfl.studies.published.report import markdown
from secfl.studies.published.runner import command_line, read_request, run_published
from secfl.studies.published.table import Entry

PROJECT = Path(__file__).parents[3]


class Quiet:
    def began(self, rounds, runs): ...
    def moved(self, rounds): ...
    def finished(self, job): ...


class Heard:
    def __init__(self):
        self.length, self.places, self.names = None, [], []

    def began(self, rounds, runs):
        assert self.length is None
        self.length = (rounds, runs)

    def moved(self, rounds):
        self.places.append(rounds)

    def finished(self, job):
        self.names.append(job.name)


def in_this_process(jobs, *, processes, listener):
    listener.began(sum(job.rounds for job in jobs), len(jobs))
    for job in jobs:
        if not job.result.exists():
            job.work(*job.arguments)
            listener.finished(job)
    listener.moved(sum(job.rounds for job in jobs))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(runner, "run_jobs", in_this_process)
    return Entry("tests.studies.published.tiny:STUDY", "Tiny.").load()


def request(seeds=2, **more):
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else seeds
    return Request(**({"preset": Preset.SMOKE, "seeds": chosen} | more))


def run(study, asked, out, *, listener=None, said=None):
    return run_published(
        study,
        asked,
        out=out,
        processes=2,
        listener=listener or Quiet(),
        say=(said if said is not None else []).append,
    )


def test_a_study_leaves_runs_a_table_pictures_and_a_page(tiny, tmp_path):
    heard, said = Heard(), []
    document = run(tiny, request(), tmp_path, listener=heard, said=said)
    assert (heard.length, heard.names) == ((7, 3), ["run-0", "run-1", "count"])
    assert heard.places == [6, 7]
    # 120 s for two runs at once and their start; then by what the first one took, which is far less.
    assert said[0].startswith("3 of 3 jobs left: about 1.")
    assert "stored figures" in said[0]
    # As long as the first one took, and 6 s for each start, in steps of a tenth of a minute.
    took = json.loads((tmp_path / "runs" / "run-0.json").read_text())["seconds"]
    again = re.fullmatch(
        r"2 of 3 jobs left: about ([0-9.]+) minutes with 2 at once \(by .* ended here\)", said[1]
    )
    assert again is not None
    assert 60 * float(again[1]) == pytest.approx(took + 6, abs=6.1)
    assert len(said) == 2
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"run-{seed}"
        verdict = verify_file(folder / "ledger.jsonl")
        assert verdict.status is Status.CLOSED
        kept = document["runs"][f"run-{seed}"]["ledgers"]["ledger.jsonl"]
        assert kept["root"] == verdict.root
        said = [document["statements"][place] for place in kept["statements"]]
        assert len(said) == len(verdict.statements)
        assert all(one["non_private"] for one in said)
        assert (folder / "summary.json").is_file()
    assert json.loads((tmp_path / "table.json").read_text()) == document
    # Two runs prove the same, and it is written once.
    assert len({json.dumps(one) for one in document["statements"]}) == len(document["statements"])
    assert len(document["statements"]) <= len(verdict.statements)
    dice, up, missing = document["rows"]
    assert dice["mean"] == pytest.approx(sum(dice["per_seed"].values()) / 2, abs=1e-6)
    assert dice["spread"] is not None
    assert (dice["published"], dice["source"], dice["definition"]) == (0.9, "table 2", "theirs")
    assert missing["mean"] is None
    table = (tmp_path / "table.md").read_text()
    assert "### Overlap" in table
    assert "### Traffic" in table
    assert f"| up (MB) | {up['mean']:.1f} |" in table
    page = (tmp_path / "README.md").read_text()
    for text in ("Three clinics.", "Nothing.", "Everything.", "against 0.9", "table 2", "(dice-by-seed.png)"):
        assert text in page
    assert (tmp_path / "dice-by-seed.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "dice-by-seed.svg").read_bytes()


def test_again_nothing_is_run_and_every_file_is_the_same(tiny, tmp_path, monkeypatch):
    run(tiny, request(1), tmp_path)
    names = ("table.json", "table.md", "README.md", "dice-by-seed.svg")
    before = [(tmp_path / name).read_bytes() for name in names]
    monkeypatch.setattr(runner, "run_jobs", lambda jobs, **_: [job.result.stat() for job in jobs])
    said = []
    run(tiny, request(1), tmp_path, said=said)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert said == []


def test_another_study_in_the_same_folder_is_refused(tiny, tmp_path):
    run(tiny, request(1), tmp_path)
    with pytest.raises(ConfigError, match="expected a new folder"):
        run(tiny, request(1, scheme=Scheme.PLAIN), tmp_path)
    (tmp_path / "runs" / "study.json").unlink()
    with pytest.raises(ConfigError, match=r"run-0\.json: was run with other settings"):
        run(tiny, request(1, scheme=Scheme.PLAIN), tmp_path)
    (tmp_path / "runs" / "run-0.json").unlink()
    with pytest.raises(ConfigError, match=r"run-0: was run with other settings"):
        run(tiny, request(1, scheme=Scheme.PLAIN), tmp_path)


def test_what_a_study_was_asked_for_is_read_back(tiny, tmp_path):
    asked = request(2, scheme=Scheme.CKKS, data="phantom")
    runner._keep_request(tiny, asked, tmp_path)
    assert read_request(tiny, tmp_path) == asked
    with pytest.raises(ConfigError, match="expected the folder of a study"):
        read_request(tiny, tmp_path / "elsewhere")
    kept = tmp_path / "runs" / "study.json"
    whole = json.loads(kept.read_text())
    for change, error, words in (
        ({"study": "other"}, ConfigError, "holds the study other"),
        ({"format_version": 2}, DataError, "newer"),
        ({"preset": "huge"}, DataError, "damaged"),
        ({"seeds": None}, DataError, "damaged"),
    ):
        kept.write_text(json.dumps(whole | change))
        with pytest.raises(error, match=words):
            read_request(tiny, tmp_path)


def test_rows_refuse_what_they_cannot_back():
    with pytest.raises(ValueError, match="source"):
        Row(name="Dice", values={0: 1.0}, definition=Definition.OURS, published=0.9)
    with pytest.raises(ValueError, match="finite"):
        Row(name="Dice", values={0: float("nan")}, definition=Definition.OURS)
    with pytest.raises(ValueError, match="note"):
        Row(name="Dice", definition=Definition.OURS)
    one = Row(name="a|b", values={3: 0.5}, definition=Definition.OURS)
    assert (one.mean, one.spread) == (0.5, None)
    assert "| a\\|b | 0.500 | - | - | ours |" in markdown([one])


def test_the_command_that_is_printed_is_the_command(tiny, tmp_path):
    assert (
        command_line(tiny, request(2, scheme=Scheme.PLAIN, data="a b"), Path("out"))
        == "secfl study tiny --preset smoke --data 'a b' --secure-agg plain --seeds 2 --out out"
    )
    assert command_line(tiny, request(seeds=(10, 11)), Path("out")) == (
        "secfl study tiny --preset smoke --seeds 2 --first-seed 10 --out out"
    )


def test_seeds_begin_where_they_are_asked_to(app, monkeypatch):
    """Settings may be tried on seeds that are then never reported."""
    asked = []

    def listen(study, request, **more):
        asked.append((command_line(study, request, more["out"]), request.seeds))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_published", listen)
    for words in (["--seeds", "2", "--first-seed", "10"], ["--preset", "small"], ["--first-seed", "7"]):
        CliRunner().invoke(app, ["tiny", *words, "--quiet"])
    assert [seeds for _, seeds in asked] == [(10, 11), (0, 1, 2), (7, 8, 9)]
    assert [("--first-seed" in line) for line, _ in asked] == [True, False, True]


@pytest.fixture
def app():
    made = typer.Typer()
    register(
        made, {"tiny": Entry("tests.studies.published.tiny:STUDY", "Tiny."), "other": Entry("x:y", "Other.")}
    )
    return made


@pytest.mark.parametrize("more", [["--seeds", "2"], ["--first-seed", "0"]])
def test_resume_takes_no_other_setting(app, tmp_path, more):
    found = CliRunner().invoke(app, ["tiny", "--resume", str(tmp_path), *more])
    assert isinstance(found.exception, ConfigError)
    assert "expected no other setting" in str(found.exception)


_KILLED = """
import sys
import typer
from secfl.cli.study_published import register
from secfl.studies.published.table import Entry
app = typer.Typer()
register(app, {"tiny": Entry("tests.studies.published.tiny:STUDY", "Tiny."), "other": Entry("x:y", "Other.")})
if __name__ == "__main__":
    app(sys.argv[1:])
"""


def test_killed_in_the_middle_the_same_command_ends_in_the_same_table(tmp_path, app):
    """The whole process group is killed, with a run under way; the second call ends what it left."""
    script = tmp_path / "study.py"
    script.write_text(_KILLED)
    out = tmp_path / "cut"
    words = ["tiny", "--preset", "smoke", "--seeds", "1", "--processes", "1", "--out"]
    call = [sys.executable, str(script), *words]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    }
    begun = subprocess.Popen(
        [*call, str(out), "--quiet"], cwd=PROJECT, env=environment, start_new_session=True
    )
    metrics = out / "runs" / "run-0" / "metrics.jsonl"
    while not metrics.exists():
        assert begun.poll() is None
        time.sleep(0.02)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    assert not (out / "table.json").exists()
    assert not (out / "runs" / "run-0.json").exists()
    ended = subprocess.run(
        [*call, str(out), "--json"], cwd=PROJECT, env=environment, capture_output=True, check=True
    )
    document = json.loads(ended.stdout)
    whole = CliRunner().invoke(app, [*words, str(tmp_path / "whole"), "--json"], catch_exceptions=False)
    assert whole.exit_code == 0
    assert json.loads((tmp_path / "whole" / "table.json").read_text())["rows"] == document["rows"]
    assert document["runs"]["run-0"]["seconds"] is None
    assert verify_file(out / "runs" / "run-0" / "ledger.jsonl").status is Status.CLOSED
    resumed = CliRunner().invoke(app, ["tiny", "--resume", str(out), "--json"], catch_exceptions=False)
    assert resumed.exit_code == 0
