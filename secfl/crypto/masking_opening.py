"""The last step of a masking round: from t shares of each member's one secret to the sums.

Reconstruction checks every secret against the commitment that its owner signed, and for a client that dropped
out derives its public keys again. A wrong secret ends the round and is blamed; it is never summed.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from secfl.crypto.hazmat import shamir
from secfl.crypto.hazmat.prg import MaskStream
from secfl.crypto.inputs import Accumulator
from secfl.crypto.masking_aggregator_memory import AggregatorMemory
from secfl.crypto.masking_dealing import open_escrow
from secfl.crypto.masking_keys import mask_key_pair, root_commitment, self_commitment
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.masking_streams import agree, pair_stream, self_stream
from secfl.crypto.messages import SECRET_BYTES, Advertise, Deal
from secfl.crypto.wire import Phase
from secfl.errors import RemoteProtocolError
from secfl.types import VectorSpec

__all__ = ["reconstruct", "remove_masks"]


def reconstruct(masked: MaskedRound, memory: AggregatorMemory) -> dict[int, bytes]:
    """One secret of every member: the self-mask seed of a survivor, the root of a client that dropped out.

    Raises:
        RemoteProtocolError: Blames the member whose shares, each as it was committed to, do not combine to the
            secret that it committed to.
    """
    members = sorted(memory.statements[Phase.SHARE])
    survivors = memory.statements[Phase.MASKED_INPUT]
    answers = memory.statements[Phase.UNMASK]
    holders = sorted(answers)[: masked.spec.threshold]
    together = shamir.combine([(holder + 1, answers[holder].body) for holder in holders])
    secrets = {}
    for place, member in enumerate(members):
        secret = together[place * SECRET_BYTES : (place + 1) * SECRET_BYTES]
        name = masked.name_of(member)
        deal = Deal.decode(memory.statements[Phase.SHARE][member].body, peer=name)
        if member in survivors:
            expected = deal.self_commitment
            found = self_commitment(secret, digest=masked.digest, client=name)
        else:
            expected = deal.root_commitment
            found = root_commitment(secret, digest=masked.digest, client=name)
        if not hmac.compare_digest(found, expected):
            raise RemoteProtocolError(name, "the shares that it dealt do not give what it committed to")
        secrets[member] = secret
    return secrets


def remove_masks(
    masked: MaskedRound, memory: AggregatorMemory, sums: Accumulator, *, secrets: Mapping[int, bytes]
) -> None:
    """Take off the sums the self masks of the survivors, and their masks towards those who dropped out.

    Raises:
        RemoteProtocolError: Blames a dropped client whose keys or escrow contradict its root.
    """
    survivors = sorted(memory.statements[Phase.MASKED_INPUT])
    seeds = {
        (survivor, dropped): seed
        for dropped in sorted(set(secrets) - set(survivors))
        for survivor, seed in _pair_seeds(masked, memory, dropped, secrets[dropped]).items()
    }
    for vector in masked.vectors:
        sums.apply(vector, _streams_to_remove(masked, vector, survivors, secrets=secrets, seeds=seeds))


def _streams_to_remove(
    masked: MaskedRound,
    vector: VectorSpec,
    survivors: list[int],
    *,
    secrets: Mapping[int, bytes],
    seeds: Mapping[tuple[int, int], bytes],
) -> list[MaskStream]:
    applied = [self_stream(masked, client, secrets[client], vector) for client in survivors]
    applied += [
        pair_stream(masked, survivor, dropped, seed=seed, vector=vector)
        for (survivor, dropped), seed in seeds.items()
    ]
    return [MaskStream(stream.key, stream.sign.opposite()) for stream in applied]


def _pair_seeds(masked: MaskedRound, memory: AggregatorMemory, dropped: int, root: bytes) -> dict[int, bytes]:
    """By survivor, the seed that it shares with a client that dropped out."""
    name = masked.name_of(dropped)
    adverts = {
        index: Advertise.decode(signed.body, peer=masked.name_of(index))
        for index, signed in memory.statements[Phase.ADVERTISE].items()
    }
    keys = mask_key_pair(root, digest=masked.digest, client=name)
    if keys.public() != adverts[dropped].mask_key:
        raise RemoteProtocolError(name, "its root does not give the keys that it advertised")
    ciphertexts = {
        index: parcel.kem_ciphertext for index, parcel in memory.parcels[dropped].items() if index > dropped
    }
    escrowed = open_escrow(
        masked,
        dropped,
        root=root,
        escrow=memory.escrows[dropped],
        ciphertexts=ciphertexts,
        directory=Deal.decode(memory.statements[Phase.SHARE][dropped].body, peer=name).directory_digest,
    )
    seeds = {}
    for survivor in memory.statements[Phase.MASKED_INPUT]:
        if survivor > dropped:
            encapsulated = escrowed[survivor], ciphertexts[survivor]
        else:
            encapsulated = b"", memory.parcels[survivor][dropped].kem_ciphertext
        seeds[survivor] = agree(
            masked, dropped, survivor, keys=keys, adverts=adverts, encapsulated=encapsulated
        )
    return seeds
