"""Five sites on this host under NVFlare's proof-of-concept environment, one of them killed in round 2.

NVFlare provisions the project, with certificates for all; the keys are made on the spot and are good for nothing else.
The same run in one process, with the same drop-outs, must end in the same model. Usage: ``python demo.py [FOLDER]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from nvflare.job_config.api import FedJob
from nvflare.recipe import PocEnv, Run
from nvflare.tool.poc import poc_commands

from secfl.config import RunConfig, load_config
from secfl.crypto.identity import Identity
from secfl.federation.driver import Driver, Record
from secfl.federation.engines import RoundEngine, RunSetting, open_engine
from secfl.federation.members import Members
from secfl.federation.nvflare import Coordinator, SecflRecipe, Site, admit
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import start
from secfl.federation.work import make_task
from secfl.randomness import SystemRng
from secfl.types import ClientId

SITES = tuple(f"clinic-{number}" for number in range(1, 6))
KILLED = SITES[2]
SECONDS = 1200.0
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
"""


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
    prepare_homes(root)
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
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    say(f"drop-outs by round: {summary['dropouts']['by_round']}")
    expected = in_one_process(root, summary["dropouts"]["by_round"])
    same = expected["final_model_sha256"] == summary["final_model_sha256"]
    say(f"model {summary['final_model_sha256'][:16]}…, in one process {expected['final_model_sha256'][:16]}…")
    secfl("ledger", "verify", str(out))
    say(str(out))
    return 0 if same else 1


def prepare_homes(root: Path) -> None:
    """What each site would do on its own host: a key, and a signature under the manifest."""
    homes = root / "homes"
    homes.mkdir()
    for site in SITES:
        (homes / site).mkdir(mode=0o700)
        secfl("keys", "new", site, "--out", str(homes / site), quiet=True)
    manifest = root / "manifest.json"
    entries = [str(homes / site / f"{site}.public.json") for site in SITES]
    secfl("keys", "enroll", str(manifest), *entries, quiet=True)
    for site in SITES:
        secfl("keys", "manifest", str(manifest), "--sign", str(homes / site / f"{site}.key"), quiet=True)
    (homes / "server").mkdir(mode=0o700)
    for name in ("server", *SITES):
        (homes / name / "manifest.json").write_bytes(manifest.read_bytes())
        (homes / name / "config.toml").write_text(SETTINGS, encoding="utf-8")


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


class Scripted:
    """An engine whose drivers lose the given sites in the given rounds."""

    def __init__(self, inner: RoundEngine, lost: Mapping[str, list[str]]) -> None:
        self._inner, self._lost, self._round = inner, lost, -1
        self.clients, self.co_signers = inner.clients, inner.co_signers

    def driver(self, *, drops: Mapping[ClientId, int], record: Record | None) -> Driver:
        """The next round's driver."""
        self._round += 1
        lost = {ClientId(name): 0 for name in self._lost.get(str(self._round), [])}
        return self._inner.driver(drops={**drops, **lost}, record=record)


def in_one_process(root: Path, lost: Mapping[str, list[str]]) -> dict[str, object]:
    """The same run without NVFlare, with the same drop-outs."""

    @contextmanager
    def opener(setting: RunSetting) -> Iterator[RoundEngine]:
        with open_engine(setting) as engine:
            yield Scripted(engine, lost)

    (root / "config.toml").write_text(SETTINGS, encoding="utf-8")
    config: RunConfig = load_config(root / "config.toml", {})
    task = make_task(config, None)
    return start(
        config,
        out=root / "in-one-process",
        observer=SilentObserver(),
        task=task,
        task_factory=None,
        members=Members.simulated([Identity.generate(site, SystemRng()) for site in task.sites]),
        opener=opener,
    )


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


def secfl(*arguments: str, quiet: bool = False) -> None:
    """Run one command of secfl."""
    done = subprocess.run(  # noqa: S603 - this interpreter, no shell
        [sys.executable, "-m", "secfl.cli", *arguments], check=False, capture_output=quiet, text=True
    )
    if done.returncode:
        raise SystemExit(f"secfl {' '.join(arguments)}: {done.stderr or 'failed'}")


def say(text: str) -> None:
    """One line for whoever watches."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
