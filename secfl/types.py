"""Names and values that every room shares.

The ladder ``Update -> ClippedUpdate -> PrivatizedUpdate`` carries its proofs in its types: only a clipped
update can be given noise, and only a privatized update can be handed to a secure aggregation scheme.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NewType

import numpy as np
from numpy.typing import NDArray

from secfl.errors import ConfigError, LocalProtocolError

__all__ = [
    "AGGREGATOR",
    "MAX_VECTOR_LENGTH",
    "PROTOCOL_VERSION",
    "ClientId",
    "ClippedUpdate",
    "PrivatizedUpdate",
    "RoundId",
    "RoundSpec",
    "SchemeSpec",
    "Update",
    "VectorSpec",
    "client_id",
    "join_fields",
]

ClientId = NewType("ClientId", str)
RoundId = NewType("RoundId", int)

AGGREGATOR: Final = ClientId("aggregator")
"""The reserved name of the aggregator in envelopes."""

PROTOCOL_VERSION: Final = b"secfl/v1"
MAX_VECTOR_LENGTH: Final = 2**32 - 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST_BYTES: Final = 32


def client_id(name: str) -> ClientId:
    """Check and brand a client's name: 1 to 64 characters of ``[A-Za-z0-9._-]``, not ``aggregator``.

    Raises:
        ConfigError: It is not such a name.
    """
    if not _NAME.fullmatch(name) or name == AGGREGATOR:
        raise ConfigError(
            f"client name {name!r}: expected 1 to 64 characters of A-Z a-z 0-9 . _ - "
            f"starting with a letter or digit, and not {AGGREGATOR!r}"
        )
    return ClientId(name)


def join_fields(*parts: bytes) -> bytes:
    """Concatenate byte strings injectively: each is preceded by its length as 8 bytes, little-endian."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpec:
    """One named vector of a round: ``length`` integers modulo ``2**modulus_bits``."""

    name: str
    length: int
    modulus_bits: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"vector name {self.name!r}: expected 1 to 64 characters of A-Z a-z 0-9 . _ -")
        if not 1 <= self.length <= MAX_VECTOR_LENGTH:
            raise ConfigError(f"vector {self.name}: length {self.length}, expected 1 to {MAX_VECTOR_LENGTH}")
        if not 2 <= self.modulus_bits <= 62:
            raise ConfigError(f"vector {self.name}: modulus_bits {self.modulus_bits}, expected 2 to 62")

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The word that holds one element: uint32 up to 32 bits, else uint64."""
        return np.dtype(np.uint32 if self.modulus_bits <= 32 else np.uint64)

    def encode(self) -> bytes:
        """Canonical bytes for digests."""
        return join_fields(self.name.encode(), struct.pack("<QB", self.length, self.modulus_bits))


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeSpec:
    """A secure aggregation scheme by name, with parameters as sorted ``(key, value)`` strings."""

    name: str
    parameters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        keys = [key for key, _ in self.parameters]
        if keys != sorted(set(keys)):
            raise ConfigError(f"scheme {self.name}: parameters must be sorted by name and distinct")

    def parameter(self, key: str, default: str | None = None) -> str:
        """The value of one parameter, or ``default``; `ConfigError` when absent without a default."""
        for name, value in self.parameters:
            if name == key:
                return value
        if default is None:
            raise ConfigError(f"scheme {self.name}: parameter {key!r} is missing")
        return default

    def encode(self) -> bytes:
        """Canonical bytes for digests."""
        flat = [part.encode() for pair in self.parameters for part in pair]
        return join_fields(self.name.encode(), *flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSpec:
    """What all parties agree on before a round. Its digest is bound into every message and every key.

    Attributes:
        run_id: 16 random bytes, the same for every round of a run.
        round_id: Strictly increasing within a run; a retry is a new round.
        cohort: The invited clients, sorted and distinct.
        threshold: Fewest survivors for which a sum may be revealed.
        vectors: The vectors summed in this round.
        scheme: Scheme name and parameters.
        manifest_digest: SHA-256 of the enrolled identities.
        model_digest: SHA-256 of the global model that each client received.
        task_digest: SHA-256 of everything server-supplied that affects training.
        plan_digest: SHA-256 of the privacy plan.
    """

    run_id: bytes
    round_id: RoundId
    cohort: tuple[ClientId, ...]
    threshold: int
    vectors: tuple[VectorSpec, ...]
    scheme: SchemeSpec
    manifest_digest: bytes
    model_digest: bytes
    task_digest: bytes
    plan_digest: bytes

    def __post_init__(self) -> None:
        if len(self.run_id) != 16:
            raise ConfigError("run_id: expected 16 bytes")
        if not 0 <= self.round_id < 2**63:
            raise ConfigError(f"round_id {self.round_id}: expected 0 to 2**63 - 1")
        if list(self.cohort) != sorted(set(self.cohort)):
            raise ConfigError("cohort: expected sorted, distinct client names")
        for name in self.cohort:
            client_id(name)
        if not 1 <= self.threshold <= len(self.cohort):
            raise ConfigError(f"threshold {self.threshold}: expected 1 to the cohort's {len(self.cohort)}")
        names = [vector.name for vector in self.vectors]
        if not names or len(set(names)) != len(names):
            raise ConfigError("vectors: expected at least one, with distinct names")
        for label in ("manifest_digest", "model_digest", "task_digest", "plan_digest"):
            if len(getattr(self, label)) != _DIGEST_BYTES:
                raise ConfigError(f"{label}: expected {_DIGEST_BYTES} bytes")

    def digest(self) -> bytes:
        """SHA-256 over the canonical, length-prefixed encoding of every field and the protocol version."""
        return hashlib.sha256(
            join_fields(
                PROTOCOL_VERSION,
                b"round-spec",
                self.run_id,
                struct.pack("<Q", self.round_id),
                join_fields(*(name.encode() for name in self.cohort)),
                struct.pack("<I", self.threshold),
                join_fields(*(vector.encode() for vector in self.vectors)),
                self.scheme.encode(),
                self.manifest_digest,
                self.model_digest,
                self.task_digest,
                self.plan_digest,
            )
        ).digest()

    def index(self, client: ClientId) -> int:
        """Position of a client in the cohort, from 0; `LocalProtocolError` if it is not invited."""
        try:
            return self.cohort.index(client)
        except ValueError:
            raise LocalProtocolError(f"client {client!r} is not in the cohort of this round") from None

    def vector(self, name: str) -> VectorSpec:
        """One vector by name; `LocalProtocolError` when the round has no such vector."""
        for vector in self.vectors:
            if vector.name == name:
                return vector
        raise LocalProtocolError(f"the round has no vector {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A model update as real numbers: every tensor concatenated into one float32 vector of length d.

    Attributes:
        values: float32, shape ``(d,)``. Not yet bounded, may hold NaN.
        names: Tensor names in order.
        sizes: Number of elements of each tensor, same order; they add up to d.
    """

    values: NDArray[np.float32] = field(repr=False)
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.dtype != np.float32:
            raise LocalProtocolError("update: expected one float32 vector")
        if len(self.names) != len(self.sizes) or sum(self.sizes) != self.values.size:
            raise LocalProtocolError(f"update: tensor sizes do not add up to {self.values.size}")

    def tensor_at(self, index: int) -> str:
        """Name of the tensor that holds element ``index``.

        Raises:
            LocalProtocolError: The index is outside of the update.
        """
        end = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            end += size
            if index < end:
                return name
        raise LocalProtocolError(f"element {index} is outside the update of {end}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedUpdate:
    """A bounded vector of integers on the grid.

    Attributes:
        values: int32 or int64, shape ``(d,)``.
        norm_bound: The integer G with ``sum(values**2) <= G**2``, proved in exact integers on construction.
        clipped_fraction: Share of coordinates that clipping changed (1.0 after an L2 clip); never sent.
    """

    values: NDArray[np.int32] | NDArray[np.int64] = field(repr=False)
    norm_bound: int
    clipped_fraction: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
            raise LocalProtocolError("clipped update: expected one vector of int32 or int64")
        # Often the largest coordinate alone proves it: always where only single coordinates were bounded.
        if (
            self.values.size * _largest(self.values) ** 2 > self.norm_bound**2
            and exact_square_norm(self.values) > self.norm_bound**2
        ):
            raise LocalProtocolError(f"clipped update: L2 norm above the bound {self.norm_bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivatizedUpdate:
    """What a secure aggregation scheme accepts: named vectors of integers modulo ``2**modulus_bits``.

    Build it with `secfl.dp.noise.privatize`, or without noise by `PrivatizedUpdate.without_noise`, whose
    name says what it is.

    Attributes:
        vectors: Vector name -> uint32 or uint64 array, shape ``(length,)``, already reduced.
        noise: Which noise was added, in words for the ledger; ``"none"`` without noise.
    """

    vectors: Mapping[str, NDArray[np.uint32] | NDArray[np.uint64]] = field(repr=False)
    noise: str

    @classmethod
    def without_noise(
        cls, vectors: Mapping[str, NDArray[np.uint32] | NDArray[np.uint64]]
    ) -> PrivatizedUpdate:
        """Wrap integer vectors to which no noise was added. No differential privacy follows."""
        return cls(vectors=dict(vectors), noise="none")

    def check(self, spec: RoundSpec) -> None:
        """Refuse vectors that do not match the round: names, lengths, word size and range.

        Raises:
            LocalProtocolError: They do not match; names the vector and what was expected.
        """
        if set(self.vectors) != {vector.name for vector in spec.vectors}:
            raise LocalProtocolError("update: vector names differ from the round's")
        for vector in spec.vectors:
            values = self.vectors[vector.name]
            if values.shape != (vector.length,) or values.dtype != vector.dtype:
                raise LocalProtocolError(
                    f"vector {vector.name}: expected {vector.length} elements of {vector.dtype}, "
                    f"got shape {values.shape} of {values.dtype}"
                )
            if int(values.max()) >> vector.modulus_bits:
                raise LocalProtocolError(
                    f"vector {vector.name}: an element needs more than {vector.modulus_bits} bits"
                )


def exact_square_norm(values: NDArray[np.int32] | NDArray[np.int64]) -> int:
    """``sum(values**2)`` in exact integers, whatever the size."""
    largest = _largest(values)
    if largest >= 2**31:
        return sum(int(value) ** 2 for value in values)
    block = max(1, min(1 << 15, (2**63 - 1) // max(1, largest**2)))
    total = 0
    for start in range(0, values.size, block):
        part = values[start : start + block].astype(np.int64, copy=False)
        total += int(np.dot(part, part))
    return total


def _largest(values: NDArray[np.int32] | NDArray[np.int64]) -> int:
    """The largest absolute value; 0 of nothing."""
    return max(abs(int(values.max())), abs(int(values.min()))) if values.size else 0
