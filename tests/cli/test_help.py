"""Help that fits a screen, shows everything on request, and finds the word that was meant."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from secfl.cli.main import main
from secfl.cli.simulate import RARE


def lines(*arguments: str, capsys) -> list[str]:
    assert main([*arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_usual_options_fit_a_screen_and_all_are_one_flag_away(capsys):
    usual = "\n".join(lines("simulate", "--help", capsys=capsys))
    everything = "\n".join(lines("simulate", "--help-all", capsys=capsys))
    for name in RARE:
        flag = "--" + name.replace("_", "-")
        assert f"{flag} " not in usual
        assert flag in everything
    assert len(usual.splitlines()) < len(everything.splitlines())
    assert "\n".join(lines("simulate", "--help", capsys=capsys)) == usual, (
        "asking for all once changes nothing"
    )


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("command", [["simulate"], ["report"], ["study", "optimisation"]])
def test_paragraphs_of_help_fill_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    told = [line.rstrip() for line in lines(*command, "--help", capsys=capsys)]
    told = told[: next(place for place, line in enumerate(told) if line.startswith("╭"))]
    for line, after in itertools.pairwise(told):
        if line and after:
            assert len(line) + 1 + len(after.split()[0]) > width - 2, f"{line!r} ends early"


def test_an_option_that_help_leaves_out_works(capsys):
    assert main(["simulate", "--dropout", "2"]) == 2
    assert "--dropout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [(["simulat"], "simulate"), (["ledger", "veri"], "verify"), (["simulate", "--epsilo"], "--epsilon")],
)
def test_a_word_that_is_nearly_right_is_answered_with_the_right_one(given, meant, capsys):
    assert main(given) == 2
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["models", "--help"]])
def test_no_color_means_no_escapes(arguments):
    environment = os.environ | {"NO_COLOR": "1", "FORCE_COLOR": "", "TERM": "xterm-256color"}
    code = f"from secfl.cli.main import main; main({arguments!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "\x1b[3" not in done.stdout
    assert "\x1b[9" not in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("secfl led", "ledger"), ("secfl ledger ver", "verify"), ("secfl simulate --dropo", "--dropout")],
)
def test_the_shell_is_told_how_a_word_goes_on(typed, offered):
    """What the script of ``secfl --show-completion`` asks when Tab is pressed; rare options are found too."""
    asked = {"_SECFL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    code = "import sys; sys.argv = ['secfl']; from secfl.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [offered]
    assert done.stderr == ""
