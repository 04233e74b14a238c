"""Hazard: the only door to SEAL. What it is given it trusts; check sizes, ranges and signatures before.

SEAL (through TenSEAL) multiplies ring elements here. The ring is that of the CKKS ciphertexts of
`secfl.crypto.ckks_ring`: R_q = Z_q[X]/(X^N + 1) with N = 4096 and one prime q = 2^60 - 2^14 + 1. N = 4096 admits
log2 q <= 109 at 128-bit classical security and 75 at 192 bits (HomomorphicEncryption.org standard, table 1), so this
ring has the 192-bit level; SEAL confirms it when the context is made.

A ring element is either a row of N coefficients or a row of N *evaluations*, SEAL's NTT form: entry i is the
polynomial's value at ψ^(2·r(i)+1), where ψ is the smallest primitive 2N-th root of unity modulo q and r(i)
reverses the 12 bits of i.

TenSEAL's Python interface moves polynomials only through files. Nothing here touches a named file: the bytes
go through an anonymous memory file (``memfd_create``), which exists in this process alone and is freed at the
end of the call. Where the system has none, CKKS is refused. SEAL's objects never cross the wire.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from secfl.errors import ConfigError, LocalProtocolError

__all__ = ["DEGREE", "MODULUS", "Ring", "RingKey"]

DEGREE: Final = 4096
"""N."""
MODULUS: Final = 2**60 - 2**14 + 1
"""The prime q; q = 1 modulo 2N."""

_BATCH: Final = 8  # polynomials that SEAL handles in one ciphertext: 256 KiB
_MAGIC: Final = 0xA15E
_OUTER: Final = struct.Struct("<HBBBBHQ")  # magic, header size, version major and minor, compression, 0, size
_PARMS_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class RingKey:
    """A small polynomial in evaluation form, ready to be multiplied with. Secret."""

    plaintext: Any = field(repr=False)


class Ring:
    """Multiplication in R_q by SEAL. Build it with `Ring.shared`; it holds no secrets and no state."""

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError(
                "ckks needs anonymous memory files (memfd_create, Linux): SEAL would have to write secret keys "
                "to a named file. Use --secure-agg masking here"
            )
        import tenseal.sealapi as seal

        self._seal = seal
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [60]))
        self._context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC192)
        modulus = parameters.coeff_modulus()[0].value()
        if not self._context.parameters_set() or modulus != MODULUS:
            raise ConfigError(
                "ckks: this version of SEAL offers another ring than N = 4096, q = 2**60 - 2**14 + 1"
            )
        self._evaluator = seal.Evaluator(self._context)
        self._read_layout()
        self._self_test()

    @staticmethod
    @cache
    def shared() -> Ring:
        """The process's ring: making one takes some milliseconds, and it never changes."""
        return Ring()

    def key(self, coefficients: NDArray[np.int64]) -> RingKey:
        """Prepare a polynomial for `multiply`.

        Args:
            coefficients: int64, shape ``(N,)``, not all zero modulo q; reduced modulo q here.

        Raises:
            LocalProtocolError: Not one int64 coefficient per power, or the zero polynomial.
        """
        if coefficients.shape != (DEGREE,) or coefficients.dtype != np.int64:
            raise LocalProtocolError(f"ring: expected {DEGREE} int64 coefficients")
        reduced = np.mod(coefficients, MODULUS).astype(np.uint64)
        if not reduced.any():
            raise LocalProtocolError("ring: the zero polynomial is no key")
        evaluations = self.evaluations(reduced[None, :])
        plaintext = self._seal.Plaintext()
        with _memory_file() as (descriptor, path):
            _write(descriptor, self._plaintext_head + evaluations.tobytes(), self._version)
            plaintext.load(self._context, path)
        return RingKey(plaintext)

    def multiply(self, evaluations: NDArray[np.uint64], key: RingKey) -> NDArray[np.uint64]:
        """The coefficients of the products with the key.

        Args:
            evaluations: uint64 below q, shape ``(count, N)``: polynomials in evaluation form.
            key: From `key`.

        Returns:
            uint64 below q, shape ``(count, N)``: coefficients.
        """

        def product(ciphertext: Any) -> None:
            self._evaluator.multiply_plain_inplace(ciphertext, key.plaintext)
            self._evaluator.transform_from_ntt_inplace(ciphertext)

        return self._through_seal(evaluations, product, ntt_form=1)

    def evaluations(self, coefficients: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Coefficients, shape ``(count, N)`` below q, to evaluation form."""
        return self._through_seal(coefficients, self._evaluator.transform_to_ntt_inplace, ntt_form=0)

    def coefficients(self, evaluations: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Evaluation form, shape ``(count, N)`` below q, to coefficients."""
        return self._through_seal(evaluations, self._evaluator.transform_from_ntt_inplace, ntt_form=1)

    def __repr__(self) -> str:
        return f"Ring(N={DEGREE}, q=2**60 - 2**14 + 1)"

    def _through_seal(self, rows: NDArray[np.uint64], work: Any, *, ntt_form: int) -> NDArray[np.uint64]:
        """Load rows as the polynomials of SEAL ciphertexts, let SEAL work on them, and read them back."""
        if rows.ndim != 2 or rows.shape[1] != DEGREE or rows.dtype != np.uint64:
            raise LocalProtocolError(f"ring: expected rows of {DEGREE} uint64")
        if rows.size and int(rows.max()) >= MODULUS:
            raise LocalProtocolError("ring: an element is not below the modulus")
        out = np.empty(rows.shape, np.uint64)
        with _memory_file() as (descriptor, path):
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                count = len(batch)
                if not batch[1:].any():
                    # SEAL wants two polynomials at least, and one after the first that is not zero.
                    if not batch.any():
                        out[start : start + count] = 0
                        continue
                    batch = np.concatenate((batch, batch[:1]))
                head = self._ciphertext_head(len(batch), ntt_form)
                _write(descriptor, head + batch.tobytes(), self._version)
                ciphertext = self._seal.Ciphertext()
                ciphertext.load(self._context, path)
                work(ciphertext)
                os.ftruncate(descriptor, 0)
                ciphertext.save(path)
                body = _read(descriptor, most=len(head) + batch.nbytes)
                flat = np.frombuffer(body, np.dtype("<u8"), batch.size, len(body) - batch.nbytes)
                out[start : start + count] = flat.reshape(batch.shape)[:count]
        return out

    def _read_layout(self) -> None:
        """Learn from SEAL's own objects where its serialization keeps version, parameters and sizes."""
        seal = self._seal
        with _memory_file() as (descriptor, path):
            secret = seal.KeyGenerator(self._context).secret_key()
            ciphertext = seal.Ciphertext(self._context)
            seal.Encryptor(self._context, secret).encrypt_zero_symmetric(ciphertext)
            ciphertext.save(path)
            self._version: tuple[int, int] = _version(descriptor)
            body = _read(descriptor, most=1 << 20)
            self._template = body[: len(body) - 2 * DEGREE * 8]
            os.ftruncate(descriptor, 0)
            plaintext = seal.Plaintext()
            seal.CKKSEncoder(self._context).encode([1.0] * (DEGREE // 2), 1.0, plaintext)
            plaintext.save(path)
            body = _read(descriptor, most=1 << 20)
            self._plaintext_head = body[: len(body) - DEGREE * 8]
        # After the parameters' digest: a byte (NTT form?), the number of polynomials, ...; at the end SEAL's
        # header of the array, with its size in bytes, and the number of words.
        words = struct.unpack("<Q", self._template[-8:])[0]
        polynomials = struct.unpack_from("<Q", self._template, _PARMS_BYTES + 1)[0]
        inner = struct.unpack_from("<HBBBBHQ", self._template, len(self._template) - 24)
        if (
            words != 2 * DEGREE
            or polynomials != 2
            or inner[0] != _MAGIC
            or inner[6] != 24 + words * 8
            or self._template[_PARMS_BYTES] != 1
        ):
            raise ConfigError("ckks: this version of SEAL writes ciphertexts in another form")

    def _ciphertext_head(self, polynomials: int, ntt_form: int) -> bytes:
        head = bytearray(self._template)
        head[_PARMS_BYTES] = ntt_form
        struct.pack_into("<Q", head, _PARMS_BYTES + 1, polynomials)
        words = polynomials * DEGREE
        struct.pack_into("<QQ", head, len(head) - 16, 24 + words * 8, words)
        return bytes(head)

    def _self_test(self) -> None:
        """One product that only the right ring gives: (1 + 3·X^(N-1)) · (2 - X) = 5 - X + 6·X^(N-1)."""
        first = np.zeros((1, DEGREE), np.uint64)
        first[0, 0], first[0, -1] = 1, 3
        second = np.zeros(DEGREE, np.int64)
        second[0], second[1] = 2, -1
        expected = np.zeros((1, DEGREE), np.uint64)
        expected[0, 0], expected[0, 1], expected[0, -1] = 5, MODULUS - 1, 6
        if not np.array_equal(self.multiply(self.evaluations(first), self.key(second)), expected):
            raise ConfigError("ckks: this version of SEAL does not multiply in the expected ring")


@contextmanager
def _memory_file() -> Iterator[tuple[int, str]]:
    """An anonymous file in memory, and a path under which this process can open it."""
    descriptor = os.memfd_create("secfl", os.MFD_CLOEXEC)
    try:
        yield descriptor, f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _write(descriptor: int, body: bytes, version: tuple[int, int]) -> None:
    """SEAL's outer header with compression mode "none", and the body."""
    os.ftruncate(descriptor, 0)
    head = _OUTER.pack(_MAGIC, _OUTER.size, *version, 0, 0, _OUTER.size + len(body))
    os.pwritev(descriptor, [head, body], 0)


def _version(descriptor: int) -> tuple[int, int]:
    _, _, major, minor, _, _, _ = _OUTER.unpack(os.pread(descriptor, _OUTER.size, 0))
    return major, minor


def _read(descriptor: int, *, most: int) -> bytes:
    """The body behind SEAL's outer header, decompressed. SEAL wrote it a moment ago, in this process."""
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    magic, _, _, _, compression, _, size = _OUTER.unpack_from(data)
    if magic != _MAGIC or size != len(data) or compression not in (0, 2):
        raise ConfigError("ckks: this version of SEAL saves objects in another form")
    body = memoryview(data)[_OUTER.size :]
    if compression == 0:
        return bytes(body)
    return zstandard.ZstdDecompressor().decompress(body, max_output_size=most)
