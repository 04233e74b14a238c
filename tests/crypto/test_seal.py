import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secfl.crypto.hazmat import seal
from secfl.crypto.hazmat.seal import DEGREE, MODULUS, Ring
from secfl.errors import ConfigError, LocalProtocolError

BITS = 12


@pytest.fixture(scope="module")
def ring():
    return Ring.shared()


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def smallest_root():
    """The smallest primitive 2N-th root of unity modulo q, in Python integers."""
    exponent = (MODULUS - 1) // (2 * DEGREE)
    root = next(
        r for g in range(2, 100) if pow(r := pow(g, exponent, MODULUS), DEGREE, MODULUS) == MODULUS - 1
    )
    square, power, best = root * root % MODULUS, root, root
    for _ in range(DEGREE):
        best = min(best, power)
        power = power * square % MODULUS
    return best


ROOT = smallest_root()


def evaluate(coefficients, index):
    """Entry ``index`` of the evaluation form, by Horner's rule."""
    reversed_index = int(f"{index:0{BITS}b}"[::-1], 2)
    point = pow(ROOT, 2 * reversed_index + 1, MODULUS)
    total = 0
    for coefficient in reversed(coefficients):
        total = (total * point + int(coefficient)) % MODULUS
    return total


def test_the_modulus_is_a_prime_for_this_ring():
    assert (MODULUS - 1) % (2 * DEGREE) == 0
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller-Rabin, deterministic below 2^64
        odd, power = MODULUS - 1, 0
        while odd % 2 == 0:
            odd, power = odd // 2, power + 1
        value = pow(base, odd, MODULUS)
        assert value in (1, MODULUS - 1) or any(
            (value := value * value % MODULUS) == MODULUS - 1 for _ in range(power - 1)
        )


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 17])
def test_transforms_are_inverse(ring, generator, count):
    rows = generator.integers(0, MODULUS, (count, DEGREE), dtype=np.uint64)
    np.testing.assert_array_equal(ring.coefficients(ring.evaluations(rows)), rows)


def test_no_rows_are_no_rows(ring):
    assert ring.evaluations(np.empty((0, DEGREE), np.uint64)).shape == (0, DEGREE)


def test_evaluations_are_the_polynomials_values(ring, generator):
    rows = generator.integers(0, MODULUS, (2, DEGREE), dtype=np.uint64)
    values = ring.evaluations(rows)
    for row in range(2):
        for index in (0, 1, 2, 5, 1234, DEGREE - 1):
            assert int(values[row, index]) == evaluate(rows[row], index)


@pytest.mark.parametrize("pattern", [[0], [1], [0, 0], [1, 0], [0, 1], [1, 0, 0], [0] * 9, [0] * 8 + [1]])
def test_zero_polynomials_are_polynomials_too(ring, generator, pattern):
    rows = generator.integers(0, MODULUS, (len(pattern), DEGREE), dtype=np.uint64)
    rows *= np.array(pattern, np.uint64)[:, None]
    np.testing.assert_array_equal(ring.coefficients(ring.evaluations(rows)), rows)
    identity = np.zeros(DEGREE, np.int64)
    identity[0] = 1
    np.testing.assert_array_equal(ring.multiply(ring.evaluations(rows), ring.key(identity)), rows)


def test_products_are_negacyclic(ring, generator):
    small = generator.integers(-60, 61, DEGREE)
    rows = generator.integers(0, MODULUS, (3, DEGREE), dtype=np.uint64)
    product = ring.multiply(ring.evaluations(rows), ring.key(small))
    for row in range(3):
        for position in (0, 1, 77, DEGREE - 1):
            # Coefficient p of the product: X^N = -1 turns the sign of what wraps around.
            total = 0
            for k in range(DEGREE):
                term = int(small[k]) * int(rows[row, (position - k) % DEGREE])
                total += term if k <= position else -term
            assert int(product[row, position]) == total % MODULUS


