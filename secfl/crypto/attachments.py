"""What a scheme may add to a masking round: opaque bytes beside the masked vectors.

A masked input carries, after its vectors, an attachment of a fixed size. The client's signed header covers it
(through the digest of the whole input), so it enjoys the same rules as the vectors: one per client and round,
bound to the members and to the round, counted only if the client is among the survivors. The masking core
never looks inside. It hands the bytes to an `AttachmentSink`, which lives with the aggregator.

A scheme on top of masking builds a `secfl.crypto.masking_round.MaskedRound` whose ``vectors`` are what
masking sums (they need not be the vectors of the round's specification) and whose ``attachment_bytes`` is the
size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secfl.types import ClientId

__all__ = ["AttachmentSink", "Words"]

Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]
"""Residues modulo ``2**modulus_bits``, one a word, shape ``(length,)``."""


class AttachmentSink(Protocol):
    """Where the aggregator puts attachments. One sink belongs to one round of one aggregator.

    The aggregator calls, for every masked input that passed size, signature, membership and digest checks,
    first `check` and then, when nothing was raised, `add`. After the masked sums were opened it calls
    `finish` once, with the survivors, who are exactly the clients whose attachments were added.
    """

    @property
    def expected_size(self) -> int:
        """Bytes of every attachment; must equal ``MaskedRound.attachment_bytes``."""
        ...

    def check(self, peer: ClientId, data: memoryview) -> None:
        """Refuse a malformed attachment with `RemoteProtocolError` that blames ``peer``; change nothing."""
        ...

    def add(self, peer: ClientId, data: memoryview) -> None:
        """Add a checked attachment. Must not keep ``data``: it is a view of the envelope's payload."""
        ...

    def finish(self, sums: Mapping[str, Words], survivors: tuple[ClientId, ...]) -> Mapping[str, Words]:
        """Turn the opened masked sums and the added attachments into the round's result.

        Args:
            sums: Sum modulo ``2**modulus_bits`` of every masked vector of the ``MaskedRound``, by name.
            survivors: Whose inputs and attachments were added, sorted.

        Returns:
            The sums of the vectors of the round's specification: what `RoundResult.sums` will hold.

        Raises:
            RoundAborted: The result cannot be formed; the aggregator's state becomes ``Aborted``.
        """
        ...

    def snapshot(self) -> bytes:
        """Everything `restore` needs; stored inside the aggregator's snapshot."""
        ...

    def restore(self, snapshot: bytes) -> None:
        """Continue from `snapshot`; `LocalProtocolError` when it is damaged."""
        ...
