"""The process that runs NVFlare's simulator for `secfl simulate --engine nvflare`, and the coordinator's view of it.

    python -m secfl.federation.nvflare_process SETTINGS

NVFlare prints, forks and changes folders as it likes, so it gets a process of its own whose output goes to a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from secfl.errors import ConfigError, SecflError
from secfl.federation.relay import RelayedExchange
from secfl.federation.sockets import Hub
from secfl.randomness import Rng
from secfl.types import ClientId, client_id

__all__ = ["main", "nvflare_simulation"]

_START_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0


@contextmanager
def nvflare_simulation(
    run: Path,
    names: Sequence[ClientId],
    *,
    run_id: bytes,
    task_factory: str | None,
    most_bytes: int,
    seconds: float,
    threshold: int,
    rng: Rng,
) -> Iterator[RelayedExchange]:
    """NVFlare's simulator with one process for each site, for as long as the block runs.

    Args:
        run: The run directory; NVFlare's output goes to ``nvflare.log`` in it.
        names: The sites.
        run_id: The run.
        task_factory: See `secfl.federation.work.make_task`.
        most_bytes: The largest message.
        seconds: How long one call may take.
        threshold: Fewest clients.
        rng: Source of the relay's token.

    Raises:
        ConfigError: The simulator does not start.
    """
    token, log = rng.bytes(32), run / "nvflare.log"
    hub = Hub(tuple(names), token=token, most_bytes=most_bytes)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="secfl-nvflare-")))
        token_file = folder / "token"  # the folder is its owner's alone
        token_file.write_bytes(token)
        settings = {
            "run": str(run),
            "names": list(names),
            "run_id": run_id.hex(),
            "task": task_factory,
            "port": hub.port,
            "token_file": str(token_file),
            "most_bytes": most_bytes,
            "seconds": seconds,
            "threshold": threshold,
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
                [sys.executable, "-m", "secfl.federation.nvflare_process", str(folder / "settings.json")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        stack.callback(_end, process)
        stack.callback(hub.close)  # which ends the relay, and with it the simulator's job
        exchange = RelayedExchange(names, hub=hub, alive=lambda: process.poll() is None)
        if not exchange.wait_for_relay(_START_SECONDS):
            raise ConfigError(f"--engine nvflare: NVFlare's simulator does not start; see {log}")
        yield exchange


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the simulator; end it, and all that it started, when it does not end by itself."""
    import psutil  # a dependency of NVFlare

    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_STOP_SECONDS)
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def main(arguments: list[str] | None = None) -> int:
    """Run the simulator to its end; returns the exit code."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    from secfl.federation import nvflare_simulator as simulator

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        simulator.simulate_sites(
            Path(path).parent / "nvflare",
            [client_id(name) for name in settings["names"]],
            relay=simulator.Relay(
                settings["port"], settings["token_file"], settings["most_bytes"], settings["seconds"]
            ),
            site=simulator.SimulatedSite(settings["run"], settings["run_id"], settings["task"]),
            threshold=settings["threshold"],
        )
    except SecflError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
