"""Public functions have docstrings, and those name what is raised."""

from __future__ import annotations

import ast

import pytest

ELSEWHERE = ("; see `", "See `", "rrors as")
"""A docstring may point at another one that names the errors."""


def public_names(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return set(ast.literal_eval(node.value))
    return set()


def public_functions(tree: ast.Module):
    names = public_names(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and node.name in names:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def raised(function: ast.FunctionDef) -> set[str]:
    """Names of the classes that this function raises itself."""
    found, left = set(), list(function.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(error, ast.Name) and error.id[0].isupper():
                found.add(error.id)
        left += ast.iter_child_nodes(node)
    return found


def unnamed(source: str) -> list[str]:
    """Public functions without a docstring, or with one that leaves an error out."""
    wrong = []
    for name, function in public_functions(ast.parse(source)):
        text = ast.get_docstring(function)
        if text is None:
            wrong.append(f"{name}: no docstring")
        elif not any(words in text for words in ELSEWHERE):
            wrong += [f"{name}: {error}" for error in sorted(raised(function)) if error not in text]
    return wrong


def test_every_public_function_says_what_it_raises(project):
    sources = [
        path
        for path in sorted((project / "secfl").rglob("*.py"))
        if not {"cli", "testing"} & set(path.relative_to(project).parts)
    ]
    assert len(sources) > 200
    wrong = [
        f"{path.relative_to(project)}: {line}"
        for path in sources
        for line in unnamed(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Do it.", ["f: ConfigError"]),
        ("Do it.\n\n    Raises:\n        ConfigError: It cannot.\n    ", []),
        ("Do it; see `g`.", []),
        (None, ["f: no docstring"]),
    ],
)
def test_an_error_that_is_left_out_is_noticed(text, wrong):
    docstring = "" if text is None else f'    """{text}"""\n'
    assert unnamed(f"__all__ = ['f']\ndef f():\n{docstring}    raise ConfigError('x')\n") == wrong
