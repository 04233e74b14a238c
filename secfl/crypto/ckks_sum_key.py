"""CKKS with a key that nobody ever holds: only the sum of one-time keys is opened.

Each client draws a fresh key k_i and encrypts its vectors once under it. The k_i are summed by masking
(docs/protocol.md, section 3): the key vector is what masking masks, and the ciphertext is the attachment that its
signed header covers. After the unmask phase the aggregator holds ``K = Σ k_i`` over the survivors. All clients used
the same public a's, so ``Σ c_i = Σ m_i + Σ e_i - a·K``, and K opens the sum of exactly those ciphertexts and
nothing else. A client that drops out costs the others nothing beyond masking's own recovery of a few kilobytes.

There is no joint public key, no partial decryption and no noise flooding (docs/adr/0011-sum-key.md; compare
Willow, Bell-Clark et al. 2024, and LERNA, Li et al., ASIACRYPT 2023).

**What the aggregator learns** besides the sum of the messages is K and, from the rounding, ``E_j = Σ e_ij`` for
every ciphertext polynomial j. That the sum of the messages is no more than the sum of the vectors is a matter of
their encoding (`secfl.crypto.ckks_layout`). Give it everything about all survivors but two honest ones, 1 and 2.
Then ``c_2`` follows from ``c_1`` and what it knows, because ``c_1 + c_2 = m_1 + m_2 + E' - a·K'`` with
``K' = k_1 + k_2``. So it holds RLWE samples ``c_1 - m_1 = e_1 - a·k_1`` whose secret and errors are conditioned on K'
and E'. A coefficient x of k_1 then has probability proportional to

    exp(-x²/2σ²) · exp(-(K'-x)²/2σ²)  ~  exp(-(x - K'/2)² / (2(σ/√2)²)),

again a discrete Gaussian, around the known K'/2 and of width σ/√2 = 3.18; errors likewise. Privacy of the two rests
on RLWE with these distributions (the general case is Hint-MLWE, Kim et al., CRYPTO 2023). σ = 4.5 was chosen so that
3.18 is the width for which the parameters are standard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from secfl.crypto.attachments import Words
from secfl.crypto.ckks_layout import RoundLayout
from secfl.crypto.ckks_ring import (
    CiphertextSum,
    Uniform,
    check_ciphertext,
    encrypt,
    open_sum,
    small_polynomial,
)
from secfl.crypto.codec import centre, to_residues
from secfl.crypto.hazmat.ring_noise import KEY_BYTES, REACH, RingNoise
from secfl.crypto.hazmat.seal import DEGREE
from secfl.crypto.masking_round import MaskedRound
from secfl.randomness import Rng
from secfl.types import ClientId, RoundSpec, VectorSpec

__all__ = ["KEY_VECTOR", "SumKeyRound", "SumKeySink"]

KEY_VECTOR: Final = "ckks-key"
"""The only vector that masking sums in such a round."""


class SumKeyRound:
    """The shape of one round.

    Args:
        spec: The round.

    Attributes:
        layout: Of the ciphertexts.
        masked: The masking round that sums the keys and carries the ciphertexts.

    Raises:
        ConfigError: The cohort or threshold is none that masking keeps its promise for.
        CapacityError: The sum cannot be carried exactly.
    """

    __slots__ = ("layout", "masked", "spec", "uniform")

    def __init__(self, spec: RoundSpec) -> None:
        clients = len(spec.cohort)
        self.spec = spec
        self.layout = RoundLayout(spec.vectors, clients=clients)
        key = VectorSpec(name=KEY_VECTOR, length=DEGREE, modulus_bits=(clients * REACH).bit_length() + 1)
        self.masked = MaskedRound(spec=spec, vectors=(key,), attachment_bytes=self.layout.packed_bytes)
        self.uniform = Uniform(b"sum-key", self.masked.digest)

    @property
    def key_bits(self) -> int:
        """Modulus width of the key vector: the sum of all clients' largest coefficients fits."""
        return self.masked.vectors[0].modulus_bits

    def protect(self, vectors: Mapping[str, Words], rng: Rng) -> tuple[dict[str, Words], bytes]:
        """One client's input to masking: its one-time key, and the ciphertext under it.

        Args:
            vectors: The round's vectors, reduced.
            rng: Two keys are drawn from it, one for the ring key and one for the errors.
        """
        key = small_polynomial(RingNoise(rng.bytes(KEY_BYTES)))
        errors = RingNoise(rng.bytes(KEY_BYTES))
        ciphertext = encrypt(vectors, self.layout, uniform=self.uniform, key=key, noise=errors)
        return {KEY_VECTOR: to_residues(key, bits=self.key_bits)}, ciphertext

    def sink(self) -> SumKeySink:
        """What the aggregator of masking gives the ciphertexts to."""
        return SumKeySink(self)


class SumKeySink:
    """Adds the ciphertexts as they arrive and opens their sum with the summed key: an `AttachmentSink`."""

    __slots__ = ("_round", "_total")

    def __init__(self, shape: SumKeyRound) -> None:
        self._round = shape
        self._total = CiphertextSum(shape.layout)

    @property
    def expected_size(self) -> int:
        """Bytes of a ciphertext."""
        return self._round.layout.packed_bytes

    def check(self, peer: ClientId, data: memoryview) -> None:
        """Refuse a residue that is not below q, or another size, with `RemoteProtocolError`."""
        check_ciphertext(self._round.layout, peer, data)

    def add(self, peer: ClientId, data: memoryview) -> None:
        """Add a checked ciphertext."""
        self._total.add(peer, data)

    def finish(self, sums: Mapping[str, Words], survivors: tuple[ClientId, ...]) -> Mapping[str, Words]:
        """Open the sum of the ciphertexts with the sum of the keys.

        Raises:
            RoundAborted: They do not belong together: a client sent a ciphertext that its key vector does not
                open, for example a copy of another client's.
        """
        assert self._total.count == len(survivors)
        key = centre(sums[KEY_VECTOR], bits=self._round.key_bits)
        return open_sum(self._total, self._round.layout, uniforms=(self._round.uniform,), key=key)

    def snapshot(self) -> bytes:
        """The running sum."""
        return self._total.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged."""
        self._total.restore(snapshot)
