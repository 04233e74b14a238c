"""Symmetric CKKS ciphertexts that are added, and opened with the key that belongs to the sum.

A ciphertext of plaintext m under the key k is ``c = m + e - a·k`` in R_q, where e is fresh noise and a is
uniform. (c, a) is an ordinary symmetric CKKS ciphertext; it differs from SEAL's seeded one only in that a
comes from our own extendable-output function over public labels, so that it needs no bytes on the wire, and
in that c travels in coefficient form, 60 bits a coefficient. Sums of c open with ``Σ c + Σ a·k``:

- one key for all (``shared``): every client has its own a, and the sum of the a's opens the sum;
- one key each (``sum-key``): all clients use the same a, and the *sum of the keys* opens the sum, and nothing
  else.

Both rest on RLWE with N = 4096, log2 q = 60 and discrete Gaussian keys and errors of σ = 4.5 (192-bit level),
and on AES-256: for the noise, and as an ideal cipher for the expansion of a from public labels (as in the AES
variants of FrodoKEM and Kyber).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secfl.crypto.attachments import Words
from secfl.crypto.ckks_layout import RING_BITS, RoundLayout, reduce_once
from secfl.crypto.hazmat.ring_noise import REACH, RingNoise
from secfl.crypto.hazmat.seal import DEGREE, MODULUS, Ring
from secfl.crypto.packing import pack, packed_size, unpack
from secfl.errors import LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.types import PROTOCOL_VERSION, ClientId, join_fields

__all__ = ["CiphertextSum", "Uniform", "check_ciphertext", "encrypt", "open_sum", "small_polynomial"]

_BATCH: Final = 8
"""Polynomials handled at a time: 256 KiB, and 2**16 values."""
_BATCH_BYTES: Final = packed_size(_BATCH * DEGREE, bits=RING_BITS)
_WORD_MASK: Final = np.uint64(2**RING_BITS - 1)


class Uniform:
    """The public polynomials a_0, a_1, ... in evaluation form, a function of public labels.

    Coefficient g of the whole row is the g-th 64-bit word of AES-256-CTR, cut to 60 bits, if that is below q;
    else the g-th word of the next stream, and so on (rejection happens once in 2^46 words). The key is
    SHA-256 of the labels; stream s starts at the counter block ``s * 2**96``.

    Args:
        labels: What names this row: at least the digest of the round's specification.
    """

    __slots__ = ("_key",)

    def __init__(self, *labels: bytes) -> None:
        self._key = hashlib.sha256(join_fields(PROTOCOL_VERSION, b"ckks-uniform", *labels)).digest()

    def rows(self, first: int, count: int, *, modulus: int = MODULUS) -> NDArray[np.uint64]:
        """Polynomials ``first .. first + count``: uint64 below ``modulus``, shape ``(count, N)``."""
        start = first * DEGREE
        words = self._words(0, start, count * DEGREE)
        rejected = np.flatnonzero(words >= modulus)
        stream = 1
        while rejected.size:
            for position in rejected.tolist():
                words[position] = self._words(stream, start + position, 1)[0]
            rejected = rejected[words[rejected] >= modulus]
            stream += 1
        return words.reshape(count, DEGREE)

    def _words(self, stream: int, start: int, count: int) -> NDArray[np.uint64]:
        block, odd = divmod(start, 2)  # a cipher block is two words
        counter = (stream << 96 | block).to_bytes(16, "big")
        cipher = Cipher(algorithms.AES(self._key), modes.CTR(counter)).encryptor()
        words = np.frombuffer(cipher.update(bytes(8 * (count + odd))), np.dtype("<u8"))[odd:]
        return words & _WORD_MASK


def small_polynomial(noise: RingNoise) -> NDArray[np.int64]:
    """A fresh key: N draws of the ring noise, int64, shape ``(N,)``."""
    return noise.draw(DEGREE).astype(np.int64)


def encrypt(
    values: Mapping[str, Words],
    layout: RoundLayout,
    *,
    uniform: Uniform,
    key: NDArray[np.int64],
    noise: RingNoise,
) -> bytes:
    """Encrypt all vectors of a round.

    Args:
        values: The vectors, reduced modulo their ``2**modulus_bits``.
        layout: The round's layout.
        uniform: The a's. For one key, no two calls may share them with different values or noise.
        key: From `small_polynomial`.
        noise: Fresh errors, from a key of its own.

    Returns:
        ``layout.packed_bytes`` bytes.
    """
    ring = Ring.shared()
    secret = ring.key(key)
    out = bytearray(layout.packed_bytes)
    for first in range(0, layout.polynomials, _BATCH):
        count = min(_BATCH, layout.polynomials - first)
        # m + e - a·k + 2q lies below 3q, because m <= q - Δ + 1 and Δ is above twice the error bound.
        total = layout.encode(values, first, count)
        total -= ring.multiply(uniform.rows(first, count), secret)
        total += np.uint64(2 * MODULUS - REACH)
        errors = noise.draw(count * DEGREE).astype(np.int64)
        errors += REACH
        total += errors.view(np.uint64).reshape(total.shape)
        reduce_once(total)
        reduce_once(total)
        start = first // _BATCH * _BATCH_BYTES
        data = pack(total.reshape(-1), bits=RING_BITS)
        out[start : start + len(data)] = data
    return bytes(out)


def check_ciphertext(layout: RoundLayout, peer: ClientId, data: bytes | memoryview) -> None:
    """Refuse a ciphertext of another size or with a residue that is not below q.

    Raises:
        RemoteProtocolError: It is; the error names the sender.
    """
    _check_size(layout, peer, data)
    for _, part in _parts(layout, data):
        if int(part.max()) >= MODULUS:
            raise RemoteProtocolError(peer, "a residue of its ciphertext is not below the modulus")


class CiphertextSum:
    """The running sum of ciphertexts modulo q: O(d) memory, however many clients."""

    __slots__ = ("_layout", "_total", "count")

    def __init__(self, layout: RoundLayout) -> None:
        self._layout = layout
        self._total = np.zeros(layout.polynomials * DEGREE, np.uint64)
        self.count = 0

    def check(self, peer: ClientId, data: bytes | memoryview) -> None:
        """Refuse a ciphertext of another size or with a residue that is not below q."""
        check_ciphertext(self._layout, peer, data)

    def add(self, peer: ClientId, data: bytes | memoryview) -> None:
        """Add a ciphertext that passed `check`.

        Raises:
            LocalProtocolError: More ciphertexts than clients.
        """
        _check_size(self._layout, peer, data)
        if self.count >= self._layout.clients:
            raise LocalProtocolError(f"ckks: more than {self._layout.clients} ciphertexts in one sum")
        for start, part in _parts(self._layout, data):
            place = self._total[start : start + part.size]
            place += part
            reduce_once(place)
        self.count += 1

    def rows(self, first: int, count: int) -> NDArray[np.uint64]:
        """A copy of the summed polynomials ``first .. first + count``, shape ``(count, N)``."""
        return self._total[first * DEGREE : (first + count) * DEGREE].reshape(count, DEGREE).copy()

    def snapshot(self) -> bytes:
        """The sum's bytes, little-endian words after the count."""
        return self.count.to_bytes(8, "little") + self._total.astype(np.dtype("<u8")).tobytes()

    def restore(self, data: bytes | memoryview) -> None:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged."""
        if len(data) != 8 + 8 * self._total.size:
            raise LocalProtocolError("snapshot: the ciphertext sum has another size")
        count = int.from_bytes(data[:8], "little")
        total = np.frombuffer(data, np.dtype("<u8"), offset=8).astype(np.uint64)
        if count > self._layout.clients or int(total.max()) >= MODULUS:
            raise LocalProtocolError("snapshot: the ciphertext sum is damaged")
        self.count = count
        self._total = total


def open_sum(
    total: CiphertextSum, layout: RoundLayout, *, uniforms: tuple[Uniform, ...], key: NDArray[np.int64]
) -> dict[str, Words]:
    """Decrypt a sum and round it to the exact integers modulo ``2**modulus_bits``.

    Args:
        total: The sum.
        layout: The round's layout.
        uniforms: The a's to add up: all addends' own with one shared key, or the one that all used.
        key: The shared key, or the sum of the addends' keys; int64, shape ``(N,)``.

    Raises:
        RoundAborted: The key does not belong to the sum, or an addend was no honest ciphertext.
    """
    if not key.any():
        raise RoundAborted("ckks: the sum of the keys is zero")
    ring = Ring.shared()
    secret = ring.key(key)
    sums = layout.empty_sums()
    for first in range(0, layout.polynomials, _BATCH):
        count = min(_BATCH, layout.polynomials - first)
        public = uniforms[0].rows(first, count)
        for uniform in uniforms[1:]:
            public += uniform.rows(first, count)
            reduce_once(public)
        opened = ring.multiply(public, secret)
        opened += total.rows(first, count)
        reduce_once(opened)
        layout.decode(opened, first, sums, addends=total.count)
    return sums


def _check_size(layout: RoundLayout, peer: ClientId, data: bytes | memoryview) -> None:
    if len(data) != layout.packed_bytes:
        raise RemoteProtocolError(peer, f"ciphertext of {len(data)} bytes, expected {layout.packed_bytes}")


def _parts(layout: RoundLayout, data: bytes | memoryview) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """The residues of a ciphertext in batches, each with the index of its first."""
    view = memoryview(data)
    size = layout.polynomials * DEGREE
    for start in range(0, size, _BATCH * DEGREE):
        count = min(_BATCH * DEGREE, size - start)
        offset = start * RING_BITS // 8
        part = unpack(view[offset : offset + count * RING_BITS // 8], length=count, bits=RING_BITS)
        yield start, part.astype(np.uint64, copy=False)
