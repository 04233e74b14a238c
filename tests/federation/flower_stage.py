"""Flower's deployment engine on this host for tests: link, four nodes, TLS and node authentication, as in the demo."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from secfl.crypto.snapshots import split_fields
from secfl.federation.checkpoint import write_atomically
from secfl.testing.rehearsal import prepare_homes

SITES = tuple(f"site-{number:02d}" for number in range(4))
FACTORY = "secfl.testing.tasks:linear_task"  # as in flower_app
_DEMO = Path(__file__).parents[2] / "examples" / "flower-app" / "demo.py"
_APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "secfl-test-app"
version = "1.0.0"
license = "Apache-2.0"
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "secfl"
[tool.flwr.app.components]
serverapp = "carried_app:server"
clientapp = "carried_app:client"
[tool.flwr.app.config]
home = ""
out = ""
tls = false
node-auth = false
processes = 0
resume = false
"""
_COMPONENTS = Path(__file__).with_name("flower_app.py")


class Deployment:
    """A link, its nodes and what runs on them."""

    def __init__(self, demo, root: Path, processes, port: int) -> None:
        self.demo, self.root, self.processes, self.port = demo, root, processes, port
        self.out, self._holds = root / "run", root / "holds"

    def start_node(self, site: str) -> None:
        self.demo.start_node(self.root, self.processes, site, number=SITES.index(site), port=self.port)

    def start_node_again(self, site: str) -> None:
        """Until the link takes it."""
        self.demo.start_node_again(self.root, self.processes, site, number=SITES.index(site), port=self.port)

    def kill_everything(self) -> None:
        """As a service manager or a power cut does: also what the link started in sessions of its own.

        The server app is such a process; while it lives it holds the ledger, and no other may go on with the run.
        """
        for name in ("superlink", *SITES):
            self.processes.kill(name)
        ours = f"FLWR_HOME={self.root / 'flower'}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if ours in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)

    def submit(self, *, resume: bool = False) -> None:
        settings = {
            "home": f'"{self.root / "homes" / "coordinator"}"',
            "out": f'"{self.out}"',
            "tls": "true",
            "node-auth": "true",
            "resume": str(resume).lower(),
        }
        given = " ".join(f"{name}={value}" for name, value in settings.items())
        self.demo.Environment(self.root).run("flwr", "run", str(self.demo.APP), "demo", "--run-config", given)

    def wait_for_rounds(self, rounds: int) -> None:
        self.demo.wait_for_rounds(self.root, self.out, rounds)

    def wait_for_the_end(self) -> dict:
        self.demo.wait_for((self.out / "summary.json").exists, "the end of the run", self.root)
        return json.loads((self.out / "summary.json").read_text(encoding="utf-8"))

    def answers(self, site: str) -> dict[int, int]:
        """How many requests a site has answered in each round id, read from its journal without its lock."""
        path = self.root / "homes" / site / "state" / "journal"
        data = path.read_bytes() if path.exists() else b""
        position, found = len(b"secfl journal\x00") + 1, {}
        while position + 24 <= len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            body = data[position + 24 : position + 24 + length]
            if len(body) < length:
                break
            kind, *fields = split_fields(body)
            if kind == b"answer":
                (number,) = struct.unpack("<Q", fields[1])
                found[number] = found.get(number, 0) + 1
            position += 24 + length + hashlib.sha256().digest_size
        return found

    def hold(self, site: str, *, index: int, moment: str) -> None:
        """Let a site stand still at a moment of a round, "before answer 4" or "after answer 4", until it is killed."""
        write_atomically(self._holds / site, f"round {index}, {moment}".encode())

    def wait_until_held(self, sites: Sequence[str]) -> None:
        self.demo.wait_for(
            lambda: all((self._holds / f"{site}.held").exists() for site in sites),
            f"the moment at which {', '.join(sites)} should stand still",
            self.root,
        )

    def release(self, site: str) -> None:
        """Take a hold away, for the process that is started next."""
        for name in (site, f"{site}.held"):
            (self._holds / name).unlink()


@contextmanager
def deployment(root: Path, settings: str):
    """Homes with ``settings`` as their configuration, the link and all nodes."""
    spec = importlib.util.spec_from_file_location("flower_demo", _DEMO)
    demo = sys.modules["flower_demo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    app = root / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(_APP, encoding="utf-8")
    (app / "carried_app.py").write_bytes(_COMPONENTS.read_bytes())
    (root / "holds").mkdir()
    demo.SITES, demo.APP = SITES, app
    prepare_homes(root, SITES, settings=settings)
    demo.certificates(root / "certificates")
    with demo.Processes(root) as processes:
        port = demo.start_link(root, processes)
        one = Deployment(demo, root, processes, port)
        for site in SITES:
            one.start_node(site)
        yield one
