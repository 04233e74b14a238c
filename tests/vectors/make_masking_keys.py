"""Every derivation of a masking round: keys, commitments, contexts, transcripts, signatures."""

from __future__ import annotations

import hashlib
from typing import Any

from secfl.crypto.hazmat.merkle import path, root
from secfl.crypto.identity import Identity
from secfl.crypto.inputs import hash_pieces, input_digest
from secfl.crypto.masking_keys import (
    PairParts,
    ShareKind,
    directory_digest,
    escrow_context,
    escrow_key,
    mask_key_pair,
    members_digest,
    pair_key,
    pair_seed,
    root_commitment,
    self_commitment,
    self_key,
    share_commitment,
    share_context,
    survivors_digest,
)
from secfl.crypto.messages import Advertise
from secfl.crypto.wire import Phase, Signed, sign_body
from secfl.randomness import InsecureSeededRng
from secfl.types import RoundId, RoundSpec, SchemeSpec, VectorSpec, client_id

LOW, HIGH = client_id("anna"), client_id("bert")
VECTOR = VectorSpec(name="update", length=5, modulus_bits=22)


def make(previous: Any) -> Any:
    """One pair of clients in one round."""
    rng = InsecureSeededRng(22)
    spec = RoundSpec(
        run_id=bytes(range(16)),
        round_id=RoundId(3),
        cohort=(LOW, HIGH, client_id("cleo")),
        threshold=3,
        vectors=(VECTOR,),
        scheme=SchemeSpec(name="masking"),
        manifest_digest=b"\x01" * 32,
        model_digest=b"\x02" * 32,
        task_digest=b"\x03" * 32,
        plan_digest=b"\x04" * 32,
    )
    digest = spec.digest()
    roots, secret, kem_secret = [rng.bytes(32), rng.bytes(32)], rng.bytes(32), rng.bytes(32)
    keys = [
        mask_key_pair(one, digest=digest, client=name) for one, name in zip(roots, (LOW, HIGH), strict=True)
    ]
    adverts = [Advertise.decode(key.public() + rng.bytes(1216), peer="") for key in keys]
    ciphertext = rng.bytes(1088)
    shared = keys[0].exchange(adverts[1].x25519)
    parts = PairParts(low=LOW, high=HIGH, low_keys=adverts[0], high_keys=adverts[1], ciphertext=ciphertext)
    seed = pair_seed(shared, kem_secret, parts, digest=digest)
    bodies = {0: Signed(b"first", b""), 2: Signed(b"third", b"")}
    deals = {0: Signed(b"one", b""), 2: Signed(b"three", b"")}
    identity = Identity(LOW, rng.bytes(32))
    return {
        "digest": digest.hex(),
        "cohort": list(spec.cohort),
        "secret": secret.hex(),
        "roots": [one.hex() for one in roots],
        "mask_key_seeds": [key.seed.hex() for key in keys],
        "mask_key_public_sha256": [hashlib.sha256(key.public()).hexdigest() for key in keys],
        "root_commitment": root_commitment(secret, digest=digest, client=LOW).hex(),
        "self_commitment": self_commitment(secret, digest=digest, client=LOW).hex(),
        "share_commitments": {
            kind.value: share_commitment(secret, kind, digest=digest, dealer=LOW, holder=HIGH).hex()
            for kind in ShareKind
        },
        "share_context": share_context(digest=digest, dealer=LOW, holder=HIGH).hex(),
        "escrow_key": escrow_key(
            secret, digest=digest, client=LOW, directory=b"\x05" * 32, ciphertexts=b"ciphertexts"
        ).hex(),
        "escrow_context": escrow_context(digest=digest, client=LOW, directory=b"\x05" * 32).hex(),
        "pair": {
            "x25519_secret": shared.hex(),
            "kem_secret": kem_secret.hex(),
            "kem_ciphertext": ciphertext.hex(),
            "seed": seed.hex(),
            "key": pair_key(seed, VECTOR, digest=digest, low=LOW, high=HIGH).hex(),
        },
        "self_key": self_key(secret, VECTOR, digest=digest, client=LOW).hex(),
        "transcripts": {
            "directory": directory_digest(digest, spec.cohort, bodies).hex(),
            "members": members_digest(digest, spec.cohort, adverts=bodies, deals=deals).hex(),
            "survivors": survivors_digest(digest, spec.cohort, bodies).hex(),
        },
        "input": input_digest(digest, 6, hash_pieces(memoryview(b"abcdef"), piece_bytes=4)).hex(),
        "tree": {
            "root": root({0: b"a", 2: b"c"}, places=3).hex(),
            "path_of_2": [one.hex() for one in path({0: b"a", 2: b"c"}, 2, places=3)],
        },
        "signatures": {
            "seed": identity.seed.hex(),
            "public": identity.public_key().hex(),
            "body": b"body".hex(),
            "by_phase": {
                phase: sign_body(identity, Phase(phase), digest=digest, body=b"body").signature.hex()
                for phase in ("advertise", "share", "masked-input", "consistency", "unmask", "plain-input")
            },
        },
    }
