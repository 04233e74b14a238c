"""How a round's vectors become coefficients of CKKS plaintexts, and how their sums come back exactly.

**Encoding.** A CKKS plaintext is a polynomial with coefficients ``round(Δ·m)``; noise lies in the bits below
Δ and is rounded away at the end. Here m is an integer of T bits that carries several values, and it sits in
the polynomial's coefficients, not in its slots: nothing but additions happens to the ciphertexts, and
coefficients add as slots do, without the embedding's floating-point arithmetic and with noise that is
``sqrt(N/2)`` times smaller (docs/adr/0010-ckks-coefficients.md). The scale is ``Δ = q / 2**T``, not a
power of two, so that a sum which wraps modulo q wraps modulo ``2**T`` in the plaintext, and residues need no
sign and no room above them.

**Packing.** A value of b bits is cut into ``limbs`` pieces of ``w = ceil(b / limbs)`` bits. A coefficient
carries ``fields`` pieces at a distance of w + c bits, where ``c = ceil(log2 n)`` bits hold the carries of a
sum of n addends. With one limb the last field needs no carries, because only its b low bits count. The layout
with the most values in a coefficient is chosen: two, which is 3.75 bytes a value, up to b = 23 for 10 clients
and b = 22 for 64.

**Exactness.** Client i contributes ``Δ·m_i + ρ_i + e_i`` with ``|ρ_i| <= 1/2 + 2**-30`` from rounding Δ·m_i
and a discrete Gaussian e_i of parameter σ = 4.5. Decoding adds at most ``1/2 + 2**-30``. The sum decodes to
the exact integer when the total error stays below ``Δ/2``, that is, when

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
_GAP: Final = 2**RING_BITS - MODULUS  # 2**14 - 1
_MAX_LIMBS: Final = 4
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
        limbs: Pieces of a value.
        fields: Pieces in a coefficient.
        limb_bits: w.
        carry_bits: c.
    """

    bits: int
    limbs: int
    fields: int
    limb_bits: int
    carry_bits: int

    @property
    def stride(self) -> int:
        """Bits from one field to the next."""
        return self.limb_bits + self.carry_bits

    @property
    def plain_bits(self) -> int:
        """T: the plaintext is an integer modulo ``2**T``."""
        spare = self.carry_bits if self.limbs == 1 else 0
        return self.fields * self.stride - spare

    def coefficients(self, length: int) -> int:
        """Coefficients that ``length`` values take."""
        return -(-length * self.limbs // self.fields)


def choose_fields(bits: int, *, clients: int) -> FieldLayout:
    """The layout with the most values in a coefficient; of equals, the one with the fewest limbs.

    Raises:
        CapacityError: The noise of so many clients leaves no room for even a fourth of a value.
    """
    room = RING_BITS - 1 - (largest_error(clients) - 1).bit_length()
    carry = (clients - 1).bit_length()
    best: FieldLayout | None = None
    for limbs in range(1, _MAX_LIMBS + 1):
        limb_bits = -(-bits // limbs)
        spare = carry if limbs == 1 else 0
        fields = (room + spare) // (limb_bits + carry)
        if fields >= 1 and (best is None or fields * best.limbs > best.fields * limbs):
            best = FieldLayout(bits=bits, limbs=limbs, fields=fields, limb_bits=limb_bits, carry_bits=carry)
    if best is None:
        raise CapacityError(
            f"ckks: the sum of {clients} clients with values of {bits} bits does not fit one "
            f"{RING_BITS}-bit prime exactly"
        )
    return best


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of neighbouring coefficients that carry one limb of neighbouring values in one field."""

    shift: int
    limb: int
    coefficient: int
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

        Limb l of value i has the position ``l * length + i``; position p lies in field ``p // coefficients``
        of coefficient ``p % coefficients``, so that runs of values are runs of coefficients.
        """
        length, fields = self.vector.length, self.fields
        for field in range(fields.fields):
            position = field * self.coefficients + first
            end = min(field * self.coefficients + last, fields.limbs * length)
            while position < end:
                limb, value = divmod(position, length)
                count = min(end - position, length - value)
                yield _Piece(
                    field * fields.stride, limb, position - field * self.coefficients - first, value, count
                )
                position += count


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
        """The plaintext polynomials ``first .. first + count``: ``round(Δ·m)`` below q, shape ``(count, N)``."""
        plain = np.zeros(count * DEGREE, np.uint64)
        for segment, start, end, within in self._overlaps(first, count):
            part = plain[within : within + end - start]
            for piece in segment.pieces(start, end):
                run = values[segment.vector.name][piece.value : piece.value + piece.count].astype(np.uint64)
                if segment.fields.limbs > 1:
                    run >>= np.uint64(piece.limb * segment.fields.limb_bits)
                    run &= np.uint64((1 << segment.fields.limb_bits) - 1)
                if piece.shift:
                    run <<= np.uint64(piece.shift)
                part[piece.coefficient : piece.coefficient + piece.count] |= run
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

    def decode(self, rows: NDArray[np.uint64], first: int, sums: dict[str, Words]) -> None:
        """Round decrypted polynomials to exact integers and put them into ``sums``.

        Args:
            rows: uint64 below q, shape ``(count, N)``; changed in place.
            first: Index of the first of them.
            sums: From `empty_sums`; every polynomial must be decoded exactly once.

        Raises:
            RoundAborted: An error is above the bound, so this is not a sum of at most n honest ciphertexts
                under this key.
        """
        flat = rows.reshape(-1)
        for segment, start, end, within in self._overlaps(first, len(rows)):
            part = flat[within : within + end - start]
            fields = segment.fields
            _scale_down(part, fields.plain_bits, error_bound=self.error_bound)
            result = sums[segment.vector.name]
            mask = result.dtype.type((1 << fields.bits) - 1)
            for piece in segment.pieces(start, end):
                run = part[piece.coefficient : piece.coefficient + piece.count] >> np.uint64(piece.shift)
                place = result[piece.value : piece.value + piece.count]
                if fields.limbs == 1:
                    place[...] = run  # narrows modulo 2**32, which 2**b divides
                else:
                    run &= np.uint64((1 << fields.stride) - 1)
                    run <<= np.uint64(piece.limb * fields.limb_bits)
                    place += run.astype(result.dtype)
                place &= mask
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


def _scale_up(plain: NDArray[np.uint64], plain_bits: int) -> None:
    """``m -> round(q·m / 2**T)`` in place: ``m·2**(60-T)`` less ``round((2**60 - q)·m / 2**T)``, below 2**14."""
    correction = plain * (_GAP * 2.0**-plain_bits)
    np.rint(correction, out=correction)
    plain <<= np.uint64(RING_BITS - plain_bits)
    plain -= correction.astype(np.uint64)


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
