"""The public shape of one masking round: who may take part, what is masked, and how large every part is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from secfl.crypto.attachments import Words
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.packing import packed_size
from secfl.errors import ConfigError, LocalProtocolError
from secfl.types import ClientId, RoundSpec, VectorSpec

__all__ = ["CANARY_BITS", "MAX_CLIENTS", "MaskedRound", "check_cohort", "default_threshold"]

MAX_CLIENTS: Final = 64
MIN_CLIENTS: Final = 3
CANARY_BITS: Final = 64


def default_threshold(clients: int) -> int:
    """The threshold that is used unless another is asked for: ``max(3, floor(2n/3) + 1)``."""
    return max(3, clients * 2 // 3 + 1)


def check_cohort(clients: int, threshold: int) -> None:
    """Refuse cohorts and thresholds for which masking does not keep its promise.

    Raises:
        ConfigError: Fewer than 3 clients, more than 64, a threshold below 3, at most half of the cohort, or
            above the cohort.
    """
    if clients < MIN_CLIENTS:
        raise ConfigError(
            f"masking: {clients} clients, expected at least 3: with 2, each learns the other's update"
        )
    if clients > MAX_CLIENTS:
        raise ConfigError(
            f"masking: {clients} clients, expected at most {MAX_CLIENTS}: every pair shares a mask, and the "
            "sparse graphs for larger cohorts need their own quorums, which are not part of this protocol"
        )
    if threshold < MIN_CLIENTS:
        raise ConfigError(
            f"masking: threshold {threshold}, expected at least 3: a sum of two tells each the other's input"
        )
    if 2 * threshold <= clients:
        raise ConfigError(
            f"masking: threshold {threshold} of {clients} clients, expected more than half: "
            "otherwise two disjoint groups could each open a different sum"
        )
    if threshold > clients:
        raise ConfigError(f"masking: threshold {threshold} is above the cohort's {clients} clients")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedRound:
    """What masking sums in one round, for the scheme that uses it.

    Attributes:
        spec: The round that all parties agreed on; its digest is bound into every message and key.
        vectors: The vectors that are masked and summed. For the scheme ``masking`` these are
            ``spec.vectors``; another scheme may mask others, as long as ``spec.scheme`` determines them.
        attachment_bytes: Size of the opaque attachment of every input; 0 for none.
        digest: The digest of ``spec``, computed once.
    """

    spec: RoundSpec
    vectors: tuple[VectorSpec, ...]
    attachment_bytes: int = 0
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.spec.digest())
        check_cohort(len(self.spec.cohort), self.spec.threshold)
        names = [vector.name for vector in self.vectors]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                "masking: expected at least one vector, with distinct names: "
                "one name is one mask stream, and no stream may cover two vectors"
            )
        if self.attachment_bytes < 0:
            raise ConfigError(f"masking: attachment of {self.attachment_bytes} bytes")

    @staticmethod
    def canaries(vector: VectorSpec) -> int:
        """How many constant-1 coordinates follow a vector: they total at least 64 bits."""
        return -(-CANARY_BITS // vector.modulus_bits)

    def masked_length(self, vector: VectorSpec) -> int:
        """Elements of a vector together with its canaries."""
        return vector.length + self.canaries(vector)

    def packed_bytes(self, vector: VectorSpec) -> int:
        """Bytes of a masked vector on the wire."""
        return packed_size(self.masked_length(vector), bits=vector.modulus_bits)

    @property
    def input_bytes(self) -> int:
        """Bytes of one client's masked vectors and attachment, without frame and header."""
        return sum(self.packed_bytes(vector) for vector in self.vectors) + self.attachment_bytes

    def name_of(self, index: int) -> ClientId:
        """The client at a cohort position."""
        return self.spec.cohort[index]

    def check_parties(self, directory: Directory) -> None:
        """Refuse a directory other than the one the round was agreed on (`LocalProtocolError`)."""
        if directory.digest() != self.spec.manifest_digest:
            raise LocalProtocolError("the directory of identities is not the one that the round is bound to")
        missing = [name for name in self.spec.cohort if name not in directory.keys]
        if missing:
            raise LocalProtocolError(f"not enrolled in the manifest: {', '.join(missing)}")

    def check_identity(self, identity: Identity, directory: Directory) -> int:
        """The cohort position of ``identity``, after comparing its key with the enrolled one.

        Raises:
            LocalProtocolError: The key is not the enrolled one.
        """
        index = self.spec.index(identity.name)
        if directory.keys[identity.name] != identity.public_key():
            raise LocalProtocolError(f"{identity.name}: the signing key is not the enrolled one")
        return index

    def check_vectors(self, vectors: Mapping[str, Words]) -> None:
        """Refuse inputs that do not match: names, lengths, word size and range (`LocalProtocolError`)."""
        if set(vectors) != {vector.name for vector in self.vectors}:
            raise LocalProtocolError("masking: vector names differ from the round's")
        for vector in self.vectors:
            values = vectors[vector.name]
            if values.shape != (vector.length,) or values.dtype != vector.dtype:
                raise LocalProtocolError(
                    f"vector {vector.name}: expected {vector.length} elements of {vector.dtype}, "
                    f"got shape {values.shape} of {values.dtype}"
                )
            if int(np.max(values)) >> vector.modulus_bits:
                raise LocalProtocolError(
                    f"vector {vector.name}: an element needs more than {vector.modulus_bits} bits"
                )
