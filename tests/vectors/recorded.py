"""Tools of the makers that record rounds: fixed randomness, patches, and how a changed message is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from secfl.crypto.aggregation import Envelope
from secfl.crypto.identity import Directory, Identity
from secfl.errors import RemoteProtocolError
from secfl.randomness import InsecureSeededRng
from secfl.types import RoundId, RoundSpec, SchemeSpec, VectorSpec


class FixedRng:
    """Gives out byte strings that are written in a vector, in their order."""

    def __init__(self, drawn: Iterable[bytes]) -> None:
        self._drawn = list(drawn)

    @property
    def is_secret(self) -> bool:
        return False

    def bytes(self, count: int) -> bytes:
        value = self._drawn.pop(0)
        assert len(value) == count
        return value

    def fork(self, label: str) -> FixedRng:
        raise AssertionError(f"vectors draw from one stream, not from {label!r}")


def parties(seed: int, clients: int) -> tuple[list[Identity], Directory]:
    """Identities from a seed, and their directory."""
    rng = InsecureSeededRng(seed)
    identities = [Identity.generate(f"c{index:02d}", rng) for index in range(clients)]
    return identities, Directory.enroll(identities)


def specification(
    directory: Directory, scheme: SchemeSpec, vectors: tuple[VectorSpec, ...], *, threshold: int
) -> RoundSpec:
    """A round of everybody in the directory."""
    return RoundSpec(
        run_id=b"vectors of a run",
        round_id=RoundId(1),
        cohort=tuple(sorted(directory.keys)),
        threshold=threshold,
        vectors=vectors,
        scheme=scheme,
        manifest_digest=directory.digest(),
        model_digest=bytes(32),
        task_digest=bytes(32),
        plan_digest=bytes(32),
    )


def described(spec: RoundSpec, identities: list[Identity]) -> dict[str, Any]:
    """What everybody knows about a round, and the signing keys."""
    return {
        "digest": spec.digest().hex(),
        "cohort": list(spec.cohort),
        "threshold": spec.threshold,
        "vectors": [[vector.name, vector.length, vector.modulus_bits] for vector in spec.vectors],
        "signing_seeds": {identity.name: identity.seed.hex() for identity in identities},
        "keys": {identity.name: identity.public_key().hex() for identity in identities},
    }


def patched(payload: bytes, patches: list[list[Any]]) -> bytes:
    """A message with some places replaced: ``[offset, removed bytes, inserted bytes in hexadecimal]``."""
    for offset, removed, inserted in patches:
        payload = payload[:offset] + bytes.fromhex(inserted) + payload[offset + removed :]
    return payload


def refused_as(receive: Callable[[Envelope], object], envelope: Envelope) -> str:
    """Who is blamed for a message, and why; empty when it is taken."""
    try:
        receive(envelope)
    except RemoteProtocolError as error:
        return str(error)
    return ""


def damages(payload: bytes, *, signed_bytes: int) -> dict[str, list[list[Any]]]:
    """Patches that every parser must notice; ``signed_bytes`` is where the first body ends."""
    flipped = bytes([payload[39] ^ 1]).hex() if len(payload) > 39 else ""
    found: dict[str, list[list[Any]]] = {
        "bad_empty": [[0, len(payload), ""]],
        "bad_magic": [[0, 4, b"SFL0".hex()]],
        "bad_type": [[4, 1, "00"]],
        "bad_round": [[5, 32, bytes(32).hex()]],
        "bad_sender": [[37, 2, "0900"]],
        "bad_truncated": [[len(payload) - 1, 1, ""]],
        "bad_extended": [[len(payload), 0, "00"]],
    }
    if signed_bytes:
        found["bad_body"] = [[39, 1, flipped]]
        found["bad_signature"] = [[39 + signed_bytes, 1, bytes([payload[39 + signed_bytes] ^ 1]).hex()]]
    return found
