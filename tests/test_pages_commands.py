"""Commands that pages name exist, with the options that they are given; Python in the README does what it says."""

from __future__ import annotations

import ast
import re
import shlex

import click
import pytest
from typer.main import get_command

from secfl.cli.main import app

FENCE = re.compile(r"```(?:sh|console|bash)\n(.*?)```", re.DOTALL)
SPAN = re.compile(r"`(secfl [^`\n]+)`")
WILD = re.compile(r"[<>|;&…]|\.\.\.")


def pages(project):
    return [
        *project.glob("*.md"),
        project / "benchmarks" / "README.md",
        *(page for page in (project / "docs").rglob("*.md") if page.name != "cli.md"),
    ]


def commands(text: str) -> list[str]:
    """Whatever a page tells its reader to type after ``secfl``, without redirections and comments."""
    found = SPAN.findall(text)
    for block in FENCE.findall(text):
        found += [line.removeprefix("$ ") for line in block.splitlines() if re.match(r"(\$ )?secfl ", line)]
    return [re.split(r"\s+#|\s*[|;&>]", one)[0].strip() for one in found]


def mistake(command: str) -> str | None:
    """What is wrong with a command, or ``None``: a word that is no command, or an option that it has not."""
    words = shlex.split(command)[1:]
    at = get_command(app)
    while isinstance(at, click.Group) and words and not words[0].startswith("-"):
        if WILD.search(words[0]):
            return None  # any of them is meant
        if words[0] not in at.commands:
            return f"{at.name} has no command {words[0]}"
        at = at.commands[words.pop(0)]
    known = {flag for option in at.params for flag in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "--help-all", "--version", "--install-completion", "--show-completion"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"{at.name} has no option {unknown[0]}" if unknown else None


def test_every_command_on_every_page_exists_with_its_options(project):
    found = {
        (page.relative_to(project).as_posix(), one)
        for page in pages(project)
        for one in commands(page.read_text(encoding="utf-8"))
    }
    assert len(found) > 60
    assert not [(page, one, wrong) for page, one in sorted(found) if (wrong := mistake(one))]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("secfl simulat", "no command simulat"),
        ("secfl ledger confirm run", "no command confirm"),
        ("secfl simulate --epsilo 8", "no option --epsilo"),
        ("secfl ledger verify run --keys k.json", None),
    ],
)
def test_a_wrong_command_would_be_noticed(command, wrong):
    found = mistake(command)
    assert found is None if wrong is None else wrong in found


def leaves(at: click.Command, path: tuple[str, ...] = ("secfl",)):
    if isinstance(at, click.Group):
        for name, below in at.commands.items():
            yield from leaves(below, (*path, name))
    else:
        yield " ".join(path), at.help or ""


def test_the_help_of_every_command_has_an_example_that_calls_it():
    found = dict(leaves(get_command(app)))
    assert len(found) > 35
    for name, text in found.items():
        examples = re.findall(r"Examples?: (.+)", text)
        assert examples, f"{name}: no example in its help"
        called = [one.split("#")[0].strip() for example in examples for one in re.split(r";|>", example)]
        assert any(one.startswith(name) for one in called), f"{name}: {examples}"
        assert not [one for one in called if one.startswith("secfl") and mistake(one)]


def test_python_of_the_readme_prints_what_it_says(project):
    """Each block ends in an expression, and its value stands behind it as a comment."""
    blocks = re.findall(
        r"```python\n(.*?)```", (project / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert blocks
    for block in blocks:
        *statements, last = ast.parse(block).body
        names: dict[str, object] = {}
        exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "README.md", "eval"), names)
        assert repr(value) == block.strip().splitlines()[-1].removeprefix("# ")
