"""The entry point: one line for every error, the right exit code, and no waiting for torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import typer

from secfl import errors
from secfl.cli import simulate
from secfl.cli.main import app, main

FLAGS = {
    *("--config", "--data", "--model", "--clients", "--rounds", "--local-epochs", "--engine", "--device"),
    *("--secure-agg", "--ckks-key", "--threshold", "--dropout", "--dp", "--epsilon", "--delta"),
    *("--noise-multiplier", "--clip", "--accept-weak", "--insecure-test-noise", "--seed", "--references"),
    *("--record", "--include-images", "--out", "--resume", "--json", "--quiet"),
}
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]")


def refusal(capsys, *arguments: str, code: int = 2) -> str:
    """Run a command that must fail; its one line on standard error, with nothing on standard output."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secfl.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


class TestUsage:
    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert re.fullmatch(r"secfl \d+\.\d+\S*\n", capsys.readouterr().out)

    @pytest.mark.parametrize("arguments", [[], ["--help"], ["simulate", "--help"], ["ledger", "--help"]])
    def test_help(self, capsys, arguments):
        assert main(arguments) == 0
        assert "Usage: secfl" in capsys.readouterr().out

    def test_a_group_without_a_command_shows_its_help(self, capsys):
        assert main(["ledger"]) == 2
        captured = capsys.readouterr()
        assert "verify" in captured.out
        assert captured.err == "error: a command is missing; see secfl ledger --help\n"

    def test_a_wrong_command_gets_a_suggestion(self, capsys):
        assert refusal(capsys, "simulat").endswith("'simulat'. Did you mean 'simulate'?; see secfl --help\n")

    def test_a_command_far_from_any_gets_none(self, capsys):
        assert "Did you mean" not in refusal(capsys, "zzz")

    def test_a_wrong_option_gets_a_suggestion(self, capsys):
        assert "--rounds" in refusal(capsys, "simulate", "--round", "3")

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--rounds", "many"], "--rounds"),
            (["--rounds"], "--rounds"),
            (["--secure-agg", "xor"], "'plain', 'masking', 'ckks'"),
            (["--dp", "both"], "'off', 'client', 'patient'"),
            (["leftover"], "leftover"),
        ],
    )
    def test_a_value_that_does_not_parse_is_named(self, capsys, arguments, named):
        assert named in refusal(capsys, "simulate", *arguments)

    def test_the_flags_of_the_contract_are_there(self):
        command = _group().commands["simulate"]
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert flags >= FLAGS
        assert set(_group().commands) >= {"simulate", "ledger", "doctor"}

    def test_each_setting_has_one_flag(self):
        command = _group().commands["simulate"]
        names = {parameter.name for parameter in command.params}
        others = {"config", "out", "resume", "as_json", "quiet", "help_all", "help"}
        assert names - others == set(simulate._KEYS)


def _group():
    return typer.main.get_command(app)


ERRORS = [
    (errors.ConfigError("--out x: exists"), 2),
    (errors.CapacityError("no room"), 2),
    (errors.BudgetExhausted("spent"), 3),
    (errors.BelowThreshold("2 of 3"), 4),
    (errors.RemoteProtocolError("ward-a", "truncated"), 4),
    (errors.LedgerCorrupted(3, "sigma"), 5),
    (errors.LedgerOpen("no close"), 6),
    (PermissionError(13, "Permission denied", "/somewhere/run"), 2),
    (OSError(28, "No space left on device"), 2),
]


class TestErrors:
    @pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
    def test_each_ends_in_one_line_with_its_code(self, capsys, monkeypatch, error, code):
        def fail(*_):
            raise error

        monkeypatch.setattr(simulate, "load_config", fail)
        line = refusal(capsys, "simulate", code=code)
        for part in error.args:
            if isinstance(part, str):
                assert part in line

    def test_a_message_cannot_steer_the_terminal(self, capsys, monkeypatch):
        def fail(*_):
            raise errors.DataError("a\x1b[2Jb\r\nerror: c\u202ed: not an image")

        monkeypatch.setattr(simulate, "load_config", fail)
        assert refusal(capsys, "simulate") == "error: a [2Jb  error: c d: not an image\n"

    def test_an_interrupt_has_its_own_code(self, capsys, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(simulate, "load_config", interrupt)
        assert main(["simulate"]) == 130
        assert capsys.readouterr().err.strip() == ""

    def test_a_bug_is_not_hidden(self, monkeypatch):
        def fail(*_):
            raise ZeroDivisionError

        monkeypatch.setattr(simulate, "load_config", fail)
        with pytest.raises(ZeroDivisionError):
            main(["simulate"])


class TestProcess:
    @pytest.mark.parametrize(
        "arguments", [["--help"], ["simulate", "--help"], ["ledger", "verify", "--help"]]
    )
    def test_help_loads_neither_torch_nor_tenseal(self, arguments):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "secfl.cli", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert "typer" in loaded
        assert loaded.isdisjoint({"torch", "monai", "opacus", "tenseal", "scipy"})

    def test_an_error_leaves_no_traceback(self):
        done = run("simulate", "--rounds", "0")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: --rounds: Input should be greater than or equal to 1 (got 0)\n"

    def test_colours_are_a_choice(self):
        assert COLOUR.search(run("simulate", "--help", FORCE_COLOR="1", NO_COLOR="").stdout)
        assert not COLOUR.search(run("simulate", "--help", FORCE_COLOR="1", NO_COLOR="1").stdout)

    def test_an_ascii_terminal_is_enough(self):
        done = run("simulate", "--help", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
        assert done.returncode == 0
        assert "--epsilon" in done.stdout

    def test_a_closed_pipe_is_silent(self):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as closed:
            done = subprocess.run(
                [sys.executable, "-m", "secfl.cli", "--help"],
                stdout=closed,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, "")
