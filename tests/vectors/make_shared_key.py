"""A round under one shared key: every message, the sums, and messages that must be refused.

Ciphertexts and sums follow from the secrets; messages that carry them are written down by their heads (frame, body,
signature) and the SHA-256 of the whole. The lead's sealed keys were drawn once and are kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from secfl.crypto.aggregation import Envelope, Finished
from secfl.crypto.ckks import Ckks
from secfl.crypto.ckks_shared_messages import SEALING_BODY_BYTES, SealedKey, SharedInput, SharedSums
from secfl.crypto.wire import FRAME_BYTES, MessageType
from secfl.errors import SecflError
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, PrivatizedUpdate, RoundSpec, SchemeSpec, VectorSpec

VECTORS = (
    VectorSpec(name="update", length=50, modulus_bits=21),
    VectorSpec(name="weight", length=1, modulus_bits=33),
)
CLIENTS, LEAD = 3, "c00"
SIZES = {
    MessageType.CKKS_ADVERTISE: SEALING_BODY_BYTES,
    MessageType.CKKS_KEYS: SealedKey.SIZE,
    MessageType.CKKS_INPUT: SharedInput.SIZE,
    MessageType.CKKS_SUMS: SharedSums.SIZE,
}


def _tools() -> ModuleType:
    path = Path(__file__).with_name("recorded.py")
    spec = importlib.util.spec_from_file_location("secfl_vectors_recorded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recorded = _tools()


def make(previous: Any) -> Any:
    """The round, with the sealed keys kept or made anew."""
    try:
        return _play(previous["keys_message"] if previous else None)
    except (KeyError, ValueError, AssertionError, SecflError):
        if previous is None:
            raise
        return _play(None)


def _setting() -> tuple[Any, Any, RoundSpec]:
    identities, directory = recorded.parties(53, CLIENTS)
    scheme = SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))
    return identities, directory, recorded.specification(directory, scheme, VECTORS, threshold=3)


def _play(kept: str | None) -> Any:
    identities, directory, spec = _setting()
    scheme, rng = Ckks(threads=1), InsecureSeededRng(54)
    parties: dict[str, Any] = {AGGREGATOR: scheme.aggregator(spec, directory=directory)}
    secrets = {}
    inputs = {}
    for identity in identities:
        drawn = [rng.bytes(96), rng.bytes(32), rng.bytes(32), rng.bytes(32)]
        secrets[identity.name] = dict(
            zip(("sealing_seed", "lead_seed", "nonce", "key_of_errors"), map(bytes.hex, drawn), strict=True)
        )
        values = {
            vector.name: np.array(
                [
                    int.from_bytes(rng.bytes(8), "little") % (1 << vector.modulus_bits)
                    for _ in range(vector.length)
                ],
                vector.dtype,
            )
            for vector in VECTORS
        }
        inputs[identity.name] = {name: row.tolist() for name, row in values.items()}
        parties[identity.name] = scheme.client(
            spec,
            identity,
            directory=directory,
            update=PrivatizedUpdate.without_noise(values),
            rng=recorded.FixedRng(drawn),
        )
    queue = deque(e for identity in identities for e in parties[identity.name].start())
    messages: list[Any] = []
    bad: list[Any] = []
    keys_message, seen = "", set()
    while queue:
        envelope = queue.popleft()
        kind = MessageType(envelope.payload[4])
        if kind is MessageType.CKKS_KEYS:
            keys_message = kept or envelope.payload.hex()
            envelope = Envelope(envelope.sender, AGGREGATOR, bytes.fromhex(keys_message))
        head = FRAME_BYTES + (SIZES[kind] + 64 if kind in SIZES else 0)
        messages.append(
            {
                "type": kind.value,
                "sender": envelope.sender,
                "recipient": envelope.recipient,
                "bytes": len(envelope.payload),
                "head": envelope.payload[:head].hex(),
                "sha256": hashlib.sha256(envelope.payload).hexdigest(),
            }
        )
        if kind not in seen:
            seen.add(kind)
            bad += _bad(parties[envelope.recipient], kind, envelope)
        queue.extend(parties[envelope.recipient].receive(envelope))
    state = parties[AGGREGATOR].state
    assert isinstance(state, Finished)
    assert state.result is not None
    return recorded.described(spec, identities) | {
        "lead": LEAD,
        "secrets": secrets,
        "inputs": inputs,
        "keys_message": keys_message,
        "messages": messages,
        "survivors": list(state.result.survivors),
        "sums": {name: values.tolist() for name, values in state.result.sums.items()},
        "bad": bad,
    }


def _bad(party: Any, kind: MessageType, envelope: Envelope) -> list[Any]:
    """Damages of the first message of each type, before the message itself is delivered."""
    payload = envelope.payload
    patches = recorded.damages(payload, signed_bytes=SIZES.get(kind, 0))
    if kind is MessageType.CKKS_CLOSE:  # only the frame
        del patches["bad_truncated"]
    if kind in (MessageType.CKKS_INPUT, MessageType.CKKS_SUMS):
        patches["bad_rest"] = [[len(payload) - 1, 1, f"{payload[-1] ^ 1:02x}"]]
    if kind is MessageType.CKKS_OPEN:
        row, ciphertext = SharedInput.SIZE + 64, 30_720
        start, size = FRAME_BYTES + 8, len(payload)
        rest = start + CLIENTS * row
        patches["bad_one_ciphertext_as_the_sum"] = [
            [rest + ciphertext, 2 * ciphertext, ""],
            [start + row, 2 * row, ""],
            [FRAME_BYTES, 1, "01"],
        ]
        patches["bad_without_the_opener"] = [
            [rest, ciphertext, ""],
            [start, row, ""],
            [FRAME_BYTES, 1, "06"],
        ]
        patches["bad_replaced_ciphertext"] = [[size - 1, 1, f"{payload[-1] ^ 1:02x}"]]
        patches["bad_relayed_body"] = [[start, 1, f"{payload[start] ^ 1:02x}"]]
    if kind is MessageType.CKKS_DELIVERY:
        patches["bad_lead_outside_the_cohort"] = [[FRAME_BYTES, 2, "0900"]]
        patches["bad_lead"] = [[FRAME_BYTES, 2, "0100"]]
        patches["bad_relayed_body"] = [[FRAME_BYTES + 2, 1, f"{payload[FRAME_BYTES + 2] ^ 1:02x}"]]
    found = []
    for name, patch in patches.items():
        changed = Envelope(envelope.sender, envelope.recipient, recorded.patched(payload, patch))
        reason = recorded.refused_as(party.receive, changed)
        assert reason, (kind, name)
        found.append({"name": name, "type": kind.value, "patches": patch, "refused_as": reason})
    return found
