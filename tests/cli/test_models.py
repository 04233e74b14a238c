"""``secfl models``: sizes by family."""

import json

import pytest

from secfl.cli.main import main


def test_all_families_as_json(capsys):
    assert main(["models", "--json", "--side", "64"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [row["family"] for row in rows] == [
        "cnn",
        "sequential",
        "semantic",
        "unet",
        "vgg19",
        "modified_unet",
        "modified_net",
    ]
    assert all(row["parameters"] > 1000 and row["gigaflops"] > 0 for row in rows)


def test_one_as_a_table(capsys):
    assert main(["models", "unet", "--channels", "8,8,16", "--dims", "3"]) == 0
    assert "27,8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vnet"], "model.name: 'vnet' is unknown"),
        (["unet", "--channels", "8,x"], "--channels 8,x"),
        (["monai:SegResNet", "--arguments", "{"], "--arguments {"),
        (["unet", "--dims", "4"], "--dims"),
    ],
)
def test_what_is_wrong_is_named(capsys, arguments, message):
    assert main(["models", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
