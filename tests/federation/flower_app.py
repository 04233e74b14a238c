"""The app that the tests put on Flower's nodes: it tells what was opened, and stands still where a test wants to kill.

``flower_stage`` copies it; a hold is a file ``holds/SITE`` that names a moment. The process that comes to it says so in
``holds/SITE.held`` and goes no further.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from secfl.federation import coordinator
from secfl.federation.checkpoint import write_atomically
from secfl.federation.flower import coordinator_app, site_app
from secfl.federation.offer import UPDATE_VECTOR
from secfl.federation.request_codec import decode_request
from secfl.federation.requests import Deliver, OfferRound
from secfl.federation.site_agent import SiteAgent
from secfl.types import AGGREGATOR

FACTORY = "secfl.testing.tasks:linear_task"
ROOT = Path(os.environ["FLWR_HOME"]).parent
HOLDS = ROOT / "holds"

mean_update, handle = coordinator.mean_update, SiteAgent.handle


def opened(result, **more):
    with (ROOT / "sums").open("a") as file:
        file.write(hashlib.sha256(result.sums[UPDATE_VECTOR].tobytes()).hexdigest() + "\n")
    return mean_update(result, **more)


def stopping(agent, request):
    site = agent._identity.name
    message = decode_request(request, peer=AGGREGATOR, most_bytes=1 << 30)
    if not isinstance(message, OfferRound | Deliver):
        return handle(agent, request)
    steps = HOLDS / f"{site}.steps"  # round, and how many requests came in it: a process handles one of them
    if isinstance(message, OfferRound):
        index, step = message.round_index, 1
    else:
        index, step = (int(word) for word in steps.read_text(encoding="utf-8").split())
        step += 1
    write_atomically(steps, f"{index} {step}".encode())
    stand_still(site, f"round {index}, before answer {step}")
    reply = handle(agent, request)
    stand_still(site, f"round {index}, after answer {step}")
    return reply


def stand_still(site: str, moment: str) -> None:
    hold = HOLDS / site
    if not hold.exists() or hold.read_text(encoding="utf-8") != moment:
        return
    write_atomically(HOLDS / f"{site}.held", moment.encode())
    while True:
        time.sleep(60)


coordinator.mean_update, SiteAgent.handle = opened, stopping
server = coordinator_app(FACTORY)
client = site_app(FACTORY)
