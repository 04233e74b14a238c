"""The sums of a recorded run, each with its envelopes and its public shape.

A run of one model has one sum a round. A run of several model families has one for the maps and one for each family
whose weights are averaged; they share a transcript, and the round's digest in every frame tells them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secfl.audit.recording import Recorded, Recording, read_run_recording
from secfl.audit.seen import RunShape
from secfl.config import RunConfig
from secfl.config import Weighting as WeightingName
from secfl.crypto.weights import Weighting
from secfl.crypto.wire import DIGEST_BYTES, FRAME_BYTES
from secfl.errors import DataError
from secfl.federation.drift import DriftMeter
from secfl.federation.offer import UPDATE_VECTOR
from secfl.federation.rundir import RunDirectory
from secfl.ledger.entry import RunHeader
from secfl.ledger.reader import replay
from secfl.ledger.state import LedgerState
from secfl.types import VectorSpec

__all__ = ["RecordedSum", "recorded_sums"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSum:
    """One vector that is summed round after round.

    Attributes:
        name: ``update``, ``maps``, or the model family whose weights are averaged.
        recording: Its envelopes.
        shape: What is public about its rounds.
    """

    name: str
    recording: Recording = field(repr=False)
    shape: RunShape


def recorded_sums(run: Path) -> list[RecordedSum]:
    """What a run directory that was made with ``--record`` holds: its envelopes, and what its ledgers say of them.

    Raises:
        DataError: Not recorded, or damaged.
    """
    recording = read_run_recording(run)
    directory = RunDirectory.open(run)
    config = directory.config()
    ledgers = {"update": directory.ledger}
    if config.multi_model.families:
        ledgers = {"maps": directory.ledger}
        ledgers |= {path.parent.name: path for path in sorted(run.glob("cohorts/*/ledger.jsonl"))}
    states = {name: _state(path) for name, path in ledgers.items()}
    parts = dict.fromkeys(states, recording) if len(states) == 1 else _parts(recording, states)
    statistics = _statistics(directory.read_metrics())
    return [
        RecordedSum(name=name, recording=parts[name], shape=_shape(config, state.header, statistics))
        for name, state in states.items()
    ]


def _parts(recording: Recording, states: dict[str, LedgerState]) -> dict[str, Recording]:
    """Envelopes by sum, by the rounds that each ledger reserved; the first gets what belongs to none, to be found."""
    owner = {
        reservation.spec_digest: name
        for name, state in states.items()
        for reservation in state.reservations.values()
    }
    parts = {name: Recording() for name in states}
    first = next(iter(states))
    for one in recording.envelopes:
        parts[owner.get(_digest(one), first)].envelopes.append(one)
    return parts


def _digest(one: Recorded) -> bytes:
    return one.payload[FRAME_BYTES - 2 - DIGEST_BYTES : FRAME_BYTES - 2]


def _state(ledger: Path) -> LedgerState:
    try:
        return replay(ledger.read_bytes()).state
    except OSError:
        raise DataError(f"{ledger}: cannot be read") from None


def _shape(config: RunConfig, header: RunHeader, statistics: dict[str, float]) -> RunShape:
    numbers = header.parameters
    length, bits = int(numbers["dimension"]), int(numbers["modulus_bits"])
    vectors = [VectorSpec(name=UPDATE_VECTOR, length=length, modulus_bits=bits)]
    weighted = config.training.weighting is not WeightingName.EQUAL and not config.multi_model.families
    if weighted and header.plan is None:
        weighting = Weighting(largest=config.training.max_weight)
        vectors.append(weighting.vector_spec(clients=len(header.cohort)))
    if config.training.drift == "measured":
        vectors.append(DriftMeter.vector_spec(clients=len(header.cohort)))
    return RunShape(
        scheme=header.scheme,
        key_mode=header.key_mode,
        cohort=header.cohort,
        threshold=header.threshold,
        vectors=tuple(vectors),
        hides=header.scheme != "plain",
        statistics=statistics,
    )


def _statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Per-site metrics and local figures of a simulation: known here, and never to be sent."""
    found: dict[str, float] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}", inner)
        elif isinstance(value, float) and value not in (0.0, 1.0) and math.isfinite(value):
            found[name] = value

    for row in rows:
        walk(f"round {row.get('round')}", row.get("evaluation_only") or {})
        walk(f"round {row.get('round')}", {"clipped_fraction": row.get("clipped_fraction")})
    return found
