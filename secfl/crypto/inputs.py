"""Inputs on their way to the sum: masked, packed and hashed by the client, unpacked and added by the aggregator.

Everything works in blocks that stay in the cache, in threads where the caller allows them, and never needs
more than the packed bytes and one sum per vector: the aggregator's memory does not grow with the clients.

Wire format of an input: the vectors in the round's order, each packed to b bits an element together with its
canaries, which are elements of value 1 after the vector's own; then the attachment, if any.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from secfl.crypto.attachments import Words
from secfl.crypto.hazmat.prg import BLOCK_BYTES, Expander, MaskStream, add_streams, for_ranges
from secfl.crypto.packing import pack, packed_size, unpack
from secfl.errors import LocalProtocolError, RemoteProtocolError
from secfl.types import PROTOCOL_VERSION, VectorSpec, join_fields

__all__ = ["Accumulator", "EncodedPart", "encode_attachment", "encode_vector", "hash_pieces", "input_digest"]

PIECE_ELEMENTS: Final = 1 << 16
"""Elements masked, packed and hashed at a time: a multiple of 8, so that pieces meet on a byte of the wire."""
ATTACHMENT_PIECE_BYTES: Final = 1 << 20
_UNPACK_ELEMENTS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """One vector, or the attachment, on its way out: consecutive pieces and the SHA-256 of each."""

    pieces: tuple[bytes, ...] = field(repr=False)
    hashes: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return sum(map(len, self.pieces))


def encode_vector(
    vector: VectorSpec, values: Words, *, canaries: int, streams: Sequence[MaskStream], threads: int = 1
) -> EncodedPart:
    """Mask, pack and hash one vector.

    Args:
        vector: Length and modulus.
        values: Residues, shape ``(length,)``; left unchanged.
        canaries: How many elements of value 1 follow them under the same masks.
        streams: The masks; none for a vector that is sent in clear.
        threads: How many threads may work at once.

    Returns:
        ``packed_size(length + canaries)`` bytes of ``values + masks`` modulo ``2**modulus_bits``, in pieces of
        2^16 elements.
    """
    total = vector.length + canaries
    low_bits = vector.dtype.type((1 << vector.modulus_bits) - 1)
    step = BLOCK_BYTES // vector.dtype.itemsize
    pieces = [b""] * -(-total // PIECE_ELEMENTS)
    hashes = [b""] * len(pieces)

    def work(first: int, last: int) -> None:
        expander = Expander(streams, dtype=vector.dtype, first=first)
        buffer = np.empty(min(PIECE_ELEMENTS, last - first), vector.dtype)
        for start in range(first, last, PIECE_ELEMENTS):
            words = buffer[: min(PIECE_ELEMENTS, last - start)]
            own = values[start : start + words.size]
            words[: own.size] = own
            words[own.size :] = 1
            if streams:
                for inner in range(0, words.size, step):
                    expander.apply(words[inner : inner + step])
                np.bitwise_and(words, low_bits, out=words)
            piece = pack(words, bits=vector.modulus_bits)
            pieces[start // PIECE_ELEMENTS] = piece
            hashes[start // PIECE_ELEMENTS] = hashlib.sha256(piece).digest()

    for_ranges(work, total, multiple=PIECE_ELEMENTS, threads=threads)
    return EncodedPart(tuple(pieces), tuple(hashes))


def encode_attachment(data: bytes, *, threads: int = 1) -> EncodedPart:
    """Hash an attachment in pieces of 2^20 bytes."""
    hashes = hash_pieces(memoryview(data), piece_bytes=ATTACHMENT_PIECE_BYTES, threads=threads)
    return EncodedPart((data,) if data else (), hashes)


def hash_pieces(data: memoryview, *, piece_bytes: int, threads: int = 1) -> tuple[bytes, ...]:
    """SHA-256 of every piece of ``piece_bytes``; only the last may be shorter."""
    hashes = [b""] * -(-len(data) // piece_bytes)

    def work(first: int, last: int) -> None:
        for piece in range(first, last):
            hashes[piece] = hashlib.sha256(data[piece * piece_bytes : (piece + 1) * piece_bytes]).digest()

    for_ranges(work, len(hashes), multiple=1, threads=threads)
    return tuple(hashes)


def input_digest(digest: bytes, size: int, hashes: Sequence[bytes]) -> bytes:
    """The digest by which a signed header covers an input.

    SHA-256 over the round's ``digest``, the input's size and the hashes of its pieces in order. Where pieces
    begin follows from the round, so equal digests mean equal inputs as surely as with one plain hash; pieces
    are hashed while they are in the cache, by several threads.
    """
    fields = (PROTOCOL_VERSION, b"input", digest, struct.pack("<Q", size), *hashes)
    return hashlib.sha256(join_fields(*fields)).digest()


class Accumulator:
    """The running sums of one round, modulo the word of each vector.

    Args:
        vectors: What is summed.
        canaries: Vector name -> elements of value 1 after the vector's own.
        threads: How many threads may work at once.
    """

    __slots__ = ("_canaries", "_sums", "_threads", "_vectors", "count")

    def __init__(
        self, vectors: Sequence[VectorSpec], *, canaries: Mapping[str, int], threads: int = 1
    ) -> None:
        self._vectors = tuple(vectors)
        self._canaries = dict(canaries)
        self._threads = threads
        self._sums: dict[str, Words] = {
            vector.name: np.zeros(self._total(vector), vector.dtype) for vector in self._vectors
        }
        self.count = 0

    def _total(self, vector: VectorSpec) -> int:
        return vector.length + self._canaries[vector.name]

    @property
    def input_bytes(self) -> int:
        """Bytes of the vectors of one input."""
        return sum(packed_size(self._total(vector), bits=vector.modulus_bits) for vector in self._vectors)

    def _parts(self, data: memoryview) -> list[tuple[VectorSpec, memoryview]]:
        parts = []
        start = 0
        for vector in self._vectors:
            end = start + packed_size(self._total(vector), bits=vector.modulus_bits)
            parts.append((vector, data[start:end]))
            start = end
        return parts

    def check(self, peer: str, data: memoryview) -> None:
        """Refuse vectors that `add` could not take, with `RemoteProtocolError`; changes nothing."""
        if len(data) != self.input_bytes:
            raise RemoteProtocolError(peer, f"input of {len(data)} bytes, expected {self.input_bytes}")
        for vector, part in self._parts(data):
            used = self._total(vector) * vector.modulus_bits % 8
            if used and part[-1] >> used:
                raise RemoteProtocolError(
                    peer, f"vector {vector.name}: an unused bit of the last byte is set"
                )

    def hashes(self, data: memoryview) -> tuple[bytes, ...]:
        """The hashes of the pieces of a checked input's vectors, as `encode_vector` made them."""
        return tuple(
            piece
            for vector, part in self._parts(data)
            for piece in hash_pieces(
                part,
                piece_bytes=packed_size(PIECE_ELEMENTS, bits=vector.modulus_bits),
                threads=self._threads,
            )
        )

    def add(self, data: memoryview) -> None:
        """Add the vectors of one checked input."""
        for vector, part in self._parts(data):
            self._add_vector(vector, part)
        self.count += 1

    def _add_vector(self, vector: VectorSpec, part: memoryview) -> None:
        bits, sums = vector.modulus_bits, self._sums[vector.name]

        def work(first: int, last: int) -> None:
            for start in range(first, last, _UNPACK_ELEMENTS):
                target = sums[start : min(last, start + _UNPACK_ELEMENTS)]
                begin = start * bits // 8
                piece = part[begin : begin + packed_size(target.size, bits=bits)]
                np.add(target, unpack(piece, length=target.size, bits=bits), out=target)

        for_ranges(work, sums.size, multiple=_UNPACK_ELEMENTS, threads=self._threads)

    def apply(self, vector: VectorSpec, streams: Sequence[MaskStream]) -> None:
        """Add or subtract mask streams over the vector and its canaries."""
        add_streams(self._sums[vector.name], streams, threads=self._threads)

    def reduce(self) -> None:
        """Bring every sum below its modulus. Once, after the last input and mask."""
        for vector in self._vectors:
            sums = self._sums[vector.name]
            np.bitwise_and(sums, vector.dtype.type((1 << vector.modulus_bits) - 1), out=sums)

    def canaries_hold(self, expected: int) -> bool:
        """Whether every canary of every (reduced) sum is ``expected`` modulo the vector's modulus."""
        return all(
            bool(np.all(self._sums[vector.name][vector.length :] == expected % (1 << vector.modulus_bits)))
            for vector in self._vectors
        )

    def result(self) -> dict[str, Words]:
        """The (reduced) sums without their canaries, by vector name."""
        return {vector.name: self._sums[vector.name][: vector.length] for vector in self._vectors}

    def snapshot(self) -> bytes:
        """The sums and the count as bytes."""
        words = [
            self._sums[vector.name].astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()
            for vector in self._vectors
        ]
        return join_fields(struct.pack("<I", self.count), *words)

    def restore(self, parts: Sequence[bytes]) -> None:
        """Continue from the fields of `snapshot`; `LocalProtocolError` when sizes do not fit."""
        sizes = [self._sums[vector.name].nbytes for vector in self._vectors]
        if len(parts) != len(sizes) + 1 or [len(part) for part in parts] != [4, *sizes]:
            raise LocalProtocolError("snapshot: the sums do not fit the round")
        self.count = struct.unpack("<I", parts[0])[0]
        for vector, part in zip(self._vectors, parts[1:], strict=True):
            self._sums[vector.name][...] = np.frombuffer(part, vector.dtype.newbyteorder("<"))
