"""Write the test vectors, or check that they are what this version writes.

    python tests/vectors/generate.py            write every file that changed
    python tests/vectors/generate.py --check    write nothing; exit 1 and name the files that would change
    python tests/vectors/generate.py prg shamir only these

A maker is a module ``make_<name>.py`` in this folder with a docstring and a function ``make(previous)``, which
returns the value of ``cases`` in ``<name>.json``: numbers, strings, lists and objects. ``previous`` is what the
file holds now, or ``None``: a maker whose bytes come from outside (encapsulations draw on OpenSSL) returns it
unchanged as long as the code still gives the same answers for it, and makes new ones otherwise. Bytes are written
in lower-case hexadecimal. Names of cases that must be refused start with ``bad_``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent
FORMAT_VERSION = 1


def makers() -> list[str]:
    """Names of all makers in this folder."""
    return sorted(path.stem.removeprefix("make_") for path in FOLDER.glob("make_*.py"))


def load(name: str) -> ModuleType:
    """Import one maker."""
    spec = importlib.util.spec_from_file_location(f"secfl_vectors_{name}", FOLDER / f"make_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def path_of(name: str) -> Path:
    """Where the vectors of a maker are."""
    return FOLDER / f"{name}.json"


def render(name: str) -> str:
    """What the file of a maker must hold."""
    module = load(name)
    path = path_of(name)
    previous: Any = json.loads(path.read_text())["cases"] if path.exists() else None
    content = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "description": (module.__doc__ or "").strip(),
        "cases": module.make(previous),
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def stale(name: str) -> bool:
    """Whether the file of a maker differs from what it must hold."""
    path = path_of(name)
    return not path.exists() or path.read_text() != render(name)


def main(arguments: list[str]) -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="Write or check the test vectors.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file would change")
    parser.add_argument("names", nargs="*", help="makers; all of them by default")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(makers())
    if unknown:
        parser.error(f"no maker for {', '.join(sorted(unknown))}; there are {', '.join(makers())}")
    changed = [name for name in options.names or makers() if stale(name)]
    for name in changed:
        if options.check:
            sys.stderr.write(f"{path_of(name).name} is not what make_{name}.py makes\n")
        else:
            path_of(name).write_text(render(name))
            sys.stdout.write(f"wrote {path_of(name).name}\n")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
