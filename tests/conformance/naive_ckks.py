"""A sum of CKKS ciphertexts opened again, from docs/protocol.md and the modules' docstrings alone: Python integers.

Shares no code with secfl: neither SEAL nor NumPy, only SHA-256 and single AES blocks. Slow and plain on purpose.
"""

import hashlib
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

N = 4096
Q = 2**60 - 2**14 + 1


def fields(*parts):
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def smallest_root():
    """The smallest primitive 2N-th root of unity modulo q."""
    for base in range(2, 100):
        root = pow(base, (Q - 1) // (2 * N), Q)
        if pow(root, N, Q) == Q - 1:
            return min(pow(root, power, Q) for power in range(1, 2 * N, 2))
    raise AssertionError("no root")


PSI = smallest_root()


def reversed_bits(index):
    return int(f"{index:012b}"[::-1], 2)


def transform(values, root):
    """Values of the polynomial at all powers of the root, in order."""
    if len(values) == 1:
        return values
    even, odd = transform(values[::2], root * root % Q), transform(values[1::2], root * root % Q)
    half, power, low, high = len(values) // 2, 1, [], []
    for index in range(half):
        term = power * odd[index] % Q
        low.append((even[index] + term) % Q)
        high.append((even[index] - term) % Q)
        power = power * root % Q
    return low + high


def product(evaluations, key):
    """Coefficients of a·k in Z_q[X]/(X^N + 1), with a in the order of evaluations that secfl uses."""
    twisted = [coefficient * pow(PSI, place, Q) % Q for place, coefficient in enumerate(key)]
    values = transform(twisted, PSI * PSI % Q)
    for place, value in enumerate(evaluations):
        values[reversed_bits(place)] = values[reversed_bits(place)] * value % Q
    back = transform(values, pow(PSI, -2, Q))
    return [value * pow(N, -1, Q) * pow(PSI, -place, Q) % Q for place, value in enumerate(back)]


def uniform(labels, polynomial):
    """The public polynomial number ``polynomial``, as evaluations."""
    key = hashlib.sha256(fields(b"secfl/v1", b"ckks-uniform", *labels)).digest()

    def word(stream, position):
        counter = (stream * 2**96 + position // 2).to_bytes(16, "big")
        block = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(16))
        return int.from_bytes(block[8 * (position % 2) :][:8], "little") % 2**60

    out = []
    for position in range(polynomial * N, (polynomial + 1) * N):
        stream = 0
        while (found := word(stream, position)) >= Q:
            stream += 1
        out.append(found)
    return out


def residues(ciphertext):
    """60 bits each, one little-endian bit stream."""
    stream = int.from_bytes(ciphertext, "little")
    return [stream >> (60 * place) & (2**60 - 1) for place in range(len(ciphertext) * 8 // 60)]


def open_sum(ciphertexts, public, key, vectors, *, clients):
    """The sums by vector name.

    ``ciphertexts`` are bytes, ``public`` one list of evaluations for every polynomial, ``key`` the summed key,
    ``vectors`` triples of name, length and bits, ``clients`` the size of the cohort.
    """
    rows = [residues(ciphertext) for ciphertext in ciphertexts]
    total = [sum(column) % Q for column in zip(*rows, strict=True)]
    for number, evaluations in enumerate(public):
        for place, value in enumerate(product(evaluations, key)):
            total[number * N + place] = (total[number * N + place] + value) % Q
    carry = (clients - 1).bit_length()
    sums, offset = {}, 0
    for name, length, bits in vectors:
        count = next(
            number for number in range(50, 0, -1) if number * (bits + carry) - carry <= 50
        )  # a cohort this small is limited by words of 64 bits, not by the noise
        width, coefficients = count * (bits + carry) - carry, -(-length // count)
        values = []
        for position in range(length):
            field, place = divmod(position, coefficients)
            rounded = (total[offset + place] * 2**width + Q // 2) // Q
            packed = -Q * rounded % 2**width
            value = packed >> field * (bits + carry)
            if field < count - 1:
                value -= len(ciphertexts) * 2 ** (bits - 1)
            values.append(value % 2**bits)
        sums[name] = values
        offset += coefficients
    return sums
