"""CKKS: the ring, one-time keys, a shared key. See checker.py."""

from __future__ import annotations

import math
import struct
from decimal import Decimal, localcontext
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from naive_tools import (
    UNHEX,
    N,
    Q,
    V,
    frame,
    hkdf,
    hybrid_public,
    join,
    pack,
    recorded_round,
    ring,
    roster,
    sealed,
    sha256,
    statement,
    u16,
    u64,
    unpack,
    verifies,
)


def thresholds() -> list[int]:
    """Of the discrete Gaussian with σ = 4.5, scaled by 2^128."""
    with localcontext() as context:
        context.prec = 90
        weights = [(-Decimal(2 * x * x) / 81).exp() for x in range(-59, 60)]
        total, out, running = sum(weights), [], Decimal(0)
        for weight in weights[:-1]:
            running += weight
            out.append(int(running / total * 2**128 + Decimal("0.5")))
    return out


THRESHOLDS = thresholds()


def small(key: bytes, count: int) -> list[int]:
    """Draws of the small distribution."""

    def stream(start: int) -> Any:
        return Cipher(algorithms.AES(key), modes.CTR(start.to_bytes(16, "big"))).encryptor()

    prefixes, rest = stream(0).update(bytes(2 * count)), stream(2**127)
    decided = {}
    out = []
    for place in range(count):
        prefix = int.from_bytes(prefixes[2 * place : 2 * place + 2], "little")
        if prefix not in decided:
            ends = (prefix << 112, (prefix + 1 << 112) - 1)
            low, high = (sum(threshold <= end for threshold in THRESHOLDS) for end in ends)
            decided[prefix] = low if low == high else None
        value = decided[prefix]
        if value is None:
            uniform = prefix << 112 | int.from_bytes(rest.update(bytes(14)), "little")
            value = sum(threshold <= uniform for threshold in THRESHOLDS)
        out.append(value - 59)
    return out


def layout(bits: int, clients: int) -> tuple[int, int, int]:
    """F, b + c and T; F is 0 where nothing fits."""
    room = min(50, 59 - (largest_error(clients) - 1).bit_length())
    carry = (clients - 1).bit_length()
    fields = (room + carry) // (bits + carry)
    return fields, bits + carry, fields * (bits + carry) - carry


def largest_error(clients: int) -> int:
    return math.ceil(4.5 * math.sqrt(2 * clients * 81 * math.log(2))) + clients // 2 + 2


