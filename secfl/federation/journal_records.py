"""The records of a journal: their kinds, their fields as bytes, and what each says of a round."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from secfl.crypto.snapshots import split_fields
from secfl.federation.journal_entries import Answer, PhaseAfter, Refusal, RoundEntry
from secfl.federation.journal_file import StoredRecord
from secfl.types import join_fields

__all__ = [
    "ANSWER_FIELDS",
    "Kind",
    "apply_to_round",
    "encoded",
    "forgotten",
    "number_field",
    "read_number",
]

ANSWER_FIELDS: Final = 7
"""Fields of an answer before its envelopes: kind, run, round, phase, request, snapshot, after."""


class Kind(StrEnum):
    """The kinds of records."""

    OWNER = "owner"
    ENTERED = "entered"
    NOISE = "noise"
    ANSWER = "answer"
    FORGOTTEN = "forgotten"
    """An answer without its envelopes, of a round after which another was entered."""

    REFUSED = "refused"
    ABANDONED = "abandoned"
    RUN_FINISHED = "run-finished"
    RUN_PRUNED = "run-pruned"


def apply_to_round(kind: Kind, stored: StoredRecord, entry: RoundEntry, fields: Sequence[bytes]) -> None:
    """Note in a round's entry what a record says; its fields are those after kind, run and round."""
    match kind:
        case Kind.NOISE:
            entry.noise_spent = True
        case Kind.ANSWER | Kind.FORGOTTEN:
            phase, request, snapshot, after, *_ = fields
            entry.answers[request] = Answer(
                phase=phase.decode(),
                request=request,
                snapshot=snapshot,
                after=PhaseAfter(after.decode()),
                record=stored if kind is Kind.ANSWER else None,
            )
        case Kind.REFUSED:
            phase, request, sender, reason = fields
            entry.refusals.append(
                Refusal(
                    phase=phase.decode(),
                    request=request,
                    sender=sender.decode(errors="replace"),
                    reason=reason.decode(errors="replace"),
                )
            )
        case _:
            entry.abandoned = fields[0].decode(errors="replace")


def forgotten(body: bytes, run_id: bytes) -> bytes:
    """A record as it is kept when the envelopes of a run are forgotten; every other record as it is."""
    kind, of = split_fields(body, limit=2)
    if kind != Kind.ANSWER.encode() or of != run_id:
        return body
    _, *fields = split_fields(body, limit=ANSWER_FIELDS)
    return join_fields(Kind.FORGOTTEN.encode(), *fields)


def encoded(text: str) -> bytes:
    """UTF-8, also of names that have no encoding: a peer may choose them."""
    return text.encode(errors="surrogatepass")


def number_field(value: int) -> bytes:
    """A round's number as a field."""
    return struct.pack("<Q", value)


def read_number(data: bytes) -> int:
    """Undo `number_field`."""
    return int(struct.unpack("<Q", data)[0])
