"""A round of the scheme plain: every message, the sums, and messages that must be refused."""

from __future__ import annotations

import importlib.util
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from secfl.crypto.aggregation import Envelope, Finished
from secfl.crypto.inputs import input_digest
from secfl.crypto.messages import PlainHeader
from secfl.crypto.plain import Plain
from secfl.crypto.wire import FRAME_BYTES, Phase, sign_body
from secfl.randomness import InsecureSeededRng
from secfl.types import AGGREGATOR, PrivatizedUpdate, SchemeSpec, VectorSpec

VECTORS = (
    VectorSpec(name="update", length=66_001, modulus_bits=3),
    VectorSpec(name="weight", length=1, modulus_bits=40),
)


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
    """Three clients; the vector is long enough for two pieces of 2^16 elements."""
    identities, directory = recorded.parties(40, 3)
    spec = recorded.specification(directory, SchemeSpec(name="plain"), VECTORS, threshold=2)
    scheme, rng = Plain(threads=1), InsecureSeededRng(41)
    aggregator = scheme.aggregator(spec, directory=directory)
    clients = []
    for identity in identities:
        seed = rng.bytes(8)
        inputs = {
            "update": _counting(seed, VECTORS[0]),
            "weight": np.array([int.from_bytes(seed, "little") % 2**40], np.uint64),
        }
        party = scheme.client(
            spec,
            identity,
            directory=directory,
            update=PrivatizedUpdate.without_noise(inputs),
            rng=rng,
        )
        (message,) = party.start()
        head = FRAME_BYTES + PlainHeader.SIZE + 64
        bad = _bad(aggregator, identity, message) if not clients else []
        aggregator.receive(message)
        clients.append(
            {
                "name": identity.name,
                "update_starts_at": int(inputs["update"][0]),
                "weight": int(inputs["weight"][0]),
                "message_head": message.payload[:head].hex(),
                "message_bytes": len(message.payload),
                "bad": bad,
            }
        )
    assert isinstance(aggregator.state, Finished)
    result = aggregator.state.result
    assert result is not None
    return recorded.described(spec, identities) | {
        "clients": clients,
        "survivors": list(result.survivors),
        "first_sums": result.sums["update"][:20].tolist(),
        "weight": int(result.sums["weight"][0]),
    }


def _counting(seed: bytes, vector: VectorSpec) -> Any:
    start = seed[0] % 8
    return ((np.arange(vector.length) + start) % (1 << vector.modulus_bits)).astype(np.uint32)


def _unused_bit(identity: Any, payload: bytes) -> list[list[Any]]:
    """The last byte of the first vector has 3 bits of a value; set another, under a valid signature."""
    head = FRAME_BYTES + PlainHeader.SIZE + 64
    changed = payload[:-6] + bytes([payload[-6] | 0x80]) + payload[-5:]
    pieces = changed[head : head + 24_576], changed[head + 24_576 : -5], changed[-5:]
    covered = input_digest(payload[5:37], len(payload) - head, [sha256(piece).digest() for piece in pieces])
    signed = sign_body(identity, Phase.PLAIN_INPUT, digest=payload[5:37], body=covered)
    last = len(payload) - 6
    return [[FRAME_BYTES, head - FRAME_BYTES, signed.encode().hex()], [last, 1, f"{changed[last]:02x}"]]


def _bad(aggregator: Any, identity: Any, message: Envelope) -> list[Any]:
    payload = message.payload
    head = FRAME_BYTES + PlainHeader.SIZE + 64
    again = sign_body(identity, Phase.MASKED_INPUT, digest=payload[5:37], body=payload[39:71])
    patches = recorded.damages(payload, signed_bytes=PlainHeader.SIZE) | {
        "bad_type_of_the_aggregator": [[4, 1, "02"]],
        "bad_input": [[head, 1, bytes([payload[head] ^ 1]).hex()]],
        "bad_resigned_unused_bit": _unused_bit(identity, payload),
        "bad_signature_for_another_phase": [[71, 64, again.signature.hex()]],
    }
    found = []
    for name, patch in patches.items():
        changed = Envelope(message.sender, AGGREGATOR, recorded.patched(payload, patch))
        reason = recorded.refused_as(aggregator.receive, changed)
        assert reason, name
        found.append({"name": name, "patches": patch, "refused_as": reason})
    return found