def plaintext(values: dict[str, list[int]], vectors: list[Any], clients: int) -> list[int]:
    """All coefficients of a round's vectors, without the padding."""
    out = []
    for name, length, bits in vectors:
        fields, stride, width = layout(bits, clients)
        count = -(-length // fields)
        packed = [0] * count
        for place, value in enumerate(values[name]):
            field, coefficient = divmod(place, count)
            shifted = value if field == fields - 1 else (value + 2 ** (bits - 1)) % 2**bits
            packed[coefficient] += shifted << (field * stride)
        signed = [value - 2**width * (value >= 2 ** (width - 1)) for value in packed]
        out += [value * pow(2, -width, Q) % Q for value in signed]
    return out


def opened(rows: list[int], vectors: list[Any], clients: int, addends: int) -> dict[str, list[int]] | None:
    """The sums; ``None`` when an error is above its bound."""
    bound, sums, start = largest_error(clients), {}, 0
    for name, length, bits in vectors:
        fields, stride, width = layout(bits, clients)
        count = -(-length // fields)
        packed = []
        for value in rows[start : start + count]:
            nearest = (2 * value * 2**width + Q) // (2 * Q)
            if abs(value * 2**width - nearest * Q) > bound * 2**width:
                return None
            packed.append(-Q * nearest % 2**width)
        values = []
        for place in range(length):
            field, coefficient = divmod(place, count)
            value = packed[coefficient] >> (field * stride)
            values.append((value - addends * 2 ** (bits - 1) * (field < fields - 1)) % 2**bits)
        sums[name] = values
        start += count
    for value in rows[start:]:
        if min(value, Q - value) > bound:
            return None
    return sums


def check_ring(cases: Any) -> None:
    assert [str(value) for value in THRESHOLDS] == cases["thresholds"]
    for case in cases["small"]:
        draws = small(UNHEX(case["key"]), 70_000)
        assert draws[:12] == case["first"]
        assert sha256(struct.pack("<70000b", *draws)).hex() == case["sha256_of_70000"]
    for case in cases["public"]:
        labels = [UNHEX(label) for label in case["labels"]]
        rows = [ring.uniform(labels, number) for number in range(2)]
        assert [str(value) for value in rows[1][:4]] == case["first_of_polynomial_1"]
        assert words_hash(rows[0] + rows[1]) == case["sha256_of_64_bit_words"]
    product = cases["product"]
    labels = [UNHEX(label) for label in product["labels"]]
    found = ring.product(ring.uniform(labels, 0), small(UNHEX(product["small_key"]), N))
    assert [str(value) for value in found[:4]] == product["first"]
    assert words_hash(found) == product["sha256_of_64_bit_words"]
    for case in cases["layouts"]:
        assert largest_error(case["clients"]) == case["largest_error"]
        fields, _, width = layout(case["bits"], case["clients"])
        assert (fields == 0) == case["name"].startswith("bad_")
        if fields:
            assert (fields, width) == (case["fields"], case["plain_bits"])
            assert case["largest_error"] <= 2 ** (59 - width)
    for case in cases["plaintexts"]:
        clients, vectors = case["clients"], case["vectors"]
        rows = [plaintext(values, vectors, clients) for values in case["inputs"]]
        assert [str(value) for value in rows[0]] == case["plaintext_of_first"]
        total = [sum(column) % Q for column in zip(*rows, strict=True)]
        assert [str(value) for value in total] == case["sum_of_plaintexts"]
        moved = [(value + case["error"]) % Q for value in total]
        assert opened(moved, vectors, clients, 3) == case["sums"]
        for name, _, bits in vectors:
            columns = zip(*(one[name] for one in case["inputs"]), strict=True)
            assert [sum(column) % 2**bits for column in columns] == case["sums"][name]
        too_much = [(value + 2 * largest_error(clients)) % Q for value in total]
        assert opened(too_much, vectors, clients, 3) is None


def words_hash(values: list[int]) -> str:
    return sha256(b"".join(map(u64, values))).hex()


def ciphertext_of(
    rows: list[int], public: list[list[int]], key: list[int], key_of_errors: bytes
) -> list[int]:
    """Residues: plaintext and errors less the products."""
    polynomials = len(public)
    errors = small(key_of_errors, polynomials * N)
    plain = rows + [0] * (polynomials * N - len(rows))
    products = [value for row in public for value in ring.product(row, key)]
    return [(m + e - p) % Q for m, e, p in zip(plain, errors, products, strict=True)]


def check_sum_key(case: Any) -> None:
    digest = recorded_round(case, ["ckks", {"key_mode": "sum-key"}])
    clients, vectors = len(case["cohort"]), case["vectors"]
    bits = (59 * clients).bit_length() + 1
    assert case["key_bits"] == bits
    coefficients = sum(-(-length // layout(b, clients)[0]) for _, length, b in vectors)
    public = [ring.uniform((b"sum-key", digest), j) for j in range(-(-coefficients // N))]
    keys, ciphertexts, inputs = {}, {}, {}
    for client in case["clients"]:
        name = client["name"]
        inputs[name] = {
            "update": [(977 * place + client["update_starts_at"]) % 2**19 for place in range(9000)],
            "weight": [client["weight"]],
        }
        keys[name] = small(UNHEX(client["key_of_key"]), N)
        assert [value % 2**bits for value in keys[name][:6]] == client["key_vector_first"]
        rows = plaintext(inputs[name], vectors, clients)
        found = ciphertext_of(rows, public, keys[name], UNHEX(client["key_of_errors"]))
        ciphertexts[name] = found
        packed = pack(found, 60)
        assert [str(value) for value in found[:3]] == client["ciphertext_first"]
        assert (len(packed), sha256(packed).hex()) == (
            client["ciphertext_bytes"],
            client["ciphertext_sha256"],
        )
    for one in case["opened"]:
        key = [sum(column) for column in zip(*(keys[name] for name in one["survivors"]), strict=True)]
        assert key[:6] == one["key_first"]
        sums = open_with(key, public, [ciphertexts[name] for name in one["survivors"]], vectors, clients)
        assert sums is not None
        expected = [
            sum(column) % 2**19
            for column in zip(*(inputs[n]["update"] for n in one["survivors"]), strict=True)
        ]
        assert sums["update"] == expected
        assert expected[:6] == one["first_sums"]
        assert sha256(struct.pack(f"<{len(expected)}I", *expected)).hex() == one["sums_sha256"]
        assert sums["weight"] == [one["weight"]]
    whole = [sum(column) for column in zip(*keys.values(), strict=True)]
    rows = list(ciphertexts.values())
    fewer = [sum(column) for column in zip(*list(keys.values())[:3], strict=True)]
    moved = [*whole[:5], whole[5] + 1, *whole[6:]]
    refused = {
        "bad_copied_ciphertext": open_with(whole, public, [*rows[:3], rows[0]], vectors, clients),
        "bad_key_of_others": open_with(fewer, public, rows, vectors, clients),
        "bad_key_by_one": open_with(moved, public, rows, vectors, clients),
    }
    assert set(refused.values()) == {None}
    assert {bad["name"] for bad in case["bad"]} == {*refused, "bad_residue", "bad_length", "bad_key_zero"}


def open_with(
    key: list[int], public: list[list[int]], rows: list[list[int]], vectors: list[Any], clients: int
) -> dict[str, list[int]] | None:
    """Σ c + a·K, rounded."""
    products = [value for row in public for value in ring.product(row, key)]
    total = [(sum(column) + p) % Q for column, p in zip(zip(*rows, strict=True), products, strict=True)]
    return opened(total, vectors, clients, len(rows))


def check_shared_key(case: Any) -> None:
    digest = recorded_round(case, ["ckks", {"key_mode": "shared"}])
    names, vectors = case["cohort"], case["vectors"]
    clients, lead = len(names), case["lead"]
    secrets = {name: {k: UNHEX(v) for k, v in row.items()} for name, row in case["secrets"].items()}
    key_seed = secrets[lead]["lead_seed"]
    identifier = hkdf(key_seed, b"ckks-shared/identifier", digest)
    key = small(hkdf(key_seed, b"ckks-shared/ring-key", digest), N)

    def labelled(label: bytes, data: bytes) -> bytes:
        return sha256(join(V, label, digest), data)

    def signed(phase: str, name: str, body: bytes) -> bytes:
        private = Ed25519PrivateKey.from_private_bytes(UNHEX(case["signing_seeds"][name]))
        return body + private.sign(statement(phase, digest, name, body))

    def position(name: str) -> int:
        return -1 if name == "aggregator" else names.index(name)

    adverts = {
        i: signed("advertise", n, hybrid_public(secrets[n]["sealing_seed"])) for i, n in enumerate(names)
    }
    keys = UNHEX(case["keys_message"])[39:]
    dealt = {}
    for index, name in enumerate(names):
        row = keys[1266 * index : 1266 * (index + 1)]
        assert verifies(
            UNHEX(case["keys"][lead]), row[1202:], statement("ckks-key", digest, lead, row[:1202])
        )
        assert row[:34] == u16(index) + identifier
        context = join(V, b"ckks-shared/key", digest, lead.encode(), name.encode())
        assert sealed(secrets[name]["sealing_seed"], row[34:1202], context) == key_seed
        dealt[index] = row
    assert len(keys) == 1266 * clients
    headers, ciphertexts, public = {}, {}, []
    for index, name in enumerate(names):
        row = ring.uniform((b"shared", digest, name.encode(), secrets[name]["nonce"]), 0)
        public.append(row)
        plain = plaintext(case["inputs"][name], vectors, clients)
        found = ciphertext_of(plain, [row], key, secrets[name]["key_of_errors"])
        ciphertexts[index] = pack(found, 60)
        body = identifier + secrets[name]["nonce"] + labelled(b"ckks-shared/ciphertext", ciphertexts[index])
        headers[index] = signed("ckks-input", name, body)
    survivors = labelled(
        b"ckks-shared/survivors", join(*(join(u16(i), headers[i][:96]) for i in sorted(headers)))
    )
    sums = b"".join(pack(case["sums"][name], bits) for name, _, bits in vectors)
    opener = names[0]
    result = signed("ckks-open", opener, survivors + labelled(b"ckks-shared/sums", sums))
    everything = b"".join(ciphertexts[i] for i in sorted(ciphertexts))
    contents = {
        33: lambda sender, _: adverts[position(sender)],
        34: lambda *_: roster(adverts),
        35: lambda *_: keys,
        36: lambda _, to: u16(names.index(lead)) + dealt[position(to)],
        37: lambda sender, _: headers[position(sender)] + ciphertexts[position(sender)],
        38: lambda *_: roster(headers) + everything,
        39: lambda *_: result + sums,
        40: lambda *_: b"",
    }
    kinds = [message["type"] for message in case["messages"]]
    assert kinds == [33] * 3 + [34, 35] + [36] * 3 + [37] * 3 + [38, 39, 40, 40]
    for message in case["messages"]:
        sender = message["sender"]
        content = contents[message["type"]](sender, message["recipient"])
        payload = frame(message["type"], digest, position(sender)) + content
        assert (len(payload), sha256(payload).hex()) == (message["bytes"], message["sha256"])
        assert payload.hex().startswith(message["head"])
    summed = [[sum(column) % Q for column in zip(*public, strict=True)]]
    rows = [unpack(ciphertexts[i], N, 60) for i in sorted(ciphertexts)]
    found_sums = open_with(key, summed, rows, vectors, clients)
    assert found_sums == case["sums"]
    for name, _, bits in vectors:
        columns = zip(*(case["inputs"][client][name] for client in names), strict=True)
        assert [sum(column) % 2**bits for column in columns] == case["sums"][name]
    assert case["survivors"] == names
