"""A deployment rehearsed on one host: homes made as each site would make its own, and the same run in one process.

What the demonstrations of the engines and the tests with real processes have in common. A run over any engine must end
in the model of the run in one process in which the same sites are missing from the same rounds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secfl.config import RunConfig, load_config
from secfl.crypto.identity import Identity
from secfl.federation.driver import Driver, Record
from secfl.federation.engines import RoundEngine, RunSetting, open_engine
from secfl.federation.members import Members
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import start
from secfl.federation.work import make_task
from secfl.randomness import SystemRng
from secfl.types import ClientId

__all__ = ["SETTINGS", "compare", "in_one_process", "prepare_homes", "say", "secfl"]

COORDINATOR = "coordinator"
SETTINGS = """\
clients = 5
threads = 1
[data]
source = "phantom"
phantom_images = 8
image_size = 48
[model]
channels = [8, 8, 16]
[training]
rounds = 3
local_epochs = 1
[secure_agg]
scheme = "ckks"
threshold = 4
[deadlines]
training = 120
phase = 60
gathering = 40
"""
"""Five sites, three rounds of sum-key CKKS, one site may drop out."""


def prepare_homes(root: Path, sites: Sequence[str], *, settings: str, coordinator: str = COORDINATOR) -> None:
    """What everybody would do on a host of their own: a key each, the manifest, a signature of every site under it.

    Args:
        root: Gets ``homes/NAME`` for each site and for the coordinator, and ``manifest.json``.
        sites: The sites.
        settings: Text of the run's ``config.toml``.
        coordinator: Name of the coordinator's home.
    """
    homes, manifest = root / "homes", root / "manifest.json"
    homes.mkdir()
    for name in (coordinator, *sites):
        (homes / name).mkdir(mode=0o700)
    for home, name in ((coordinator, COORDINATOR), *((site, site) for site in sites)):
        secfl("keys", "new", name, "--out", str(homes / home), quiet=True)
    entries = [str(homes / site / f"{site}.public.json") for site in sites]
    head = str(homes / coordinator / f"{COORDINATOR}.public.json")
    secfl("keys", "enroll", str(manifest), *entries, "--coordinator", head, quiet=True)
    for site in sites:
        secfl("keys", "manifest", str(manifest), "--sign", str(homes / site / f"{site}.key"), quiet=True)
    for name in (coordinator, *sites):
        (homes / name / "manifest.json").write_bytes(manifest.read_bytes())
        (homes / name / "config.toml").write_text(settings, encoding="utf-8")


class _Scripted:
    """An engine whose drivers lose the given sites in the given rounds."""

    def __init__(self, inner: RoundEngine, lost: Sequence[Sequence[str]]) -> None:
        self._inner, self._lost = inner, iter(lost)
        self.clients, self.panel = inner.clients, inner.panel

    def driver(self, *, drops: Mapping[ClientId, int], record: Record | None) -> Driver:
        """The next round's driver."""
        lost = {ClientId(name): 0 for name in next(self._lost, ())}
        return self._inner.driver(drops={**drops, **lost}, record=record)


def in_one_process(
    config: RunConfig, out: Path, *, dropped: Sequence[Sequence[str]], task_factory: str | None = None
) -> dict[str, Any]:
    """The same run without an engine, with the same drop-outs; returns its summary.

    Args:
        config: The run.
        out: The new run directory.
        dropped: The missing sites, round by round, as in ``summary.json``.
        task_factory: See `secfl.federation.work.make_task`.
    """

    @contextmanager
    def opener(setting: RunSetting) -> Iterator[RoundEngine]:
        with open_engine(setting) as engine:
            yield _Scripted(engine, dropped)

    task = make_task(config, task_factory)
    return start(
        config,
        out=out,
        observer=SilentObserver(),
        task=task,
        task_factory=None,
        members=Members.simulated([Identity.generate(site, SystemRng()) for site in task.sites]),
        opener=opener,
    )


def compare(out: Path, *, settings: str, beside: Path) -> bool:
    """Hold a run to the one in one process: print both models, verify the ledger, and print the run directory last.

    Args:
        out: The run directory.
        settings: The run's ``config.toml``.
        beside: A folder for the run in one process.

    Returns:
        Whether the models are the same.
    """
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    say(f"drop-outs by round: {summary['dropouts']['by_round']}")
    path = beside / "config.toml"
    path.write_text(settings, encoding="utf-8")
    here = in_one_process(load_config(path, {}), beside / "in-one-process", dropped=summary["dropped"])
    model, expected = summary["final_model_sha256"], here["final_model_sha256"]
    say(f"model {model[:16]}…, in one process {expected[:16]}…")
    secfl("ledger", "verify", str(out))
    say(str(out))
    return bool(model == expected)


def secfl(*arguments: str, quiet: bool = False) -> None:
    """Run one command of secfl; ends the program when it fails."""
    done = subprocess.run(  # noqa: S603 - this interpreter, no shell
        [sys.executable, "-m", "secfl.cli", *arguments], check=False, capture_output=quiet, text=True
    )
    if done.returncode:
        raise SystemExit(f"secfl {' '.join(arguments)}: {done.stderr or 'failed'}")


def say(text: str) -> None:
    """One line for whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
