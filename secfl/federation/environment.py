"""What a run was made with, for whoever repeats it: versions and the kind of machine, and nothing that names it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any, Final

__all__ = ["run_environment"]

_LIBRARIES: Final = ("numpy", "torch", "monai", "cryptography", "tenseal", "dp-accounting")
"""Those on which the figures of a run depend."""


def run_environment() -> dict[str, Any]:
    """Python's version, the system's kind, usable cores, and the libraries that are installed, by name."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable or 1,
        "libraries": libraries,
    }
