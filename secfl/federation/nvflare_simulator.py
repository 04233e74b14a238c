"""NVFlare's simulator carries a run whose coordinator is another process of this host.

NVFlare runs the job's main function in a process that it starts itself. There stands a relay; the coordinator, with the
run directory, the ledger and whoever watches, stays where it is. `secfl.federation.nvflare_process` starts it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvflare.collab import CollabCallError, collab
from nvflare.collab.api.exceptions import RunAborted
from nvflare.recipe import SimEnv

from secfl.federation.failures import Reports
from secfl.federation.nvflare import AnsweringSite, SecflRecipe, check_names
from secfl.federation.relay import serve_relay
from secfl.federation.request_codec import encode
from secfl.federation.requests import Failed
from secfl.federation.rundir import RunDirectory
from secfl.federation.site_agent import SiteAgent
from secfl.federation.site_setup import simulated_agent
from secfl.federation.work import make_task
from secfl.types import ClientId, RoundId

__all__ = ["Relay", "SimulatedSite", "simulate_sites"]


class SimulatedSite(AnsweringSite):
    """A site of a simulated run: its key and its folder are in the run directory, which every process sees.

    Args:
        run: The run directory.
        run_id: The run, hexadecimal.
        task: See `secfl.federation.work.make_task`.
    """

    _reports = Reports.SIMULATION

    def __init__(self, run: str, run_id: str, task: str | None = None) -> None:
        super().__init__()
        self.run = run
        self.run_id = run_id
        self.task = task

    def _open(self) -> SiteAgent:
        run = RunDirectory.open(Path(self.run))
        return simulated_agent(
            run,
            collab.site_name,
            run_id=bytes.fromhex(self.run_id),
            task=lambda: make_task(run.config(), self.task),
        )


class Relay:
    """The server's side of a simulated run: puts the requests of a coordinator in another process to the sites.

    Args:
        port: Where the coordinator listens on this host.
        token_file: File with the 32 secret bytes that let the relay in; readable by its owner only.
        most_bytes: The largest message.
        seconds: How long one call may take.
    """

    def __init__(self, port: int, token_file: str, most_bytes: int, seconds: float) -> None:
        self.port = port
        self.token_file = token_file
        self.most_bytes = most_bytes
        self.seconds = seconds

    @collab.main
    def run(self) -> None:
        """Carry messages until the coordinator hangs up."""
        proxies = {ClientId(proxy.name): proxy for proxy in collab.clients}

        def ask(name: ClientId, request: bytes) -> bytes:
            try:
                reply = proxies[name](timeout=self.seconds).answer(request)
            except (CollabCallError, RunAborted) as error:
                return encode(Failed(round_id=RoundId(0), reason=f"NVFlare: {type(error).__name__}"))
            return reply if isinstance(reply, bytes) else b""

        serve_relay(
            tuple(proxies),
            ask,
            port=self.port,
            token=Path(self.token_file).read_bytes(),
            most_bytes=self.most_bytes,
        )


def simulate_sites(
    folder: Path, names: Sequence[ClientId], *, relay: Relay, site: SimulatedSite, threshold: int
) -> None:
    """Run NVFlare's simulator with one process for each site until the relay's coordinator hangs up.

    Args:
        folder: For NVFlare's own files.
        names: The sites.
        relay: The server's side.
        site: The clients' side.
        threshold: Fewest clients.
    """
    check_names(names)
    recipe = SecflRecipe("secfl", server=relay, client=site, min_clients=threshold)
    recipe.execute(SimEnv(clients=list(names), num_threads=len(names), workspace_root=str(folder)))
