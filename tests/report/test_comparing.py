"""Runs side by side, under way, and the configuration that explains itself."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from datetime import UTC, datetime, timedelta

import pytest

from secfl.cli.main import main
from secfl.config import RunConfig, load_config
from secfl.config.commented import commented_toml
from secfl.federation.noticeboard import NOTICE_FILE, Noticeboard, read_notice
from secfl.federation.observer import RunInfo, SilentObserver
from secfl.report.comparing import compare_runs
from secfl.report.facts import read_run
from secfl.report.watching import epsilons_so_far, look

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class TestCompare:
    def test_a_run_beside_itself_differs_in_nothing(self, private_run):
        facts = read_run(private_run)
        assert not [row.name for row in compare_runs([facts, facts]) if row.differs]

    def test_what_differs_is_named_with_both_values(self, private_run, open_run):
        rows = {row.name: row for row in compare_runs([read_run(private_run), read_run(open_run)])}
        assert rows["privacy.mode"].values == ("patient", "off")
        assert rows["ε aggregator, curious"].values[1] == "none"
        assert 0 < rows["ε aggregator, curious"].values[0] <= 8
        assert rows.keys() >= {"ε aggregator + 1, curious", "ε final model, curious"}
        assert "secure_agg.scheme" not in rows, "settings that agree are left out"

    def test_the_command_prints_a_table_and_json(self, private_run, open_run, capsys):
        assert main(["compare", str(private_run), str(open_run)]) == 0
        assert "≠ privacy.mode" in capsys.readouterr().out
        assert main(["compare", str(private_run), str(open_run), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert {row["part"] for row in document["rows"]} >= {
            "setting",
            "model",
            "score",
            "ledger",
            "guarantee",
        }

    def test_one_run_is_too_few(self, private_run, capsys):
        assert main(["compare", str(private_run)]) == 2
        assert "two run directories or more" in capsys.readouterr().err


class TestWatch:
    def test_a_finished_run_is_shown_as_such(self, private_run):
        seen = look(private_run, now=datetime.now(UTC))
        assert seen.state == "finished"
        assert (seen.rounds_done, seen.rounds_planned) == (6, 6)
        assert seen.dice.keys() == {"clinic-1", "clinic-2", "clinic-3"} == seen.dice_before.keys()

    def test_epsilon_is_the_ledgers(self, private_run):
        views = json.loads((private_run / "summary.json").read_text())["privacy"]["views"]
        expected = next(row["epsilon"] for row in views if row["view"] == "aggregator")
        assert epsilons_so_far(private_run)["aggregator"] == pytest.approx(expected)

    def test_drop_outs_are_counted_by_site(self, open_run):
        lost = [name for row in read_run(open_run).metrics for name in row["dropped"]]
        assert look(open_run, now=NOON).dropped == {name: lost.count(name) for name in lost}

    def test_a_run_that_writes_nothing_for_a_minute_is_silent(self, private_run, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(private_run, run)
        (run / "summary.json").unlink()
        assert look(run, now=datetime.now(UTC)).state in {"running", "silent"}
        assert look(run, now=datetime.now(UTC) + timedelta(minutes=2)).state == "silent"

    def test_the_view_of_a_finished_run_ends_by_itself(self, private_run, capsys):
        assert main(["watch", str(private_run)]) == 0
        out = capsys.readouterr().out
        assert "6 of 6" in out
        assert "clinic-2" in out

    def test_one_look_as_json(self, private_run, capsys):
        assert main(["watch", str(private_run), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["rounds"] == {"done": 6, "planned": 6}
        assert document["epsilon"]["aggregator"] > 0


class TestNoticeboard:
    def info(self, run) -> RunInfo:
        return RunInfo(
            run=run,
            sites=("a", "b", "c"),
            rounds=7,
            first_round=0,
            parameters=1,
            scheme="plain",
            key_mode="none",
            threshold=3,
            privacy="",
        )

    def test_the_phase_is_put_up_and_taken_down(self, tmp_path):
        now = NOON
        with Noticeboard(SilentObserver(), clock=lambda: now) as board:
            board.run_started(self.info(tmp_path))
            assert read_notice(tmp_path).words == "starting"
            board.phase("training", 1, 3)
            assert read_notice(tmp_path).words == "starting", "twice a second is enough"
            now += timedelta(seconds=1)
            board.phase("training", 2, 3)
            notice = read_notice(tmp_path)
            assert (notice.words, notice.rounds, notice.at) == ("training 2 of 3", 7, now)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_gone_does_not_stop_the_run(self, tmp_path):
        with Noticeboard(SilentObserver()) as board:
            board.run_started(self.info(tmp_path / "gone"))

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"rounds": "x"}', "{}"])
    def test_a_notice_that_cannot_be_read_is_none(self, tmp_path, text):
        (tmp_path / NOTICE_FILE).write_text(text)
        assert read_notice(tmp_path) is None


class TestInit:
    def test_every_key_is_explained_and_the_file_reads_back(self, tmp_path):
        config = load_config(None, {"data": {"source": "hospital"}, "secure_agg": {"scheme": "ckks"}})
        text = commented_toml(config, chosen=frozenset({"data.source", "secure_agg.scheme"}), heading="x")
        path = tmp_path / "secfl.toml"
        path.write_text(text)
        assert load_config(path, {}) == config
        lines = text.splitlines()
        for at, line in enumerate(lines):
            if line.lstrip("# ").partition(" = ")[0].replace("_", "").isalnum() and " = " in line:
                assert lines[at - 1].startswith("# "), f"no meaning above {line}"

    def test_all_settings_are_there(self):
        text = commented_toml(RunConfig(), chosen=frozenset(), heading="x")
        assert tomllib.loads(text).keys() >= {"data", "training", "privacy"}
        for section in ("training", "privacy", "data"):
            for key in type(getattr(RunConfig(), section)).model_fields:
                assert key in text, f"{section}.{key}"

    def test_the_command_describes_the_folder_and_the_run_starts_from_it(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert (
            main(
                ["data", "phantom", "--task", "dermoscopy", "--out", "eyes", "--images", "6", "--size", "32"]
            )
            == 0
        )
        assert main(["init", "eyes", "--epsilon", "8"]) == 0
        assert "secfl simulate --config secfl.toml" in capsys.readouterr().out
        text = (tmp_path / "secfl.toml").read_text()
        assert "6 images" in text
        config = load_config(tmp_path / "secfl.toml", {})
        assert (config.data.source, config.privacy.epsilon) == ("eyes", 8.0)
        check = re.search(r"^# Check the images:  secfl (.+)$", text, re.MULTILINE)
        assert main(check[1].split()) == 0

    def test_the_file_for_a_phantom_names_no_folder_to_check(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["init"]) == 0
        assert "secfl simulate --config secfl.toml" in capsys.readouterr().out
        heading = (tmp_path / "secfl.toml").read_text().partition("format_version")[0]
        assert "secfl simulate --config secfl.toml" in heading
        assert "data check" not in heading

    def test_an_existing_file_is_left_alone(self, tmp_path, capsys):
        kept = tmp_path / "secfl.toml"
        kept.write_text("mine")
        assert main(["init", "--out", str(kept)]) == 2
        assert kept.read_text() == "mine"
        assert "exists already" in capsys.readouterr().err
