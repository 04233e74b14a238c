"""Put a switch before every guard of a module, when it is imported.

A guard is one of

- ``if …: raise …`` (statements may stand before the ``raise``), an ``elif`` as well;
- ``case …: raise …``;
- a statement that calls something whose name starts with check, verify or require.

A switch notes the test in which its guard acts. One guard at a time can be switched off: its condition then
never holds, or its call is left out.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from pathlib import Path

CHECKS = re.compile(r"_?(check|verify|require)(_\w+)?")


@dataclass(frozen=True, order=True)
class Guard:
    """Where a guard stands: ``module`` is relative to the folder that holds the package, ``text`` its first line."""

    module: str
    line: int
    function: str
    text: str

    def __str__(self) -> str:
        """As editors open it."""
        return f"{self.module}:{self.line}: {self.function}: {self.text}"


@dataclass
class Switches:
    """Which guard is off, and which guards acted in which test."""

    off: Guard | None = None
    test: str = ""
    guards: list[Guard] = field(default_factory=list)
    acted: dict[Guard, set[str]] = field(default_factory=dict)

    def add(self, guard: Guard) -> int:
        """The number under which the changed module asks for this guard."""
        self.guards.append(guard)
        return len(self.guards) - 1

    def is_on(self, number: int) -> bool:
        """Whether the call that is this guard is made."""
        return self.guards[number] != self.off

    def acts(self, number: int) -> bool:
        """This guard's condition holds: whether it may act on it."""
        guard = self.guards[number]
        if self.test:
            self.acted.setdefault(guard, set()).add(self.test)
        return guard != self.off


class _Switcher(ast.NodeTransformer):
    """Changes the guards of one module."""

    def __init__(self, module: str, source: str, switches: Switches) -> None:
        self._module = module
        self._lines = source.splitlines()
        self._switches = switches
        self._inside: list[str] = []

    def _enter(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()
        return node

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _enter  # noqa: N815 - names that ast asks for

    def visit_If(self, node: ast.If) -> ast.AST:
        """``if condition and acts(number)``."""
        self.generic_visit(node)
        if isinstance(node.body[-1], ast.Raise):
            node.test = ast.BoolOp(ast.And(), [node.test, self._ask("acts", self._number(node.lineno))])
        return node

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        """``case pattern if condition and acts(number)``."""
        self.generic_visit(node)
        if isinstance(node.body[-1], ast.Raise):
            acts = self._ask("acts", self._number(node.pattern.lineno))
            node.guard = acts if node.guard is None else ast.BoolOp(ast.And(), [node.guard, acts])
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """``if is_on(number): try: call except Exception: acts(number); raise``."""
        if not isinstance(node.value, ast.Call) or not CHECKS.fullmatch(_name(node.value.func)):
            return node
        number = self._number(node.lineno)
        noted: list[ast.stmt] = [ast.Expr(self._ask("acts", number)), ast.Raise()]
        handler = ast.ExceptHandler(type=ast.Name("Exception", ast.Load()), name=None, body=noted)
        tried = ast.Try(body=[node], handlers=[handler], orelse=[], finalbody=[])
        return ast.copy_location(ast.If(self._ask("is_on", number), [tried], []), node)

    def _number(self, line: int) -> int:
        function = ".".join(self._inside) or "module"
        return self._switches.add(Guard(self._module, line, function, self._lines[line - 1].strip()))

    @staticmethod
    def _ask(question: str, number: int) -> ast.expr:
        switches = ast.Attribute(ast.Name("__switches__", ast.Load()), question, ast.Load())
        return ast.Call(switches, [ast.Constant(number)], [])


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its switches, and neither reads nor writes bytecode."""

    def __init__(self, name: str, path: Path, root: Path, switches: Switches) -> None:
        super().__init__(name, str(path))
        self._module = path.relative_to(root).as_posix()
        self._switches = switches

    def get_code(self, fullname: str):
        source = self.get_data(self.path).decode()
        tree = _Switcher(self._module, source, self._switches).visit(ast.parse(source))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module) -> None:
        module.__dict__["__switches__"] = self._switches
        super().exec_module(module)


class SwitchingFinder(MetaPathFinder):
    """Finds the modules under ``root`` whose path is ``chosen``, and loads them with switches."""

    def __init__(self, root: Path, chosen: Callable[[str], bool], switches: Switches) -> None:
        self._root, self._chosen, self._switches = root, chosen, switches

    def install(self) -> None:
        """Goes before every other finder; modules that are loaded already stay as they are."""
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path=None, target=None):
        """A module's own file only: packages load as ever."""
        del path, target
        file = self._root / (fullname.replace(".", "/") + ".py")
        if not self._chosen(file.relative_to(self._root).as_posix()) or not file.is_file():
            return None
        loader = _Loader(fullname, file, self._root, self._switches)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)
