"""How a round's vectors become coefficients of CKKS plaintexts, and how their sums come back exactly.

**Packing.** Values of b bits sit side by side in a packed integer W of T bits. One is in the top b bits; below it
are further *fields*, at a distance of b + c bits, where ``c = ceil(log2 n)`` bits hold the carries of a sum of n
addends. The top field holds its residue as it is; it needs no carries, because a sum that leaves it wraps modulo
``2**b``. A lower field holds ``(residue + 2**(b-1)) mod 2**b``, which is the signed value plus a constant, so that
carries show the signed sum and not how many addends were negative. Fields are two, which is 3.75 bytes a value, up
to b = 23 for 10 clients and b = 22 for 64. Values of more than 50 bits do not fit.

**Encoding.** The plaintext polynomial has the coefficient ``y = 2**-T · m mod q``, where m is W read as a signed
integer of T bits. As an integer ``y = (q·w + m) / 2**T`` with ``w = -m / q mod 2**T``: this is a CKKS plaintext
``Δ·w`` of scale ``Δ = q / 2**T``, rounded by ``m / 2**T``. It sits in the polynomial's coefficients, not in its
slots: nothing but additions happens to the ciphertexts, and coefficients add as slots do, without the embedding's
floating-point arithmetic and with noise that is ``sqrt(N/2)`` times smaller (docs/adr/0010-ckks-coefficients.md).

**What an opened sum shows.** Who opens a sum sees ``Σ y_i + Σ e_i`` modulo q. Encoding is multiplication by a
constant, so ``Σ y_i = 2**-T · Σ m_i``: beside the errors, it shows the integer ``Σ m_i`` and nothing else about single
addends. Where each vector's signed values add up to a signed number of b bits, ``Σ m_i`` is a function of the sums;
the codec chooses b so that they do (docs/protocol.md, section 1). Otherwise it also shows how often they wrapped.
Two plainer layouts were broken in review: with bare residues in the lower fields, carries count the negative
addends, and with ``w = W``, each client's own rounding error depends on its own value and shows through the errors
after a few thousand coefficients (tests/crypto/test_review_findings.py).

**Exactness.** The opened coefficient is ``Δ·w + (Σ m_i) / 2**T + Σ e_i`` with the w of ``Σ m_i mod 2**T``. Here
``|Σ m_i| <= n·2**(T-1)``, each e_i is a discrete Gaussian of parameter σ = 4.5, and decoding rounds once more, by at
most ``1/2 + 2**-30``. The sum decodes to the exact integer when the total error stays below ``Δ/2``, that is, when

    |Σ e_i|  +  n/2  +  1  <=  2**(59 - T).

A discrete Gaussian is sub-Gaussian: ``E exp(tX) = exp(t²σ²/2) ρ(Z - tσ²)/ρ(Z) <= exp(t²σ²/2)``, because the
Gaussian mass of a shifted lattice is at most that of the lattice. Hence
``P(|Σ e_i| >= x) <= 2 exp(-x²/(2nσ²))``, and ``x = σ sqrt(2 n ln(2**81))`` makes it 2^-80 a coefficient:
2^-40 for 2^40 coefficients, the union over a whole run. `largest_error` is that bound; T is chosen so that it
holds, and where no layout holds, `CapacityError` is raised before anything is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfl.crypto.attachments import Words
from secfl.crypto.hazmat.ring_noise import SIGMA
from secfl.crypto.hazmat.seal import DEGREE, MODULUS
from secfl.errors import CapacityError, RoundAborted
from secfl.types import VectorSpec

__all__ = ["RING_BITS", "FieldLayout", "RoundLayout", "choose_fields", "largest_error", "reduce_once"]

RING_BITS: Final = 60
"""Bits of a residue modulo q on the wire."""
_GAP: Final = 2**RING_BITS - MODULUS  # 2**14 - 1, odd
_MOST_PLAIN_BITS: Final = 50  # so that products with _GAP fit a word of 64 bits
_NEGLECTED_LOG2: Final = 81  # two tails of 2**-81


def largest_error(clients: int) -> int:
    """Bound on the error of a sum of ``clients`` ciphertexts in one coefficient; exceeded with probability 2^-80."""
    tail = SIGMA * math.sqrt(2 * clients * _NEGLECTED_LOG2 * math.log(2))
    return math.ceil(tail) + clients // 2 + 2


def reduce_once(values: NDArray[np.uint64]) -> None:
    """Subtract q in place where it fits; elements must be below 2q."""
    np.minimum(values, values - np.uint64(MODULUS), out=values)  # a difference below zero wraps to the top


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldLayout:
    """How values of one width share a coefficient.

    Attributes:
        bits: b, the width of a value.
        fields: Values in a coefficient.
        carry_bits: c.
    """

    bits: int
    fields: int
    carry_bits: int

    @property
    def stride(self) -> int:
        """Bits from one field to the next."""
        return self.bits + self.carry_bits

    @property
    def plain_bits(self) -> int:
        """T: a coefficient carries an integer modulo ``2**T``."""
        return self.fields * self.stride - self.carry_bits

    def coefficients(self, length: int) -> int:
        """Coefficients that ``length`` values take."""
        return -(-length // self.fields)


def choose_fields(bits: int, *, clients: int) -> FieldLayout:
    """The layout with the most values in a coefficient.

    Raises:
        CapacityError: The noise of so many clients leaves no room for a value of this width.
    """
    room = min(_MOST_PLAIN_BITS, RING_BITS - 1 - (largest_error(clients) - 1).bit_length())
    carry = (clients - 1).bit_length()
    fields = (room + carry) // (bits + carry)
    if fields < 1:
        raise CapacityError(
            f"ckks: the sum of {clients} clients with values of {bits} bits does not fit one "
            f"{RING_BITS}-bit prime exactly; at most {max(room, 0)} bits do"
        )
    return FieldLayout(bits=bits, fields=fields, carry_bits=carry)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of neighbouring coefficients that carry neighbouring values in one field."""

    field: int
    value: int
    count: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """One vector within the coefficients of the round."""

    vector: VectorSpec
    fields: FieldLayout
    offset: int
    coefficients: int

    def pieces(self, first: int, last: int) -> Iterator[_Piece]:
        """What the segment's coefficients ``first .. last`` carry.

        Value i lies in field ``i // coefficients`` of coefficient ``i % coefficients``, so that runs of values are
        runs of coefficients.
        """
        for field in range(self.fields.fields):
            value = field * self.coefficients + first
            count = min(field * self.coefficients + last, self.vector.length) - value
            if count > 0:
                yield _Piece(field, value, count)

    def bias(self, field: int) -> int:
        """What is added to a residue in this field, modulo ``2**b``."""
        return 1 << (self.fields.bits - 1) if field < self.fields.fields - 1 else 0


