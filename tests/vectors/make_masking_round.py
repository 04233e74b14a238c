"""Whole masking rounds at the aggregator: secrets, inputs, every client's message, and the sums.

``events`` are what happens to the aggregator, in order: a message (``deliver``) or the end of a phase. Its own
messages follow from these; their SHA-256 is written down. The ``bad`` cases change one message by patches
``[offset, removed bytes, inserted bytes]`` and must be refused at their place among the events.

Encapsulations were drawn once; a round is kept as long as it replays to what is written here.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from secfl.crypto.aggregation import Envelope, Finished
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking import Masking
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.messages import Advertise, Deal, InputHeader
from secfl.crypto.wire import FRAME_BYTES, Phase, sign_body
from secfl.errors import RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import (
    AGGREGATOR,
    ClientId,
    PrivatizedUpdate,
    RoundId,
    RoundSpec,
    SchemeSpec,
    VectorSpec,
)

VECTORS = (
    VectorSpec(name="update", length=5, modulus_bits=16),
    VectorSpec(name="weights", length=1, modulus_bits=40),
)
ROUNDS: dict[str, tuple[int, int, dict[str, set[str]]]] = {
    "three clients": (3, 3, {}),
    "drop-outs in two phases": (5, 3, {"share": {"c01"}, "masked-input": {"c03"}}),
}
PHASES = [Phase.ADVERTISE, Phase.SHARE, Phase.MASKED_INPUT, Phase.CONSISTENCY, Phase.UNMASK]


def make(previous: Any) -> Any:
    """The rounds, kept or made anew."""
    kept = {case["name"]: case for case in previous or ()}
    return [_kept_or_new(name, kept.get(name)) for name in ROUNDS]


def identities_of(name: str) -> list[Identity]:
    """The clients of a round: their seeds are fixed."""
    rng = InsecureSeededRng(23)
    return [Identity.generate(f"c{index:02d}", rng) for index in range(ROUNDS[name][0])]


def spec_of(name: str) -> tuple[RoundSpec, Directory]:
    """What the parties of a round agreed on."""
    identities = identities_of(name)
    directory = Directory.enroll(identities)
    spec = RoundSpec(
        run_id=b"vectors of a run",
        round_id=RoundId(1),
        cohort=tuple(identity.name for identity in identities),
        threshold=ROUNDS[name][1],
        vectors=VECTORS,
        scheme=SchemeSpec(name="masking"),
        manifest_digest=directory.digest(),
        model_digest=bytes(32),
        task_digest=bytes(32),
        plan_digest=bytes(32),
    )
    return spec, directory


def replay(case: Any, *, before: int | None = None) -> tuple[Any, list[list[list[str]]]]:
    """An aggregator after the events (before one of them), and what it sent after each."""
    spec, directory = spec_of(case["name"])
    aggregator = Masking(threads=1).aggregator(spec, directory=directory)
    sent = []
    for event in case["events"][:before]:
        if "deliver" in event:
            payload = bytes.fromhex(event["deliver"])
            out = aggregator.receive(Envelope(ClientId(event["sender"]), AGGREGATOR, payload))
        else:
            out = aggregator.phase_over()
        sent.append([[e.recipient, hashlib.sha256(e.payload).hexdigest()] for e in out])
    return aggregator, sent


def refusal(case: Any, bad: Any) -> str:
    """How a changed message is refused: the peer that is blamed, and why."""
    event = case["events"][bad["event"]]
    payload = bytes.fromhex(event["deliver"])
    for offset, removed, inserted in bad["patches"]:
        payload = payload[:offset] + bytes.fromhex(inserted) + payload[offset + removed :]
    aggregator, _ = replay(case, before=bad["event"])
    try:
        aggregator.receive(Envelope(ClientId(event["sender"]), AGGREGATOR, payload))
    except RemoteProtocolError as error:
        return str(error)
    return ""


def _kept_or_new(name: str, old: Any) -> Any:
    if old is not None and _holds(old):
        return old
    case = _play(name)
    case["bad"] = _bad_cases(case)
    assert _holds(case)
    return case


def _holds(case: Any) -> bool:
    try:
        aggregator, sent = replay(case)
        if sent != [event["sends"] for event in case["events"]] or not isinstance(aggregator.state, Finished):
            return False
        result = aggregator.state.result
        assert result is not None
        sums = {name: values.tolist() for name, values in result.sums.items()}
        if (sums, list(result.survivors)) != (case["sums"], case["survivors"]):
            return False
        return all(refusal(case, bad) == bad["refused_as"] for bad in case["bad"])
    except (KeyError, ValueError, RemoteProtocolError):
        return False


def _play(name: str) -> Any:
    spec, directory = spec_of(name)
    scheme, rng = Masking(threads=1), InsecureSeededRng(24)
    source = np.random.default_rng(25)
    inputs = {
        identity.name: {
            vector.name: source.integers(0, 1 << vector.modulus_bits, vector.length, dtype=np.uint64).astype(
                vector.dtype
            )
            for vector in VECTORS
        }
        for identity in identities_of(name)
    }
    clients: dict[str, Any] = {}
    secrets = {}
    for identity in identities_of(name):
        update = PrivatizedUpdate.without_noise(inputs[identity.name])
        party = scheme.client(spec, identity, directory=directory, update=update, rng=rng.fork(identity.name))
        assert isinstance(party, MaskingClient)
        drawn = party._secrets()
        secrets[identity.name] = {
            "signing_seed": identity.seed.hex(),
            "root": drawn.root.hex(),
            "self_mask": drawn.self_mask.hex(),
            "sealing_seed": drawn.sealing.seed.hex(),
            "nonce": drawn.nonce.hex(),
            "coefficients": drawn.coefficients.hex(),
        }
        clients[identity.name] = party
    aggregator = scheme.aggregator(spec, directory=directory)
    events: list[Any] = []
    queue = [envelope for party in clients.values() for envelope in party.start()]
    gone: set[str] = set()
    for phase in PHASES:
        gone |= ROUNDS[name][2].get(phase.value, set())
        requests: list[Envelope] = []
        for envelope in queue:
            if envelope.sender not in gone:
                out = aggregator.receive(envelope)
                events.append({"sender": envelope.sender, "deliver": envelope.payload.hex()})
                events[-1]["sends"] = [[e.recipient, hashlib.sha256(e.payload).hexdigest()] for e in out]
                requests += out
        if not requests and not isinstance(aggregator.state, Finished):
            requests = aggregator.phase_over()
            events.append(
                {
                    "phase_over": phase.value,
                    "sends": [[e.recipient, hashlib.sha256(e.payload).hexdigest()] for e in requests],
                }
            )
        queue = [answer for envelope in requests for answer in clients[envelope.recipient].receive(envelope)]
    assert isinstance(aggregator.state, Finished)
    result = aggregator.state.result
    assert result is not None
    return {
        "name": name,
        "digest": spec.digest().hex(),
        "threshold": spec.threshold,
        "vectors": [[vector.name, vector.length, vector.modulus_bits] for vector in VECTORS],
        "keys": {client: key.hex() for client, key in directory.keys.items()},
        "secrets": secrets,
        "inputs": {c: {v: values.tolist() for v, values in row.items()} for c, row in inputs.items()},
        "events": events,
        "survivors": list(result.survivors),
        "sums": {vector: values.tolist() for vector, values in result.sums.items()},
    }


def _bad_cases(case: Any) -> list[Any]:
    """One message of each phase, changed in the ways that a parser must notice."""
    bad = []
    seen = set()
    for number, event in enumerate(case["events"]):
        payload = bytes.fromhex(event.get("deliver", ""))
        if not payload or payload[4] in seen:
            continue
        seen.add(payload[4])
        phase = PHASES[payload[4] // 2]
        size = len(payload)
        body = _body_bytes(case, phase)
        other_body = bytes([payload[FRAME_BYTES] ^ 1]) + payload[FRAME_BYTES + 1 : FRAME_BYTES + body]
        identity = next(one for one in identities_of(case["name"]) if one.name == event["sender"])
        resigned = sign_body(identity, phase, digest=bytes.fromhex(case["digest"]), body=other_body)
        patches = {
            "bad_empty": [[0, size, ""]],
            "bad_magic": [[0, 4, b"SFL0".hex()]],
            "bad_type": [[4, 1, "00"]],
            "bad_round": [[5, 32, bytes(32).hex()]],
            "bad_sender": [[37, 2, "0900"]],
            "bad_truncated": [[size - 1, 1, ""]],
            "bad_extended": [[size, 0, "00"]],
            "bad_body": [[FRAME_BYTES, 1, other_body[:1].hex()]],
            "bad_signature": [[FRAME_BYTES + body, 1, bytes([payload[FRAME_BYTES + body] ^ 1]).hex()]],
            "bad_last_byte": [[size - 1, 1, bytes([payload[-1] ^ 1]).hex()]],
            "bad_resigned": [[FRAME_BYTES, body + 64, resigned.encode().hex()]],
        }
        for name, patch in patches.items():
            entry = {"name": f"{name}_{phase.value}", "event": number, "patches": patch}
            entry["refused_as"] = refusal(case, entry)
            # A changed key or commitment under a valid signature is another honest-looking statement.
            if entry["refused_as"]:
                bad.append(entry)
    return bad


def _body_bytes(case: Any, phase: Phase) -> int:
    members = {event["sender"] for event in case["events"] if event.get("deliver", "")[8:10] == "03"}
    return {
        Phase.ADVERTISE: Advertise.SIZE,
        Phase.SHARE: Deal.SIZE,
        Phase.MASKED_INPUT: InputHeader.SIZE,
        Phase.CONSISTENCY: InputHeader.SIZE,
        Phase.UNMASK: 32 * len(members),
    }[phase]
