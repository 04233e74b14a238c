"""The vectors on disk are what this version makes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "secfl_vectors_generate", Path(__file__).with_name("generate.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.makers())
def test_vectors_are_current(name):
    assert not generate.stale(name), f"run: python tests/vectors/generate.py {name}"


def test_every_file_has_a_maker():
    files = {path.stem for path in generate.FOLDER.glob("*.json")}
    assert files == set(generate.makers())


def test_the_check_notices_a_change(tmp_path, monkeypatch, capsys):
    name = generate.makers()[0]
    monkeypatch.setattr(generate, "path_of", lambda which: tmp_path / f"{which}.json")
    assert generate.main(["--check", name]) == 1
    assert f"{name}.json is not what" in capsys.readouterr().err
    assert generate.main([name]) == 0
    assert generate.main(["--check", name]) == 0
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["format_version"] == generate.FORMAT_VERSION
    content["description"] = "edited"
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert generate.main(["--check", name]) == 1


def test_unknown_makers_are_refused():
    with pytest.raises(SystemExit):
        generate.main(["nothing"])
