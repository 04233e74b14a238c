"""Requests and replies as bytes: ``b"SFR1"``, a kind byte, and length-prefixed fields; each has one encoding.

Nothing here is trusted for being well-formed: what a site signs is the round that it recomputes, and what an
aggregator believes are signatures inside the envelopes. This layer only refuses what cannot be read.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Final

import numpy as np

from secfl.crypto.snapshots import split_fields
from secfl.crypto.wire import Phase
from secfl.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement
from secfl.federation.requests import (
    AskWitness,
    CoSign,
    Declined,
    Deliver,
    Failed,
    OfferRound,
    Opened,
    OpenRun,
    Refused,
    Reply,
    Request,
    Sent,
    Signature,
    WitnessAt,
)
from secfl.ledger.checkpoints import Checkpoint
from secfl.types import RoundId, SchemeSpec, client_id, join_fields

__all__ = ["decode_reply", "decode_request", "encode"]

_MAGIC: Final = b"SFR1"
_HEAD: Final = len(_MAGIC) + 1
_MOST_FIELDS: Final = 256
_MOST_TEXT: Final = 4096
_MOST_FIGURES: Final = 256
_MOST_VALUE: Final = 1e9
"""Of a peer's time or share: their sums stay finite, and a summary stays JSON."""
_HASH: Final = 32
_UNREADABLE: Final = (ValueError, TypeError, OverflowError, RecursionError, struct.error, ConfigError)
"""What Python raises for fields that are not what they should be."""
_PHASES: Final = frozenset({*(one.value for one in Phase), "end"})


_KINDS: Final[dict[type, int]] = {
    OfferRound: 1,
    Deliver: 2,
    AskWitness: 3,
    CoSign: 4,
    OpenRun: 5,
    Sent: 65,
    Refused: 66,
    Failed: 67,
    WitnessAt: 68,
    Signature: 69,
    Opened: 70,
    Declined: 71,
}


def encode(message: Request | Reply) -> bytes:
    """The one encoding of a request or reply."""
    return _MAGIC + struct.pack("<B", _KINDS[type(message)]) + join_fields(*_fields(message))


def decode_request(data: bytes, *, peer: str, most_bytes: int) -> Request:
    """Read a request.

    Args:
        data: From the coordinator.
        peer: Who is blamed.
        most_bytes: Nothing larger is looked at.

    Raises:
        RemoteProtocolError: Too large, malformed, or a reply.
    """
    kind, parts = _open(data, peer=peer, most_bytes=most_bytes)
    try:
        match kind:
            case 1:
                return _offer(parts)
            case 2:
                number, *payloads = parts
                return Deliver(round_id=_round(number), payloads=tuple(payloads))
            case 3:
                (run_id,) = parts
                return AskWitness(run_id=_exactly(run_id, 16))
            case 4:
                body, *proof = parts
                checkpoint = Checkpoint.from_json(_object(body))
                checkpoint.fields()  # a size or a text that no signature can cover ends here
                return CoSign(
                    checkpoint=checkpoint,
                    proof=tuple(_exactly(one, _HASH) for one in proof),
                )
            case 5:
                run_id, digest = parts
                return OpenRun(run_id=_exactly(run_id, 16), config_digest=_exactly(digest, _HASH))
    except _UNREADABLE as error:
        raise RemoteProtocolError(peer, f"malformed request ({type(error).__name__})") from None
    raise RemoteProtocolError(peer, f"request of unknown kind {kind}")


def decode_reply(data: bytes, *, peer: str, most_bytes: int) -> Reply:  # noqa: PLR0911 - one return for each kind
    """Read a reply; errors as in `decode_request`."""
    kind, parts = _open(data, peer=peer, most_bytes=most_bytes)
    try:
        match kind:
            case 65:
                number, phase, seconds, report, *payloads = parts
                return Sent(
                    round_id=_round(number),
                    phase=_phase(phase),
                    payloads=tuple(payloads),
                    seconds=_seconds(seconds),
                    report=_figures(report),
                )
            case 66:
                number, reason = parts
                return Refused(round_id=_round(number), reason=_text(reason))
            case 67:
                number, reason = parts
                return Failed(round_id=_round(number), reason=_text(reason))
            case 68:
                (size,) = parts
                return WitnessAt(size=struct.unpack("<Q", size)[0])
            case 69:
                (value,) = parts
                return Signature(value=_exactly(value, 64))
            case 70:
                (run_id,) = parts
                return Opened(run_id=_exactly(run_id, 16))
            case 71:
                number, reason = parts
                return Declined(round_id=_round(number), reason=_text(reason))
    except _UNREADABLE as error:
        raise RemoteProtocolError(peer, f"malformed reply ({type(error).__name__})") from None
    raise RemoteProtocolError(peer, f"reply of unknown kind {kind}")


