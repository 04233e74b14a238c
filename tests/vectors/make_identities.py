"""Manifest, round, model and task digests, signed statements, and what is no round or no signature."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from secfl.crypto.codec import Grid
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.wire import Phase, Signed, sign_body, verify_body
from secfl.errors import ConfigError, RemoteProtocolError
from secfl.federation.offer import RoundOffer, RoundTerms
from secfl.federation.state import state_digest
from secfl.randomness import InsecureSeededRng
from secfl.types import RoundId, RoundSpec, SchemeSpec, VectorSpec, client_id

_ORDER = 2**252 + 27742317777372353535851937790883648493
_ROUNDS: tuple[dict[str, Any], ...] = (
    {},
    {"round": 2**63 - 1, "cohort": ["a"], "threshold": 1, "vectors": [["x", 1, 2]]},
    {"scheme": ["ckks", {"key_mode": "sum-key"}], "vectors": [["update", 2**32 - 1, 62], ["weight", 1, 33]]},
    {"cohort": ["A", "Z", "a", "a-b", "a.b", "a0", "a_b"], "threshold": 7},
)
_BAD_ROUNDS: dict[str, dict[str, Any]] = {
    "bad_run_id": {"run_id": "00" * 15},
    "bad_round": {"round": 2**63},
    "bad_order": {"cohort": ["b", "a", "c"]},
    "bad_repeated_client": {"cohort": ["a", "a", "c"]},
    "bad_reserved_name": {"cohort": ["a", "aggregator", "c"]},
    "bad_long_name": {"cohort": ["a" * 65, "b", "c"]},
    "bad_character": {"cohort": ["a", "b", "c d"]},
    "bad_threshold_low": {"threshold": 0},
    "bad_threshold_high": {"threshold": 4},
    "bad_no_vectors": {"vectors": []},
    "bad_repeated_vector": {"vectors": [["x", 1, 8], ["x", 2, 8]]},
    "bad_narrow": {"vectors": [["x", 1, 1]]},
    "bad_wide": {"vectors": [["x", 1, 63]]},
    "bad_empty_vector": {"vectors": [["x", 0, 8]]},
    "bad_digest": {"model_digest": "00" * 31},
}


def make(previous: Any) -> Any:
    """Everything that a round is bound to."""
    rng = InsecureSeededRng(32)
    identities = [Identity.generate(name, rng) for name in ("bert", "anna", "a.b-c_9")]
    directory = Directory.enroll(identities)
    base = {
        "run_id": rng.bytes(16).hex(),
        "round": 7,
        "cohort": ["anna", "bert", "cleo"],
        "threshold": 3,
        "vectors": [["update", 1000, 20], ["weight", 1, 40]],
        "scheme": ["masking", {}],
        "manifest_digest": directory.digest().hex(),
        "model_digest": rng.bytes(32).hex(),
        "task_digest": rng.bytes(32).hex(),
        "plan_digest": rng.bytes(32).hex(),
    }
    rounds = [base | change for change in _ROUNDS]
    for change in _BAD_ROUNDS.values():
        _refused(base | change)
    return {
        "manifest": {
            "keys": {identity.name: identity.public_key().hex() for identity in identities},
            "digest": directory.digest().hex(),
        },
        "rounds": [case | {"digest": _spec(case).digest().hex()} for case in rounds],
        "bad_rounds": [{"name": name, **(base | change)} for name, change in _BAD_ROUNDS.items()],
        "model": _model(),
        "task": _task(directory, rng),
        "statements": _statements(identities[1], directory, bytes.fromhex(base["model_digest"])),
    }


def _spec(case: dict[str, Any]) -> RoundSpec:
    return RoundSpec(
        run_id=bytes.fromhex(case["run_id"]),
        round_id=RoundId(case["round"]),
        cohort=tuple(case["cohort"]),
        threshold=case["threshold"],
        vectors=tuple(VectorSpec(name=n, length=d, modulus_bits=b) for n, d, b in case["vectors"]),
        scheme=SchemeSpec(name=case["scheme"][0], parameters=tuple(sorted(case["scheme"][1].items()))),
        **{
            name: bytes.fromhex(case[name])
            for name in ("manifest_digest", "model_digest", "task_digest", "plan_digest")
        },
    )


def _refused(case: dict[str, Any]) -> None:
    try:
        _spec(case)
    except ConfigError:
        return
    raise AssertionError(case)


def _model() -> Any:
    tensors = {"conv.weight": [2, 1, 3], "scale": [], "bias": [2]}
    state, start = {}, 0.0
    for name, shape in tensors.items():
        count = math.prod(shape)
        state[name] = (np.arange(count, dtype=np.float32) / 8 - start).reshape(shape)
        start += 0.5
    return {
        "tensors": [
            [name, list(tensor.shape), [struct.pack(">f", value).hex() for value in tensor.ravel().tolist()]]
            for name, tensor in state.items()
        ],
        "digest": state_digest(state).hex(),
    }


def _task(directory: Directory, rng: InsecureSeededRng) -> Any:
    settings = rng.bytes(32)
    grid = Grid(length=10, clip_norm=0.75, grid_norm=4096, coordinate_bound=math.inf)
    terms = RoundTerms(grid=grid, bits=20, weighting=None, task_digest=settings, plan_digest=bytes(32))
    offer = RoundOffer(
        run_id=bytes(16),
        round_id=RoundId(9),
        round_index=5,
        cohort=tuple(sorted(directory.keys)),
        threshold=3,
        scheme=SchemeSpec(name="plain"),
        state={"w": np.zeros(10, np.float32)},
    )
    return {
        "settings_digest": settings.hex(),
        "training_round": 5,
        "grid": grid.encode().hex(),
        "digest": offer.specification(terms, directory).task_digest.hex(),
    }


def _statements(identity: Identity, directory: Directory, digest: bytes) -> Any:
    body = b"the body of a message"
    signed = {phase: sign_body(identity, phase, digest=digest, body=body) for phase in Phase}
    good = signed[Phase.SHARE].signature
    scalar = (int.from_bytes(good[32:], "little") + _ORDER) % 2**256
    wrong = {
        "bad_phase": signed[Phase.ADVERTISE].signature,
        "bad_round": sign_body(identity, Phase.SHARE, digest=bytes(32), body=body).signature,
        "bad_body": sign_body(identity, Phase.SHARE, digest=digest, body=body + b".").signature,
        "bad_bit": bytes([good[0] ^ 1]) + good[1:],
        "bad_scalar_above_the_order": good[:32] + scalar.to_bytes(32, "little"),
    }
    for signature in wrong.values():
        try:
            statement = Signed(body, signature)
            verify_body(
                directory, Phase.SHARE, digest=digest, sender=client_id(identity.name), signed=statement
            )
        except RemoteProtocolError:
            continue
        raise AssertionError("accepted")
    return {
        "sender": identity.name,
        "key": identity.public_key().hex(),
        "seed": identity.seed.hex(),
        "digest": digest.hex(),
        "body": body.hex(),
        "signatures": {phase.value: one.signature.hex() for phase, one in signed.items()},
        "not_signatures_for_share": {name: signature.hex() for name, signature in wrong.items()},
    }
