"""A masking round computed again, from docs/protocol.md alone: Python integers, bytes, and AES one block at a time.

Shares no code with secfl. Slow and plain on purpose. X25519, ML-KEM-768 and single AES blocks come from the
cryptography package; everything between them is written out here.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def fields(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def hkdf(secret: bytes, label: bytes, *parts: bytes, length: int = 32) -> bytes:
    """RFC 5869 with SHA-256 and no salt."""
    key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    info = fields(b"secfl/v1", label, *parts)
    block, out, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        out, counter = out + block, counter + 1
    return out[:length]


def key_stream(key: bytes, size: int) -> bytes:
    """AES-256 of the block numbers 0, 1, 2, ... as 128-bit big-endian integers."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = -(-size // 16)
    return b"".join(encryptor.update(number.to_bytes(16, "big")) for number in range(blocks))[:size]


def mask(key: bytes, length: int, bits: int) -> list[int]:
    width = 4 if bits <= 32 else 8
    stream = key_stream(key, length * width)
    words = (int.from_bytes(stream[i * width : (i + 1) * width], "little") for i in range(length))
    return [word % (1 << bits) for word in words]


def pack(values: list[int], bits: int) -> bytes:
    """One little-endian bit stream."""
    total = sum(value << (place * bits) for place, value in enumerate(values))
    return total.to_bytes(-(-len(values) * bits // 8), "little")


def unpack(data: bytes, length: int, bits: int) -> list[int]:
    total = int.from_bytes(data, "little")
    return [(total >> (place * bits)) % (1 << bits) for place in range(length)]


class Client:
    """The secrets of one client and what follows from them."""

    def __init__(self, name: str, root: bytes, self_mask: bytes, digest: bytes) -> None:
        self.name = name.encode()
        self.self_mask = self_mask
        self.x25519 = X25519PrivateKey.from_private_bytes(
            hkdf(root, b"mask-key/x25519", digest, self.name, length=32)
        )
        self.kem = MLKEM768PrivateKey.from_seed_bytes(
            hkdf(root, b"mask-key/ml-kem-768", digest, self.name, length=64)
        )

    def x25519_public(self) -> bytes:
        return self.x25519.public_key().public_bytes_raw()

    def kem_public(self) -> bytes:
        return self.kem.public_key().public_bytes_raw()


def pair_seed(low: Client, high: Client, ciphertext: bytes, digest: bytes) -> bytes:
    shared = high.x25519.exchange(X25519PublicKey.from_public_bytes(low.x25519_public()))
    return hkdf(
        shared + high.kem.decapsulate(ciphertext),
        b"pair",
        digest,
        low.name,
        high.name,
        low.x25519_public(),
        high.x25519_public(),
        high.kem_public(),
        ciphertext,
    )


class Checker:
    """All masks of a round.

    Args:
        digest: Of the round.
        clients: By cohort position: name, root, self-mask seed.
        ciphertexts: ``(low, high)`` -> KEM ciphertext from the earlier to the later client.
        members: Positions of U2.
    """

    def __init__(self, digest, clients, *, ciphertexts, members) -> None:
        self.digest = digest
        self.members = members
        self.clients = {
            index: Client(name, root, seed, digest) for index, (name, root, seed) in clients.items()
        }
        self.seeds = {
            (low, high): pair_seed(self.clients[low], self.clients[high], ciphertexts[low, high], digest)
            for low in members
            for high in members
            if low < high
        }

    def self_stream(self, index, name, length, bits):
        client = self.clients[index]
        key = hkdf(client.self_mask, b"mask", b"self", self.digest, client.name, name.encode(), bytes([bits]))
        return mask(key, length, bits)

    def pair_stream(self, low, high, name, length, bits):
        names = self.clients[low].name, self.clients[high].name
        key = hkdf(self.seeds[low, high], b"mask", b"pair", self.digest, *names, name.encode(), bytes([bits]))
        return mask(key, length, bits)

    def masked(self, index, name, values, bits):
        """What a client must send for one vector: its values and canaries under all its masks, packed."""
        canaries = -(-64 // bits)
        total = [*values, *[1] * canaries]
        length = len(total)
        streams = [(1, self.self_stream(index, name, length, bits))]
        for other in self.members:
            if other > index:
                streams.append((1, self.pair_stream(index, other, name, length, bits)))
            elif other < index:
                streams.append((-1, self.pair_stream(other, index, name, length, bits)))
        for sign, stream in streams:
            total = [(value + sign * one) % (1 << bits) for value, one in zip(total, stream, strict=True)]
        return pack(total, bits)

    def opened(self, inputs, survivors, name, length, bits):
        """The sum of the survivors' masked vectors with all masks taken off, canaries included."""
        padded = length + -(-64 // bits)
        total = [0] * padded
        for index in survivors:
            total = [a + b for a, b in zip(total, unpack(inputs[index], padded, bits), strict=True)]
            total = [a - b for a, b in zip(total, self.self_stream(index, name, padded, bits), strict=True)]
            for other in set(self.members) - set(survivors):
                low, high = sorted((index, other))
                sign = 1 if other > index else -1
                stream = self.pair_stream(low, high, name, padded, bits)
                total = [a - sign * b for a, b in zip(total, stream, strict=True)]
        return [value % (1 << bits) for value in total]


def transcript(label: bytes, digest: bytes, rows: dict[bytes, tuple[bytes, ...]]) -> bytes:
    """The digest of a directory, of the members, or of the survivors' headers: rows by name, sorted."""
    flat = (fields(name, *parts) for name, parts in sorted(rows.items()))
    return hashlib.sha256(fields(b"secfl/v1", label, digest, *flat)).digest()


def signed_statement(phase: str, digest: bytes, sender: str, recipient: str, body: bytes) -> bytes:
    """The bytes under a client's signature."""
    name = phase.encode()
    return fields(
        b"secfl/v1", b"signature", b"round/" + name, digest, name, sender.encode(), recipient.encode(), body
    )