def test_seal_decrypts_what_the_ring_computed(ring, generator):
    """(c, a) with c = m + e - a·k is a CKKS ciphertext under the key k for SEAL itself."""
    import tenseal.sealapi as sealapi

    key = generator.integers(-15, 16, DEGREE)
    a = generator.integers(0, MODULUS, (1, DEGREE), dtype=np.uint64)
    message = np.zeros((1, DEGREE), np.int64)
    message[0, 0] = 3 << 40  # a constant polynomial: every slot holds it
    errors = generator.integers(-15, 16, (1, DEGREE))
    product = ring.multiply(a, ring.key(key)).astype(object)
    c = ((message.astype(object) + errors - product) % MODULUS).astype(np.uint64)
    pair = np.concatenate((ring.evaluations(c), a))
    secret, ciphertext, plain = sealapi.SecretKey(), sealapi.Ciphertext(), sealapi.Plaintext()
    with seal._memory_file() as (descriptor, path):
        evaluations = ring.evaluations(np.mod(key, MODULUS).astype(np.uint64)[None, :])
        seal._write(descriptor, ring._plaintext_head + evaluations.tobytes(), ring._version)
        secret.load(ring._context, path)
        seal._write(descriptor, ring._ciphertext_head(2, 1) + pair.tobytes(), ring._version)
        ciphertext.load(ring._context, path)
    sealapi.Decryptor(ring._context, secret).decrypt(ciphertext, plain)
    slots = np.array(sealapi.CKKSEncoder(ring._context).decode_complex(plain))
    np.testing.assert_allclose(slots, 3 << 40, atol=2**14)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((1, DEGREE - 1), np.uint64),
        np.zeros(DEGREE, np.uint64),
        np.zeros((1, DEGREE), np.int64),
        np.full((1, DEGREE), MODULUS, np.uint64),
        np.full((1, DEGREE), 2**63, np.uint64),
    ],
    ids=["short", "flat", "signed", "modulus", "large"],
)
def test_other_rows_are_refused_before_seal_sees_them(ring, rows, monkeypatch):
    monkeypatch.setattr(seal, "_write", lambda *_: pytest.fail("reached SEAL"))
    with pytest.raises(LocalProtocolError):
        ring.evaluations(rows)


@pytest.mark.parametrize(
    "key",
    [np.ones(5, np.int64), np.ones(DEGREE, np.int32), np.zeros(DEGREE, np.int64), np.full(DEGREE, MODULUS)],
    ids=["short", "narrow", "zero", "zero modulo q"],
)
def test_other_keys_are_refused(ring, key):
    with pytest.raises(LocalProtocolError):
        ring.key(key)


def test_without_memory_files_ckks_is_refused(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(ConfigError, match="memory files"):
        Ring()


def test_memory_files_are_closed_and_never_named(ring, generator):
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir()))
    ring.key(generator.integers(-5, 6, DEGREE))
    assert len(list(folder.iterdir())) == before
    with seal._memory_file() as (descriptor, path):
        assert path == str(folder / str(descriptor))
        assert str(Path(path).readlink()).startswith("/memfd:")


def test_a_wrong_ring_fails_the_self_test(monkeypatch):
    ring = Ring()
    monkeypatch.setattr(ring, "coefficients", None)
    monkeypatch.setattr(ring._evaluator.__class__, "multiply_plain_inplace", lambda *_: None)
    with pytest.raises(ConfigError, match="expected ring"):
        ring._self_test()


def test_a_library_with_another_ring_is_refused(monkeypatch):
    monkeypatch.setattr(seal, "MODULUS", MODULUS - 2**15)
    with pytest.raises(ConfigError, match="another ring"):
        Ring()


@pytest.mark.parametrize(
    ("name", "reason"), [("_MAGIC", "saves objects"), ("_PARMS_BYTES", "writes ciphertexts")]
)
def test_a_library_with_another_file_format_is_refused(monkeypatch, name, reason):
    """Its bytes would be read in the wrong places."""
    monkeypatch.setattr(seal, name, getattr(seal, name) + 8)
    with pytest.raises(ConfigError, match=f"{reason} in another form"):
        Ring()


def test_keys_and_rings_print_no_secrets(ring):
    key = ring.key(np.ones(DEGREE, np.int64))
    assert repr(key) == "RingKey()"
    assert "N=4096" in repr(ring)


def test_importing_the_module_does_not_load_tenseal():
    code = "import sys, secfl.crypto.hazmat.seal; sys.exit('tenseal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
