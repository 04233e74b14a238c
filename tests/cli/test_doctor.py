"""The doctor finds what is there, what is too old and what does not work, and says how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import os

import pytest

from secfl.cli import doctor
from secfl.cli.main import main


def finding(name: str) -> doctor.Check:
    return next(check for check in doctor.examine() if check.name == name)


def test_a_machine_that_passes_the_tests_is_healthy(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    rows = {row["name"]: row for row in report["checks"]}
    assert {"secfl", "python", "cores", "torch", "tenseal", "cryptography"} <= set(rows)
    for name in ("training", "post-quantum keys", "masking", "ckks"):
        assert rows[name]["state"] == "ok", rows[name]


def test_people_get_a_table(capsys):
    assert main(["doctor"]) == 0
    assert "post-quantum keys" in capsys.readouterr().out


def test_a_missing_package_comes_with_its_remedy(monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "tenseal":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor"]) == 2
    text = " ".join(capsys.readouterr().out.split())
    assert "not installed get it: pip install 'tenseal>=" in text


def test_a_missing_framework_is_no_illness(monkeypatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    states = {check.name: check.state for check in doctor._packages()}
    assert states["flwr"] == states["nvflare"] == "optional"
    assert states["torch"] == "missing"


@pytest.mark.parametrize(
    ("version", "least", "state"),
    [
        ("50.0.2", "50", "ok"),
        ("50", "50.0", "ok"),
        ("49.9", "50", "missing"),
        ("2.13.0+cpu", "2.6", "ok"),
        ("3.0rc1", "3.0", "ok"),
        ("0.9", "0.10", "missing"),
    ],
)
def test_versions_are_compared_by_number(monkeypatch, version, least, state):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    assert doctor._package("thing", least, state="missing").state == state


@pytest.mark.parametrize("error", [ImportError("libcudart.so.13: missing"), RuntimeError(), OSError("x\ny")])
def test_a_probe_that_breaks_is_a_finding(error):
    def probe() -> str:
        raise error

    check = doctor._probe("training", probe, remedy="pip install torch")
    assert (check.state, check.remedy) == ("missing", "pip install torch")
    assert check.found.startswith("no: ")
    assert "\n" not in check.found


def test_without_memory_files_the_doctor_says_what_to_use(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert "--secure-agg masking" in finding("memory files").remedy
