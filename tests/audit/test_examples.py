"""The examples for other projects: what is wrong on purpose is refuted, what is right is not."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest

from secfl.config import DpMode, load_config


@pytest.fixture
def example(project, monkeypatch):
    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", project / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def verdicts(output):
    return dict(re.findall(r"^(.*?): (REFUTED|SUSPECT|NOT REFUTED)\b", output, re.MULTILINE))


def test_a_gaussian_that_forgot_the_range_is_refuted_and_the_mended_one_is_not(example, capsys):
    example("audit_wrong_gaussian").main()
    output = capsys.readouterr().out
    assert verdicts(output) == {"forgot the range": "REFUTED", "mended": "NOT REFUTED"}
    bounds = [float(figure) for figure in re.findall(r"ε >= ([0-9.]+)", output)]
    assert bounds[0] > 8 > 2.75 > bounds[1]


def test_updates_under_one_mask_are_refuted_and_under_fresh_ones_are_not(example, capsys):
    example("audit_updates").main()
    output = capsys.readouterr().out
    assert verdicts(output) == {"one mask for all rounds": "REFUTED", "mended": "NOT REFUTED"}
    assert "differences of messages" in output


def test_opacus_without_its_clip_is_refuted_and_opacus_is_not(example, capsys, monkeypatch):
    module = example("audit_opacus")
    monkeypatch.setattr(module, "DRAWS", 600)  # reach ε = 3.0, the claim is 1.99
    module.main()
    found = verdicts(capsys.readouterr().out)
    assert found["without its clip"] == "REFUTED"
    assert found["Opacus"] != "REFUTED"


@pytest.mark.parametrize(("name", "mode"), [("audit_unet", DpMode.PATIENT), ("audit_membership", DpMode.OFF)])
def test_configurations_of_audits_are_read_as_they_stand(project, name, mode):
    config = load_config(project / "examples" / f"{name}.toml", {})
    assert config.model.name == "unet"
    assert config.privacy.mode is mode
