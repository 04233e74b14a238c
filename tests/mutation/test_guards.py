"""The tool that switches guards off, on a module with guards that have tests and guards that have none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("guards.py")
DOOR = """
def check_name(name):
    if not name:
        raise ValueError("no name")


def open_door(key, name):
    check_name(name)
    if key != 7:
        raise PermissionError("wrong key")
    if name == "mallory":
        opened = None
        raise PermissionError("never her")
    match name:
        case "alice" | "mallory":
            return "open"
        case _:
            raise KeyError(name)


def close_door(key):
    if key < 0:
        raise PermissionError("no key is negative")
    if key != 7:
        raise PermissionError("wrong key")


def knock(times):
    if times > 3:
        raise PermissionError("enough")
"""
TESTS = """
import pytest
from lock.door import close_door, knock, open_door


def test_a_wrong_key_does_not_open():
    with pytest.raises(PermissionError):
        open_door(3, "alice")
    assert open_door(7, "alice") == "open"


def test_somebody_must_ask():
    with pytest.raises(ValueError):
        open_door(7, "")


def test_she_is_sent_away_somehow():
    try:
        open_door(7, "mallory")
    except PermissionError:
        pass


def test_no_negative_key_closes():
    with pytest.raises(PermissionError):
        close_door(-1)


def test_knocking_ends():
    times = 0
    with pytest.raises(PermissionError):
        while True:
            times += 1
            knock(times)
"""
PARTS = """
root = "."
[parts.door]
modules = ["lock/door.py"]
tests = ["tests"]
"""


@pytest.fixture
def examined(tmp_path):
    def examine(*entries: tuple[str, str], tests: str = TESTS):
        for folder, name, text in (("lock", "door.py", DOOR), ("tests", "test_door.py", tests)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(text, encoding="utf-8")
        listed = [
            f'[[equivalent]]\nmodule = "lock/door.py"\nfunction = "{function}"\ntext = "{text}"\nreason = "so"\n'
            for function, text in entries
        ]
        (tmp_path / "guards.toml").write_text(PARTS + "".join(listed), encoding="utf-8")
        found = tmp_path / "found.json"
        command = [
            sys.executable,
            str(TOOL),
            "--parts",
            str(tmp_path / "guards.toml"),
            "--json",
            str(found),
            "--effort",
            "1",
            "--counts",
            str(tmp_path / "counts.json"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        return done, json.loads(found.read_bytes()) if found.exists() else {}

    return examine


def test_it_tells_guards_with_a_test_from_guards_without(examined):
    done, verdicts = examined()
    assert {guard.partition(": ")[2]: verdict for guard, verdict in verdicts.items()} == {
        "check_name: if not name:": "a test fails without it",
        "open_door: check_name(name)": "a test fails without it",
        "open_door: if key != 7:": "a test fails without it",
        'open_door: if name == "mallory":': "every test passes without it",
        "open_door: case _:": "acts in no test",
        "close_door: if key < 0:": "every test passes without it",
        "close_door: if key != 7:": "acts in no test",
        "knock: if times > 3:": "a test fails without it",
    }
    assert done.returncode == 1
    left = [line for line in done.stdout.splitlines() if line.startswith("lock/door.py:")]
    assert len(left) == 4
    assert done.stdout.splitlines()[-1] == "door: 8 guards, 4 needed by a test, 0 equivalent"


def test_a_listed_guard_is_excused(examined, tmp_path):
    done, verdicts = examined(("close_door", "if key < 0:"))
    assert verdicts["lock/door.py:22: close_door: if key < 0:"] == "equivalent"
    assert "if key < 0:" not in done.stdout
    assert done.stdout.splitlines()[-1] == "door: 8 guards, 4 needed by a test, 1 equivalent"
    counts = json.loads((tmp_path / "counts.json").read_bytes())
    assert counts == {"door": {"guards": 8, "needed": 4, "equivalent": 1}}


@pytest.mark.parametrize(
    ("function", "text", "complaint"),
    [
        ("open_door", "if key != 7:", "but a test needs it"),
        ("open_door", "if key == 8:", "but there is no such guard"),
    ],
)
def test_an_excuse_that_no_longer_holds_is_an_error(examined, function, text, complaint):
    done, _ = examined((function, text))
    assert done.returncode == 1
    assert f"lock/door.py: {function}: {text}: listed as equivalent, {complaint}" in done.stdout


def test_tests_that_fail_with_every_guard_on_prove_nothing(examined):
    done, verdicts = examined(tests=TESTS + "\n\ndef test_broken():\n    assert False\n")
    assert done.returncode == 2
    assert "test_broken" in done.stderr
    assert verdicts == {}
