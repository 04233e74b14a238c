"""Pages: links lead somewhere, pasted output comes from the command that stands above it."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
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


def test_the_command_line_page_is_what_the_commands_print(project):
    spec = importlib.util.spec_from_file_location("paste_help", project / "docs" / "paste_help.py")
    paste_help = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paste_help)
    page = (project / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == paste_help.page(), "run docs/paste_help.py"


SHELL = re.compile(r"(?:<!-- exit: (?P<code>\d+) -->\n)?```sh\n(?P<script>.*?)```", re.DOTALL)


def run_blocks(page: Path, folder: Path) -> int:
    """Run the ``sh`` blocks of a page in order in one folder; how many there were."""
    beside = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    count = 0
    for block in SHELL.finditer(page.read_text(encoding="utf-8")):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block["script"]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == int(block["code"] or 0), f"{block['script']}\n{done.stdout}{done.stderr}"
        count += 1
    return count


def test_blocks_run_in_order_and_their_exit_codes_count(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\necho 7 > x\n```\n<!-- exit: 3 -->\n```sh\ngrep -q 7 x\nexit 3\n```\n")
    assert run_blocks(page, tmp_path) == 2
    page.write_text("```sh\nfalse\ntrue\n```\n")
    with pytest.raises(AssertionError):
        run_blocks(page, tmp_path)


@pytest.mark.slow
def test_every_step_of_the_tutorial_works(project, tmp_path):
    assert run_blocks(project / "docs" / "tutorial.md", tmp_path) >= 10


@pytest.mark.slow
def test_every_shell_block_of_the_readme_works(project, tmp_path):
    assert run_blocks(project / "README.md", tmp_path) >= 1
    assert (tmp_path / "own" / "report.html").stat().st_size > 100_000


def test_every_block_of_the_readme_and_the_tutorial_is_of_a_kind_that_a_test_runs(project):
    """The tests here run ``sh`` and pasted output; what remains is how a clone is made and set up."""
    for page in ("README.md", "docs/tutorial.md"):
        text = (project / page).read_text(encoding="utf-8")
        pasted = re.sub(
            r"<!-- output of: .+? -->\n```console\n.*?```\n<!-- end of output -->", "", text, flags=re.DOTALL
        )
        for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", pasted, re.DOTALL | re.MULTILINE):
            assert kind in {"sh", "python", "text"} or all(
                line.split()[0] in {"make", "git", "cd", "source"} for line in block.splitlines()
            ), f"{page}: {block}"


@pytest.mark.slow
def test_every_pasted_command_of_the_readme_works(paste_output, project, tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((project / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    assert paste_output.refresh(copy) >= 2


def test_the_make_targets_that_pages_name_exist(project):
    targets = set(
        re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for page in (project / "README.md", *(project / "docs").rglob("*.md")):
        named = set(
            re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        )
        missing = {one or other for one, other in named} - targets
        assert not missing, f"{page.relative_to(project)}: {missing}"


def test_everything_on_the_api_page_exists_and_has_a_docstring(project):
    """So that the strict build of ``make docs`` finds it, without building."""
    names = re.findall(r"^::: (\S+)", (project / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        found = pkgutil.resolve_name(name)
        assert found.__doc__, name


def test_every_page_is_in_the_navigation_and_on_the_first_page(project):
    nav = (project / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    index = (project / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (project / "docs").rglob("*.md"):
        name = page.relative_to(project / "docs").as_posix()
        if name.startswith(("adr/0", "results/")) and name != "adr/README.md":
            continue
        assert name in nav, f"docs/{name} is not in the navigation of mkdocs.yml"
        if name != "index.md":
            assert f"({name})" in index, f"docs/{name} is not on docs/index.md"
