"""Pair seeds and mask streams: what a client puts on its input, and what the aggregator takes off the sum."""

from __future__ import annotations

from collections.abc import Mapping

from secfl.crypto.hazmat.prg import MaskStream, Sign
from secfl.crypto.hazmat.sealed import AgreementKey
from secfl.crypto.masking_keys import PairParts, pair_key, pair_seed, self_key
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import Advertise
from secfl.errors import RemoteProtocolError
from secfl.types import VectorSpec

__all__ = ["agree", "pair_stream", "self_stream"]


def agree(
    masked: MaskedRound,
    one: int,
    other: int,
    *,
    keys: AgreementKey,
    adverts: Mapping[int, Advertise],
    encapsulated: tuple[bytes, bytes],
) -> bytes:
    """The seed of the pair ``(one, other)``, computed with the private keys of ``one``.

    Args:
        masked: The round.
        one: Cohort position of the client whose keys are known.
        other: Cohort position of its peer.
        keys: The mask keys of ``one``.
        adverts: Phase-1 bodies, of these two at least.
        encapsulated: The KEM secret and ciphertext from the earlier to the later client. The secret may be
            empty when ``one`` is the later client, which decapsulates.

    Raises:
        RemoteProtocolError: Blames ``other`` for an X25519 key of small order.
    """
    low, high = min(one, other), max(one, other)
    secret, ciphertext = encapsulated
    if one == high:
        secret = keys.decapsulate(ciphertext)
    try:
        shared = keys.exchange(adverts[other].x25519)
    except ValueError:
        raise RemoteProtocolError(
            masked.name_of(other), "advertised a mask key that cannot be used"
        ) from None
    parts = PairParts(
        low=masked.name_of(low),
        high=masked.name_of(high),
        low_keys=adverts[low],
        high_keys=adverts[high],
        ciphertext=ciphertext,
    )
    return pair_seed(shared, secret, parts, digest=masked.digest)


def self_stream(masked: MaskedRound, client: int, seed: bytes, vector: VectorSpec) -> MaskStream:
    """The self mask of a client, as it adds it to one vector."""
    key = self_key(seed, vector, digest=masked.digest, client=masked.name_of(client))
    return MaskStream(key, Sign.ADD)


def pair_stream(
    masked: MaskedRound, client: int, other: int, *, seed: bytes, vector: VectorSpec
) -> MaskStream:
    """A pairwise mask as ``client`` applies it: added towards a later client, subtracted towards an earlier."""
    low, high = min(client, other), max(client, other)
    key = pair_key(seed, vector, digest=masked.digest, low=masked.name_of(low), high=masked.name_of(high))
    return MaskStream(key, Sign.ADD if other > client else Sign.SUBTRACT)
