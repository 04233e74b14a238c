"""What a run tells people while it goes on: bars in a terminal, lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from secfl.cli.progress import observe
from secfl.federation.observer import RoundReport, RunInfo, Times

INFO = RunInfo(
    run=Path("runs/one"),
    sites=("STARE", "CHASE_DB1", "HRF"),
    rounds=4,
    first_round=0,
    parameters=123_456,
    scheme="ckks",
    key_mode="sum-key",
    threshold=3,
    privacy="no noise is added, ε is null",
)


def report(index: int, **changes) -> RoundReport:
    fields = {
        "round_index": index,
        "rounds": 4,
        "dice": 0.5 + index / 10,
        "bytes_up": 2_000_000,
        "epsilon": None,
        "survivors": INFO.sites,
        "dropped": (),
        "seconds": Times(train=3.0, total=4.0),
    }
    return RoundReport(**(fields | changes))


def play(console: Console, *, quiet: bool = False, info: RunInfo = INFO) -> None:
    with observe(quiet=quiet, console=console) as observer:
        observer.run_started(info)
        observer.message("a [bold] word")
        observer.phase("training", 1, 3)
        observer.round_finished(report(0))
        observer.round_finished(report(1, dice=None, epsilon=7.396, dropped=("HRF",)))


def test_lines_elsewhere_than_in_a_terminal():
    stream = io.StringIO()
    play(Console(file=stream, width=60))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.splitlines() == [
        "3 sites: STARE, CHASE_DB1, HRF",
        "123,456 parameters, added with ckks (sum-key), threshold 3",
        "run: runs/one",
        "a [bold] word",
        "round 1/4  Dice 0.500  2.0 MB up  ε -  4.0 s",
        "round 2/4  Dice -  4.0 MB up  ε 7.40  without HRF  4.0 s",
    ]


def test_what_follows_the_last_round_is_announced_once():
    out = io.StringIO()
    with observe(quiet=False, console=Console(file=out, force_terminal=False)) as observer:
        observer.run_started(INFO)
        for done in range(4):
            observer.phase("references", done, 4)
        observer.round_finished(report(3))
        for done in range(5):
            observer.phase("references", done, 4)
    assert out.getvalue().splitlines()[3:] == [
        "round 4/4  Dice 0.800  2.0 MB up  ε -  4.0 s",
        "references (4)",
    ]


def test_rounds_without_news_are_added_up():
    stream = io.StringIO()
    with observe(quiet=False, console=Console(file=stream, width=60)) as observer:
        for index, dice in enumerate([None, None, None, 0.8]):
            observer.round_finished(report(index, dice=dice, epsilon=2.0))
    assert stream.getvalue().splitlines() == [
        "round 1/4  Dice -  2.0 MB up  ε 2.00  4.0 s",
        "round 4/4  Dice 0.800  8.0 MB up  ε 2.00  12.0 s",
    ]


def test_a_resumed_run_says_where_it_goes_on():
    stream = io.StringIO()
    resumed = RunInfo(**{name: getattr(INFO, name) for name in INFO.__slots__} | {"first_round": 2})
    play(Console(file=stream, width=60), info=resumed)
    assert "going on after round 2 of 4" in stream.getvalue()


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_bars_in_a_terminal(environment):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, _environ=environment)
    play(console)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "a [bold] word" in text
    assert re.search(r"rounds .*2/4 Dice -  4\.0 MB up  ε 7\.40  without HRF", text)
    coloured = re.search(r"\x1b\[[0-9;]*3[0-7]", stream.getvalue()) is not None
    assert coloured == ("NO_COLOR" not in environment)
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_the_cursor_comes_back_after_an_interrupt():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with (
        contextlib.suppress(KeyboardInterrupt),
        observe(quiet=False, console=console) as observer,
    ):
        observer.run_started(INFO)
        raise KeyboardInterrupt
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_quiet_is_quiet():
    stream = io.StringIO()
    play(Console(file=stream), quiet=True)
    assert stream.getvalue() == ""
    with observe(quiet=True) as observer:
        observer.message("x")
    assert stream.getvalue() == ""
