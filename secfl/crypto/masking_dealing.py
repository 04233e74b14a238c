"""Phase 2 of masking, from the dealer's and from the holder's side: shares, escrow and parcels.

Everything here is a function of secrets and public messages; the parties keep the state.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from secfl.crypto.hazmat import merkle, shamir
from secfl.crypto.hazmat.sealed import (
    NONCE_BYTES,
    SealingKey,
    aead_open,
    aead_seal,
    encapsulate,
    seal_to,
)
from secfl.crypto.masking_keys import (
    ClientSecrets,
    ShareKind,
    escrow_context,
    escrow_key,
    mask_key_pair,
    root_commitment,
    self_commitment,
    share_commitment,
    share_context,
)
from secfl.crypto.masking_round import MaskedRound
from secfl.crypto.messages import SECRET_BYTES, Advertise, Deal, Delivery, Parcel
from secfl.crypto.wire import Roster, Signed
from secfl.errors import RemoteProtocolError
from secfl.types import AGGREGATOR, ClientId

__all__ = [
    "Dealt",
    "deal_out",
    "deliveries",
    "open_escrow",
    "open_parcel",
    "share_commitment_of",
    "share_commitments",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """What a client made in phase 2.

    Attributes:
        deal: The public body.
        escrow: KEM secrets, encrypted under a key from the root.
        parcels: Encoded, by recipient.
        encapsulated: KEM secret and ciphertext for every later client.
        own_share: The share that the client deals to itself: of the root, then of the self-mask seed.
    """

    deal: Deal
    escrow: bytes = field(repr=False)
    parcels: Mapping[int, bytes] = field(repr=False)
    encapsulated: Mapping[int, tuple[bytes, bytes]] = field(repr=False)
    own_share: bytes = field(repr=False)


def deal_out(
    masked: MaskedRound,
    index: int,
    secrets: ClientSecrets,
    *,
    adverts: Mapping[int, Advertise],
    directory: bytes,
) -> Dealt:
    """Encapsulate to every later client, share both secrets, and seal each share to its holder.

    Args:
        masked: The round.
        index: The dealer's cohort position.
        secrets: The dealer's.
        adverts: Verified phase-1 bodies, the dealer's own among them.
        directory: Digest of those messages.

    Raises:
        RemoteProtocolError: A client advertised a key that cannot be used, such as one of small order.
    """
    digest, dealer = masked.digest, masked.name_of(index)
    others = [other for other in sorted(adverts) if other != index]
    encapsulated = _encapsulate_all(masked, index, secrets, adverts=adverts)
    ciphertexts = b"".join(ciphertext for _, ciphertext in encapsulated.values())
    escrow = secrets.nonce + aead_seal(
        escrow_key(secrets.root, digest=digest, client=dealer, directory=directory, ciphertexts=ciphertexts),
        secrets.nonce,
        b"".join(secret for secret, _ in encapsulated.values()),
        associated=escrow_context(digest=digest, client=dealer, directory=directory),
    )
    shares = shamir.split(
        secrets.root + secrets.self_mask,
        threshold=masked.spec.threshold,
        points=[other + 1 for other in sorted(adverts)],
        coefficients=secrets.coefficients,
    )
    parcels = {}
    for other in others:
        ciphertext = encapsulated[other][1] if other in encapsulated else b""
        parcels[other] = _parcel(
            masked,
            index,
            other,
            share=shares[other + 1],
            sealing=adverts[other].sealing,
            ciphertext=ciphertext,
        )
    own_root, own_self = share_commitments(shares[index + 1], digest=digest, dealer=dealer, holder=dealer)
    deal = Deal(
        directory_digest=directory,
        root_commitment=root_commitment(secrets.root, digest=digest, client=dealer),
        self_commitment=self_commitment(secrets.self_mask, digest=digest, client=dealer),
        own_root_commitment=own_root,
        own_self_commitment=own_self,
        escrow_digest=hashlib.sha256(escrow).digest(),
        parcels_root=merkle.root(parcels, places=len(masked.spec.cohort)),
    )
    return Dealt(
        deal=deal,
        escrow=escrow,
        parcels=parcels,
        encapsulated=encapsulated,
        own_share=shares[index + 1],
    )


def _encapsulate_all(
    masked: MaskedRound, index: int, secrets: ClientSecrets, *, adverts: Mapping[int, Advertise]
) -> dict[int, tuple[bytes, bytes]]:
    """KEM secret and ciphertext for every later client; checks the keys of all."""
    keys = mask_key_pair(secrets.root, digest=masked.digest, client=masked.name_of(index))
    encapsulated = {}
    for other in sorted(adverts):
        if other == index:
            continue
        try:
            keys.exchange(adverts[other].x25519)
            if other > index:
                encapsulated[other] = encapsulate(adverts[other].kem)
        except ValueError:
            raise RemoteProtocolError(
                masked.name_of(other), "advertised a mask key that cannot be used"
            ) from None
    return encapsulated


def _parcel(
    masked: MaskedRound, index: int, other: int, *, share: bytes, sealing: bytes, ciphertext: bytes
) -> bytes:
    dealer, holder = masked.name_of(index), masked.name_of(other)
    root_part, self_part = share_commitments(share, digest=masked.digest, dealer=dealer, holder=holder)
    context = share_context(digest=masked.digest, dealer=dealer, holder=holder)
    try:
        sealed = seal_to(sealing, share, info=context)
    except ValueError:
        raise RemoteProtocolError(holder, "advertised a sealing key that cannot be used") from None
    return Parcel(
        kem_ciphertext=ciphertext, sealed=sealed, root_commitment=root_part, self_commitment=self_part
    ).encode()


def deliveries(
    masked: MaskedRound, deals: Mapping[int, Signed], parcels: Mapping[int, Mapping[int, Parcel]]
) -> dict[int, bytes]:
    """What the aggregator relays in phase 3: by member, everybody's deal and the parcels for this member.

    Args:
        masked: The round.
        deals: The members' statements of phase 2.
        parcels: By dealer and recipient, everything that the dealer's tree holds.
    """
    members, places = sorted(deals), len(masked.spec.cohort)
    leaves = {dealer: {to: parcel.encode() for to, parcel in parcels[dealer].items()} for dealer in members}
    paths = {dealer: merkle.paths(leaves[dealer], places=places) for dealer in members}
    roster = Roster(deals)
    contents = {}
    for to in members:
        own = {dealer: (leaves[dealer][to], paths[dealer][to]) for dealer in members if dealer != to}
        contents[to] = Delivery(deals=roster, parcels=own).encode()
    return contents


def share_commitments(
    share: bytes, *, digest: bytes, dealer: ClientId, holder: ClientId
) -> tuple[bytes, bytes]:
    """Commitments to the two halves of a dealt share: of the root and of the self-mask seed."""
    root_part, self_part = share[:SECRET_BYTES], share[SECRET_BYTES:]
    return (
        share_commitment(root_part, ShareKind.ROOT, digest=digest, dealer=dealer, holder=holder),
        share_commitment(self_part, ShareKind.SELF_MASK, digest=digest, dealer=dealer, holder=holder),
    )


def share_commitment_of(
    masked: MaskedRound, share: bytes, *, kind: ShareKind, dealer: int, holder: int
) -> bytes:
    """The commitment to one half of a share, by cohort positions."""
    return share_commitment(
        share, kind, digest=masked.digest, dealer=masked.name_of(dealer), holder=masked.name_of(holder)
    )


def open_parcel(
    masked: MaskedRound,
    sealing: SealingKey,
    encoded: bytes,
    *,
    dealer: int,
    holder: int,
    path: tuple[bytes, ...],
    deal: Deal,
) -> tuple[bytes, bytes]:
    """A dealt share (64 bytes), and the KEM ciphertext that came with it (empty from a later client).

    Raises:
        RemoteProtocolError: Blames the aggregator for a parcel that the dealer did not sign, the dealer for
            one that does not open or contradicts its commitment.
    """
    name = masked.name_of(dealer)
    if not merkle.verify(deal.parcels_root, encoded, holder, siblings=path):
        raise RemoteProtocolError(AGGREGATOR, f"the parcel from {name} is not the one that it signed")
    parcel = Parcel.decode(encoded, peer=name, sender=dealer, recipient=holder)
    context = share_context(digest=masked.digest, dealer=name, holder=masked.name_of(holder))
    try:
        share = sealing.open(parcel.sealed, info=context)
    except ValueError:
        raise RemoteProtocolError(name, "its sealed share does not open") from None
    commitments = share_commitments(share, digest=masked.digest, dealer=name, holder=masked.name_of(holder))
    if not hmac.compare_digest(b"".join(commitments), parcel.root_commitment + parcel.self_commitment):
        raise RemoteProtocolError(name, "its share differs from its commitment")
    return share, parcel.kem_ciphertext


def open_escrow(
    masked: MaskedRound,
    client: int,
    *,
    root: bytes,
    escrow: bytes,
    ciphertexts: Mapping[int, bytes],
    directory: bytes,
) -> dict[int, bytes]:
    """The KEM secrets of a client whose root is known, by the later client that each one is shared with.

    Raises:
        RemoteProtocolError: Blames the client whose escrow does not open.
    """
    name = masked.name_of(client)
    later = sorted(ciphertexts)
    key = escrow_key(
        root,
        digest=masked.digest,
        client=name,
        directory=directory,
        ciphertexts=b"".join(ciphertexts[index] for index in later),
    )
    context = escrow_context(digest=masked.digest, client=name, directory=directory)
    try:
        secrets = aead_open(key, escrow[:NONCE_BYTES], escrow[NONCE_BYTES:], associated=context)
    except ValueError:
        raise RemoteProtocolError(name, "its escrow does not open") from None
    return {
        index: secrets[place * SECRET_BYTES : (place + 1) * SECRET_BYTES] for place, index in enumerate(later)
    }
