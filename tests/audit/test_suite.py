"""The suite: every negative control is flagged, every positive one is not, and the command says so."""

from __future__ import annotations

import json

import pytest

from secfl.audit import suite as suites
from secfl.audit.controls import Control, Kind, Preset
from secfl.audit.findings import Finding
from secfl.audit.suite import all_controls, repeat_suite
from secfl.cli.main import main
from secfl.randomness import InsecureSeededRng

QUICK = [control for control in all_controls(Preset.SMOKE) if control.detector != "collisions"]
EXPECTED = {
    "noise off",
    "noise halved",
    "clip after the sum",
    "mean over the actual batch",
    "NaN in an update",
    "replace-one accounted with add/remove sensitivity",
    "one noise seed for two clients",
    "floating-point noise",
    "adaptive clip with the sign inverted",
    "shuffling accounted as Poisson (sizes)",
    "shuffling accounted as Poisson (inclusions)",
    "seeded sampling presented as secret",
    "plain presented as secure",
    "a scheme that leaks one coordinate",
    "mask seeds of 32 bits",
    "one secret for self mask and pair masks",
}


@pytest.mark.parametrize("control", QUICK, ids=lambda control: control.name)
def test_each_control_comes_out_as_it_should(control):
    finding = control.run(InsecureSeededRng(42).fork(control.name))
    assert finding.flagged is control.expected, finding


def test_every_negative_control_of_the_design_is_there_and_every_detector_has_both_kinds():
    controls = all_controls(Preset.FULL)
    assert {one.name for one in controls if one.kind is Kind.NEGATIVE} >= EXPECTED
    kinds: dict[str, set[Kind]] = {}
    for one in controls:
        kinds.setdefault(one.detector, set()).add(one.kind)
    assert {name for name, found in kinds.items() if found != set(Kind)} == set()
    assert len({one.name for one in controls}) == len(controls)


@pytest.mark.slow
def test_twenty_seeds_of_every_control():
    # The seeds of 32 bits escape one suite in 3,000; everything else is wrong once in a million at most.
    repeated = repeat_suite(Preset.FULL, seeds=20)
    assert {row["name"]: row["wrong_seeds"] for row in repeated.rows() if row["wrong_seeds"]} == {}


class TestCommand:
    @pytest.fixture
    def two_controls(self, monkeypatch):
        def fake(*, blind: bool):
            flagged = Finding(name="x", flagged=not blind, statistic="7", p_value=0.0)
            silent = Finding(name="y", flagged=False, statistic="8")
            controls = [
                Control(name="wrong", kind=Kind.NEGATIVE, detector="d", run=lambda _: flagged),
                Control(name="right", kind=Kind.POSITIVE, detector="d", run=lambda _: silent),
            ]
            monkeypatch.setattr(suites, "all_controls", lambda _: controls)

        return fake

    def test_json_has_what_the_page_says(self, two_controls, capsys):
        two_controls(blind=False)
        assert main(["audit", "suite", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["passed"] is True
        assert document["preset"] == "smoke"
        first = document["controls"][0]
        assert {"name", "kind", "flagged", "expected", "statistic"} <= set(first)
        assert (first["kind"], first["flagged"], first["expected"]) == ("negative", True, True)

    def test_a_detector_that_is_blind_fails_the_suite(self, two_controls, capsys):
        two_controls(blind=True)
        assert main(["audit", "suite"]) == 5
        assert "1 not as expected" in capsys.readouterr().out

    def test_several_seeds_are_counted(self, monkeypatch, capsys):
        def under_odd_seeds(rng):
            return Finding(name="x", flagged=rng.bytes(1)[0] % 2 == 1, statistic="s", p_value=0.5)

        lucky = [
            number for number in range(6) if under_odd_seeds(InsecureSeededRng(number).fork("half")).flagged
        ]
        assert 0 < len(lucky) < 6
        half = Control(name="half", kind=Kind.NEGATIVE, detector="d", run=under_odd_seeds)
        monkeypatch.setattr(suites, "all_controls", lambda _: [half])
        assert main(["audit", "suite", "--seeds", "6", "--json"]) == 5
        document = json.loads(capsys.readouterr().out)
        # Every seed's outcome has the form that one suite has, so that one reader serves both.
        assert [one["seed"] for one in document["controls"]] == [0, 1, 2, 3, 4, 5]
        assert [one["seed"] for one in document["controls"] if one["flagged"]] == lucky
        assert {one["flagged"] for one in document["controls"]} == {True, False}
        assert all(one["expected"] is True and one["kind"] == "negative" for one in document["controls"])
        (row,) = document["counts"]
        assert document["passed"] is False
        assert document["seeds"] == [0, 1, 2, 3, 4, 5]
        assert row["times_flagged"] == len(lucky)
        assert row["wrong_seeds"] == [number for number in range(6) if number not in lucky]
        assert main(["audit", "suite", "--seeds", "6"]) == 5
        assert f"{6 - len(lucky)} not as expected" in capsys.readouterr().out
