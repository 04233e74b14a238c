"""Pages: links lead somewhere, pasted output comes from the command that stands above it."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def paste_output(project) -> ModuleType:
    spec = importlib.util.spec_from_file_location("paste_output", project / "docs" / "paste_output.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_between_pages_lead_somewhere(project):
    pages = [*project.glob("*.md"), *(project / "docs").rglob("*.md")]
    assert len(pages) > 10
    broken = [
        f"{page.relative_to(project)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_decision_is_listed(project):
    folder = project / "docs" / "adr"
    listed = re.findall(r"\(([^)]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_output_is_pasted_in_place_and_again_in_place(paste_output, tmp_path):
    page = tmp_path / "page.md"
    block = "<!-- output of: python -c 'print(6 * 7)' -->\nold\n<!-- end of output -->\n"
    page.write_text(f"before\n{block}after\n")
    for _ in range(2):
        assert paste_output.refresh(page) == 1
        assert page.read_text() == (
            "before\n<!-- output of: python -c 'print(6 * 7)' -->\n"
            "```console\n$ python -c 'print(6 * 7)'\n42\n```\n<!-- end of output -->\nafter\n"
        )


def test_later_commands_see_what_earlier_ones_wrote(paste_output, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- output of: python -c \"open('x', 'w').write('7')\" -->\n<!-- end of output -->\n"
        "<!-- output of: python -c \"print(open('x').read())\" -->\n<!-- end of output -->\n"
    )
    assert paste_output.refresh(page) == 2
    assert "\n7\n```" in page.read_text()


def test_a_command_that_fails_changes_nothing(paste_output, tmp_path):
    page = tmp_path / "page.md"
    text = "<!-- output of: python -c 'raise SystemExit(3)' -->\nold\n<!-- end of output -->\n"
    page.write_text(text)
    with pytest.raises(SystemExit, match="exit code 3"):
        paste_output.refresh(page)
    assert page.read_text() == text


def test_the_pasted_blocks_of_the_readme_are_filled(project):
    text = (project / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- output of: (.+?) -->\n(.*?)<!-- end of output -->", text, re.DOTALL)
    assert blocks
    for command, output in blocks:
        assert output.startswith(f"```console\n$ {command}\n")
