"""What an aggregator can rebuild from what it was given, and what it can open with that.

In an honest round it learns the seeds of self masks, which are meant to be taken off, and nothing else: no sealed
share and no escrow of pairwise secrets opens under any of them, or under any value that it relayed.
"""

from __future__ import annotations

from typing import Final

from secfl.audit.findings import Finding
from secfl.audit.seen import Box, RunShape, Seen
from secfl.crypto.hazmat import shamir
from secfl.crypto.hazmat.sealed import NONCE_BYTES, SealingKey, aead_open
from secfl.crypto.masking_keys import escrow_context, escrow_key, share_context
from secfl.types import ClientId

__all__ = ["boxes_stay_shut", "held_values", "self_masks"]

_MOST_CANDIDATES: Final = 1000
_MOST_TRIALS: Final = 20_000


def boxes_stay_shut(seen: Seen, shape: RunShape) -> Finding:
    """Try every value that the aggregator holds on sealed shares and escrows; opening one is a fact, not a chance.

    A value is tried as the root of an escrow's key, as that key itself, and, three times over, as the seed of the
    key that a share is sealed to.
    """
    name = "no sealed share or escrow opens under what the aggregator holds"
    values = [bytes(32), *held_values(seen)]
    for round_id, answers in seen.shares.items():
        values += self_masks(seen, shape, round_id, answers).values()
    values = list(dict.fromkeys(values))
    escrows = [box for box in seen.boxes if not box.holder]
    shares = [box for box in seen.boxes if box.holder]
    if not escrows and not shares:
        return Finding(
            name=name, flagged=False, statistic="", power="not run: nothing encrypted was recorded"
        )
    digests = {number: next(iter(found)) for number, found in seen.digests.items() if len(found) == 1}
    keys = [SealingKey(value * 3) for value in values[: _MOST_CANDIDATES // 10]]
    opened, trials = 0, 0
    for box in _spread(escrows, each=2 * len(values)):
        for value in values:
            trials += 2
            opened += box.round_id in digests and _opens_escrow(box, value, digest=digests[box.round_id])
    for box in _spread(shares, each=10 * len(keys)):
        for key in keys:
            trials += 1
            opened += box.round_id in digests and _opens_share(box, key, digest=digests[box.round_id])
    return Finding(
        name=name,
        flagged=opened > 0,
        statistic=f"{opened} opened in {trials} trials with {len(values)} values",
        power="boxes keyed by a value that was relayed or is rebuilt when self masks come off",
    )


def _spread(boxes: list[Box], *, each: int) -> list[Box]:
    """As many boxes as the trials allow, evenly from all."""
    most = max(4, _MOST_TRIALS // max(1, each))
    return boxes[:: -(-len(boxes) // most)] if boxes else []


def _opens_escrow(box: Box, value: bytes, *, digest: bytes) -> bool:
    client = ClientId(box.dealer)
    context = escrow_context(digest=digest, client=client, directory=box.directory)
    derived = escrow_key(
        value, digest=digest, client=client, directory=box.directory, ciphertexts=box.ciphertexts
    )
    return any(_opens(key, box.content, context) for key in (derived, value))


def _opens(key: bytes, content: bytes, context: bytes) -> bool:
    try:
        aead_open(key, content[:NONCE_BYTES], content[NONCE_BYTES:], associated=context)
    except ValueError:
        return False
    return True


def _opens_share(box: Box, key: SealingKey, *, digest: bytes) -> bool:
    info = share_context(digest=digest, dealer=ClientId(box.dealer), holder=ClientId(box.holder))
    try:
        key.open(box.content, info=info)
    except ValueError:
        return False
    return True


def self_masks(
    seen: Seen, shape: RunShape, round_id: int, answers: dict[str, tuple[bytes, ...]]
) -> dict[str, bytes]:
    """Whose self-mask seed a threshold of shares gives, checked against nothing: the caller tests the outcome."""
    members = seen.dealers(round_id)
    survivors = {one.sender for one in seen.inputs if one.round_id == round_id}
    holders = sorted(answers)[: shape.threshold]
    if len(holders) < shape.threshold:
        return {}
    secrets = {}
    for place, member in enumerate(members):
        shares = [
            (shape.cohort.index(ClientId(holder)) + 1, answers[holder][place])
            for holder in holders
            if place < len(answers[holder])
        ]
        if member in survivors and len(shares) == shape.threshold:
            secrets[member] = shamir.combine(shares)
    return secrets


def held_values(seen: Seen) -> list[bytes]:
    """32-byte values: the beginnings of fresh fields, shares that were sent, labels of rounds."""
    values = dict.fromkeys(one.value[:32] for one in seen.fresh if len(one.value) >= 32)
    for answers in seen.shares.values():
        for shares in answers.values():
            values.update(dict.fromkeys(shares))
    for digests in seen.digests.values():
        values.update(dict.fromkeys(digests))
    return list(values)[:_MOST_CANDIDATES]
