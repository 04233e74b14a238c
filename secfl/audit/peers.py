"""Other frameworks under the same audit: facts about the installed version, or the reason why there are none.

Each peer is looked at in its own environment (``make peers``), or where this secfl runs if it is installed there, by a
script that uses the peer's own functions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

__all__ = ["PeerFacts", "PeerName", "look_at_peer"]

_TIMEOUT_SECONDS: Final = 300
_HERE: Final = Path(__file__).parent


class PeerName(StrEnum):
    """Which peer and which of its mechanisms."""

    FLOWER_SECAGGPLUS = "flower-secaggplus"
    NVFLARE_HE = "nvflare-he"


_LIBRARIES: Final = {PeerName.FLOWER_SECAGGPLUS: "flwr", PeerName.NVFLARE_HE: "nvflare"}
_FOLDERS: Final = {PeerName.FLOWER_SECAGGPLUS: "flower", PeerName.NVFLARE_HE: "nvflare"}
_SCRIPTS: Final = {
    PeerName.FLOWER_SECAGGPLUS: "peer_flower.py",
    PeerName.NVFLARE_HE: "peer_nvflare.py",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFacts:
    """What was seen.

    Attributes:
        peer: Which.
        facts: Plain values, the version among them; ``None`` where it was skipped.
        skipped: Why, or an empty string.
    """

    peer: PeerName
    facts: dict[str, Any] | None
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"peer": self.peer.value, "facts": self.facts, "skipped": self.skipped}


def look_at_peer(peer: PeerName, *, folder: Path = Path(".peers")) -> PeerFacts:
    """Run a peer's script in the environment that ``make peers`` made, or in this one.

    Args:
        peer: Which.
        folder: Where the environments are.
    """
    python = folder / _FOLDERS[peer] / "bin" / "python"
    if not python.is_file() and find_spec(_LIBRARIES[peer]) is not None:
        python = Path(sys.executable)
    if not python.is_file():
        reason = f"not installed: no {_LIBRARIES[peer]} here and no {python}; run make peers"
        return PeerFacts(peer=peer, facts=None, skipped=reason)
    try:
        done = subprocess.run(  # noqa: S603 - an interpreter that runs or that make peers installed
            [python.absolute(), "-I", _HERE / _SCRIPTS[peer]],
            env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return PeerFacts(peer=peer, facts=None, skipped=f"gave up after {_TIMEOUT_SECONDS} seconds")
    except OSError as error:
        return PeerFacts(peer=peer, facts=None, skipped=f"failed: {error.strerror}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return PeerFacts(peer=peer, facts=None, skipped=f"exit code {done.returncode}: {last}")
    try:
        facts = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return PeerFacts(peer=peer, facts=None, skipped="failed: expected one JSON document from the script")
    return PeerFacts(peer=peer, facts=facts)
