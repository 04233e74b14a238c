"""From nothing to a manifest that everybody has signed, by commands."""

from __future__ import annotations

import json

import pytest

from secfl.cli.main import main

NAMES = ("north", "south", "west")


@pytest.fixture
def secfl(capsys):
    """Run a command: its exit code, output and errors."""

    def run(*arguments):
        code = main([str(one) for one in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def members(tmp_path, secfl):
    """Three keys, one under a passphrase; gives what else commands need for each."""
    phrase = tmp_path / "phrase"
    phrase.write_text("correct horse\n", encoding="utf-8")
    phrase.chmod(0o600)
    more = {name: ("--passphrase-file", phrase) if name == "west" else () for name in NAMES}
    for name in NAMES:
        code, out, _ = secfl("keys", "new", name, "--out", tmp_path, *more[name])
        assert code == 0
        assert "fingerprint" in out
    return more


def test_from_keys_to_a_usable_manifest(tmp_path, secfl, members):
    manifest = tmp_path / "manifest.json"
    code, out, _ = secfl("keys", "enroll", manifest, *(tmp_path / f"{name}.public.json" for name in NAMES))
    assert (code, "3 members" in out) == (0, True)
    code, _, err = secfl("keys", "manifest", manifest, "--check")
    assert (code, "not signed by north, south, west" in err) == (2, True)
    for name in NAMES:
        assert secfl("keys", "manifest", manifest, "--sign", tmp_path / f"{name}.key", *members[name])[0] == 0
    code, out, _ = secfl("keys", "manifest", manifest, "--check", "--json")
    shown = json.loads(out)
    assert (code, shown["usable"]) == (0, True)
    assert [row["name"] for row in shown["members"]] == list(NAMES)

    assert secfl("keys", "rotate", tmp_path / "north.key")[0] == 0
    assert secfl("keys", "enroll", manifest, tmp_path / "north.public.json")[0] == 0
    after = json.loads(secfl("keys", "manifest", manifest, "--json")[1])
    assert not after["usable"]
    assert after["members"][0]["fingerprint"] != shown["members"][0]["fingerprint"]


def test_a_manifest_may_name_the_coordinator(tmp_path, secfl, members):
    manifest = tmp_path / "manifest.json"
    secfl("keys", "new", "head", "--out", tmp_path)
    entries = [tmp_path / f"{name}.public.json" for name in NAMES]
    code, out, _ = secfl("keys", "enroll", manifest, *entries, "--coordinator", tmp_path / "head.public.json")
    assert (code, "3 members" in out) == (0, True)
    code, out, _ = secfl("keys", "manifest", manifest)
    assert (code, "head  expires" in out, "coordinator" in out) == (0, True, True)
    shown = json.loads(secfl("keys", "manifest", manifest, "--json")[1])
    assert shown["coordinator"]["name"] == "head"
    assert len(shown["members"]) == 3


def test_nothing_is_written_over(tmp_path, secfl, members):
    before = (tmp_path / "north.key").read_bytes()
    code, _, err = secfl("keys", "new", "north", "--out", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert (tmp_path / "north.key").read_bytes() == before


def test_a_passphrase_is_needed_and_never_shown(tmp_path, secfl, members):
    secfl("keys", "enroll", tmp_path / "m.json", tmp_path / "west.public.json")
    code, out, err = secfl("keys", "manifest", tmp_path / "m.json", "--sign", tmp_path / "west.key")
    assert (code, "needs a passphrase" in err) == (2, True)
    assert "correct horse" not in out + err
