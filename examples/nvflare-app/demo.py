"""Five sites on this host under NVFlare's proof-of-concept environment, one of them killed in round 2.

NVFlare provisions the project, with certificates for all; the keys are made on the spot and are good for nothing else.
The same run in one process, with the same drop-outs, must end in the same model. Usage: ``python demo.py [FOLDER]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from nvflare.job_config.api import FedJob
from nvflare.recipe import PocEnv, Run
from nvflare.tool.poc import poc_commands

from secfl.federation.nvflare import Coordinator, SecflRecipe, Site, admit
from secfl.testing.rehearsal import SETTINGS, compare, prepare_homes, say

SITES = tuple(f"clinic-{number}" for number in range(1, 6))
KILLED = SITES[2]
SECONDS = 1200.0


class Clinics(PocEnv):
    """NVFlare's proof-of-concept environment, where every site gets its home before it starts."""

    def __init__(self, root: Path) -> None:
        super().__init__(clients=list(SITES), num_clients=len(SITES), extra={"login_timeout": 60})
        self.root = root

    def deploy(self, job: FedJob) -> str:
        """Provision, put the homes in their places, start the services and submit the job."""
        workspace = self.poc_workspace
        poc_commands.prepare_poc_provision(list(SITES), len(SITES), workspace, docker_image="")
        for name in ("server", *SITES):
            settle(self.kit(name), self.root / "homes" / name, name)
        poc_commands._start_poc(workspace, [], excluded=[self.username], services_list=[])  # noqa: SLF001 - as PocEnv
        sessions = self._get_session_manager()
        # A job starts with the clients that are there, and nobody can join it later.
        with contextlib.closing(sessions._get_session()) as session:  # noqa: SLF001 - as PocEnv
            end = time.monotonic() + SECONDS
            while len(session.get_system_info().client_info) < len(SITES) and time.monotonic() < end:
                time.sleep(1)
        return str(sessions.submit_job(job))

    def kit(self, name: str) -> Path:
        """The workspace of a host."""
        project, _ = poc_commands.setup_service_config(self.poc_workspace)
        return Path(poc_commands.get_prod_dir(self.poc_workspace, project["name"])) / name


def main() -> int:
    """Run the demonstration; returns 0 when the two models agree."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/nvflare-demo-{time.strftime('%Y%m%d-%H%M%S')}")
    root = root.resolve()
    root.mkdir(parents=True)
    os.environ |= {
        "NVFLARE_POC_WORKSPACE": str(root / "poc"),
        "HOME": str(root),  # NVFlare keeps settings of its own there
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    prepare_homes(root, SITES, settings=SETTINGS, coordinator="server")
    clinics = Clinics(root)
    try:
        job = SecflRecipe("secfl", min_clients=4).execute(clinics)
        assert job is not None
        say(f"job {job.get_job_id()} over {len(SITES)} clients")
        out = clinics.kit("server") / "local" / "secfl" / "server" / "runs" / job.get_job_id()
        metrics = out / "metrics.jsonl"
        wait_for(metrics.exists, "round 1", job)
        say(f"round 1 is done; killing {KILLED}; {listeners(root)}")
        kill(root, KILLED)
        wait_for((out / "summary.json").exists, "the end of the run", job)
    finally:
        stop(root, clinics)
    return 0 if compare(out, settings=SETTINGS, beside=root) else 1


def settle(kit: Path, home: Path, name: str) -> None:
    """What the people of a host do before they start it, besides what NVFlare asks of them."""
    local = kit / "local"
    (local / "secfl").mkdir(mode=0o700)
    home.rename(local / "secfl" / name)
    admit(local, Coordinator if name == "server" else Site)
    if name == "server":  # of a demonstration: nobody but this host may connect
        settings = kit / "startup" / "fed_server.json"
        listening = json.loads(settings.read_text(encoding="utf-8"))
        for one in listening["servers"]:
            one["service"]["target"] = one["service"]["target"].replace("server:", "localhost:")
        settings.write_text(json.dumps(listening, indent=2), encoding="utf-8")


def processes(root: Path) -> list[psutil.Process]:
    """Everything that runs from NVFlare's workspace of this demonstration."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(root / "poc") in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill(root: Path, site: str) -> None:
    """SIGKILL to everything of one site, its guardian first."""
    for process in sorted(processes(root), key=lambda one: one.create_time()):
        with contextlib.suppress(psutil.Error):
            if f"/{site}" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)


def listeners(root: Path) -> str:
    """Where the demonstration's processes listen."""
    addresses = set()
    for process in processes(root):
        with contextlib.suppress(psutil.Error):
            ports = process.net_connections(kind="inet")
            addresses |= {one.laddr.ip for one in ports if one.status == psutil.CONN_LISTEN}
    return f"{len(processes(root))} processes listen on {', '.join(sorted(addresses))}"


def stop(root: Path, clinics: Clinics) -> None:
    """Stop NVFlare's services, and end what does not stop by itself."""
    clinics.stop()
    left = processes(root)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def wait_for(condition: Callable[[], bool], what: str, job: Run) -> None:
    """Poll a condition; gives up after `SECONDS`, or when the job has ended without it."""
    end, ask = time.monotonic() + SECONDS, time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come within {SECONDS:.0f} s")
        if time.monotonic() > ask:
            ask = time.monotonic() + 20
            status = str(job.get_status())
            if status.startswith("FINISHED") and not condition():
                raise SystemExit(f"{what} did not come; NVFlare's job is {status}; see the hosts' log.txt")
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main())
