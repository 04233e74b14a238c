"""What a client remembers between two messages, and how it is written down."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

from secfl.crypto.attachments import Words
from secfl.crypto.identity import Identity
from secfl.crypto.masking_keys import ClientSecrets
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.snapshots import (
    decode_record,
    encode_record,
    join_indexed,
    restoring,
    split_fields,
    split_indexed,
)
from secfl.crypto.wire import Phase, Signed
from secfl.errors import LocalProtocolError
from secfl.types import client_id, join_fields

__all__ = ["CLIENT_RECORD", "ClientMemory", "join_signed", "split_signed"]

CLIENT_RECORD: Final = "masking-client"


@dataclass(slots=True, kw_only=True, repr=False)
class ClientMemory:
    """The state of one client in one round.

    Secrets are dropped as soon as no later phase needs them: those that masks are made of, and the input,
    when the masked input leaves; the shares when the unmask message leaves.

    Attributes:
        minimum: The client's own least number of members and survivors.
        phase: The phase whose request it waits for; ``None`` when finished.
        secrets: Its secret randomness; ``None`` once its input was masked.
        inputs: Its vectors; ``None`` once masked.
        attachment: Its attachment; empty once sent.
        encapsulated: KEM secret and ciphertext for every later client.
        held: By dealer, its share (64 bytes) of both of the dealer's secrets.
        own: Its own statements, by phase.
        adverts: The directory that it was shown, by position.
        directory_digest: Of that directory.
        members: For whom it masked its input.
        members_digest: T2 of these.
        survivors: Whose headers it confirmed.
        survivors_digest: Of these headers.
        answered: SHA-256 of the request that it answered, by phase.
        conflicts: SHA-256 of the first request that contradicted it, by phase.
    """

    minimum: int
    phase: Phase | None = Phase.ADVERTISE
    secrets: ClientSecrets | None = None
    inputs: Mapping[str, Words] | None = None
    attachment: bytes = b""
    encapsulated: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict)
    held: Mapping[int, bytes] = field(default_factory=dict)
    own: dict[Phase, Signed] = field(default_factory=dict)
    adverts: Mapping[int, Signed] = field(default_factory=dict)
    directory_digest: bytes = b""
    members: tuple[int, ...] = ()
    members_digest: bytes = b""
    survivors: tuple[int, ...] = ()
    survivors_digest: bytes = b""
    answered: dict[Phase, bytes] = field(default_factory=dict)
    conflicts: dict[Phase, bytes] = field(default_factory=dict)

    def forget_inputs(self) -> None:
        """Drop everything that the masked input was made of."""
        self.secrets = None
        self.inputs = None
        self.attachment = b""
        self.encapsulated = {}

    def forget_shares(self) -> None:
        """Drop the shares of the others' secrets."""
        self.held = {}

    def encode(self, masked: MaskedRound, identity: Identity) -> bytes:
        """The snapshot: everything above, and the signing key. Secret."""
        arrays = (
            b""
            if self.inputs is None
            else join_fields(
                *(
                    self.inputs[vector.name].astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()
                    for vector in masked.vectors
                )
            )
        )
        return encode_record(
            CLIENT_RECORD,
            {
                "round": masked.digest,
                "identity": join_fields(identity.name.encode(), identity.seed),
                "minimum": struct.pack("<I", self.minimum),
                "phase": b"" if self.phase is None else self.phase.encode(),
                "secrets": b"" if self.secrets is None else self.secrets.encode(),
                "inputs": arrays,
                "attachment": self.attachment,
                "encapsulated": join_indexed(self.encapsulated),
                "held": join_indexed({index: (share,) for index, share in self.held.items()}),
                "own": join_fields(
                    *(part for phase, one in self.own.items() for part in (phase.encode(), one.encode()))
                ),
                "adverts": join_signed(self.adverts),
                "directory_digest": self.directory_digest,
                "members": bytes(self.members),
                "members_digest": self.members_digest,
                "survivors": bytes(self.survivors),
                "survivors_digest": self.survivors_digest,
                "answered": _join_phases(self.answered),
                "conflicts": _join_phases(self.conflicts),
            },
        )

    @classmethod
    def decode(cls, data: bytes, masked: MaskedRound) -> tuple[Self, Identity]:
        """Undo `encode`; `LocalProtocolError` when it is damaged or of another round."""
        record = decode_record(data, CLIENT_RECORD)
        with restoring("client"):
            if record["round"] != masked.digest:
                raise LocalProtocolError("snapshot: belongs to another round")
            name, seed = split_fields(record["identity"])
            own = split_fields(record["own"])
            memory = cls(
                minimum=struct.unpack("<I", record["minimum"])[0],
                phase=Phase(record["phase"].decode()) if record["phase"] else None,
                secrets=(
                    ClientSecrets.decode(record["secrets"], threshold=masked.spec.threshold)
                    if record["secrets"]
                    else None
                ),
                inputs=_decode_inputs(record["inputs"], masked),
                attachment=record["attachment"],
                encapsulated={
                    index: (secret, ciphertext)
                    for index, (secret, ciphertext) in split_indexed(record["encapsulated"]).items()
                },
                held={index: share for index, (share,) in split_indexed(record["held"]).items()},
                own={
                    Phase(phase.decode()): Signed.decode(one)
                    for phase, one in zip(own[::2], own[1::2], strict=True)
                },
                adverts=split_signed(record["adverts"]),
                directory_digest=record["directory_digest"],
                members=tuple(record["members"]),
                members_digest=record["members_digest"],
                survivors=tuple(record["survivors"]),
                survivors_digest=record["survivors_digest"],
                answered=_split_phases(record["answered"]),
                conflicts=_split_phases(record["conflicts"]),
            )
            return memory, Identity(client_id(name.decode()), seed)


def _decode_inputs(data: bytes, masked: MaskedRound) -> dict[str, Words] | None:
    if not data:
        return None
    inputs: dict[str, Words] = {
        vector.name: np.frombuffer(part, vector.dtype.newbyteorder("<")).astype(vector.dtype, copy=False)
        for vector, part in zip(masked.vectors, split_fields(data), strict=True)
    }
    masked.check_vectors(inputs)
    return inputs


def join_signed(statements: Mapping[int, Signed]) -> bytes:
    """Statements by cohort position."""
    return join_indexed({index: (one.encode(),) for index, one in statements.items()})


def split_signed(data: bytes) -> dict[int, Signed]:
    """Undo `join_signed`."""
    return {index: Signed.decode(one) for index, (one,) in split_indexed(data).items()}


def _join_phases(values: Mapping[Phase, bytes]) -> bytes:
    return join_fields(*(part for phase in values for part in (phase.encode(), values[phase])))


def _split_phases(data: bytes) -> dict[Phase, bytes]:
    flat = split_fields(data)
    return {Phase(name.decode()): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
