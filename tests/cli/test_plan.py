"""``secfl plan``: what-if questions before any training."""

import json

import pytest

from secfl.cli.main import main

EXAMPLE = ["plan", "--clients", "5", "--sampling-rate", "0.04", "--steps", "500", "--delta", "1e-5"]


def table(capsys, *more):
    assert main([*EXAMPLE, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_golden_example(capsys):
    document = table(capsys, "--noise-multiplier", "1", "--threshold", "4")
    rows = {(r["view"], r["adversary"], r["colluders"]): r for r in document["views"]}
    expected = {
        ("aggregator", "curious", 0): 5.879,
        ("aggregator_colluders", "curious", 1): 7.397,
        ("aggregator_colluders", "curious", 2): 10.238,
        ("aggregator_colluders", "curious", 3): 16.993,
        ("aggregator", "malicious", 0): 7.397,
    }
    for key, reference in expected.items():
        assert rows[key]["epsilon_reference"] == pytest.approx(reference, abs=0.01)
        assert rows[key]["epsilon_reference"] <= rows[key]["epsilon"] <= 1.25 * reference


def test_a_wanted_epsilon_gives_the_noise(capsys):
    document = table(capsys, "--epsilon", "4")
    rows = {(r["view"], r["adversary"], r["colluders"]): r["epsilon"] for r in document["views"]}
    assert 3.9 < rows["aggregator", "malicious", 0] <= 4.0
    assert document["noise_multiplier"] > 1


def test_the_table_for_people(capsys):
    assert main([*EXAMPLE, "--noise-multiplier", "1"]) == 0
    assert "aggregator" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--epsilon", "1", "--noise-multiplier", "1"]])
def test_noise_or_epsilon_is_needed(more, capsys):
    assert main([*EXAMPLE, *more]) == 2
    assert "exactly one" in capsys.readouterr().err


def test_an_impossible_epsilon_is_one_line(capsys):
    assert main([*EXAMPLE, "--epsilon", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_rounds_of_local_steps_have_one_epsilon_for_every_adversary(capsys):
    document = table(capsys, "--noise-multiplier", "1", "--schedule", "round")
    assert document["schedule"] == "round"
    assert {round(row["epsilon_reference"], 2) for row in document["views"]} == {5.88}