class RoundLayout:
    """All vectors of a round in one row of coefficients, cut into polynomials of N.

    Args:
        vectors: The vectors of the round, in its order.
        clients: n, the cohort: the most addends.

    Raises:
        CapacityError: A vector does not fit exactly; see `choose_fields`.
    """

    __slots__ = ("_segments", "clients", "coefficients", "error_bound", "polynomials")

    def __init__(self, vectors: tuple[VectorSpec, ...], *, clients: int) -> None:
        self.clients = clients
        self.error_bound = largest_error(clients)
        segments, offset = [], 0
        for vector in vectors:
            fields = choose_fields(vector.modulus_bits, clients=clients)
            count = fields.coefficients(vector.length)
            segments.append(_Segment(vector, fields, offset, count))
            offset += count
        self._segments = tuple(segments)
        self.coefficients = offset
        self.polynomials = -(-offset // DEGREE)

    @property
    def packed_bytes(self) -> int:
        """Bytes of one client's ciphertext: 60 bits a coefficient, whole polynomials."""
        return self.polynomials * DEGREE * RING_BITS // 8

    def encode(self, values: Mapping[str, Words], first: int, count: int) -> NDArray[np.uint64]:
        """The plaintext polynomials ``first .. first + count``: uint64 below q, shape ``(count, N)``."""
        plain = np.zeros(count * DEGREE, np.uint64)
        for segment, start, end, within in self._overlaps(first, count):
            part = plain[within : within + end - start]
            for piece in segment.pieces(start, end):
                run = values[segment.vector.name][piece.value : piece.value + piece.count].astype(np.uint64)
                if bias := segment.bias(piece.field):
                    run ^= np.uint64(bias)  # the same as adding it modulo 2**b
                if piece.field:
                    run <<= np.uint64(piece.field * segment.fields.stride)
                part[: piece.count] |= run
            _scale_up(part, segment.fields.plain_bits)
        return plain.reshape(count, DEGREE)

    def empty_sums(self) -> dict[str, Words]:
        """Zeroed vectors for `decode`."""
        return {
            segment.vector.name: np.zeros(segment.vector.length, np.uint32)
            if segment.vector.modulus_bits <= 32
            else np.zeros(segment.vector.length, np.uint64)
            for segment in self._segments
        }

    def decode(self, rows: NDArray[np.uint64], first: int, sums: dict[str, Words], *, addends: int) -> None:
        """Round decrypted polynomials to exact integers and put them into ``sums``.

        Args:
            rows: uint64 below q, shape ``(count, N)``; changed in place.
            first: Index of the first of them.
            sums: From `empty_sums`; every polynomial must be decoded exactly once.
            addends: How many ciphertexts were added.

        Raises:
            RoundAborted: An error is above the bound, so this is not a sum of at most n honest ciphertexts
                under this key.
        """
        flat = rows.reshape(-1)
        for segment, start, end, within in self._overlaps(first, len(rows)):
            part = flat[within : within + end - start]
            fields = segment.fields
            _scale_down(part, fields.plain_bits, error_bound=self.error_bound)
            part *= np.uint64(_GAP)  # from w to Σ m_i = -q·w, modulo 2**T
            part &= np.uint64((1 << fields.plain_bits) - 1)
            result = sums[segment.vector.name]
            mask = result.dtype.type((1 << fields.bits) - 1)
            for piece in segment.pieces(start, end):
                run = part[: piece.count] >> np.uint64(piece.field * fields.stride)
                place = result[piece.value : piece.value + piece.count]
                place[...] = run  # narrows modulo 2**32, which 2**b divides
                place &= mask
                if addends % 2 and (bias := segment.bias(piece.field)):
                    place ^= result.dtype.type(bias)  # an even number of them is a multiple of 2**b
        used = self.coefficients - first * DEGREE
        if used < flat.size:
            padding = flat[max(used, 0) :]
            _scale_down(padding, RING_BITS - 1 - self.error_bound.bit_length(), error_bound=self.error_bound)
            if padding.any():
                raise RoundAborted("ckks: the opened sum has values in its padding")

    def _overlaps(self, first: int, count: int) -> Iterator[tuple[_Segment, int, int, int]]:
        """For each vector in these polynomials: its first and last coefficient there, and where they lie."""
        begin, end = first * DEGREE, (first + count) * DEGREE
        for segment in self._segments:
            start = max(begin, segment.offset)
            stop = min(end, segment.offset + segment.coefficients)
            if start < stop:
                yield segment, start - segment.offset, stop - segment.offset, start - begin


def _scale_up(packed: NDArray[np.uint64], plain_bits: int) -> None:
    """``W -> 2**-T · m mod q`` in place: ``w·2**(60-T)`` less the integer ``((2**60 - q)·w - m) / 2**T``."""
    unused = 64 - plain_bits
    signed = (packed << np.uint64(unused)).view(np.int64)
    signed >>= unused
    packed *= np.uint64(pow(_GAP, -1, 1 << plain_bits))  # -1/q modulo 2**T is 1/_GAP
    packed &= np.uint64((1 << plain_bits) - 1)
    excess = packed * np.uint64(_GAP)
    excess -= signed.view(np.uint64)
    excess >>= np.uint64(plain_bits)
    packed <<= np.uint64(RING_BITS - plain_bits)
    packed -= excess


def _scale_down(part: NDArray[np.uint64], plain_bits: int, *, error_bound: int) -> None:
    """``s -> round(s·2**T / q) mod 2**T`` in place, after checking the rounding error against its bound.

    ``2**60 / q = 1 + (2**60 - q)/q``, so s is first stretched to the range of 60 bits and then shifted.
    """
    stretch = part * (_GAP / MODULUS)
    np.rint(stretch, out=stretch)
    part += stretch.astype(np.uint64)
    shift = RING_BITS - plain_bits
    half = 1 << (shift - 1)
    part += np.uint64(half)
    error = part & np.uint64((1 << shift) - 1)
    if part.size and not half - error_bound <= int(error.min()) <= int(error.max()) <= half + error_bound:
        raise RoundAborted("ckks: the sum does not decrypt: its error is above the bound for honest clients")
    part >>= np.uint64(shift)
    part &= np.uint64((1 << plain_bits) - 1)
