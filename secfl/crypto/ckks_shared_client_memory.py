"""What a client of CKKS with one shared key remembers between two messages, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from secfl.crypto.attachments import Words
from secfl.crypto.ckks_shared_messages import SharedRound
from secfl.crypto.identity import Identity
from secfl.crypto.snapshots import decode_record, encode_record, restoring, split_fields
from secfl.crypto.wire import Phase, Signed
from secfl.errors import LocalProtocolError
from secfl.types import client_id, join_fields

__all__ = ["CLIENT_RECORD", "ClientMemory"]

CLIENT_RECORD: Final = "ckks-shared-client"


@dataclass(slots=True, kw_only=True, repr=False)
class ClientMemory:
    """The state of one client in one round. Secrets are dropped as soon as no later phase needs them.

    Attributes:
        phase: What it waits for; ``None`` when finished.
        sealing_seed: Of the key to which the round's key is sealed; empty once that was opened.
        lead_seed: The key it deals if it is made the lead; empty once dealt.
        nonce: Public label of its ciphertext.
        error_key: Of the errors of its ciphertext; empty once encrypted.
        inputs: Its vectors; ``None`` once encrypted.
        key_seed: Of the round's key, once received.
        advert: Its own statement of phase 1.
        header: Its own statement of phase 3.
    """

    phase: Phase | None = Phase.ADVERTISE
    sealing_seed: bytes
    lead_seed: bytes
    nonce: bytes
    error_key: bytes
    inputs: Mapping[str, Words] | None
    key_seed: bytes = b""
    advert: Signed | None = None
    header: Signed | None = None

    def encode(self, shared: SharedRound, identity: Identity) -> bytes:
        """The snapshot: everything above, and the signing key. Secret."""
        inputs = b""
        if self.inputs is not None:
            words = [
                self.inputs[vector.name].astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()
                for vector in shared.spec.vectors
            ]
            inputs = join_fields(*words)
        return encode_record(
            CLIENT_RECORD,
            {
                "round": shared.digest,
                "identity": join_fields(identity.name.encode(), identity.seed),
                "phase": b"" if self.phase is None else self.phase.encode(),
                "sealing_seed": self.sealing_seed,
                "lead_seed": self.lead_seed,
                "nonce": self.nonce,
                "error_key": self.error_key,
                "inputs": inputs,
                "key_seed": self.key_seed,
                "advert": b"" if self.advert is None else self.advert.encode(),
                "header": b"" if self.header is None else self.header.encode(),
            },
        )

    @classmethod
    def decode(cls, data: bytes, shared: SharedRound) -> tuple[Self, Identity]:
        """Undo `encode`; `LocalProtocolError` when it is damaged or of another round."""
        record = decode_record(data, CLIENT_RECORD)
        with restoring("client"):
            if record["round"] != shared.digest:
                raise LocalProtocolError("snapshot: belongs to another round")
            name, seed = split_fields(record["identity"])
            memory = cls(
                phase=Phase(record["phase"].decode()) if record["phase"] else None,
                sealing_seed=record["sealing_seed"],
                lead_seed=record["lead_seed"],
                nonce=record["nonce"],
                error_key=record["error_key"],
                inputs=_decode_inputs(record["inputs"], shared),
                key_seed=record["key_seed"],
                advert=Signed.decode(record["advert"]) if record["advert"] else None,
                header=Signed.decode(record["header"]) if record["header"] else None,
            )
            return memory, Identity(client_id(name.decode()), seed)


def _decode_inputs(data: bytes, shared: SharedRound) -> dict[str, Words] | None:
    if not data:
        return None
    inputs: dict[str, Words] = {
        vector.name: np.frombuffer(part, vector.dtype.newbyteorder("<")).astype(vector.dtype, copy=False)
        for vector, part in zip(shared.spec.vectors, split_fields(data), strict=True)
    }
    shared.parties.check_vectors(inputs)
    return inputs
