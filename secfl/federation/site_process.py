"""The process of one site under `secfl.federation.multiprocess`.

    python -m secfl.federation.site_process RUN SITE --port PORT --run-id HEX [--task MODULE:FACTORY]

It reads what the run is from the run directory, the token from standard input, and then answers requests until
the coordinator hangs up.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from secfl.errors import LocalProtocolError, SecflError
from secfl.federation.rundir import RunDirectory
from secfl.federation.site_agent import SiteAgent, largest_message
from secfl.federation.site_setup import simulated_agent
from secfl.federation.sockets import connect
from secfl.federation.state import count_parameters
from secfl.federation.work import make_task
from secfl.types import client_id

__all__ = ["main"]

_PATIENCE: Final = 10.0
"""Seconds in which a process that was replaced by this one must have ended."""


def main(arguments: list[str] | None = None) -> int:
    """Serve one site until the coordinator hangs up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m secfl.federation.site_process")
    parser.add_argument("run", type=Path)
    parser.add_argument("site")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--task")
    given = parser.parse_args(arguments)
    # Ctrl-C in a terminal reaches every process; the coordinator says when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        token = bytes.fromhex(sys.stdin.readline().strip())
        run = RunDirectory.open(given.run)
        task = make_task(run.config(), given.task, site=given.site)
        agent = _when_free(
            lambda: simulated_agent(run, given.site, run_id=bytes.fromhex(given.run_id), task=lambda: task)
        )
        most = largest_message(count_parameters(task.initial_state()), len(task.sites))
        stream = connect(given.port, name=client_id(given.site), token=token, most_bytes=most)
        while (request := stream.receive()) is not None:
            stream.send(agent.handle(request))
    except SecflError as error:
        sys.stderr.write(f"site {given.site}: {error}\n")
        return error.exit_code
    except (ConnectionError, BrokenPipeError):
        return 0
    agent.close()
    return 0


def _when_free(make: Callable[[], SiteAgent]) -> SiteAgent:
    """The agent, as soon as the process before this one has let its journal go."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return make()
        except LocalProtocolError:
            if time.monotonic() > end:
                raise
            time.sleep(_PATIENCE / 50)


if __name__ == "__main__":
    sys.exit(main())
