"""Rounds of masking and plain, message by message. See checker.py."""

from __future__ import annotations

from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from naive_tools import (
    UNHEX,
    V,
    frame,
    hkdf,
    hybrid_public,
    join,
    masking,
    pack,
    recorded_round,
    roster,
    sealed,
    sha256,
    share_at,
    statement,
    tree,
    u8,
    u64,
    verifies,
)


def check_masking_keys(case: Any) -> None:
    digest, secret = UNHEX(case["digest"]), UNHEX(case["secret"])
    low, high, third = (name.encode() for name in case["cohort"])
    private = [
        hkdf(UNHEX(root), b"mask-key/ml-kem-768", digest, name, length=64)
        + hkdf(UNHEX(root), b"mask-key/x25519", digest, name)
        for root, name in zip(case["roots"], (low, high), strict=True)
    ]
    assert [key.hex() for key in private] == case["mask_key_seeds"]
    public = [hybrid_public(key) for key in private]
    assert [sha256(key).hex() for key in public] == case["mask_key_public_sha256"]
    pair = {name: UNHEX(value) for name, value in case["pair"].items()}
    exchanged = X25519PrivateKey.from_private_bytes(private[0][64:]).exchange(
        X25519PublicKey.from_public_bytes(public[1][1184:])
    )
    assert exchanged == pair["x25519_secret"]
    bound = (digest, low, high, public[0][1184:], public[1][1184:], public[1][:1184], pair["kem_ciphertext"])
    seed = hkdf(exchanged + pair["kem_secret"], b"pair", *bound)
    named = (b"update", u8(22))
    expected = {
        "root_commitment": hkdf(secret, b"commitment/root", digest, low),
        "self_commitment": hkdf(secret, b"commitment/self", digest, low),
        "share_context": join(V, b"share", digest, low, high),
        "escrow_key": hkdf(secret, b"escrow", digest, low, b"\x05" * 32, sha256(b"ciphertexts")),
        "escrow_context": join(V, b"escrow", digest, low, b"\x05" * 32),
        "self_key": hkdf(secret, b"mask", b"self", digest, low, *named),
        "input": sha256(join(V, b"input", digest, u64(6), sha256(b"abcd"), sha256(b"ef"))),
    }
    assert {name: value.hex() for name, value in expected.items()} == {name: case[name] for name in expected}
    assert (seed.hex(), case["pair"]["key"]) == (
        case["pair"]["seed"],
        hkdf(seed, b"mask", b"pair", digest, low, high, *named).hex(),
    )
    for kind, commitment in case["share_commitments"].items():
        assert hkdf(secret, b"commitment/share", kind.encode(), digest, low, high).hex() == commitment
    rows = {low: (b"first",), third: (b"third",)}
    both = {low: (b"first", b"one"), third: (b"third", b"three")}
    for name, parts in (("directory", rows), ("survivors", rows), ("members", both)):
        assert masking.transcript(name.encode(), digest, parts).hex() == case["transcripts"][name]
    levels = tree({0: b"a", 2: b"c"}, 3)
    assert levels[-1][0].hex() == case["tree"]["root"]
    assert [levels[0][3].hex(), levels[1][0].hex()] == case["tree"]["path_of_2"]
    signatures = case["signatures"]
    key = Ed25519PrivateKey.from_private_bytes(UNHEX(signatures["seed"]))
    for phase, signature in signatures["by_phase"].items():
        text = statement(phase, digest, case["cohort"][0], UNHEX(signatures["body"]))
        assert key.sign(text).hex() == signature


