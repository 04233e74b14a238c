"""``secfl doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from secfl._version import __version__
from secfl.errors import SecflError

__all__ = ["Check", "doctor", "examine"]

_MISSING = 2
_FRAMEWORKS = {"flwr": "'secfl[flower]'", "nvflare": "'secfl[nvflare]' in an environment of its own"}
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(>=(?P<least>[0-9.]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        found: What was found, in words.
        state: ``ok``, ``optional`` (absent, and nothing needs it unless asked for) or ``missing``.
        remedy: How to get it; empty when nothing is to be done.
    """

    name: str
    found: str
    state: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Versions, devices, cores; what is missing and how to get it. Exit code 2 when something needed is.

    Example: secfl doctor
    """
    checks = examine()
    healthy = all(check.state != "missing" for check in checks)
    if as_json:
        rows = [asdict(check) for check in checks]
        typer.echo(json.dumps({"format_version": 1, "healthy": healthy, "checks": rows}, indent=2))
    else:
        _print(checks)
    if not healthy:
        raise typer.Exit(_MISSING)


def examine() -> list[Check]:
    """Look at everything; nothing is written and nothing is sent."""
    return [
        Check(name="secfl", found=__version__, state="ok"),
        Check(name="python", found=_python(), state="ok"),
        Check(name="cores", found=_cores(), state="ok"),
        *_packages(),
        _probe("training", _torch, remedy="pip install --force-reinstall torch"),
        _probe("post-quantum keys", _post_quantum, remedy="pip install --upgrade 'cryptography>=50'"),
        _probe("masking", lambda: _exact_sum("masking"), remedy="pip install --force-reinstall cryptography"),
        _probe("ckks", lambda: _exact_sum("ckks"), remedy="pip install --force-reinstall tenseal"),
        _memory_files(),
    ]


def _python() -> str:
    return f"{platform.python_version()} ({platform.system()} {platform.machine()})"


def _cores() -> str:
    total = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return f"{len(os.sched_getaffinity(0))} of {total} usable"
    return str(total)


def _packages() -> list[Check]:
    """Every requirement of the installed secfl, and the frameworks that its extras bring."""
    checks = []
    for text in importlib.metadata.requires("secfl") or []:
        requirement, _, marker = text.partition(";")
        match = _REQUIREMENT.match(requirement)
        if match is None:
            continue
        if "extra" not in marker:
            checks.append(_package(match["name"], match["least"] or "0", state="missing"))
        elif match["name"] in _FRAMEWORKS:
            checks.append(_package(match["name"], match["least"] or "0", state="optional"))
    return checks


def _package(name: str, least: str, *, state: str) -> Check:
    remedy = "pip install " + _FRAMEWORKS.get(name, f"'{name}>={least}'")
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name=name, found="not installed", state=state, remedy=remedy)
    if _numbers(version) < _numbers(least):
        return Check(name=name, found=f"{version}, expected {least} or later", state=state, remedy=remedy)
    return Check(name=name, found=version, state="ok")


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, without trailing zeros; what follows them is left out."""
    release = re.match(r"[0-9]+(\.[0-9]+)*", version)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _probe(name: str, probe: Callable[[], str], *, remedy: str) -> Check:
    """A probe that runs the real thing; whatever it raises is a finding, never a traceback."""
    try:
        return Check(name=name, found=probe(), state="ok")
    except (ImportError, OSError, AttributeError, RuntimeError, ValueError, SecflError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Check(name=name, found=f"no: {reason}", state="missing", remedy=remedy)


def _torch() -> str:
    from secfl.segmentation.environment import torch_environment

    found = torch_environment()
    devices = ", ".join(found.cuda_devices) or "no CUDA device, models train on the CPU"
    return f"{found.version}, {found.threads} threads; {devices}"


def _post_quantum() -> str:
    from cryptography.hazmat.backends.openssl import backend

    from secfl.crypto.hazmat.sealed import HYBRID_SEED_BYTES, SealingKey, seal_to
    from secfl.randomness import SystemRng

    key = SealingKey(SystemRng().bytes(HYBRID_SEED_BYTES))
    if key.open(seal_to(key.public(), b"probe", info=b"doctor"), info=b"doctor") != b"probe":
        raise RuntimeError("a key does not open what was sealed for it")
    return f"HPKE with ML-KEM-768 and X25519; {backend.openssl_version_text()}"


def _exact_sum(scheme: str) -> str:
    import numpy as np

    from secfl.federation.secure_sum import secure_sum

    values = {name: np.full(64, number, dtype=np.float32) for number, name in enumerate("abc", start=1)}
    total: Any = secure_sum(values, scheme=scheme)
    if not np.allclose(total, 6.0, atol=1e-2):
        raise RuntimeError("the sum is wrong")
    return "3 parties, the sum is right"


def _memory_files() -> Check:
    if hasattr(os, "memfd_create"):
        return Check(name="memory files", found="memfd: no secret key reaches a disk", state="ok")
    return Check(
        name="memory files",
        found="none: SEAL's keys need Linux to stay off the disk",
        state="optional",
        remedy="use --secure-agg masking, or Linux",
    )


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for check in checks:
        mark = {"ok": "[green]ok[/]", "optional": "[yellow]--[/]", "missing": "[red]no[/]"}[check.state]
        hint = f"  get it: {check.remedy}" if check.remedy else ""
        table.add_row(mark, check.name, escape(check.found + hint))
    Console(highlight=False).print(table)
