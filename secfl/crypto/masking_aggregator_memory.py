"""What the aggregator remembers between two messages, and how it is written down."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

from secfl.crypto.aggregation import RoundResult
from secfl.crypto.attachments import AttachmentSink
from secfl.crypto.inputs import Accumulator
from secfl.crypto.masking_client_memory import join_signed, split_signed
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import Parcel
from secfl.crypto.snapshots import (
    decode_record,
    encode_record,
    join_indexed,
    restoring,
    split_fields,
    split_indexed,
)
from secfl.crypto.wire import Equivocation, Phase, Signed
from secfl.errors import BelowThreshold, LocalProtocolError, RoundAborted
from secfl.types import ClientId, client_id, join_fields

__all__ = ["AGGREGATOR_RECORD", "AggregatorMemory"]

AGGREGATOR_RECORD: Final = "masking-aggregator"


@dataclass(slots=True, kw_only=True, repr=False)
class AggregatorMemory:
    """The state of the aggregator in one round. It holds no secret key.

    Attributes:
        phase: The phase that it collects; ``None`` when the round is over.
        statements: By phase and cohort position, the first valid statement of each client.
        expected: By phase, from whom it takes one.
        escrows: By client.
        parcels: By dealer and recipient. Sealed shares are dropped once they were delivered.
        sums: The running sums; ``None`` before inputs are collected and after the round.
        members_digest: T2.
        survivors_digest: Of the survivors' headers.
        evidence: By phase and client, a second statement that contradicts the first.
        blamed: Clients whose secrets contradict what they had committed to.
        result: The sums, once opened.
        failure: Why the round was aborted.
    """

    phase: Phase | None = Phase.ADVERTISE
    statements: dict[Phase, dict[int, Signed]] = field(default_factory=dict)
    expected: dict[Phase, tuple[int, ...]] = field(default_factory=dict)
    escrows: dict[int, bytes] = field(default_factory=dict)
    parcels: dict[int, dict[int, Parcel]] = field(default_factory=dict)
    sums: Accumulator | None = None
    members_digest: bytes = b""
    survivors_digest: bytes = b""
    evidence: dict[tuple[Phase, int], Signed] = field(default_factory=dict)
    blamed: tuple[ClientId, ...] = ()
    result: RoundResult | None = None
    failure: RoundAborted | None = None

    def forget(self) -> None:
        """Drop what only an open round needs."""
        self.escrows = {}
        self.parcels = {}
        self.sums = None

    def equivocations(self, masked: MaskedRound) -> tuple[Equivocation, ...]:
        """The evidence, with the statements that it contradicts."""
        return tuple(
            Equivocation(
                phase=phase,
                sender=masked.name_of(index),
                first=self.statements[phase][index],
                second=second,
            )
            for (phase, index), second in self.evidence.items()
        )

    def encode(self, masked: MaskedRound, sink: AttachmentSink | None) -> bytes:
        """The snapshot."""
        failure = b""
        if self.failure is not None:
            below = isinstance(self.failure, BelowThreshold)
            failure = join_fields(b"below" if below else b"aborted", str(self.failure).encode())
        return encode_record(
            AGGREGATOR_RECORD,
            {
                "round": masked.digest,
                "phase": b"" if self.phase is None else self.phase.encode(),
                "statements": _join_by_phase(
                    {phase: join_signed(rows) for phase, rows in self.statements.items()}
                ),
                "expected": _join_by_phase({phase: bytes(who) for phase, who in self.expected.items()}),
                "escrows": join_indexed({index: (escrow,) for index, escrow in self.escrows.items()}),
                "parcels": join_indexed(
                    {
                        dealer: (join_indexed({to: parcel.fields() for to, parcel in rows.items()}),)
                        for dealer, rows in self.parcels.items()
                    }
                ),
                "sums": b"" if self.sums is None else self.sums.snapshot(),
                "members_digest": self.members_digest,
                "survivors_digest": self.survivors_digest,
                "evidence": join_fields(
                    *(
                        join_fields(phase.encode(), bytes([index]), signed.encode())
                        for (phase, index), signed in self.evidence.items()
                    )
                ),
                "blamed": join_fields(*(name.encode() for name in self.blamed)),
                "result": b"" if self.result is None else _encode_result(self.result),
                "failure": failure,
                "sink": b"" if sink is None else sink.snapshot(),
            },
        )

    @classmethod
    def decode(
        cls, data: bytes, masked: MaskedRound, *, sink: AttachmentSink | None, sums: Accumulator
    ) -> Self:
        """Undo `encode`, with an empty accumulator and a fresh sink to fill.

        Raises:
            LocalProtocolError: It belongs to another round, or is damaged.
        """
        record = decode_record(data, AGGREGATOR_RECORD)
        with restoring("aggregator"):
            if record["round"] != masked.digest:
                raise LocalProtocolError("snapshot: belongs to another round")
            memory = cls(
                phase=Phase(record["phase"].decode()) if record["phase"] else None,
                statements={
                    phase: split_signed(rows) for phase, rows in _split_by_phase(record["statements"]).items()
                },
                expected={phase: tuple(who) for phase, who in _split_by_phase(record["expected"]).items()},
                escrows={index: escrow for index, (escrow,) in split_indexed(record["escrows"]).items()},
                parcels={
                    dealer: {to: Parcel.from_fields(parts) for to, parts in split_indexed(rows).items()}
                    for dealer, (rows,) in split_indexed(record["parcels"]).items()
                },
                members_digest=record["members_digest"],
                survivors_digest=record["survivors_digest"],
                blamed=tuple(client_id(name.decode()) for name in split_fields(record["blamed"])),
                result=_decode_result(record["result"]) if record["result"] else None,
            )
            for row in split_fields(record["evidence"]):
                phase, index, signed = split_fields(row)
                memory.evidence[Phase(phase.decode()), index[0]] = Signed.decode(signed)
            if record["failure"]:
                kind, reason = split_fields(record["failure"])
                memory.failure = (BelowThreshold if kind == b"below" else RoundAborted)(reason.decode())
            if record["sums"]:
                sums.restore(split_fields(record["sums"]))
                memory.sums = sums
            if sink is not None:
                sink.restore(record["sink"])
            return memory


def _join_by_phase(values: Mapping[Phase, bytes]) -> bytes:
    return join_fields(*(part for phase in values for part in (phase.encode(), values[phase])))


def _split_by_phase(data: bytes) -> dict[Phase, bytes]:
    flat = split_fields(data)
    return {Phase(name.decode()): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _encode_result(result: RoundResult) -> bytes:
    rows = []
    for name, values in sorted(result.sums.items()):
        width = values.dtype.itemsize
        words = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        rows.append(join_fields(name.encode(), struct.pack("<B", width), words))
    return join_fields(join_fields(*(name.encode() for name in result.survivors)), join_fields(*rows))


def _decode_result(data: bytes) -> RoundResult:
    survivors, rows = split_fields(data)
    sums = {}
    for row in split_fields(rows):
        name, width, words = split_fields(row)
        dtype = np.dtype(np.uint32 if width[0] == 4 else np.uint64)
        sums[name.decode()] = np.frombuffer(words, dtype.newbyteorder("<")).astype(dtype)
    return RoundResult(
        sums=sums, survivors=tuple(client_id(name.decode()) for name in split_fields(survivors))
    )
