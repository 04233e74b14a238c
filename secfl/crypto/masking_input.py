"""Phase 3 of masking: a client's vectors under its self mask and the masks of its pairs, packed and hashed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from secfl.crypto.attachments import Words
from secfl.crypto.hazmat.prg import MaskStream
from secfl.crypto.hazmat.sealed import AgreementKey
from secfl.crypto.inputs import encode_attachment, encode_vector, input_digest
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.masking_streams import agree
from secfl.crypto.messages import Advertise
from secfl.types import VectorSpec

__all__ = ["mask_input"]


def mask_input(
    masked: MaskedRound,
    index: int,
    keys: AgreementKey,
    *,
    inputs: Mapping[str, Words],
    attachment: bytes,
    adverts: Mapping[int, Advertise],
    encapsulated: Mapping[int, tuple[bytes, bytes]],
    streams: Callable[[VectorSpec, Mapping[int, bytes]], list[MaskStream]],
    threads: int,
) -> tuple[bytes, list[bytes]]:
    """The digest of a masked input, and the input in pieces.

    Args:
        masked: The round.
        index: The client's cohort position.
        keys: The client's mask keys.
        inputs: Its vectors.
        attachment: Its attachment.
        adverts: Phase-1 bodies of the members at least.
        encapsulated: For every other member, the KEM secret (empty from an earlier client) and ciphertext.
        streams: The masks of one vector, from the pairs' seeds.
        threads: How many threads may work at once.

    Raises:
        RemoteProtocolError: Blames a member with an X25519 key of small order.
    """
    seeds = {
        other: agree(masked, index, other, keys=keys, adverts=adverts, encapsulated=pair)
        for other, pair in encapsulated.items()
    }
    parts = [
        encode_vector(
            vector,
            inputs[vector.name],
            canaries=masked.canaries(vector),
            streams=streams(vector, seeds),
            threads=threads,
        )
        for vector in masked.vectors
    ]
    parts.append(encode_attachment(attachment, threads=threads))
    hashes = [piece for part in parts for piece in part.hashes]
    return input_digest(masked.digest, masked.input_bytes, hashes), [
        piece for part in parts for piece in part.pieces
    ]
