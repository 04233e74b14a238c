"""Rounds of any scheme, carried for the sake of their recording: real parties, real bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secfl.audit.recording import Recording, RecordingDriver
from secfl.audit.seen import RunShape
from secfl.crypto.aggregation import SecureAggregation
from secfl.crypto.attachments import Words
from secfl.crypto.identity import Directory, Identity
from secfl.federation.inprocess import InProcessDriver
from secfl.randomness import Rng
from secfl.types import ClientId, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, VectorSpec

__all__ = ["record_rounds", "small_values"]


def small_values(length: int, *, bits: int, rng: Rng, spread: int = 8) -> Words:
    """Residues as updates have them: signed values of ``spread`` bits in a modulus of ``bits``."""
    raw = np.frombuffer(rng.bytes(8 * length), np.dtype("<i8")) >> np.int64(64 - spread)
    word = np.uint32 if bits <= 32 else np.uint64
    return (raw & np.int64((1 << bits) - 1)).astype(word)


def record_rounds(
    scheme: SecureAggregation,
    scheme_spec: SchemeSpec,
    *,
    rounds: int,
    rng: Rng,
    clients: int = 3,
    vectors: Sequence[VectorSpec] = (VectorSpec(name="update", length=2000, modulus_bits=16),),
) -> tuple[Recording, RunShape]:
    """Carry rounds on small values and keep every envelope.

    Args:
        scheme: Makes the parties; may be a broken one.
        scheme_spec: Its name and parameters.
        rounds: How many.
        rng: Identities, inputs and the clients' secrets.
        clients: Cohort.
        vectors: Of every round.

    Returns:
        The recording, and its public shape, which claims that updates are hidden whatever the scheme says.
    """
    names = [ClientId(f"site-{index:02d}") for index in range(clients)]
    identities = [Identity.generate(name, rng.fork(f"identity/{name}")) for name in names]
    directory = Directory.enroll(identities)
    recording = Recording()
    threshold = max(3, clients * 2 // 3 + 1)
    for number in range(rounds):
        spec = RoundSpec(
            run_id=bytes(16),
            round_id=RoundId(number),
            cohort=tuple(names),
            threshold=threshold,
            vectors=tuple(vectors),
            scheme=scheme_spec,
            manifest_digest=directory.digest(),
            model_digest=bytes(32),
            task_digest=bytes(32),
            plan_digest=bytes(32),
        )
        parties = {}
        for identity in identities:
            source = rng.fork(f"round/{number}/{identity.name}")
            update = PrivatizedUpdate.without_noise(
                {
                    one.name: small_values(one.length, bits=one.modulus_bits, rng=source.fork(one.name))
                    for one in vectors
                }
            )
            parties[identity.name] = scheme.client(
                spec, identity, directory=directory, update=update, rng=source
            )
        aggregator = scheme.aggregator(spec, directory=directory)
        RecordingDriver(InProcessDriver(), recording, round_id=number).carry(
            aggregator, parties, watch=lambda _: None
        )
    shape = RunShape(
        scheme=scheme_spec.name,
        key_mode=dict(scheme_spec.parameters).get("key_mode", "pairwise"),
        cohort=tuple(names),
        threshold=threshold,
        vectors=tuple(vectors),
        hides=True,
    )
    return recording, shape