def input_digest(digest: bytes, vectors: list[Any], data: bytes, *, canaries: bool) -> bytes:
    """Of the packed vectors of an input without an attachment."""
    hashes, start = [], 0
    for _, length, bits in vectors:
        end = start - (-(length + (-(-64 // bits) if canaries else 0)) * bits // 8)
        piece = 2**16 * bits // 8
        hashes += [sha256(data[place : min(end, place + piece)]) for place in range(start, end, piece)]
        start = end
    assert start == len(data)
    return sha256(join(V, b"input", digest, u64(len(data)), *hashes))


class Masked:
    """A masking round taken apart: statements by phase and position, and what follows their signatures."""

    phases: ClassVar = {1: "advertise", 3: "share", 5: "masked-input", 7: "consistency", 9: "unmask"}
    sizes: ClassVar = {1: 2432, 3: 224, 5: 64, 7: 64}

    def __init__(self, case: Any, digest: bytes) -> None:
        self.case, self.digest = case, digest
        self.names = sorted(case["keys"])
        self.bodies: dict[int, dict[int, bytes]] = {kind: {} for kind in self.phases}
        self.signatures: dict[int, dict[int, bytes]] = {kind: {} for kind in self.phases}
        self.rests: dict[int, dict[int, bytes]] = {kind: {} for kind in self.phases}

    def take(self, payload: bytes, sender: str) -> None:
        """A client's message."""
        kind, index = payload[4], self.names.index(sender)
        assert payload[:39] == frame(kind, self.digest, index)
        size = self.sizes.get(kind, 32 * len(self.bodies[3]))
        self.statement(kind, index, payload[39 : 39 + size], payload[39 + size : 103 + size])
        self.rests[kind][index] = payload[103 + size :]

    def statement(self, kind: int, index: int, body: bytes, signature: bytes) -> None:
        """A signed body, compared with its signature."""
        name = self.names[index]
        text = statement(self.phases[kind], self.digest, name, body)
        assert verifies(UNHEX(self.case["keys"][name]), signature, text)
        self.bodies[kind][index] = body
        self.signatures[kind][index] = signature

    def transcript(self, label: bytes, *kinds: int, among: list[int]) -> bytes:
        rows = {self.names[i].encode(): tuple(self.bodies[kind][i] for kind in kinds) for i in among}
        digest: bytes = masking.transcript(label, self.digest, rows)
        return digest

    def roster(self, kind: int) -> bytes:
        return roster({i: body + self.signatures[kind][i] for i, body in self.bodies[kind].items()})

    def parcels(self, dealer: int) -> tuple[bytes, dict[int, bytes]]:
        """Escrow and parcels of a dealer."""
        rest, directory = self.rests[3][dealer], sorted(self.bodies[1])
        place = 28 + 32 * sum(to > dealer for to in directory)
        escrow, found = rest[:place], {}
        for to in directory:
            if to != dealer:
                size = (1088 if to > dealer else 0) + 1264
                found[to], place = rest[place : place + size], place + size
        assert place == len(rest)
        return escrow, found

    def delivery(self, to: int) -> bytes:
        """The aggregator's message of phase 3."""
        out = frame(4, self.digest, -1) + self.roster(3)
        for dealer in sorted(self.bodies[3]):
            if dealer != to:
                leaves = self.parcels(dealer)[1]
                levels = tree(leaves, len(self.names))
                out += leaves[to] + b"".join(
                    levels[height][(to >> height) ^ 1] for height in range(len(levels) - 1)
                )
        return out

    def shares(self, dealer: int, secrets: Any) -> dict[int, bytes]:
        secret = UNHEX(secrets["root"]) + UNHEX(secrets["self_mask"])
        return {
            holder: share_at(secret, UNHEX(secrets["coefficients"]), holder + 1)
            for holder in sorted(self.bodies[1])
        }

    def commitments(self, share: bytes, dealer: int, holder: int) -> bytes:
        names = self.names[dealer].encode(), self.names[holder].encode()
        halves = ((b"root", share[:32]), (b"self", share[32:]))
        return b"".join(hkdf(half, b"commitment/share", kind, self.digest, *names) for kind, half in halves)


def check_masking_round(cases: Any) -> None:
    for case in cases:
        whole = Masked(case, recorded_round(case, ["masking", {}]))
        sends: list[list[list[str]]] = []
        for event in case["events"]:
            if "deliver" in event:
                whole.take(UNHEX(event["deliver"]), event["sender"])
            sends.append(event["sends"])
        answered = [sorted(whole.bodies[kind]) for kind in whole.phases]
        expected = []
        for kind, members in zip((2, 4, 6, 8), answered, strict=False):
            head = frame(kind, whole.digest, -1)
            for index in members:
                text = whole.delivery(index) if kind == 4 else head + whole.roster(kind - 1)
                expected.append([whole.names[index], sha256(text).hex()])
        assert [one for row in sends for one in row] == expected
        check_statements(whole)
        check_secrets(whole, case)
        check_masked_sums(whole, case)


def check_statements(whole: Masked) -> None:
    """The digests that statements name, and the tree and the escrow that phase 2 covers."""
    directory, members, survivors = (sorted(whole.bodies[kind]) for kind in (1, 3, 5))
    seen = whole.transcript(b"directory", 1, among=directory)
    both = whole.transcript(b"members", 1, 3, among=members)
    last = whole.transcript(b"survivors", 5, among=survivors)
    for dealer, body in whole.bodies[3].items():
        escrow, parcels = whole.parcels(dealer)
        assert body[:32] == seen
        assert body[160:] == sha256(escrow) + tree(parcels, len(whole.names))[-1][0]
    for index, body in whole.bodies[5].items():
        covered = input_digest(whole.digest, whole.case["vectors"], whole.rests[5][index], canaries=True)
        assert body == both + covered
    assert set(whole.bodies[7].values()) == {both + last}


def check_secrets(whole: Masked, case: Any) -> None:
    """Commitments, boxes, escrows and unmask messages from the clients' secrets."""
    digest, names = whole.digest, [name.encode() for name in whole.names]
    shares: dict[int, dict[int, bytes]] = {}
    for dealer in sorted(whole.bodies[3]):
        secrets, body = case["secrets"][whole.names[dealer]], whole.bodies[3][dealer]
        shares[dealer] = whole.shares(dealer, secrets)
        root, escrow = UNHEX(secrets["root"]), whole.parcels(dealer)[0]
        assert body[32:64] == hkdf(root, b"commitment/root", digest, names[dealer])
        assert body[64:96] == hkdf(UNHEX(secrets["self_mask"]), b"commitment/self", digest, names[dealer])
        assert body[96:160] == whole.commitments(shares[dealer][dealer], dealer, dealer)
        parcels = whole.parcels(dealer)[1]
        later = [to for to in parcels if to > dealer]
        content = sha256(b"".join(parcels[to][:1088] for to in later))
        key = hkdf(root, b"escrow", digest, names[dealer], body[:32], content)
        assert escrow[:12].hex() == secrets["nonce"]
        context = join(V, b"escrow", digest, names[dealer], body[:32])
        kept = AESGCM(key).decrypt(escrow[:12], escrow[12:], context)
        for place, to in enumerate(later):
            root_of_later = UNHEX(case["secrets"][whole.names[to]]["root"])
            seed = hkdf(root_of_later, b"mask-key/ml-kem-768", digest, names[to], length=64)
            secret = MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(parcels[to][:1088])
            assert kept[32 * place : 32 * place + 32] == secret
        for to, parcel in parcels.items():
            private = UNHEX(case["secrets"][whole.names[to]]["sealing_seed"])
            assert whole.bodies[1][to][1216:] == hybrid_public(private)
            context = join(V, b"share", digest, names[dealer], names[to])
            assert sealed(private, parcel[-1264:-64], context) == shares[dealer][to]
            assert parcel[-64:] == whole.commitments(shares[dealer][to], dealer, to)
    for holder, body in whole.bodies[9].items():
        halves = (
            shares[dealer][holder][32:] if dealer in whole.bodies[5] else shares[dealer][holder][:32]
            for dealer in sorted(whole.bodies[3])
        )
        assert body == b"".join(halves)


def check_masked_sums(whole: Masked, case: Any) -> None:
    """Masked inputs and opened sums."""
    clients = {
        i: (name, UNHEX(case["secrets"][name]["root"]), UNHEX(case["secrets"][name]["self_mask"]))
        for i, name in enumerate(whole.names)
    }
    members, survivors = sorted(whole.bodies[3]), sorted(whole.bodies[5])
    ciphertexts = {
        (dealer, to): whole.parcels(dealer)[1][to][:1088]
        for dealer in members
        for to in whole.bodies[1]
        if to > dealer
    }
    checker = masking.Checker(whole.digest, clients, ciphertexts=ciphertexts, members=members)
    for index, body in whole.bodies[1].items():
        client = checker.clients[index]
        assert body[:1216] == client.kem_public() + client.x25519_public()
    start = 0
    for name, length, bits in case["vectors"]:
        end = start - (-(length + -(-64 // bits)) * bits // 8)
        packed = {i: rest[start:end] for i, rest in whole.rests[5].items()}
        start = end
        for index in survivors:
            values = case["inputs"][whole.names[index]][name]
            assert packed[index] == checker.masked(index, name, values, bits)
        opened = checker.opened(packed, survivors, name, length, bits)
        rows = [case["inputs"][whole.names[i]][name] for i in survivors]
        assert opened == [sum(column) % 2**bits for column in zip(*rows, strict=True)] + [
            len(survivors) % 2**bits
        ] * -(-64 // bits)
        assert opened[:length] == case["sums"][name]
    assert case["survivors"] == [whole.names[i] for i in survivors]


def check_masking_client(case: Any) -> None:
    whole = Masked(case, recorded_round(case, ["masking", {}]))
    index, secrets = whole.names.index(case["client"]), case["secrets"]
    whole.take(UNHEX(case["start"]), case["client"])
    held: dict[int, tuple[bytes, bytes]] = {}
    for kind, step in zip((2, 4, 6, 8), case["steps"], strict=True):
        rest = take_request(whole, kind, UNHEX(step["request"]))
        if kind == 4:
            held = check_parcels(whole, index, rest, UNHEX(secrets["sealing_seed"]))
        else:
            assert rest == b""
        whole.take(UNHEX(step["answer"]), case["client"])
    # What the client sent, from its secrets.
    shares = whole.shares(index, secrets)
    escrow, parcels = whole.parcels(index)
    assert whole.bodies[3][index][160:] == sha256(escrow) + tree(parcels, len(whole.names))[-1][0]
    for to, parcel in parcels.items():
        assert parcel[-64:] == whole.commitments(shares[to], index, to)
    assert whole.bodies[3][index][96:160] == whole.commitments(shares[index], index, index)
    members, survivors = sorted(whole.bodies[3]), sorted(whole.bodies[5])
    both = whole.transcript(b"members", 1, 3, among=members)
    assert whole.bodies[7][index] == both + whole.transcript(b"survivors", 5, among=survivors)
    packed = masked_by(whole, index, held)
    assert whole.rests[5][index] == packed
    assert whole.bodies[5][index] == both + input_digest(whole.digest, case["vectors"], packed, canaries=True)
    held[index] = (shares[index], b"")
    answer = (held[i][0][32:] if i in survivors else held[i][0][:32] for i in members)
    assert whole.bodies[9][index] == b"".join(answer)
    names = {bad["name"] for step in case["steps"] for bad in step["bad"]}
    assert len(names) == 15
    assert all(name.startswith("bad_") for name in names)


def take_request(whole: Masked, kind: int, request: bytes) -> bytes:
    """Read a request's roster; returns what follows it."""
    assert request[:39] == frame(kind, whole.digest, -1)
    place, size = 47, Masked.sizes[kind - 1]
    bits = int.from_bytes(request[39:47], "little")
    for member in range(len(whole.names)):
        if bits >> member & 1:
            body, signature = request[place : place + size], request[place + size : place + size + 64]
            whole.statement(kind - 1, member, body, signature)
            place += size + 64
    return request[place:]


def masked_by(whole: Masked, index: int, held: dict[int, tuple[bytes, bytes]]) -> bytes:
    """A client's masked input from its own secrets, and its keys compared with what it advertised."""
    case, digest = whole.case, whole.digest
    secrets = {name: UNHEX(value) for name, value in case["secrets"].items()}
    me = masking.Client(case["client"], secrets["root"], secrets["self_mask"], digest)
    public = me.kem_public() + me.x25519_public() + hybrid_public(secrets["sealing_seed"])
    assert whole.bodies[1][index] == public
    seeds = {}
    for other in held:
        low, high = sorted((index, other))
        if other > index:
            ciphertext = whole.parcels(index)[1][other][:1088]
            secret = UNHEX(case["encapsulated"][whole.names[other]])
        else:
            ciphertext = held[other][1]
            secret = me.kem.decapsulate(ciphertext)
        keys = [whole.bodies[1][i][1184:1216] for i in (low, high)]
        exchanged = me.x25519.exchange(X25519PublicKey.from_public_bytes(keys[other > index]))
        pair = whole.names[low].encode(), whole.names[high].encode()
        bound = (digest, *pair, *keys, whole.bodies[1][high][:1184], ciphertext)
        seeds[other] = (hkdf(exchanged + secret, b"pair", *bound), pair)
    packed = b""
    for vector, length, bits in case["vectors"]:
        canaries = -(-64 // bits)
        named = (vector.encode(), u8(bits))
        total = [*case["inputs"][vector], *[1] * canaries]
        streams = [(1, hkdf(me.self_mask, b"mask", b"self", digest, me.name, *named))]
        for other, (seed, pair) in seeds.items():
            streams.append((1 if other > index else -1, hkdf(seed, b"mask", b"pair", digest, *pair, *named)))
        for sign, key in streams:
            stream = masking.mask(key, length + canaries, bits)
            total = [(a + sign * b) % 2**bits for a, b in zip(total, stream, strict=True)]
        packed += pack(total, bits)
    return packed


def check_parcels(whole: Masked, to: int, data: bytes, private: bytes) -> dict[int, tuple[bytes, bytes]]:
    """What was delivered to a client: by dealer, its share and the KEM ciphertext."""
    found, place, height = {}, 0, (len(whole.names) - 1).bit_length()
    for dealer in sorted(whole.bodies[3]):
        if dealer == to:
            continue
        size = (1088 if to > dealer else 0) + 1264
        parcel, place = data[place : place + size], place + size
        current, position = sha256(b"\x00", parcel), to
        for _ in range(height):
            sibling, place = data[place : place + 32], place + 32
            current = sha256(b"\x01", *((sibling, current) if position & 1 else (current, sibling)))
            position >>= 1
        assert current == whole.bodies[3][dealer][192:]
        context = join(V, b"share", whole.digest, whole.names[dealer].encode(), whole.names[to].encode())
        share = sealed(private, parcel[-1264:-64], context)
        assert share is not None
        assert parcel[-64:] == whole.commitments(share, dealer, to)
        found[dealer] = (share, parcel[:-1264])
    assert place == len(data)
    return found


def check_plain_round(case: Any) -> None:
    digest = recorded_round(case, ["plain", {}])
    totals, weight = [0] * 66_001, 0
    for index, client in enumerate(case["clients"]):
        head = UNHEX(client["message_head"])
        assert head[:39] == frame(17, digest, index)
        values = [(place + client["update_starts_at"]) % 8 for place in range(66_001)]
        data = pack(values, 3) + pack([client["weight"]], 40)
        assert client["message_bytes"] == len(head) + len(data)
        assert head[39:71] == input_digest(digest, case["vectors"], data, canaries=False)
        text = statement("plain-input", digest, client["name"], head[39:71])
        assert verifies(UNHEX(case["keys"][client["name"]]), head[71:], text)
        totals = [(a + b) % 8 for a, b in zip(totals, values, strict=True)]
        weight += client["weight"]
    assert totals[:20] == case["first_sums"]
    assert weight % 2**40 == case["weight"]
    assert case["survivors"] == case["cohort"]