def _fields(message: Request | Reply) -> list[bytes]:  # noqa: PLR0911 - one return for each kind
    match message:
        case OfferRound():
            flat = [part.encode() for pair in message.scheme.parameters for part in pair]
            return [
                message.run_id,
                struct.pack("<QQI", message.round_id, message.round_index, message.threshold),
                join_fields(*(name.encode() for name in message.cohort)),
                join_fields(message.scheme.name.encode(), *flat),
                np.ascontiguousarray(message.model, dtype="<f4").tobytes(),
                message.announced.encode(),
            ]
        case Deliver():
            return [struct.pack("<Q", message.round_id), *message.payloads]
        case OpenRun():
            return [message.run_id, message.config_digest]
        case AskWitness() | Opened():
            return [message.run_id]
        case CoSign():
            return [json.dumps(message.checkpoint.to_json()).encode(), *message.proof]
        case Sent():
            return [
                struct.pack("<Q", message.round_id),
                message.phase.encode(),
                struct.pack("<d", message.seconds),
                json.dumps(message.report, allow_nan=False).encode(),
                *message.payloads,
            ]
        case Refused() | Failed() | Declined():
            return [struct.pack("<Q", message.round_id), message.reason.encode()[:_MOST_TEXT]]
        case WitnessAt():
            return [struct.pack("<Q", message.size)]
        case Signature():
            return [message.value]


def _open(data: bytes, *, peer: str, most_bytes: int) -> tuple[int, list[bytes]]:
    if len(data) > most_bytes:
        raise RemoteProtocolError(peer, f"message of {len(data)} bytes, expected at most {most_bytes}")
    if len(data) < _HEAD or data[: len(_MAGIC)] != _MAGIC:
        raise RemoteProtocolError(peer, "not a request or reply of this version")
    try:
        parts = split_fields(data[_HEAD:])
    except LocalProtocolError:
        raise RemoteProtocolError(peer, "its fields do not fill the message") from None
    if len(parts) > _MOST_FIELDS:
        raise RemoteProtocolError(peer, f"message of {len(parts)} fields, expected at most {_MOST_FIELDS}")
    return data[len(_MAGIC)], parts


def _offer(parts: list[bytes]) -> OfferRound:
    run_id, numbers, cohort, scheme, model, announced = parts
    round_id, round_index, threshold = struct.unpack("<QQI", numbers)
    name, *flat = (part.decode("ascii") for part in _split(scheme))
    if len(flat) % 2 or len(model) % 4:
        raise ValueError("odd number of scheme fields, or a torn model")
    return OfferRound(
        run_id=_exactly(run_id, 16),
        round_id=RoundId(round_id),
        round_index=round_index,
        cohort=tuple(client_id(part.decode("ascii")) for part in _split(cohort)),
        threshold=threshold,
        scheme=SchemeSpec(name=name, parameters=tuple(zip(flat[::2], flat[1::2], strict=True))),
        model=np.frombuffer(model, dtype="<f4").astype(np.float32, copy=False),
        announced=_announced(announced),
    )


def _announced(data: bytes) -> Announcement:
    if not data:
        return NOTHING_ANNOUNCED
    values = [None if not part else float.fromhex(part.decode("ascii")) for part in _split(data)]
    clip_norm, noise_multiplier = values
    if not all(value is None or math.isfinite(value) for value in values):
        raise ValueError("an announced number is not finite")
    return Announcement(clip_norm=clip_norm, noise_multiplier=noise_multiplier)


def _split(data: bytes) -> list[bytes]:
    try:
        return split_fields(data)
    except LocalProtocolError as error:
        raise ValueError(str(error)) from None


def _round(data: bytes) -> RoundId:
    return RoundId(struct.unpack("<Q", data)[0])


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"field of {len(data)} bytes, expected {size}")
    return data


def _text(data: bytes) -> str:
    """Text of a peer for people: short, and without control characters."""
    if len(data) > _MOST_TEXT:
        raise ValueError("text too long")
    return "".join(letter if letter.isprintable() else "?" for letter in data.decode())


def _phase(data: bytes) -> str:
    if (name := _text(data)) not in _PHASES:
        raise ValueError("not a phase")
    return name


def _seconds(data: bytes) -> float:
    value: float = struct.unpack("<d", data)[0]
    return value if 0 <= value <= _MOST_VALUE else 0.0


def _object(data: bytes) -> dict[str, Any]:
    if len(data) > 1 << 20:
        raise ValueError("object too long")
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 - the bytes are wrong, not a type in the program
    return value


def _figures(data: bytes) -> dict[str, float]:
    if len(data) > _MOST_FIGURES:
        raise ValueError("figures too long")
    figures = {str(name): float(value) for name, value in _object(data).items()}
    if not all(0 <= value <= _MOST_VALUE for value in figures.values()):
        raise ValueError("a figure is not a time or a share")
    return figures
